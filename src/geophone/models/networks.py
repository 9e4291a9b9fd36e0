"""The networks that the studies train. Each ReLU is a module of its own, so that each can be recorded."""

from collections import OrderedDict
from collections.abc import Sequence
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geophone.core.errors import GeophoneError, check_counts, short
from geophone.core.registry import MODELS


class Normalise(nn.Module):
    """(x - mean) / std per channel, inside the network, so that a perturbation's size means the same for everyone."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if not len(mean) == len(std) > 0 or not all(map(isfinite, (*mean, *std))) or min(std) <= 0:
            raise GeophoneError(
                f"mean={short(mean)}, std={short(std)}: give a finite number for each channel in both, those of std "
                "above 0."
            )
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalised images."""
        return (x - self.mean) / self.std


class SpatialMean(nn.Module):
    """Mean over space, `[n, c, h, w]` → `[n, c]`: adaptive pooling to 1 × 1, but deterministic on CUDA."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
        """One value per channel."""
        return x.mean((2, 3))


def with_convolutions(
    front: dict[str, nn.Module], before: int, width: int, classes: int, first: int = 1
) -> OrderedDict[str, nn.Module]:
    """Layers in front, with so many channels, and after them those of the small CNN from the `first` convolution on."""
    layers = OrderedDict(front)
    shapes = [(width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2), (4 * width, 1), (4 * width, 1)]
    for i, (channels, stride) in enumerate(shapes[first - 1 :], start=first):
        layers[f"conv{i}"] = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        layers[f"norm{i}"] = nn.BatchNorm2d(channels)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        before = channels
    return layers | OrderedDict[str, nn.Module](pool=SpatialMean(), head=nn.Linear(before, classes))


class SmallCNN(nn.Sequential):
    """Six 3 × 3 convolutions, each with batch norm and ReLU, then the mean over space and a linear layer.

    One of width w, two of 2w on the halved image, three of 4w on the quartered one. Recorded layers: `relu1` … `relu6`.
    """

    def __init__(self, classes: int, mean: Sequence[float], std: Sequence[float], width: int = 8) -> None:
        super().__init__(with_convolutions({"normalise": Normalise(mean, std)}, len(mean), width, classes))


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with batch norm and a shortcut; `relu2` comes after the addition."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The block's response, after its last ReLU."""
        inside = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(inside + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network of basic blocks: stages of given widths and depths, each but the first halved.

    The stem is a 3 × 3 convolution of stride 1, or with `stem=7` one of 7 × 7 and stride 2; there is no max-pool.

    References:
        He et al. 2016, arXiv:1512.03385.
    """

    def __init__(
        self,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int],
        blocks: Sequence[int],
        stem: int = 3,
    ) -> None:
        if stem not in (3, 7):
            raise GeophoneError(f"stem={stem}: allowed are 3 (3 × 3, stride 1) and 7 (7 × 7, stride 2).")
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(len(mean), widths[0], stem, 1 if stem == 3 else 2, padding=stem // 2, bias=False)
        self.norm1 = nn.BatchNorm2d(widths[0])
        self.relu1 = nn.ReLU(inplace=True)
        before = widths[0]
        self.stages = len(widths)
        for i, (width, depth) in enumerate(zip(widths, blocks, strict=True), start=1):
            stage = nn.Sequential()
            for j in range(depth):
                stage.append(BasicBlock(before, width, stride=2 if i > 1 and j == 0 else 1))
                before = width
            self.add_module(f"layer{i}", stage)
        self.pool = SpatialMean()
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        x = self.relu1(self.norm1(self.conv1(self.normalise(x))))
        for i in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
        return self.head(self.pool(x))


class ResNet20(ResNet):
    """The CIFAR form: three stages of three blocks, widths 16, 32, 64; 19 ReLUs."""

    def __init__(self, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(classes, mean, std, (16, 32, 64), (3, 3, 3))


class ResNet18(ResNet):
    """Four stages of two blocks, widths 64 to 512, without max-pool; 17 ReLUs. See `ResNet` for the stem."""

    def __init__(self, classes: int, mean: Sequence[float], std: Sequence[float], stem: int = 3) -> None:
        super().__init__(classes, mean, std, (64, 128, 256, 512), (2, 2, 2, 2), stem)


class WideBlock(nn.Module):
    """Batch norm and ReLU before each of two 3 × 3 convolutions.

    Where the shape changes, the shortcut starts after the first ReLU and is a 1 × 1 convolution.
    """

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or before != channels:
            self.shortcut = nn.Conv2d(before, channels, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The block's response, the sum."""
        ready = self.relu1(self.norm1(x))
        inside = self.conv2(self.relu2(self.norm2(self.conv1(ready))))
        return inside + (x if self.shortcut is None else self.shortcut(ready))


class WideResNet(nn.Sequential):
    """WideResNet-depth-width for small images: three stages of (depth − 4)/6 blocks, each but the first halved.

    With depth 28 the convolutions, batch norms, ReLUs, the pooling and the linear layer are the 80 layers of the
    robust-similarity study (specification §1.3): `conv1`, `stage1` … `stage3`, `norm`, `relu`, `pool`, `head`.

    References:
        Zagoruyko & Komodakis 2016, arXiv:1605.07146.
    """

    def __init__(
        self,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        depth: int = 28,
        width: int = 4,
        first: int = 16,
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise GeophoneError(f"depth={depth}: allowed are 6 n + 4 with n blocks in a stage, such as 10, 16, 28, 34.")
        if width < 1 or first < 1:
            raise GeophoneError(f"width={width}, first={first}: allowed are whole numbers from 1.")
        layers: dict[str, nn.Module] = {
            "normalise": Normalise(mean, std),
            "conv1": nn.Conv2d(len(mean), first, 3, padding=1, bias=False),
        }
        before = first
        for i in range(3):
            stage = nn.Sequential()
            channels = first * width * 2**i
            for j in range((depth - 4) // 6):
                stage.append(WideBlock(before, channels, stride=2 if i and not j else 1))
                before = channels
            layers[f"stage{i + 1}"] = stage
        layers |= {"norm": nn.BatchNorm2d(before), "relu": nn.ReLU(inplace=True), "pool": SpatialMean()}
        layers["head"] = nn.Linear(before, classes)
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@MODELS.register
def small_cnn(classes: int, mean: Sequence[float], std: Sequence[float], width: int = 8) -> nn.Module:
    """Six convolutions of widths w, 2w, 2w, 4w, 4w, 4w (w = 8): the network of the demo."""
    check_counts(classes=classes, width=width)
    return SmallCNN(classes, mean, std, width)


@MODELS.register
def resnet20(classes: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """ResNet20 in its CIFAR form: 3 stages × 3 blocks, widths 16, 32, 64."""
    check_counts(classes=classes)
    return ResNet20(classes, mean, std)


@MODELS.register
def resnet18(classes: int, mean: Sequence[float], std: Sequence[float], stem: int = 3) -> nn.Module:
    """ResNet18: 4 stages × 2 blocks, widths 64 to 512; the stem 3 × 3 (CIFAR) or, for larger images, 7 (stride 2)."""
    check_counts(classes=classes)
    return ResNet18(classes, mean, std, stem)


@MODELS.register
def wide_resnet(
    classes: int, mean: Sequence[float], std: Sequence[float], depth: int = 28, width: int = 4, first: int = 16
) -> nn.Module:
    """WideResNet-depth-width: three stages of (depth − 4)/6 blocks of `first` (16) times width, 2 width, 4 width."""
    check_counts(classes=classes)
    return WideResNet(classes, mean, std, depth, width, first)
