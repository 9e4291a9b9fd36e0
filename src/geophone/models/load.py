"""Networks that the user already has: from a Python file, a weights file, a job's folder, timm or torchvision.

Weights are read with safetensors or `weights_only=True`: nothing that was downloaded is ever unpickled.
"""

import importlib
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from geophone.core.arguments import checked
from geophone.core.checksums import BLANK, KEY, is_sealed, read_checked, read_json, sealed, write_json
from geophone.core.errors import GeophoneError, reason_of, short
from geophone.core.files import replacing
from geophone.core.registry import MODELS, load_file, parse_call
from geophone.models.networks import Normalise

WEIGHTS = "model.safetensors"
CARD = "network.json"
_AGAIN = "Run the study again: it makes the network anew."
_FORMS = (
    "Give file.py:factory (or file.py:module), a .safetensors or state-dict file with --factory, a job's folder, "
    "timm:NAME or torchvision:NAME."
)
_SCRIPTED = "Layers of TorchScript can't be recorded: give the Python code of the network and its state dict."
_LAYOUTS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "ema")
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@checked
def load_model(
    source: str | Path | nn.Module,
    factory: str | None = None,
    *,
    classes: int = 10,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
) -> nn.Module:
    """A network from wherever the user has it, on the CPU, in eval mode.

    Args:
        source: A module (returned as it is); `file.py:factory`, a function or class without required arguments; a
            `.safetensors` file or a state dict that `torch.save` wrote, with `factory`; a job's folder; `timm:NAME` or
            `torchvision:NAME`, pretrained and with their normalisation put inside.
        factory: What makes the network for a weights file: `file.py:factory`, or a registered model such as
            `small_cnn(width=16)`, whose classes, mean and std are read off the weights.
        classes: Number of logits for a registered model whose weights do not tell.
        mean: Mean per channel for such a model, on the [0, 1] scale.
        std: Standard deviation per channel, likewise.

    A checkpoint may hold its weights flat or under a name: the entry that is a dictionary of tensors is taken, and
    where there are several, the first of state_dict, model_state_dict, model_state, model, network, net, module, ema.
    Beginnings that all names share (`module.`, `_orig_mod.`, `net.`) are left out where the network has them without.
    Numbers of another float type are rounded to the network's; a count that BatchNorm keeps (`num_batches_tracked`)
    may be missing.

    Raises:
        GeophoneError: nothing is there, the file is damaged or would have to be unpickled, the weights do not fit the
            network, are not finite, or are of a kind that would change their values (whole numbers for floats, float8,
            quantised, sparse); the user's code fails or leaves; an extra is missing.
    """
    if isinstance(source, nn.Module):
        return source
    text = str(source)
    zoo, _, name = text.partition(":")
    if zoo in _ZOOS and name:
        return _ZOOS[zoo](name).eval()
    path = Path(text)
    if _is(path, Path.is_dir):
        return _load_job(path)
    if ".py:" in text:
        return _from_file(text)
    if path.suffix == ".py":
        raise GeophoneError(f"{text}: name the function that makes the network, as in {text}:make_model.")
    if not _is(path, Path.is_file):
        raise GeophoneError(f"no model at {short(text)}. {_FORMS}")
    if factory is None:
        raise GeophoneError(f"{text} holds weights only: say what makes the network with --factory file.py:function.")
    state = _read_weights(path)
    if ".py:" in factory:
        model = _from_file(factory)
    else:
        own = {"classes": classes, "mean": mean, "std": std} | _shape_of(state)
        name, given = parse_call(factory, "model")
        model = MODELS.build(name, **(own | given))
    return _with_weights(model, state, path)


def save_network(model: nn.Module, folder: Path, name: str, arguments: dict[str, Any]) -> None:
    """Write a registered network's weights and the card that says how to make it again.

    The card comes last: a folder that has one is whole.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(sealed(safetensors_bytes(tensors, {KEY: BLANK})))
    write_json(folder / CARD, {"model": name, "arguments": arguments})


def _load_job(folder: Path) -> nn.Module:
    card = folder / CARD
    if not card.is_file():
        raise GeophoneError(f"{folder} is not a finished job's folder (it has no {CARD}). {_FORMS}")
    made = read_json(card, _AGAIN)
    name, arguments = made.get("model"), made.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise GeophoneError(f"{card} is not readable: it does not say which model it is of. {_AGAIN}")
    weights = folder / WEIGHTS
    _check_network(weights)
    return _with_weights(MODELS.build(name, **arguments), _read_weights(weights), weights)


def _check_network(weights: Path) -> None:
    """Raise an error for weights that are not what `save_network` wrote, with a checksum or, earlier, no metadata."""
    data = read_checked(weights, _AGAIN)
    if not is_sealed(data):
        try:
            with safe_open(weights, "pt") as opened:
                metadata = opened.metadata()
        except Exception as error:  # of the library's own
            raise GeophoneError(f"{weights} is corrupt ({reason_of(error)}). {_AGAIN}") from None
        if metadata:
            raise GeophoneError(f"{weights} is corrupt (its checksum is damaged). {_AGAIN}")


def network_is_whole(folder: Path) -> bool:
    """Whether a job's folder has a network that is what was written."""
    try:
        read_json(folder / CARD, _AGAIN)
        _check_network(folder / WEIGHTS)
    except GeophoneError:
        return False
    return True


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether a path is of a kind; False for what can't be a path at all, such as a name of 300 characters."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


