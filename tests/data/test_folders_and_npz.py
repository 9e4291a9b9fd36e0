"""A user's own images: folders in the usual layouts, and `.npz` files."""

import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from geophone.core.errors import GeophoneError
from geophone.data import imagefolder, load


def picture(seed, mode="RGB", size=(6, 5)):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def fill(root, part, each=2, mode="RGB", classes=("ant", "bee"), inner="", suffix=".png"):
    """Write `each` pictures per class; what they must be read as, in order."""
    return [
        save(root / part / name / inner / f"{i}{suffix}", picture([len(part), len(name), ord(name[0]), i], mode))
        for name in classes
        for i in range(each)
    ]


def pixels(split):
    x = split.x.permute(0, 2, 3, 1).numpy()
    return x if x.shape[3] > 1 else x[..., 0]


def test_train_and_test(tmp_path):
    train, test = fill(tmp_path, "train", 10), fill(tmp_path, "test", 3)
    data = load(tmp_path)
    assert (data.name, data.classes, data.channels, data.size) == (tmp_path.name, ("ant", "bee"), 3, (5, 6))
    assert np.array_equal(pixels(data.test), test)
    assert data.test.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert (len(data.train), len(data.val)) == (18, 2)
    assert np.array_equal(pixels(data.train), np.array(train)[data.train.index])
    assert data.val.y.tolist() == [0, 1]


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_train_val_and_test(tmp_path, validation):
    fill(tmp_path, "train", 4)
    val, test = fill(tmp_path, validation), fill(tmp_path, "test", 1)
    data = load(str(tmp_path))
    assert np.array_equal(pixels(data.val), val)
    assert np.array_equal(pixels(data.test), test)
    assert len(data.train) == 8


def test_with_train_and_val_only_val_is_the_test_part(tmp_path):
    fill(tmp_path, "train", 10)
    val = fill(tmp_path, "val")
    data = load(tmp_path)
    assert np.array_equal(pixels(data.test), val)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 4)


def test_a_flat_folder_is_all_test(tmp_path):
    images = fill(tmp_path, ".", 3)
    (tmp_path / ".cache").mkdir()
    data = load(tmp_path)
    assert np.array_equal(pixels(data.test), images)
    assert (len(data.train), len(data.val)) == (0, 0)


