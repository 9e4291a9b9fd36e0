"""Networks: any channel count and image size, images in [0, 1] in, logits out, normalisation as the first layer."""

from geophone.models.load import load_model
from geophone.models.networks import (
    Normalise,
    ResNet18,
    ResNet20,
    SmallCNN,
    WideResNet,
    resnet18,
    resnet20,
    small_cnn,
    wide_resnet,
)
from geophone.models.stochastic import GaussianResponse, PoissonLike, ResponseNoise, frozen, silenced
from geophone.models.vone import VOneBlock, VOneCNN, gabors

__all__ = [
    "GaussianResponse",
    "Normalise",
    "PoissonLike",
    "ResNet18",
    "ResNet20",
    "ResponseNoise",
    "SmallCNN",
    "VOneBlock",
    "VOneCNN",
    "WideResNet",
    "frozen",
    "gabors",
    "load_model",
    "resnet18",
    "resnet20",
    "silenced",
    "small_cnn",
    "wide_resnet",
]
