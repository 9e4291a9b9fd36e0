"""A network of your own, as `geophone scan` takes it: images in [0, 1] to logits, normalisation as the first layer.

geophone scan examples/my_model.py:make_model fashion_mnist_mini --images 500
"""

import torch
from torch import nn

from geophone.models import Normalise


def make_model() -> nn.Module:
    """Six convolutions for 28 × 28 grey images, untrained; load your weights here."""
    torch.manual_seed(0)
    layers: list[tuple[str, nn.Module]] = [("normalise", Normalise((0.286,), (0.353,)))]
    before = 1
    for i, channels in enumerate((8, 16, 16, 32, 32, 32), start=1):
        layers.append((f"conv{i}", nn.Conv2d(before, channels, 3, stride=2 if i in (2, 4) else 1, padding=1)))
        layers.append((f"relu{i}", nn.ReLU()))
        before = channels
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("head", nn.Linear(before, 10))]
    model = nn.Sequential()
    for name, layer in layers:
        model.add_module(name, layer)
    return model.eval()