@pytest.mark.parametrize("sorted_val", [False, True])
def test_tiny_imagenet(tmp_path, sorted_val):
    wnids = ("n01443537", "n01629819")
    train = fill(tmp_path, "train", 10, classes=wnids, inner="images")
    (tmp_path / "train" / wnids[0] / f"{wnids[0]}_boxes.txt").write_text("0.JPEG\t0\t0\t62\t62\n")
    save(tmp_path / "test" / "images" / "test_0.png", picture(99))  # without labels, so it is no part
    if sorted_val:
        val = fill(tmp_path, "val", 2, classes=wnids, inner="images")
    else:
        val = [save(tmp_path / "val" / "images" / f"val_{i}.png", picture(i)) for i in range(4)]
        lines = [f"val_{i}.png\t{wnids[i > 1]}\t0\t32\t44\t62\n" for i in (3, 0, 2, 1)]
        (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    (tmp_path / "wnids.txt").write_text("\n".join(wnids[::-1]))
    data = load(tmp_path)
    assert data.classes == wnids
    assert np.array_equal(pixels(data.test), val)
    assert data.test.y.tolist() == [0, 0, 1, 1]
    assert np.array_equal(pixels(data.train), np.array(train)[data.train.index])


def test_tiny_imagenet_is_found_by_its_folder(tmp_path, monkeypatch):
    wnids = ("n01443537", "n01629819")
    folder = tmp_path / "tiny-imagenet-200"
    fill(folder, "train", 10, classes=wnids, inner="images")
    val = [save(folder / "val" / "images" / f"val_{i}.png", picture(i)) for i in range(2)]
    (folder / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{i}.png\t{wnids[i]}\t0\t0\t62\t62\n" for i in (0, 1))
    )
    for root in (tmp_path, folder):
        data = load(f"tiny_imagenet(root={str(root)!r})")
        assert data.name == "tiny_imagenet"
        assert np.array_equal(pixels(data.test), val)
        assert (len(data.train), len(data.val)) == (18, 2)
    monkeypatch.setenv("GEOPHONE_DATA", str(tmp_path))
    assert len(load("tiny_imagenet").test) == 2
    monkeypatch.setenv("GEOPHONE_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(GeophoneError, match="Unpack tiny-imagenet-200.zip"):
        load("tiny_imagenet")


def test_jpegs_of_any_suffix_are_decoded_as_pillow_does(tmp_path):
    paths = [tmp_path / "ant" / name for name in ("a.jpg", "b.jpeg", "c.JPEG", "d.JPG")]
    for i, path in enumerate(paths):
        save(path, picture(i))
    assert np.array_equal(pixels(load(tmp_path).test), [np.asarray(Image.open(path).convert("RGB")) for path in paths])


def test_all_grey_is_one_channel_and_some_grey_is_rgb(tmp_path):
    grey = fill(tmp_path / "grey", ".", 2, mode="L")
    data = load(tmp_path / "grey")
    assert data.channels == 1
    assert np.array_equal(pixels(data.test), grey)
    mixed = [
        save(tmp_path / "mixed" / "ant" / "0.png", picture(0, "L")),
        save(tmp_path / "mixed/ant/1.png", picture(1)),
    ]
    assert np.array_equal(pixels(load(tmp_path / "mixed").test), [np.stack([mixed[0]] * 3, 2), mixed[1]])


def test_transparency_is_dropped(tmp_path):
    rgba = np.dstack([picture(0), picture(1, "L")])
    save(tmp_path / "ant" / "0.png", rgba)
    assert np.array_equal(pixels(load(tmp_path).test)[0], rgba[..., :3])


def break_folder(root, how):
    fill(root, "train", 4)
    fill(root, "test", 2)
    file = root / "test" / "bee" / "1.png"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-30])
    elif how == "not an image":
        file.write_text("hello")
    elif how == "empty image":
        file.write_bytes(b"")
    elif how == "another size":
        save(file, picture(0, size=(7, 5)))
    elif how == "sixteen bits":
        save(file, picture(0, "L").astype(np.uint16))
    elif how == "a class that train lacks":
        save(root / "test" / "cat" / "0.png", picture(0))
    elif how == "an empty class":
        (root / "train" / "cat").mkdir()


BAD_FOLDERS = {
    "truncated": r"test/bee/1.png is missing, truncated or not an image",
    "not an image": r"test/bee/1.png is missing, truncated or not an image",
    "empty image": r"test/bee/1.png is missing, truncated or not an image",
    "another size": r"test/bee/1.png is 7 pixels wide and 5 high, but .*train/ant/0.png is 6 wide.*, size=224\) ",
    "sixteen bits": r"test/bee/1.png has the mode I;16; allowed are grey and RGB of 8 bits",
    "a class that train lacks": r"unknown class 'cat'.*test/cat/0.png is of it, but .*train has no such class",
    "an empty class": r"the class folder .*train/cat holds no images",
}


@pytest.mark.parametrize("how", BAD_FOLDERS)
def test_a_broken_folder_gives_one_clear_line(tmp_path, how):
    break_folder(tmp_path, how)
    with pytest.raises(GeophoneError, match=BAD_FOLDERS[how]) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_without_test_images(tmp_path):
    with pytest.raises(GeophoneError, match="no class folders with test images"):
        load(tmp_path)
    fill(tmp_path, "train")
    with pytest.raises(GeophoneError, match="no class folders with test images"):
        load(tmp_path)
    with pytest.raises(GeophoneError, match="no folder at"):
        load(f"imagefolder(path='{tmp_path / 'nowhere'}')")