def _from_file(text: str) -> nn.Module:
    """`path/to/file.py:factory` called without arguments, in eval mode.

    What the user's code raises, and its leaving (sys.exit), becomes one error; what ends the process at once (os._exit,
    a crash of compiled code) can't be caught.
    """
    file, _, name = text.rpartition(":")
    module = load_file(Path(file), "model")
    try:
        factory = getattr(module, name, None)
        if isinstance(factory, nn.Module):
            return factory.eval()
        if not callable(factory):
            raise GeophoneError(f"{file} has no function {short(name)}. Name one that returns a torch.nn.Module.")
        try:
            signature(factory).bind()
        except TypeError as error:
            raise GeophoneError(f"{text} must be callable without arguments: {error}.") from None
        except ValueError:
            pass  # compiled code has no signature: it is seen when it is called
        model = factory()
        if not isinstance(model, nn.Module):
            what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
            raise GeophoneError(f"{text} returned {what}, not a torch.nn.Module.")
        return model.eval()
    except GeophoneError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code fails in any way
        raise GeophoneError(f"{text} failed: {reason_of(error)}") from error


def _shape_of(state: dict[str, Tensor]) -> dict[str, Any]:
    """Classes, mean and std of one of the package's own networks, from its weights."""
    parts = [state.get(key) for key in ("normalise.mean", "normalise.std", "head.bias")]
    if not all(part is not None and _is_plain(part) and part.ndim and _is_whole(part) for part in parts):
        return {}
    mean, std, head = (part for part in parts if part is not None)
    return {"classes": len(head), "mean": mean.flatten().tolist(), "std": std.flatten().tolist()}


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor's numbers stand in memory one by one, and mean what they say."""
    return value.layout is torch.strided and not (value.is_meta or value.is_quantized or value.is_nested)


def _is_whole(value: Tensor) -> bool:
    """Whether as much is held as the shape says: a view with steps of 0 may say anything."""
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _with_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """The network with these weights, in eval mode.

    Raises:
        GeophoneError: names or shapes differ, or a value would not be what the file says.
    """
    own = model.state_dict()
    strange = [key for key, value in own.items() if not _is_ready(value)]
    if strange:
        raise GeophoneError(
            f"the network's own {strange[0]!r} has no numbers to replace (lazy, meta or quantised). Let the factory "
            "return a network that can run, in floats."
        )
    while state and not set(state) <= set(own):
        prefix = next(iter(state)).partition(".")[0] + "."
        if not all(key.startswith(prefix) and len(key) > len(prefix) for key in state):
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    counts = {key for key in own if key.endswith("num_batches_tracked") and key not in state}
    wrong = [key for key in own if key not in counts and not _has_shape(state.get(key), own[key])]
    extra = [key for key in state if key not in own]
    if wrong or extra:
        first = f"{wrong[0]!r} is missing or has another shape" if wrong else f"{short(extra[0])} is not in the network"
        raise GeophoneError(
            f"{path} does not fit the network: {first} ({len(wrong) + len(extra)} such). Check --factory."
        )
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    kept = {key: own[key] for key in counts}
    given = {key: _converted(state[key], own[key], key, key in parameters, path) for key in own if key not in counts}
    try:
        model.load_state_dict(kept | given)
    except Exception as error:  # a module may read its weights in its own way
        raise GeophoneError(f"{path} does not fit the network: {reason_of(error)}. Check --factory.") from error
    return model.eval()


def _has_shape(value: Tensor | None, own: Tensor) -> bool:
    return value is not None and not value.is_nested and value.shape == own.shape  # a nested tensor has none


def _is_ready(value: Any) -> bool:
    return isinstance(value, Tensor) and not is_lazy(value) and _is_plain(value)


def _converted(value: Tensor, own: Tensor, key: str, parameter: bool, path: Path) -> Tensor:
    """A weight in the network's type, its values as the file has them but for rounding.

    A mask may hold infinities: where a buffer of the network has the same, so may the file's.
    """
    if not _is_plain(value):
        kind = "without numbers (meta)" if value.is_meta else "sparse, nested or quantised"
        raise GeophoneError(f"{path}: the weight {key!r} is {kind}. Save the network's state dict in dense floats.")
    types = f"{_name(value)} where the network has {_name(own)}"
    rounds = value.dtype in _FLOATS and own.dtype in _FLOATS
    counts = value.dtype in (*_FLOATS, *_WHOLE) and own.dtype in _WHOLE
    if not (rounds or counts or value.dtype == own.dtype):
        raise GeophoneError(
            f"{path}: the weight {key!r} is {types}. Save it in that type: a scale that belongs to it would be lost."
        )
    if value.is_floating_point() or value.is_complex():
        bad = ~(value.float() if value.itemsize == 1 else value).isfinite()
        if not parameter and rounds:
            bad &= value != own
        if bool(bad.any()):
            raise GeophoneError(f"{path}: the weight {key!r} has NaN or infinite values. Load a sound checkpoint.")
    new = value.to(own.dtype)
    lost = (new != value) if counts else (new.isinf() & value.isfinite()) if rounds else None
    if lost is not None and bool(lost.any()):
        raise GeophoneError(
            f"{path}: the weight {key!r} is {types}, which can't hold its values. Save it in that type."
        )
    return new


