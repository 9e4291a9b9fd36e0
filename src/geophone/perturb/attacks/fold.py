"""The same network, faster: BatchNorm folded into the convolution before it, and channels last in memory."""

import copy

import torch
from torch import Tensor, nn

from geophone.core.types import Model
from geophone.models.run import Snapshot, seeded

SAME = 1e-5
"""How far a folded network's logits may be from the network's, relative to the largest one."""

_PROBE = 4  # images that the two are compared on
_STATE = 0  # seeds the noise of a stochastic network in both


def folded(model: Model, x: Tensor) -> Model:
    """A copy of the network in evaluation mode with every BatchNorm2d folded into the Conv2d that feeds it.

        w' = w·γ/√(σ² + ε),   b' = (b - μ)·γ/√(σ² + ε) + β

    Weights of the copy carry no gradient and, on a CPU in float32, are stored with channels last. The network must be
    in evaluation mode. It is returned as it is where that does not apply: a plain function, hooks on its modules,
    nothing to fold, something that can't be copied, or a copy whose logits differ by more than 1e-5 of the largest on
    the first images of x, given the same global random state (as those of a network do whose noise depends on how its
    responses lie in memory).
    """
    if not isinstance(model, nn.Module) or x.ndim != 4 or _has_hooks(model):
        return model
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    probe = x[:_PROBE].detach().clone()  # the network may write to it
    with torch.no_grad():
        with seeded(_STATE, x.device):
            pairs, logits = _pairs(model, probe)
        if not pairs:
            return model
        try:
            twin = copy.deepcopy(model)
        except Exception:  # a module may hold anything, such as a lock or an open file
            return model
        modules = dict(twin.named_modules())
        for convolution, norm in pairs:
            _absorb(modules[convolution], modules[norm])
            parent, _, name = norm.rpartition(".")
            setattr(modules[parent], name, nn.Identity())
        twin.requires_grad_(False)
        if x.device.type == "cpu" and x.dtype == torch.float32:
            twin = twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with seeded(_STATE, x.device):
            same = torch.allclose(twin(probe), logits, rtol=0, atol=SAME * float(logits.abs().max()))
    return twin if same else model


def _has_hooks(model: nn.Module) -> bool:
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in model.modules()
    )


def _pairs(model: nn.Module, probe: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of each convolution and the BatchNorm that takes its output, from one forward pass; and the logits."""
    made: dict[int, tuple[str, Snapshot]] = {}  # by the output's id; the tensor is kept so that no other gets its id
    found: list[tuple[str, str]] = []
    runs: dict[str, int] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                made[id(out)] = name, Snapshot(out)
            elif given and id(given[0]) in made:  # not by keyword
                feeder, output = made[id(given[0])]
                if output.holds(given[0]):  # else something was written to it on the way, as F.relu_ does
                    found.append((feeder, name))

        handles.append(module.register_forward_hook(hook))

    for name, module in model.named_modules():
        plain = type(module) in (nn.Conv2d, nn.BatchNorm2d) and not nn.utils.parametrize.is_parametrized(module)
        if name and plain and not (isinstance(module, nn.BatchNorm2d) and module.running_var is None):
            watch(name, module)
    try:
        logits = model(probe)
    finally:
        for handle in handles:
            handle.remove()
    return [(c, b) for c, b in found if runs[c] == runs[b] == 1], logits


def _absorb(convolution: nn.Module, norm: nn.Module) -> None:
    """Fold the norm's affine map into the convolution's weight and bias, in float64."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    weight = convolution.weight
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() if convolution.bias is None else convolution.bias - norm.running_mean.double()
    shift = bias * scale + (0 if norm.bias is None else norm.bias.double())
    convolution.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(weight.dtype))
    convolution.bias = nn.Parameter(shift.to(weight.dtype))