@pytest.mark.parametrize("line", ["val_0.png", "val_7.png\tn01"])
def test_annotations_that_do_not_fit(tmp_path, line):
    fill(tmp_path, "train", 4, classes=("n01",))
    save(tmp_path / "val" / "images" / "val_0.png", picture(0))
    (tmp_path / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(GeophoneError, match=r"val_annotations.txt has lines without a tab|val_7.png is missing"):
        load(tmp_path)


# --- images of any size, made one size

WIDE, TALL = (90, 60), (45, 130)  # width and height


def smooth(seed, size):
    """A blurred random picture: bytes after each of the two passes of a filter can differ by rounding only."""
    noise = Image.fromarray(picture(seed, size=(6, 6)))
    return np.asarray(noise.resize(size, Image.Resampling.BICUBIC))


def oracle(image, size, short, antialias=True):
    """PyTorch's resizing of the shorter side to `short`, and the middle cut out: floats on the scale to 255."""
    h, w = image.shape[:2]
    shape = [int(short * side / min(h, w)) for side in (h, w)]
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    x = interpolate(x, shape, mode="bilinear", antialias=antialias)[0].permute(1, 2, 0)
    top, left = (round((side - size) / 2) for side in shape)
    return x[top : top + size, left : left + size].numpy()


def far(split, expected):
    return np.abs(pixels(split).astype(np.float32) - np.array(expected)).max()


@pytest.mark.parametrize(("size", "short"), [(14, 16), (28, 32), (42, 48)])
def test_images_of_any_size_are_resized_and_cut(tmp_path, size, short):
    images = [picture(0, size=WIDE), picture(1, size=TALL), smooth(2, (80, 80)), smooth(3, (9, 12))]
    for i, image in enumerate(images):
        save(tmp_path / "ant" / f"{i}.png", image)
    data = load(f"imagefolder(path='{tmp_path}', size={size})")
    assert data.size == (size, size)
    # Pillow rounds to bytes after each of two passes, and its weights to 2^-22: one level and a bit
    assert far(data.test, [oracle(image, size, short) for image in images]) < 1.6
    for mutant in (
        [oracle(image, size, size) for image in images],
        [oracle(image, size, short + 1) for image in images],
        [oracle(image, size, short, antialias=False) for image in images],
        [oracle(np.roll(image, 1, 1), size, short) for image in images],
    ):
        assert far(data.test, mutant) > 3


def test_a_size_changes_all_parts_and_grey_stays_grey(tmp_path):
    for part, shape in (("train", (40, 30)), ("val", (25, 61))):
        for i in range(4):
            save(tmp_path / part / "ant" / f"{i}.png", picture(i, "L", shape))
    data = imagefolder(tmp_path, size=16)
    assert (data.channels, data.size, len(data.train), len(data.test)) == (1, (16, 16), 3, 4)


def test_without_a_size_images_stay_as_they_are_and_the_remedy_works(tmp_path):
    save(tmp_path / "ant" / "0.png", picture(0, size=WIDE))
    assert load(tmp_path).size == (60, 90)
    save(tmp_path / "ant" / "1.png", picture(1, size=TALL))
    with pytest.raises(GeophoneError, match="All images must have one size") as caught:
        load(tmp_path)
    remedy = str(caught.value).partition("one size: ")[2].partition(" resizes")[0]
    assert load(remedy).size == (224, 224)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("0", "size is 0; allowed are whole numbers from 1"),
        ("-3", "size is -3"),
        ("'big'", "size is 'big'; allowed is a whole number or None"),
        ("2.5", "size is 2.5; allowed is a whole number or None"),
        ("(8, 8)", r"size is \(8, 8\); allowed is a whole number or None"),
    ],
)
def test_a_size_that_is_none(tmp_path, size, message):
    fill(tmp_path, ".")
    with pytest.raises(GeophoneError, match=message):
        load(f"imagefolder(path='{tmp_path}', size={size})")


# --- npz

X = np.arange(40 * 4 * 4 * 3).reshape(40, 4, 4, 3).astype(np.uint8)
Y = np.arange(40) % 4


def test_npz_with_train_and_test(tmp_path):
    np.savez(tmp_path / "mine.npz", x_train=X, y_train=Y, x_test=X[:8], y_test=Y[:8], classes=list("abcd"))
    data = load(tmp_path / "mine.npz")
    assert (data.name, data.classes, data.channels, data.size) == ("mine", tuple("abcd"), 3, (4, 4))
    assert (len(data.train), len(data.val)) == (36, 4)
    assert np.array_equal(pixels(data.test), X[:8])
    assert sorted(data.val.y.tolist()) == [0, 1, 2, 3]


