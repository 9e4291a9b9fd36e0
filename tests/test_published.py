"""The published corrupted sets as rows of the table, from small files of their layouts."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from geophone.analysis.scores import STANDARD, scores
from geophone.core import table as tables
from geophone.core.errors import GeophoneError
from geophone.data import Split
from geophone.metrics import accuracy
from geophone.probes.layers import measure
from geophone.probes.published import published

N, CLASSES = 12, 10
CLEAN = np.random.default_rng(2).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)


def images(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def network() -> nn.Module:
    """Random weights, centred on mid-grey so that answers differ between images."""
    generator = torch.Generator().manual_seed(0)
    hidden, last = nn.Linear(3 * 32 * 32, 40), nn.Linear(40, CLASSES)
    with torch.no_grad():
        for layer in (hidden, last):
            layer.weight.normal_(generator=generator)
            layer.bias.zero_()
        hidden.bias -= hidden.weight.sum(1) / 2
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), last).eval()


# What the network says of the clean images, so that accuracy falls with severity.
LABELS = network()(images(CLEAN).float() / 255).argmax(1).numpy()


def corrupted(corruption: str) -> np.ndarray:
    """[5n, 32, 32, 3]: the clean images with noise that grows with severity."""
    rng = np.random.default_rng(list(corruption.encode()))
    noise = rng.integers(-120, 120, (5, *CLEAN.shape)) * np.arange(1, 6)[:, None, None, None, None] // 5
    return np.clip(CLEAN + noise, 0, 255).astype(np.uint8).reshape(5 * N, 32, 32, 3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for corruption in ("fog", "frost", "spatter"):
        np.save(folder / f"{corruption}.npy", corrupted(corruption))
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    return tmp_path


@pytest.fixture
def clean() -> Split:
    return Split(images(CLEAN), torch.from_numpy(LABELS), torch.arange(N))


@pytest.fixture
def model() -> nn.Module:
    return network()


def expected(model: nn.Module, corruption: str, severity: int, rows: Any = slice(None)) -> float:
    """Accuracy worked out on the file itself."""
    part = corrupted(corruption)[(severity - 1) * N : severity * N][rows]
    with torch.no_grad():
        answers = model(images(part).float() / 255).argmax(1)
    return float((answers == torch.from_numpy(LABELS[rows])).double().mean())


def accuracies(rows: pl.DataFrame) -> dict[tuple[str, float], float]:
    there = rows.filter((pl.col("metric") == "accuracy") & (pl.col("family") == "corruption"))
    return {(p, s): v for p, s, v in there.select("perturbation", "level", "value").iter_rows()}


@pytest.mark.parametrize("paired", [False, True], ids=["alone", "with clean images"])
def test_rows_are_those_of_the_files(root: Path, model: nn.Module, clean: Split, paired: bool) -> None:
    rows = published(model, "cifar10_c", ["fog", "frost"], root=root, clean=clean if paired else None, batch_size=5)
    assert rows.schema == tables.SCHEMA
    found = accuracies(rows)
    assert found == {
        (f"{name}(published='cifar10_c')", float(s)): expected(model, name, s)
        for name in ("fog", "frost")
        for s in range(1, 6)
    }
    assert len(set(found.values())) > 3
    assert set(rows["dataset"]) == {"cifar10_c"}
    assert set(rows["n"]) == {N}
    assert set(rows["metric"]) == {"accuracy", "margin", "loss"}
    assert rows.filter(pl.col("family") == "clean").height == (3 if paired else 0)  # once, not once for each corruption


def test_clean_accuracy_is_that_of_the_clean_images(root: Path, model: nn.Module, clean: Split) -> None:
    rows = published(model, "cifar10_c", ["fog"], [3], root=root, clean=clean)
    with torch.no_grad():
        direct = accuracy(model(clean.x.float() / 255), clean.y)
    value = rows.filter((pl.col("family") == "clean") & (pl.col("metric") == "accuracy"))["value"].item()
    assert value == direct


def test_a_corrupted_image_meets_the_clean_one_of_its_index(root: Path, model: nn.Module, clean: Split) -> None:
    """In any order of the clean images; and a mutant that meets them by row is seen."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    metrics = ["accuracy", "normalised_distance", "cka"]

    def compared(base: Split) -> pl.DataFrame:
        rows = published(model, "cifar10_c", ["frost"], [2, 5], root=root, clean=base, metrics=metrics, batch_size=4)
        return rows.filter(pl.col("other") == "clean").sort("level", "layer", "metric")

    straight, shuffled = compared(clean), compared(clean.rows(order))
    assert straight.height == 2 * 2 * 1
    assert straight["value"].to_numpy() == pytest.approx(shuffled["value"].to_numpy(), abs=1e-9)
    by_row = measure(model, clean.rows(order), [ByRow(5)], metrics=["normalised_distance"], batch_size=N)
    mutant = by_row.filter(pl.col("other") == "clean")["value"].item()
    right = straight.filter((pl.col("level") == 5) & (pl.col("metric") == "normalised_distance"))["value"].item()
    assert abs(mutant - right) > 0.01


@dataclass(frozen=True)
class ByRow:
    """The mutant: row i of the file for row i of the batch, whatever its index."""

    severity: int
    level: ClassVar[str] = "severity"
    levels: ClassVar[tuple[float, ...]] = (1,)
    family: ClassVar[str] = "corruption"

    def __call__(self, x: Tensor, y: Tensor, model: Any, rng: Any) -> Tensor:
        return images(corrupted("frost")[(self.severity - 1) * N : self.severity * N]).float() / 255


