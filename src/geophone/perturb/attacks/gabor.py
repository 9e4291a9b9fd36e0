"""Adversarial Gabor noise: a procedural texture whose kernels are weighted against the network."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.perturb.attacks.base import UNITS
from geophone.perturb.attacks.layer import Laid, LayerAttack
from geophone.perturb.attacks.norms import LINF, Norm
from geophone.perturb.checks import check_number

SIZE = 23
"""Side of a Gabor kernel in pixels."""

SOFT = 1e-3
"""The share of the largest value at which a value is pushed half way to the largest: near 0 there are two values."""


@PERTURBATIONS.register
@dataclass(frozen=True)
class GaborAttack(LayerAttack):
    """Gabor noise, sparse kernels whose intensities are chosen against the network.

        x' = clip(x + eps · texture(Σ_i z_i · kernel(· - p_i)), 0, 1),   z in [-1, 1]

    The p_i are random pixels, `density` of them. Each image has a kernel of its own: 1 to 10 Gabor functions of one
    Gaussian (deviation 0.1 to 0.4 of the kernel's 23 pixels) and one frequency (3 to 5.75 periods in them), turned by
    equal angles, and summed. `texture` pushes the sum towards two values, v·(1 + c)/(c + |v|) with c = 0.001 and v the
    difference from the mean over its largest, and stretches it to [0, 1]: it only brightens. Its scales are held
    constant in the gradient. The intensities begin uniform, and climb the loss by signed steps.

    The authors' code moves the pixels without a kernel instead, by an inverted mask that their later code puts right;
    `density=13/14` comes near it.

    Attributes:
        eps: Largest change of a value, in units of images in [0, 1]: 75/255 for the 75 of the authors' code. Above 1
            the texture's bright parts cover the image.
        steps: How many steps, at least 1.
        loss: `scaled_ce`, `margin`, `dlr` or `ce`; the textbook's is `ce`.
        draws: Gradients that are averaged for each step; None: 1, or 10 for a network with noise (`draws_of`).
        step_size: Change of an intensity in a step; 2.5/steps when None.
        density: Share of pixels with a kernel, in [0, 1]; at least one has.

    References:
        Kang et al. 2019, arXiv:1908.08016; Co et al. 2018, arXiv:1810.00470 (the noise).
    """

    eps: float = 75 / 255
    step_size: float | None = None
    density: float = 1 / 14
    levels: ClassVar[tuple[float, ...]] = (6.25 / 255, 12.5 / 255, 25 / 255, 75 / 255)
    norm: ClassVar[Norm] = LINF
    highest: ClassVar[float] = 10.0
    unit: ClassVar[str] = UNITS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            check_number(self, "step_size", 0.0)
        check_number(self, "density", 0.0, 1.0)

    def layer(self, x: Tensor, rng: Draws) -> tuple[Tensor, Laid]:
        """Random intensities at random places, and a random kernel for each image."""
        h, w = x.shape[-2:]
        count = max(1, round(self.density * h * w))
        places = rng.uniform("places", h * w).topk(count, dim=1).indices
        kernels = gabor_kernels(rng).to(x.dtype)

        def laid(z: Tensor, rows: Tensor) -> Tensor:
            sparse = z.new_zeros(len(z), h * w).scatter(1, places[rows], z).reshape(-1, 1, h, w)
            return (x[rows] + self.eps * texture(convolved(sparse, kernels[rows]))).clamp(0, 1)

        return 2 * rng.uniform("intensity", count).to(x.dtype) - 1, laid

    def onward(self, z: Tensor, gradient: Tensor) -> Tensor:
        """A signed step, clipped to [-1, 1]."""
        step_size = 2.5 / self.steps if self.step_size is None else self.step_size
        return (z + step_size * gradient.sign()).clamp(-1, 1)


def convolved(images: Float[Tensor, "m 1 h w"], kernels: Float[Tensor, "m 1 23 23"]) -> Float[Tensor, "m 1 h w"]:
    """Each image convolved with a kernel of its own, 0 outside; by Fourier transforms, faster at this size."""
    h, w = images.shape[-2:]
    middle = SIZE // 2
    size = (h + SIZE - 1, w + SIZE - 1)
    wide = torch.promote_types(images.dtype, torch.float32)  # half precision has no transform
    both = torch.fft.rfft2(images.to(wide), size) * torch.fft.rfft2(kernels.to(wide), size)
    return torch.fft.irfft2(both, size)[:, :, middle : middle + h, middle : middle + w].to(images.dtype)


def texture(noise: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Noise pushed towards two values and stretched to [0, 1]; the scales are constants in the gradient."""
    fixed = noise.detach()
    mean = fixed.mean((1, 2, 3), keepdim=True)
    size = (fixed - mean).abs()
    pushed = (noise - mean) * ((1 + SOFT) / (SOFT + size / _above_zero(size.amax((1, 2, 3), keepdim=True))))
    low, high = (edge(pushed.detach(), (1, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
    return (pushed - low) / _above_zero(high - low)


def _above_zero(scale: Tensor) -> Tensor:
    """1 where a scale is 0, as that of an image of one pixel."""
    return torch.where(scale > 0, scale, 1)


def gabor_kernels(rng: Draws) -> Float[Tensor, "n 1 23 23"]:
    """One kernel for each image: Gabor functions exp(-r²/2σ²)·cos(2πft), t along each of 1 to 10 directions, summed."""
    sides, deviation, frequency, first = rng.uniform("kernel", 4).T[..., None, None]
    sides = 1 + (10 * sides).floor()
    deviation = 0.1 + 0.3 * deviation
    frequency = 3 + (SIZE / 4 - 3) * frequency
    place = torch.linspace(-0.5, 0.5, SIZE, dtype=sides.dtype, device=sides.device)
    down, across = place[:, None], place[None, :]
    envelope = torch.exp(-(down**2 + across**2) / (2 * deviation**2))
    waves = torch.zeros_like(envelope)
    for side in range(10):
        angle = math.pi * (first + side / sides)
        wave = torch.cos(2 * math.pi * frequency * (across * angle.cos() + down * angle.sin()))
        waves = waves + wave * (side < sides)
    return (envelope * waves)[:, None]