def _name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _read_weights(path: Path) -> dict[str, Tensor]:
    """A flat dictionary of tensors by name, found as `load_model` says. Nothing is unpickled.

    Raises:
        GeophoneError: the file is damaged, of another kind, or holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                ours = KEY in (opened.metadata() or {})
            if ours:
                read_checked(path, "Load another copy of it.")
            return load_safetensors(path)
        _check_whole(path)
        with warnings.catch_warnings(action="ignore"):  # of old or foreign pickle protocols; refused below if unsafe
            state = torch.load(path, map_location="cpu", weights_only=True)
    except GeophoneError:
        raise
    except Exception as error:  # a file of something else fails in many ways
        raise _unreadable(path, error) from None
    found = _found(state)
    if not found:
        raise GeophoneError(f"{path} holds no state dict of tensors. Save model.state_dict().")
    if len(found) > 1 and not set(found) & set(_LAYOUTS):
        raise GeophoneError(
            f"{path} holds several dictionaries of tensors: {', '.join(map(short, found))}. Save the one to use alone."
        )
    return next((found[name] for name in _LAYOUTS if name in found), next(iter(found.values())))


def _check_whole(path: Path) -> None:
    """Raise for a damaged zip file: torch looks neither at the checksums in it nor at what its parts claim to be.

    Torch stores parts as they are, so that together they are no longer than the file. Checksums of 0 were left out when
    it was written (`torch.serialization.set_crc32_options`).
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            parts = file.infolist()
            damaged = sum(part.file_size for part in parts) > path.stat().st_size
            if damaged or (any(part.CRC for part in parts) and file.testzip() is not None):
                raise GeophoneError(f"{path} is damaged: its checksums or lengths are wrong. Save or fetch it anew.")


def _unreadable(path: Path, error: Exception) -> GeophoneError:
    """What is wrong with a file that torch refuses."""
    text = str(error)
    if "TorchScript" in text:
        return GeophoneError(f"{path} is a TorchScript archive, not weights. {_SCRIPTED}")
    other = re.search(r"GLOBAL ([\w.]+)", text)
    if other:
        return GeophoneError(
            f"{path} is not a readable file of weights: besides tensors it holds {other[1]}, and objects are never "
            "unpickled here. Where you trust it, save the weights alone: "
            "torch.save(torch.load(file, weights_only=False)['state_dict'], 'weights.pt')."
        )
    return GeophoneError(
        f"{path} is not a readable file of weights ({reason_of(error)}). Save a state dict with torch.save or "
        "safetensors."
    )


def _found(state: Any, depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """The state dicts in what was read, by the names that they have there; a flat one has the name ""."""
    if not isinstance(state, dict) or not state:
        return {}
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        return {"": state}
    found = {}
    for name, part in state.items():
        inside = _found(part, depth + 1) if depth < 2 and isinstance(name, str) else {}
        best = next((inside[key] for key in ("", *_LAYOUTS) if key in inside), next(iter(inside.values()), None))
        if best is not None:
            found[name] = best
    return found


def _with_normalisation(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    return nn.Sequential(OrderedDict(normalise=Normalise(mean, std), net=model))


def _timm(name: str) -> nn.Module:
    import_torchvision()
    timm = _extra("timm")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm and its hub client raise many kinds
        raise GeophoneError(f"timm:{name} could not be made: {reason_of(error)}") from error
    return _with_normalisation(model, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


def _torchvision(name: str) -> nn.Module:
    models = import_torchvision().models
    try:
        model = models.get_model(name, weights="DEFAULT")
    except Exception as error:  # unknown name, no network, broken download
        raise GeophoneError(f"torchvision:{name} could not be made: {reason_of(error)}") from error
    return _with_normalisation(model, *_IMAGENET)


_ZOOS: dict[str, Callable[[str], nn.Module]] = {"timm": _timm, "torchvision": _torchvision}


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise GeophoneError(f"{name} is not installed. Run: pip install 'geophone[{name}]'") from None


def import_torchvision() -> Any:
    """Torchvision, also beside a CPU build of torch.

    There its wheel cannot load its compiled operators and fails on import because two of them are unknown; with their
    schemas declared, all that is written in Python works, and the two operators say so if they are called.
    """
    try:
        return _extra("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)  # the declarations live as long as the library object
    return _extra("torchvision")


_declared: list[torch.library.Library] = []
