"""Networks that the user already has: from a Python file, a weights file, a job's folder, timm or torchvision.

Weights are read with safetensors or `weights_only=True`: nothing that was downloaded is ever unpickled.
"""

import importlib
import warnings
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

from geophone.checksums import BLANK, KEY, read_checked, read_json, sealed, write_json
from geophone.errors import GeophoneError
from geophone.files import replacing
from geophone.models.networks import Normalise
from geophone.registry import MODELS, load_file, parse_call

WEIGHTS = "model.safetensors"
CARD = "network.json"
_AGAIN = "Run the study again: it makes the network anew."
_FORMS = (
    "Give file.py:factory (or file.py:module), a .safetensors or state-dict file with --factory, a job's folder, "
    "timm:NAME or torchvision:NAME."
)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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

    Raises:
        GeophoneError: nothing is there, the weights do not fit or are not finite, or an extra is missing.
    """
    if isinstance(source, nn.Module):
        return source
    text = str(source)
    zoo, _, name = text.partition(":")
    if zoo in _ZOOS and name:
        return _ZOOS[zoo](name).eval()
    path = Path(text)
    if path.is_dir():
        return _load_job(path)
    if ".py:" in text:
        return _from_file(text).eval()
    if path.suffix == ".py":
        raise GeophoneError(f"{text}: name the function that makes the network, as in {text}:make_model.")
    if not path.is_file():
        raise GeophoneError(f"no model at {text}. {_FORMS}")
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
    read_checked(weights, _AGAIN)
    return _with_weights(MODELS.build(name, **arguments), _read_weights(weights), weights)


def network_is_whole(folder: Path) -> bool:
    """Whether a job's folder has a network that is what was written."""
    try:
        read_json(folder / CARD, _AGAIN)
        read_checked(folder / WEIGHTS, _AGAIN)
    except GeophoneError:
        return False
    return True


def _from_file(text: str) -> nn.Module:
    """`path/to/file.py:factory` called without arguments."""
    file, _, name = text.rpartition(":")
    module = load_file(Path(file), "model")
    factory = getattr(module, name, None)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise GeophoneError(f"{file} has no function {name!r}. Name one that returns a torch.nn.Module.")
    try:
        signature(factory).bind()
    except TypeError as error:
        raise GeophoneError(f"{text} must be callable without arguments: {error}.") from None
    try:
        model = factory()
    except Exception as error:  # the user's own code fails in any way
        raise GeophoneError(f"{text} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise GeophoneError(f"{text} returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def _shape_of(state: dict[str, Tensor]) -> dict[str, Any]:
    """Classes, mean and std of one of the package's own networks, from its weights."""
    mean, std, head = (state.get(key) for key in ("normalise.mean", "normalise.std", "head.bias"))
    if mean is None or std is None or head is None:
        return {}
    return {"classes": len(head), "mean": mean.flatten().tolist(), "std": std.flatten().tolist()}


def _with_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    own = model.state_dict()
    for prefix in ("module.", "model.", "_orig_mod.", "net."):
        if state and all(key.startswith(prefix) for key in state) and not set(state) <= set(own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    bad = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise GeophoneError(f"{path}: the weight {bad[0]!r} has NaN or infinite values. Load a sound checkpoint.")
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    extra = [key for key in state if key not in own]
    if wrong or extra:
        first = f"{wrong[0]!r} is missing or has another shape" if wrong else f"{extra[0]!r} is not in the network"
        raise GeophoneError(
            f"{path} does not fit the network: {first} ({len(wrong) + len(extra)} such). Check --factory."
        )
    model.load_state_dict(state)
    return model.eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    """A flat dictionary of tensors; a `state_dict` or `model` entry of a checkpoint is unwrapped."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                ours = KEY in (opened.metadata() or {})
            if ours:
                read_checked(path, "Load another copy of it.")
            return load_safetensors(path)
        with warnings.catch_warnings(action="ignore"):  # of old or foreign pickle protocols; refused below if unsafe
            state = torch.load(path, map_location="cpu", weights_only=True)
    except GeophoneError:
        raise
    except Exception as error:  # a file of something else fails in many ways
        reason = str(error).partition("\n")[0]
        raise GeophoneError(
            f"{path} is not a readable file of weights ({reason}). Save a state dict with torch.save or safetensors."
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise GeophoneError(f"{path} holds no state dict of tensors. Save model.state_dict().")
    return state


def _with_normalisation(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    return nn.Sequential(OrderedDict(normalise=Normalise(mean, std), net=model))


def _timm(name: str) -> nn.Module:
    import_torchvision()
    timm = _extra("timm")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm and its hub client raise many kinds
        raise GeophoneError(f"timm:{name} could not be made: {error}") from error
    return _with_normalisation(model, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


def _torchvision(name: str) -> nn.Module:
    models = import_torchvision().models
    try:
        model = models.get_model(name, weights="DEFAULT")
    except Exception as error:  # unknown name, no network, broken download
        raise GeophoneError(f"torchvision:{name} could not be made: {error}") from error
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
