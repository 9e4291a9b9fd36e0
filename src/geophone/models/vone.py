"""A model of primary visual cortex as the first layers of a network: Gabor filters, simple and complex cells, noise.

Written from a description of VOneNet (the specification, §6), not from its code. What is ours is said where it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d

from geophone.core.errors import GeophoneError, check_counts
from geophone.core.registry import MODELS
from geophone.core.rng import stream
from geophone.models.networks import Normalise, with_convolutions
from geophone.models.stochastic import LEVEL, SCALE, GaussianResponse, Noise, add_noise, make_noise

# Published distributions of cells in V1, as histograms: edges and counts.
_ORIENTATION = (-22.5, 22.5, 67.5, 112.5, 157.5), (66, 49, 77, 54)
_FREQUENCY = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0), (4, 4, 8, 25, 32, 26, 28, 12)
_ENVELOPE = np.logspace(-1, 0.2, 6)  # edges of both sizes of the envelope, in periods
_SIZES = np.array([[2, 0, 1, 0, 0], [8, 9, 4, 1, 0], [1, 2, 19, 17, 3], [0, 0, 1, 7, 4], [0, 0, 0, 0, 0]])

_AT_0 = 1e-12
"""What is added under the root of complex cells, whose slope at 0 is infinite."""


@dataclass(frozen=True)
class Gabors:
    """Parameters of Gabor filters, `[n]` each.

    Attributes:
        orientation: In degrees, in [0, 180).
        phase: In degrees, in [0, 360).
        frequency: In cycles per degree of visual angle.
        along: Size of the envelope along the wave in periods (n_x): σ_x · frequency.
        across: Its size along the bars (n_y).
    """

    orientation: np.ndarray
    phase: np.ndarray
    frequency: np.ndarray
    along: np.ndarray
    across: np.ndarray


def gabors(n: int, *, sf_min: float = 0.0, sf_max: float = 9.0, sf_corr: float = 0.75, seed: int = 0) -> Gabors:
    """Draw filters as the cells of V1 are distributed.

    Each parameter is drawn by the inverse of its histogram's distribution function, linear inside a bin; for spatial
    frequency and the envelope's sizes linear in the logarithm. Frequency and n_x have the correlation `sf_corr` through
    a normal copula; n_y has the distribution that the joint histogram gives it beside the bin of n_x. The generator is
    NumPy's of 2008 (`RandomState`), so that the draws are those of published networks with the same seed.

    Args:
        n: How many.
        sf_min: Bins of spatial frequency that begin below are left out, in cycles per degree.
        sf_max: Bins that end above are left out. VOneNet's networks were trained with 6; its library's default is 9.
        sf_corr: Correlation of the normal numbers behind frequency and n_x, in [-1, 1].
        seed: Of the generator, at least 0.

    Raises:
        GeophoneError: no bin is left, or a number is not allowed.

    References:
        De Valois et al. 1982a, 1982b; Ringach 2002; Dapello et al. 2020, NeurIPS.
    """
    from scipy.stats import norm

    edges = np.array([edge for edge in _FREQUENCY[0] if sf_min <= edge <= sf_max])
    if len(edges) < 2:
        raise GeophoneError(
            f"sf_min={sf_min:g}, sf_max={sf_max:g}: no bin of spatial frequency lies between them. Their edges are "
            f"{', '.join(f'{edge:g}' for edge in _FREQUENCY[0])} cycles per degree."
        )
    if n < 1 or not -1 <= sf_corr <= 1 or seed < 0:
        raise GeophoneError(f"n={n}, sf_corr={sf_corr}, seed={seed}: allowed are n ≥ 1, |sf_corr| ≤ 1 and seed ≥ 0.")
    first = _FREQUENCY[0].index(edges[0])
    random = np.random.RandomState(seed)  # a stream of its own, not the global one
    phase = 360 * random.random_sample(n)
    orientation = _quantile(random.random_sample(n), *_ORIENTATION) % 180
    pair = norm.cdf(random.multivariate_normal([0, 0], [[1, sf_corr], [sf_corr, 1]], n))
    along = _log_quantile(pair[:, 0], _ENVELOPE, _SIZES.sum(1))
    frequency = _log_quantile(pair[:, 1], edges, _FREQUENCY[1][first : first + len(edges) - 1])
    rows = np.searchsorted(_ENVELOPE, along, side="right").clip(1, len(_SIZES)) - 1
    sizes = zip(random.random_sample((n, 1)), rows, strict=True)
    across = np.concatenate([_log_quantile(u, _ENVELOPE, _SIZES[row]) for u, row in sizes])
    return Gabors(orientation, phase, frequency, along, across)


def _quantile(u: np.ndarray, edges: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    shares = np.concatenate([[0.0], np.cumsum(counts) / np.sum(counts)])
    return np.interp(u, shares, edges)


def _log_quantile(u: np.ndarray, edges: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.exp(_quantile(u, np.log(edges), counts))


def gabor_filters(cells: Gabors, kernel: int, ppd: float, shift: float = 0.0) -> Float[Tensor, "n k k"]:
    """The filters on a grid of pixels.

        g = exp(-½(x'²/σ_x² + y'²/σ_y²)) / (2π σ_x σ_y) · cos(2π f x' + phase)
        x' = x cos θ + y sin θ,   y' = -x sin θ + y cos θ

    x is the row and y the column, both 0 in the middle; f is the frequency in cycles per pixel, σ_x = n_x/f and
    σ_y = n_y/f.

    Args:
        cells: Their parameters.
        kernel: Width in pixels, odd.
        ppd: Pixels per degree of visual angle.
        shift: Added to the phase, in degrees: 90 for the other filter of a quadrature pair.
    """
    place = np.arange(kernel) - kernel // 2
    x, y = place[None, :, None], place[None, None, :]
    angle, phase, f, along, across = (
        column[:, None, None]
        for column in (
            np.deg2rad(cells.orientation),
            np.deg2rad(cells.phase + shift),
            cells.frequency / ppd,
            cells.along * ppd / cells.frequency,
            cells.across * ppd / cells.frequency,
        )
    )
    forward = x * np.cos(angle) + y * np.sin(angle)
    sideward = y * np.cos(angle) - x * np.sin(angle)
    envelope = np.exp(-0.5 * ((forward / along) ** 2 + (sideward / across) ** 2)) / (2 * pi * along * across)
    return torch.from_numpy(envelope * np.cos(2 * pi * f * forward + phase)).float()


class VOneBlock(nn.Module):
    """Fixed filters, simple and complex cells, and noise: images `[n, c, h, w]` to `[n, simple + complex, h', w']`.

        simple  = gain · max(q₀, 0)
        complex = gain · √((q₀² + q₁²)/2)

    q₀ is the response of a Gabor filter, q₁ that of the same filter a quarter of a period on. Then comes the noise, if
    any, and a ReLU. Simple cells come first. Each filter sees one channel of the image, drawn at random. Nothing here
    is learned: filters are buffers. The defaults are for images of 224 pixels that fill 8°.

    Layers to record: `noise` (with the noise, before the ReLU: what the manifold studies' code reads), `noise.clean`
    (before the noise; `noise` itself where there is none) and `relu`, which is the block's response. Where the ReLU
    stands matters only for what is read: VOneNet's own code has it and the noise in one module.

    Ours: VOneNet draws the two channels of a pair apart, so that two of three complex cells mix colours; here a pair
    has one, unless `mixed_colours`. The draws of channels are not VOneNet's.

    Attributes:
        cells: Parameters of the filters.

    Raises:
        GeophoneError: a number that is not allowed, or a frequency that pixels can't show.

    References:
        Dapello et al. 2020, "Simulating a primary visual cortex at the front of CNNs improves robustness to image
        perturbations", NeurIPS.
    """

    filters: Tensor

    def __init__(
        self,
        channels: int = 3,
        simple: int = 256,
        complex: int = 256,
        kernel: int = 25,
        stride: int = 4,
        *,
        ppd: float = 28.0,
        gain: float = 25.0,
        sf_min: float = 0.0,
        sf_max: float = 9.0,
        sf_corr: float = 0.75,
        seed: int = 0,
        noise: Noise | None = None,
        mixed_colours: bool = False,
    ) -> None:
        """Draw the cells.

        Args:
            channels: Of the images.
            simple: Number of simple cells.
            complex: Number of complex cells; either may be 0.
            kernel: Width of the filters in pixels, odd. Wide envelopes are cut off there.
            stride: Pixels from one cell to the next.
            ppd: Pixels per degree of visual angle.
            gain: What all responses are multiplied by (k_exc).
            sf_min: Least spatial frequency, in cycles per degree: see `gabors`.
            sf_max: Largest spatial frequency.
            sf_corr: Correlation of frequency and size.
            seed: Of the cells and their channels.
            noise: `GaussianResponse` or `PoissonLike`, in units of the response.
            mixed_colours: Whether the filters of a quadrature pair see channels of their own, as in VOneNet.
        """
        super().__init__()
        n = simple + complex
        if min(channels, n, kernel, stride) < 1 or min(simple, complex) < 0 or kernel % 2 == 0 or ppd <= 0:
            raise GeophoneError(
                f"VOneBlock(channels={channels}, simple={simple}, complex={complex}, kernel={kernel}, stride={stride}, "
                f"ppd={ppd}): allowed are whole numbers from 1 (cells of one kind may be 0), an odd kernel and a ppd "
                "above 0."
            )
        self.simple, self.stride, self.gain = simple, stride, gain
        self.cells = gabors(n, sf_min=sf_min, sf_max=sf_max, sf_corr=sf_corr, seed=seed)
        if (highest := float(self.cells.frequency.max()) / ppd) > 0.5:
            raise GeophoneError(
                f"ppd={ppd:g} with sf_max={sf_max:g}: a filter has {highest:.2f} cycles per pixel, and pixels show no "
                "more than 0.5. Give a smaller sf_max, or more pixels per degree."
            )
        generator = stream("vone colours", seed)
        first, second = (torch.randint(channels, (n,), generator=generator) for _ in range(2))
        one = _on_channels(gabor_filters(self.cells, kernel, ppd), first, channels)
        other = _on_channels(gabor_filters(self.cells, kernel, ppd, 90.0), second if mixed_colours else first, channels)
        self.register_buffer("filters", torch.cat([one, other[simple:]]))
        self.noise = nn.Identity() if noise is None else add_noise(nn.Identity(), noise)
        self.relu = nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The cells' responses to normalised images, at least 0."""
        q = conv2d(x, self.filters, stride=self.stride, padding=self.filters.shape[-1] // 2)
        simple = q[:, : self.simple].relu()
        pairs = q[:, self.simple :].unflatten(1, (2, -1))
        # In half precision _AT_0 would be 0, and so would small squares.
        energy = pairs.to(torch.promote_types(q.dtype, torch.float32)).square().sum(1)
        complex = (energy / 2 + _AT_0).sqrt().to(q.dtype)
        return self.relu(self.noise(self.gain * torch.cat([simple, complex], 1)))


def _on_channels(filters: Float[Tensor, "n k k"], which: Tensor, channels: int) -> Float[Tensor, "n c k k"]:
    """Each filter on its channel of the image, 0 on the others."""
    placed = filters.new_zeros(len(filters), channels, *filters.shape[1:])
    placed[torch.arange(len(filters)), which] = filters
    return placed


class VOneCNN(nn.Sequential):
    """A VOneBlock and a 1 × 1 bottleneck in the place of the small CNN's first convolution; then its other layers.

    Layers: `vone` (its response; see `VOneBlock` for those inside), `bottleneck`, `relu2` … `relu6`. The bottleneck has
    no bias, no norm and no ReLU, as in VOneNet.
    """

    def __init__(self, classes: int, mean: Sequence[float], std: Sequence[float], vone: VOneBlock, width: int) -> None:
        bottleneck = nn.Conv2d(len(vone.cells.phase), width, 1, bias=False)
        nn.init.kaiming_normal_(bottleneck.weight, mode="fan_out", nonlinearity="relu")
        front = {"normalise": Normalise(mean, std), "vone": vone, "bottleneck": bottleneck}
        super().__init__(with_convolutions(front, width, width, classes, first=2))


@MODELS.register
def vone_cnn(
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    width: int = 8,
    noise: str | None = None,
    noise_std: float = GaussianResponse.std,
    level: float = LEVEL,
    scale: float = SCALE,
    simple: int = 64,
    complex: int = 64,
    kernel: int = 13,
    stride: int = 2,
    ppd: float = 14.0,
    sf_max: float = 6.0,
    seed: int = 0,
    mixed_colours: bool = False,
) -> nn.Module:
    """The small CNN behind a fixed model of V1 (VOneBlock); noise: gaussian (noise_std), neuronal (level, scale).

    For small images, ours: 14 pixels per degree, half of VOneNet's, and with it half its kernel (13) and stride (2). 28
    pixels are then 2°, in which the slowest wave (0.5 cycles per degree) fits once, and the fastest (5.6) still has
    2.5 pixels. A quarter of the cells.
    """
    check_counts(classes=classes, width=width)
    drawn = None if noise is None else make_noise(noise, noise_std, level, scale)
    vone = VOneBlock(
        *(len(mean), simple, complex, kernel, stride),
        ppd=ppd,
        sf_max=sf_max,
        seed=seed,
        noise=drawn,
        mixed_colours=mixed_colours,
    )
    return VOneCNN(classes, mean, std, vone, width)