def test_a_part_of_the_clean_images_measures_the_same_part(root: Path, model: nn.Module, clean: Split) -> None:
    some = np.array([7, 2, 9])
    rows = published(model, "cifar10_c", ["fog"], [4], root=root, clean=clean.rows(torch.from_numpy(some)))
    assert accuracies(rows) == {("fog(published='cifar10_c')", 4.0): expected(model, "fog", 4, some)}
    assert set(rows["n"]) == {3}
    few = published(model, "cifar10_c", ["fog"], [4], root=root, images=6)
    assert few["n"].unique().to_list() == [6]
    both = published(model, "cifar10_c", ["fog"], [4], root=root, images=6, clean=clean)
    assert accuracies(few) == accuracies(both)


def test_scores_take_the_rows_as_they_are(root: Path, model: nn.Module, clean: Split) -> None:
    rows = published(model, "cifar10_c", ["fog", "spatter"], root=root, clean=clean, columns={"job": "a", "seed": 1})
    found = scores(rows, baseline="a")
    assert set(found["source"]) == {"published='cifar10_c'"}
    whole = found.filter(pl.col("corruption").is_null() & pl.col("severity").is_null())
    mean = np.mean([expected(model, "fog", s) for s in range(1, 6)])
    assert whole.filter(pl.col("metric") == "corruption_accuracy")["value"].item() == pytest.approx(mean, abs=1e-12)
    assert whole.filter(pl.col("metric") == "mce")["value"].item() == 1


def test_layers_are_recorded_only_if_a_metric_asks(
    root: Path, model: nn.Module, clean: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = import_module("geophone.probes.published")
    asked: list[Any] = []

    def spy(*arguments: Any, **named: Any) -> pl.DataFrame:
        asked.append(named["layers"])
        return measure(*arguments, **named)

    monkeypatch.setattr(room, "measure", spy)
    published(model, "cifar10_c", ["fog"], [1], root=root)
    rows = published(model, "cifar10_c", ["fog"], [1], root=root, metrics=["class_selectivity"], layers=["2"])
    assert asked == [(), ["2"]]
    assert rows["unit"].null_count() == len(rows)
    assert "2" in rows["layer"]
    assert set(rows["family"]) == {"corruption"}


def test_folders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    pixels = []
    for wnid in ("n01440764", "n01443537"):
        for i in range(3):
            file = tmp_path / "Tiny-ImageNet-C" / "fog" / "2" / wnid / f"{i}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(len(pixels)).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
            pixels.append(np.asarray(Image.open(file)))
    rows = published(model, "tiny_imagenet_c", ["fog"], [2], root=tmp_path)
    with torch.no_grad():
        answers = model(images(np.array(pixels)).float() / 255).argmax(1)
    expected_ = float((answers == torch.tensor([0, 0, 0, 1, 1, 1])).double().mean())
    assert accuracies(rows) == {("fog(published='tiny_imagenet_c')", 2.0): expected_}

    four = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()  # two class folders are two of its outputs, or none
    with pytest.raises(GeophoneError, match=r"2 class folders.* the network gives 4 logits"):
        published(four, "tiny_imagenet_c", ["fog"], [2], root=tmp_path)
    (tmp_path / "wnids.txt").write_text("n01443537\nn01882714\nn01440764\nn01629819")
    rows = published(four, "tiny_imagenet_c", ["fog"], [2], root=tmp_path, classes=tmp_path / "wnids.txt")
    with torch.no_grad():
        answers = four(images(np.array(pixels)).float() / 255).argmax(1)
    expected_ = float((answers == torch.tensor([2, 2, 2, 0, 0, 0])).double().mean())
    assert accuracies(rows) == {("fog(published='tiny_imagenet_c')", 2.0): expected_}


def test_progress_counts_files(root: Path, model: nn.Module) -> None:
    seen: list[tuple[int, int]] = []
    published(
        model, "cifar10_c", ["fog", "frost"], [1, 2], root=root, progress=lambda done, all_: seen.append((done, all_))
    )
    assert seen == [(2, 4), (4, 4)]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown set": ({"data": "cifar_c"}, "unknown published set 'cifar_c'. Did you mean"),
    "no corruption": ({"corruptions": []}, "nothing to measure on cifar10_c"),
    "severity 7": ({"severities": [7]}, "severity is 7; allowed are 1, 2, 3, 4 and 5"),
    "missing file": ({"corruptions": STANDARD}, "unknown corruption 'gaussian_noise'.*Allowed: fog, frost, spatter"),
    "pairs alone": ({"metrics": ["cka"]}, "'cka' compares with clean images: give them as `clean`"),
    "unknown metric": ({"metrics": ["ckaa"]}, "unknown metric 'ckaa'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_error(root: Path, model: nn.Module, what: str) -> None:
    arguments, said = BAD[what]
    with pytest.raises(GeophoneError, match=said) as caught:
        published(model, **{"corruptions": ["fog"], "root": root, **arguments})
    assert "\n" not in str(caught.value)


def test_other_clean_images_are_refused(root: Path, model: nn.Module, clean: Split) -> None:
    wrong = {
        "differ at the same index": Split(clean.x, clean.y.roll(1), clean.index),
        "indices up to 12": Split(clean.x, clean.y, clean.index + 1),
        "labels or sizes": Split(clean.x[:, :, :30], clean.y, clean.index),
    }
    for said, base in wrong.items():
        with pytest.raises(GeophoneError, match=said):
            published(model, "cifar10_c", ["fog"], root=root, clean=base)
