"""Random projections of responses."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.errors import check_counts
from geophone.metrics.geometry.clouds import projection


@dataclass(frozen=True)
class RandomProjection:
    """Every position of every channel, and where these are more than `features`, so many random mixtures of them.

    The matrix is Gaussian with columns of length 1, and the same for all layers of one size: distances keep their
    proportions to about 1/√(2 features). `[n, c, h, w]` → `[n, min(c·h·w, features)]`. Memory O(c·h·w · features) for
    each size, three times that while it is drawn.

    Attributes:
        features: At most so many units.
        seed: Keys the matrix.
    """

    features: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(features=self.features)

    @cached_property
    def _matrices(self) -> dict[tuple[object, ...], Tensor]:
        """Those in use, which live as long as this."""
        return {}

    def __call__(self, response: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Responses in at most `features` units; in float32 at least."""
        flat = response.flatten(1)
        flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
        d = flat.shape[1]
        if d <= self.features:
            return flat
        which = (d, flat.dtype, flat.device)
        if which not in self._matrices:
            self._matrices[which] = projection(d, self.features, self.seed).to(flat.device, flat.dtype)
        return flat @ self._matrices[which]
