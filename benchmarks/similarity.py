"""The map of all layers over the bare forward passes, beside the public tools that are installed, and their errors.

The tools are no dependencies: `torch_cka`, `pytorch-cka` (imports as `cka`) and `cka-pytorch` are measured where Python
finds them.
"""

import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.compare import HEAD, ratio
from geophone.core.rng import stream
from geophone.data import Split, fashion_mnist_mini
from geophone.models import resnet20, wide_resnet
from geophone.models.tap import flatten, tap
from geophone.probes.layer_maps import similarity
from geophone.studies.similarity import OF_WIDE
from geophone.train import initialised

Tool = Callable[[nn.Module, Split, list[str], int], np.ndarray]
RESNET = ("relu1", "layer*.relu*", "head")


def of_geophone(model: nn.Module, split: Split, layers: list[str], size: int) -> np.ndarray:
    return similarity(model, data=split, layers=layers, batch_size=size).map()


def _loader(split: Split, size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(split.x.float() / 255, split.y), batch_size=size)


def of_torch_cka(model: nn.Module, split: Split, layers: list[str], size: int) -> np.ndarray:
    from torch_cka import CKA

    made = CKA(model, model, "a", "b", layers, layers, device="cpu")
    with torch.no_grad():
        made.compare(_loader(split, size), _loader(split, size))
    return made.hsic_matrix.numpy()


def of_pytorch_cka(model: nn.Module, split: Split, layers: list[str], size: int) -> np.ndarray:
    from cka import compute_cka

    return compute_cka(model, model, _loader(split, size), layers=layers, progress=False)[0].numpy()


def of_cka_pytorch(model: nn.Module, split: Split, layers: list[str], size: int) -> np.ndarray:
    from cka_pytorch import CKACalculator

    made = CKACalculator(model, model, layers, layers, verbose=False)
    return made.calculate_cka_matrix(_loader(split, size), num_epochs=1).numpy()


TOOLS: dict[str, tuple[str, Tool]] = {
    "geophone": ("geophone", of_geophone),
    "pytorch-cka": ("cka", of_pytorch_cka),
    "cka-pytorch": ("cka_pytorch", of_cka_pytorch),
    "torch_cka": ("torch_cka", of_torch_cka),
}
NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "ResNet20, 20 layers": (resnet20, RESNET),
    "WideResNet-28-4, 80 layers": (wide_resnet, OF_WIDE),
}


def network(name: str) -> tuple[nn.Module, list[str]]:
    """A fresh network, and its layers by name."""
    make, patterns = NETWORKS[name]
    model = initialised(partial(make, 10, (0.29,), (0.35,)), 0).eval().to(memory_format=torch.channels_last)
    with tap(model, patterns) as seen, torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
        return model, list(seen)


def images(n: int) -> Split:
    """Of the embedded data, again and again, each time shifted by a pixel."""
    data = fashion_mnist_mini().train
    times = -(-n // len(data))
    x = torch.cat([data.x.roll(shift, 3) for shift in range(times)])[:n]
    return Split(x, torch.arange(n) % 10, torch.arange(n))


def forward(model: nn.Module, split: Split, size: int) -> None:
    with torch.no_grad():
        for batch in split.batches(size):
            model(batch.x)


def similarities(repeats: int, device: str) -> None:
    warnings.simplefilter("ignore")
    here = [name for name, (module, _) in TOOLS.items() if find_spec(module)]
    print(f"Tools found: {', '.join(here)}\n\n{HEAD}", flush=True)
    for name, n, size, tools in (
        ("ResNet20, 20 layers", 2048, 256, here),
        ("ResNet20, 20 layers", 2048, 1024, here[:3]),
        ("ResNet20, 20 layers", 10_000, 256, here[:2]),
        ("WideResNet-28-4, 80 layers", 512, 256, here[:3]),
    ):
        bare, _ = network(name)
        split, bare = images(n).to(device), bare.to(device)
        for tool in tools:

            def mapped(tool: str = tool, name: str = name, split: Split = split, size: int = size) -> np.ndarray:
                model, layers = network(name)  # a fresh one: two of the tools leave their hooks
                return TOOLS[tool][1](model.to(split.x.device), split, layers, size)

            aim = "≤ 1.5" if tool == "geophone" and size == 256 else ""
            took = ratio(
                f"{name}, n = {n:,}, batches of {size}: {tool}, over the forward passes",
                mapped,
                partial(forward, bare, split, size),
                repeats if tool == "geophone" else 1,
                aim,
            )
            print(took, flush=True)
    print(
        "\n| ResNet20, 512 images, batches of 128 | largest error against float64 | with a bias of 30 | peak memory |"
    )
    print("|---|---|---|---|")
    for tool in here:
        found = [_error(TOOLS[tool][1], bias) for bias in (0.0, 30.0)]
        with get_context("spawn").Pool(1) as pool:
            memory = pool.apply(_peak, (tool,))
        print(f"| {tool} | {found[0]:.1e} | {found[1]:.1e} | {memory:.0f} MiB |", flush=True)


def _error(tool: Tool, bias: float) -> float:
    """Largest error of a self-map with a bias on two batch norms; NaN where the tool fails."""
    model, layers = network("ResNet20, 20 layers")
    split = images(512)
    for name in ("layer1.1.norm1", "layer2.0.norm1"):  # after these come ReLUs, which a large bias makes linear
        model.get_submodule(name).bias.data += bias
    try:
        made = tool(model, split, layers, 128)
    except (AssertionError, ZeroDivisionError):
        return float("nan")
    truth = reference(model, split, layers, 128, shuffled=tool is of_geophone)
    return float(np.abs(made - truth).max())


def reference(model: nn.Module, split: Split, layers: list[str], size: int, shuffled: bool) -> np.ndarray:
    """The same estimate with everything in float64 from the image on, batch by batch."""
    order = torch.randperm(len(split), generator=stream(0, "similarity")) if shuffled else torch.arange(len(split))
    model = model.double()
    top = own = None
    for part in order.split(size):
        with tap(model, layers, flatten) as seen, torch.no_grad():
            model(split.x[part].double() / 255)
            grams = torch.stack([_u(x) for x in seen.values()]).flatten(1)
        cross, mine = grams @ grams.T, grams.square().sum(1)
        top, own = (cross, mine) if top is None else (top + cross, own + mine)
    model.float()
    return (top / (own[:, None] * own[None]).sqrt()).numpy()


def _u(x: Tensor) -> Tensor:
    k = x - x.mean(0)
    k = (k @ k.T).fill_diagonal_(0)
    n = len(k)
    rows = k.sum(1)
    k = k - rows[:, None] / (n - 2) - rows[None] / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return k.fill_diagonal_(0)


def _peak(tool: str) -> float:
    """Peak memory of a fresh process that maps ResNet20 on 2,048 images in batches of 256, less that before."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, layers = network("ResNet20, 20 layers")
    split = images(2048)
    forward(model, split, 256)
    before = _high_water()
    TOOLS[tool][1](model, split, layers, 256)
    return _high_water() - before


def _high_water() -> float:
    """Largest resident memory of this process, in MiB; `getrusage` would count that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
