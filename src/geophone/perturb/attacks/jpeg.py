"""An attack on the coefficients of a JPEG file."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.errors import unknown
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.perturb.attacks.layer import Laid, LayerAttack
from geophone.perturb.attacks.norms import L2, LINF, Norm
from geophone.perturb.checks import check_number

# The quantisation tables of quality 50: ITU-T T.81 (1992), Annex K, tables K.1 (luminance) and K.2 (chrominance). Rows
# are vertical frequencies.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)

# From (Y, Cb, Cr), the latter two around 0, to (R, G, B): ITU-T T.871 (JFIF).
COLOURS = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))

MOST = 2.0
"""The furthest that one coefficient may go in the l2 ball: a whole step of its quantisation."""

BALLS: dict[str, Norm] = {"l2": L2, "linf": LINF}


@PERTURBATIONS.register
@dataclass(frozen=True)
class JpegAttack(LayerAttack):
    """A perturbation of the quantised coefficients of the image's JPEG code, in a ball there.

        x' = clip(x + decoded(z)/255, 0, 1),   ‖z‖ ≤ eps

    `decoded` is a JPEG decoder without rounding, which is linear: z times half the quantisation steps of quality 50,
    the inverse discrete cosine transform of 8 × 8 blocks, chrominance at half the resolution (4:2:0), and from YCbCr to
    RGB. Images that haven't three channels are coded as luminance, channel by channel. The unit is half a step because
    that is what JPEG itself may do: a grey file of quality 50 is within eps = 1 in l∞ of its image. The authors' code
    has the same unit and doesn't round either; here the image itself isn't coded, so that eps = 0 changes nothing.

    Attributes:
        eps: Radius of the ball, in half quantisation steps of quality 50, at least 0.
        steps: How many steps, at least 1.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`; the textbook's is `ce`.
        draws: Gradients that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).
        step_size: Length of a step in the ball's norm; 2.5·eps/steps when None.
        ball: `l2` or `linf`. In l2 no coefficient moves by more than 2, as in the authors' code.

    References:
        Kang et al. 2019, arXiv:1908.08016; Shin & Song 2017, JPEG-resistant adversarial images.
    """

    eps: float = 25.0
    step_size: float | None = None
    ball: str = "l2"
    levels: ClassVar[tuple[float, ...]] = (3.125, 6.25, 12.5, 25.0)
    highest: ClassVar[float] = math.inf
    unit: ClassVar[str] = "It is in half quantisation steps of quality 50."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            check_number(self, "step_size", 0.0)
        if self.ball not in BALLS:
            raise unknown("ball", str(self.ball), BALLS, "l2 and linf are balls of JPEG coefficients.")

    def layer(self, x: Tensor, rng: Draws) -> tuple[Tensor, Laid]:
        """A uniform draw from the ball."""
        shape = tuple(x.shape[1:])

        def laid(z: Tensor, rows: Tensor) -> Tensor:
            return (x[rows] + decoded(z, shape) / 255).clamp(0, 1)

        like = x.new_empty(len(x), 64 * sum(down * across for down, across, _ in _planes(shape)))
        return self._allowed(self.eps * BALLS[self.ball].uniform(rng, like)), laid

    def onward(self, z: Tensor, gradient: Tensor) -> Tensor:
        """A step in the steepest direction, projected on the ball."""
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        return self._allowed(z + step_size * BALLS[self.ball].steepest(gradient))

    def _allowed(self, z: Tensor) -> Tensor:
        z = BALLS[self.ball].project(z, self.eps)
        return z.clamp(-MOST, MOST) if self.ball == "l2" else z


def decoded(z: Float[Tensor, "n m"], shape: tuple[int, ...]) -> Float[Tensor, "n c h w"]:
    """What coefficients add to an image of this shape `[c, h, w]`, in grey levels of 255.

    Args:
        z: Coefficients in half quantisation steps: planes Y, Cb, Cr (or each channel), in each the blocks row by row,
            in each of these 8 × 8 frequencies, the vertical one first. Blocks reach over the right and bottom edges.
        shape: Channels, height and width.
    """
    channels, h, w = shape
    wave = cosines(z)
    planes, start = [], 0
    for down, across, steps in _planes(shape):
        coefficients = z[:, start : start + 64 * down * across].reshape(-1, down, across, 8, 8)
        start += 64 * down * across
        blocks = wave.T @ (coefficients * (z.new_tensor(steps) / 2)) @ wave
        planes.append(blocks.transpose(2, 3).reshape(-1, 8 * down, 8 * across))
    if channels != 3:
        return torch.stack([plane[:, :h, :w] for plane in planes], dim=1)
    luminance, *chrominance = planes
    wide = [plane.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :h, :w] for plane in chrominance]
    return torch.einsum("nkhw,ck->nchw", torch.stack([luminance[:, :h, :w], *wide], dim=1), z.new_tensor(COLOURS))


def cosines(like: Tensor) -> Float[Tensor, "8 8"]:
    """The orthonormal discrete cosine transform: row u is √(2/8)·cos((2i + 1)uπ/16), row 0 is √(1/8)."""
    place = torch.arange(8, device=like.device, dtype=like.dtype)
    waves = torch.cos((2 * place + 1) * place[:, None] * (math.pi / 16)) / 2
    waves[0] = math.sqrt(1 / 8)
    return waves


def _planes(shape: tuple[int, ...]) -> list[tuple[int, int, tuple[tuple[int, ...], ...]]]:
    """For each plane of the code: blocks down, blocks across, and the quantisation steps."""
    channels, h, w = shape
    full = (-(-h // 8), -(-w // 8), LUMINANCE)
    half = (-(-h // 16), -(-w // 16), CHROMINANCE)
    return [full, half, half] if channels == 3 else [full] * channels
