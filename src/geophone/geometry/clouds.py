"""Point clouds as this package takes them: what a manifold is, checked, and projected to fewer features."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.errors import GeophoneError
from geophone.rng import stream
from geophone.stats.statistic import double

FORM = "Give a list of P arrays [m, d], points first: one for each manifold, all with the same d."


def as_clouds(manifolds: Sequence[Any], least: int = 2) -> list[Float[Tensor, "_ d"]]:
    """Point clouds as float64 tensors, each on its own device, checked.

    Args:
        manifolds: P arrays or tensors `[m, d]`, points first; m may differ.
        least: How many there must be.

    Raises:
        GeophoneError: fewer clouds, one that is no matrix or is empty, different numbers of features, NaN or infinite
            values.
    """
    clouds = [double(torch.as_tensor(cloud)) for cloud in manifolds]
    if len(clouds) < least:
        raise GeophoneError(f"{len(clouds)} manifolds: at least {least} are needed, since they are told apart. {FORM}")
    for i, cloud in enumerate(clouds):
        if cloud.ndim != 2 or not cloud.numel():
            raise GeophoneError(f"manifold {i} has the shape {list(cloud.shape)}. {FORM}")
        if cloud.shape[1] != clouds[0].shape[1]:
            raise GeophoneError(f"manifold {i} has {cloud.shape[1]} features, manifold 0 {clouds[0].shape[1]}. {FORM}")
        if not bool(cloud.sum().isfinite()):  # one pass, and no room for a mask
            raise GeophoneError(
                f"manifold {i} has NaN or infinite values. Remove those points, or mend what made them."
            )
    return clouds


def projection(d: int, features: int, seed: int) -> Float[Tensor, "d features"]:
    """A Gaussian matrix with columns of length 1, float64, on the CPU: what clouds are multiplied with.

    Raises:
        GeophoneError: more features than there are, or fewer than 1.
    """
    if not 1 <= features <= d:
        raise GeophoneError(f"features={features}: a projection of {d} features gives 1 to {d} of them.")
    matrix = torch.randn(d, features, generator=stream(seed, "projection", d, features), dtype=torch.float64)
    return matrix / matrix.norm(dim=0)


def projected(clouds: Sequence[Float[Tensor, "_ d"]], features: int, seed: int) -> list[Float[Tensor, "_ _"]]:
    """Clouds in so many random directions, the same for all: see `projection`."""
    matrix = projection(clouds[0].shape[1], features, seed).to(clouds[0].device)
    return [cloud @ matrix for cloud in clouds]
