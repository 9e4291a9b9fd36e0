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

__all__ = [
    "Normalise",
    "ResNet18",
    "ResNet20",
    "SmallCNN",
    "WideResNet",
    "load_model",
    "resnet18",
    "resnet20",
    "small_cnn",
    "wide_resnet",
]