def test_npz_with_a_validation_part(tmp_path):
    parts = {"x_train": X, "y_train": Y, "x_val": X[:4], "y_val": Y[:4], "x_test": X[4:8], "y_test": Y[4:8]}
    np.savez_compressed(tmp_path / "mine.npz", **parts)
    data = load(str(tmp_path / "mine.npz"))
    assert (len(data.train), len(data.val), len(data.test)) == (40, 4, 4)
    assert np.array_equal(pixels(data.val), X[:4])


def test_npz_with_floats_is_all_test(tmp_path):
    x = (X[..., 0] / 255).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=x, y=Y.astype(np.uint8))
    data = load(tmp_path / "mine.npz")
    assert torch.equal(next(data.test.batches(40)).x[:, 0], torch.from_numpy(x))
    assert data.classes == ("0", "1", "2", "3")
    assert len(data.train) == len(data.val) == 0


BAD_ARRAYS = {
    "other names": ({"images": X, "labels": Y}, r"holds images, labels; allowed are x_train"),
    "no test": ({"x_train": X, "y_train": Y}, r"holds x_train, y_train; allowed are"),
    "no training labels": ({"x_train": X, "x_test": X}, "x_train has no y_train; only the test part may be without"),
    "labels of nothing": ({"x_test": X, "y_val": Y}, "y_val has no x_val; give the images"),
    "a label that is an id": (
        {"x": X, "y": Y * 10**12},
        "labels run from 0 to 3000000000000; allowed are 0 and up, be",
    ),
    "long doubles": ({"x": X / np.longdouble(255), "y": Y}, "images are of the type float128; allowed are numbers of"),
    "a matrix of names": ({"x": X, "y": Y, "classes": np.full((2, 2), "a")}, r"`classes` is <U1 \[2, 2\]; allowed is"),
    "pixels to 255": ({"x": X.astype(np.float32), "y": Y}, r"mine.npz, test part: the images run from 0 to 255"),
    "other sizes": (
        {"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y},
        r"train images are uint8 \[3, 4, 4\], the test images uint8 \[3, 2, 4\]",
    ),
    "too few names": ({"x": X, "y": Y, "classes": ["a"]}, "labels go up to 3, but `classes` has 1 names"),
    "python objects": ({"x": X, "y": np.array([{}] * 40, dtype=object)}, "not an .npz of plain arrays"),
}


@pytest.mark.parametrize("how", BAD_ARRAYS)
def test_bad_arrays_give_one_clear_line(tmp_path, how):
    arrays, message = BAD_ARRAYS[how]
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(GeophoneError, match=message) as caught:
        load(tmp_path / "mine.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_truncated_npz_gives_one_clear_line(tmp_path, kept, compressed):
    path = tmp_path / "mine.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=X, y=Y)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(GeophoneError, match=r"mine.npz is truncated, corrupt or not an .npz"):
        load(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_an_npz_with_flipped_bits(tmp_path, compressed):
    path = tmp_path / "mine.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=X, y=Y)
    data = bytearray(path.read_bytes())
    data[300:310] = bytes(255 - b for b in data[300:310])
    path.write_bytes(data)
    with pytest.raises(GeophoneError, match=r"mine.npz is truncated, corrupt or not an .npz"):
        load(path)


def test_an_npy_under_the_wrong_name(tmp_path):
    np.save(tmp_path / "mine.npy", X)
    (tmp_path / "mine.npy").rename(tmp_path / "mine.npz")
    with pytest.raises(GeophoneError, match=r"not an .npz"):
        load(tmp_path / "mine.npz")


# --- whatever Pillow reads, and what is left out


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".tga", ".WEBP", ".jp2", ".qoi"])
def test_pictures_of_other_suffixes_are_read(tmp_path, suffix):
    """They vanished without a word: a class of .webp beside one of .png was an empty class, or fewer images."""
    save(tmp_path / "ant" / "0.png", picture(0, size=(16, 16)))
    save(tmp_path / "ant" / f"1{suffix}", picture(1, size=(16, 16)))
    data = load(tmp_path)
    assert len(data.test) == 2
    with Image.open(tmp_path / "ant" / f"1{suffix}") as image:
        assert np.array_equal(pixels(data.test)[1], np.asarray(image.convert("RGB")))
    assert data.left_out == ()


def test_what_is_left_out_is_counted(tmp_path):
    fill(tmp_path, ".")
    for name in ("notes.txt", "ant/boxes.txt", "ant/scores.csv", "ant/.hidden.png", "ant/.DS_Store"):
        (tmp_path / name).write_text("text")
    save(tmp_path / "loose.png", picture(0))
    save(tmp_path / "ant" / "deeper" / "0.png", picture(0))
    data = load(tmp_path)
    assert len(data.test) == 4
    assert data.left_out == (
        f"{tmp_path} has 2 files that Pillow does not read, such as ant/boxes.txt: they were left out.",
        f"{tmp_path} has 1 image that lies in no class folder, such as loose.png: it was left out.",
        f"{tmp_path} has 1 folder where no images are looked for, such as ant/deeper: it was left out.",
    )


def test_a_program_under_the_name_of_a_picture_is_not_run(tmp_path):
    """Pillow would hand EPS to Ghostscript, whatever the file's name."""
    fill(tmp_path, ".")
    (tmp_path / "ant" / "0.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(GeophoneError, match=r"ant/0.png is missing, truncated or not an image \(cannot identify"):
        load(tmp_path)


def test_a_long_thin_picture_is_not_resized_into_all_memory(tmp_path):
    save(tmp_path / "ant" / "0.png", picture(0, size=(60_000, 1)))
    assert load(tmp_path).size == (1, 60_000)
    with pytest.raises(GeophoneError, match="with size=224 it would be resized to 15360000×256 before its centre"):
        imagefolder(tmp_path, size=224)


@pytest.mark.parametrize(
    "line", ["../../train/n01/0.png\tn01", "/etc/hostname\tn01", "val_0.png\t", "val_0.png\tn01\nval_0.png\tn01"]
)
def test_annotations_name_each_file_of_their_folder_once(tmp_path, line):
    fill(tmp_path, "train", 4, classes=("n01",))
    save(tmp_path / "val" / "images" / "val_0.png", picture(0))
    (tmp_path / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(GeophoneError, match=r"allowed are the name of a file in .*images, each once, and its class"):
        load(tmp_path)


# --- files that were written to hurt: sizes are checked before they are allocated, and nothing waits


def npy(header, data=b""):
    text = header.encode()
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + data


HOSTILE = {
    "huge": ("{'descr': '|u1', 'fortran_order': False, 'shape': (1048576, 1048576, 1)}", "and it has 0"),
    "wrapping": ("{'descr': '|u1', 'fortran_order': False, 'shape': (65536, 65536, 65536, 65536)}", "and it has 0"),
    "negative": ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4)}", r"has the shape \[-1, 4\]"),
    "deep": ("(" * 9_000 + ")" * 9_000, "not an .npz of plain arrays"),
    "objects": ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "never unpickled"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("how", HOSTILE)
def test_a_header_is_believed_only_as_far_as_there_are_bytes(tmp_path, how, compression):
    header, message = HOSTILE[how]
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
        archive.writestr("x.npy", npy(header))
    with pytest.raises(GeophoneError, match=message) as caught:
        load(tmp_path / "x.npz")
    assert len(str(caught.value)) < 1000


def test_what_is_no_file_is_not_waited_for(tmp_path):
    (tmp_path / "pictures" / "ant").mkdir(parents=True)
    os.mkfifo(tmp_path / "pictures" / "ant" / "0.png")
    os.mkfifo(tmp_path / "x.npz")
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    with pytest.raises(GeophoneError, match=r"ant/0.png is missing, truncated or not an image \(there is no such file"):
        load(tmp_path / "pictures")
    for name in ("x.npz", "loop.npz", "a" * 300 + ".npz", "~nobody-at-all/x.npz", "a\0b.npz"):
        with pytest.raises(GeophoneError, match=r"no file at"):
            load(str(tmp_path / name))
    for name in ("", "a" * 300, "a" * 9_000, "/dev/zero"):
        with pytest.raises(GeophoneError, match="unknown data set|is neither") as caught:
            load(name)
        assert len(str(caught.value)) < 2_000
