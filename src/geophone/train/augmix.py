"""AugMix: images through short chains of simple operations, mixed with each other and with the original.

The operations are those of 8-bit pictures, on whole levels from 0 to 255, and take a batch at once. Each chain's images
are sorted by the operation they drew, so that every operation runs once per step, on its own images.
"""

from collections.abc import Callable
from math import log, pi

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample, one_hot

from geophone.core.rng import Draws

Levels = UInt8[Tensor, "n c h w"]

LONGEST = 3
"""Operations in a chain of random depth, at most."""

# At level 10 of 10. These, and how places outside and between pixels are filled, are our assumption, after the common
# use of the same operations as learned augmentations; the paper's text was not at hand.
MOST_BITS_LOST = 4
MOST_TURN = pi / 6
MOST_SHEAR = 0.3
MOST_SHIFT = 1 / 3


@torch.no_grad()
def augmixed(
    x: Float[Tensor, "n c h w"], rng: Draws, copies: int = 2, width: int = 3, depth: int = 0, severity: int = 3
) -> Float[Tensor, "copies n c h w"]:
    """Mixed versions of each image, in [0, 1]: m · x + (1 - m) · Σ_k w_k · chain_k(x).

    m is uniform on [0, 1], which is Beta(1, 1), and w of the distribution Dirichlet(1, …, 1). Each operation of a chain
    is drawn uniformly from the nine, its level uniformly from [0, severity), of 10, and its direction by a coin. Chains
    work on x rounded to 8 bits; the mixture is not rounded.

    Args:
        x: Images in [0, 1].
        rng: Draws of these examples.
        copies: Mixed versions of each image.
        width: Chains.
        depth: Operations in each chain; 0 draws it from 1, 2, 3.
        severity: Largest level, 1 to 10.
    """
    n, chains, longest = len(x), copies * width, depth or LONGEST
    drawn = (rng.uniform("operation", chains, longest) * (len(POINTWISE) + MOVES)).long().flatten(0, 1)
    amount = (rng.uniform("level", chains, longest) * (severity / 10)).flatten(0, 1)
    amount = torch.where(rng.uniform("direction", chains, longest).flatten(0, 1) < 0.5, -amount, amount)
    if not depth:
        length = (rng.uniform("depth", chains) * LONGEST).long().flatten() + 1
        done = torch.arange(longest, device=x.device) >= length[:, None]
        drawn = drawn.masked_fill(done, len(POINTWISE) + MOVES)
    levels = x.float().mul(255).round_().clamp_(0, 255).to(torch.uint8, memory_format=torch.contiguous_format)
    images = levels.repeat_interleave(chains, 0)
    by_operation = drawn.argsort(0)
    counts = one_hot(drawn, len(POINTWISE) + MOVES + 1).sum(0).tolist()  # asked of the device once
    for step, count in enumerate(counts):
        point, moves, rest = count[: len(POINTWISE)], sum(count[len(POINTWISE) : -1]), count[-1]
        *groups, moving, _ = by_operation[:, step].split([*point, moves, rest])
        for operation, rows in zip(POINTWISE, groups, strict=True):
            if len(rows):
                images[rows] = operation(images[rows], amount[rows, step])
        if len(moving):
            kind = drawn[moving, step] - len(POINTWISE)
            images[moving] = moved(images[moving], *_motion(kind, amount[moving, step], *x.shape[2:]))

    share = rng.uniform("weight", copies, width).neg_().log1p_().neg_().clamp_(min=1e-9)  # exponential, never all 0
    share = (share / share.sum(2, keepdim=True)).to(x.dtype)[..., None, None, None]
    chained = images.view(n, copies, width, *x.shape[1:])
    mixed = torch.zeros(n, copies, *x.shape[1:], dtype=x.dtype, device=x.device)
    for k in range(width):
        mixed.addcmul_(chained[:, :, k].to(x.dtype).div_(255), share[:, :, k])
    skip = rng.uniform("skip", copies).to(x.dtype)[..., None, None, None]
    return mixed.lerp_(x[:, None].expand_as(mixed), skip).clamp_(0, 1).transpose(0, 1)


def jensen_shannon(logits: Float[Tensor, "m n k"]) -> Float[Tensor, ""]:
    """Jensen-Shannon divergence of m predictions for each of n images, mean over images; in [0, ln m].

    JSD = (1/m) Σ_i KL(p_i || M) with M = (1/m) Σ_i p_i.
    """
    log_p = logits.log_softmax(2)
    log_mean = log_p.logsumexp(0) - log(len(logits))
    return (log_p.exp() * (log_p - log_mean)).sum(2).mean()


def autocontrast(x: Levels) -> Levels:
    """Each channel stretched so that its darkest level becomes 0 and its lightest 255; a constant one stays."""
    low, high = (end.double()[..., None] for end in x.flatten(2).aminmax(dim=2))
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    every = _every_level(x)
    table = (every.double() * scale - low * scale).clamp_(0, 255).to(torch.uint8)
    return _looked_up(x, table.where(high > low, every.to(torch.uint8)))


def equalised(x: Levels) -> Levels:
    """Each channel's levels spread by their ranks: level v becomes (pixels below v + step / 2) / step, rounded down.

    The step is the number of pixels below the lightest level, divided by 255 and rounded down; at 0 the channel stays.
    """
    flat = x.flatten(2).long()
    count = torch.zeros(*x.shape[:2], 256, dtype=torch.int64, device=x.device)
    count.scatter_add_(2, flat, count.new_ones(()).expand_as(flat))
    below = count.cumsum(2) - count
    step = below.gather(2, flat.amax(2, keepdim=True)) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return _looked_up(x, table.where(step > 0, _every_level(x)).to(torch.uint8))


def posterised(x: Levels, bits: Shaped[Tensor, " n"]) -> Levels:
    """Only the highest `bits` bits of each level, 1 to 8."""
    return x & (256 - 2 ** (8 - bits)).to(torch.uint8)[:, None, None, None]


def solarised(x: Levels, threshold: Shaped[Tensor, " n"]) -> Levels:
    """Levels from the threshold on, 1 to 256, inverted."""
    return torch.where(x > (threshold - 1).to(torch.uint8)[:, None, None, None], 255 - x, x)


def moved(
    x: Levels,
    turn: Float[Tensor, " n"],
    shear_x: Float[Tensor, " n"],
    shear_y: Float[Tensor, " n"],
    shift_x: Float[Tensor, " n"],
    shift_y: Float[Tensor, " n"],
) -> Levels:
    """Each image turned anticlockwise about its middle, sheared from its upper left corner, and shifted.

    The pixel whose middle is (u, v) takes the value, between pixels bilinear, rounded, at (u', v') of the image:

        u' = w/2 + (u - w/2) cos - (v - h/2) sin + shear_x · v + shift_x
        v' = h/2 + (u - w/2) sin + (v - h/2) cos + shear_y · u + shift_y

    What comes in from outside is black.

    Args:
        x: Images.
        turn: In radians.
        shear_x: Pixels per row.
        shear_y: Pixels per column.
        shift_x: In pixels, to the left.
        shift_y: In pixels, up.
    """
    h, w = x.shape[2:]
    u = torch.arange(w, device=x.device) + 0.5
    v = torch.arange(h, device=x.device)[:, None] + 0.5
    turn, shear_x, shear_y, shift_x, shift_y = (
        each[:, None, None] for each in (turn, shear_x, shear_y, shift_x, shift_y)
    )
    cos, sin = turn.cos(), turn.sin()
    # In units of half an image from its middle; what depends on the column apart from what depends on the row.
    places = torch.empty(len(x), h, w, 2, device=x.device)
    places[..., 0] = ((u - w / 2) * cos + shift_x) * (2 / w) + (shear_x * v - (v - h / 2) * sin) * (2 / w)
    places[..., 1] = ((u - w / 2) * sin + shear_y * u) * (2 / h) + ((v - h / 2) * cos + shift_y) * (2 / h)
    found = grid_sample(x.float(), places, "bilinear", "border", align_corners=False)
    outside = torch.maximum(*places.abs_().unbind(3)) >= 1
    return found.round_().to(torch.uint8).masked_fill_(outside[:, None], 0)


def _motion(kind: Shaped[Tensor, " n"], amount: Float[Tensor, " n"], h: int, w: int) -> tuple[Tensor, ...]:
    """What `moved` takes, from which of its five an image drew and the signed amount in (-1, 1); shifts are whole."""
    most = torch.tensor([MOST_TURN, MOST_SHEAR, MOST_SHEAR, w * MOST_SHIFT, h * MOST_SHIFT], device=amount.device)
    turn, shear_x, shear_y, shift_x, shift_y = (one_hot(kind, MOVES) * amount[:, None] * most).unbind(1)
    return turn, shear_x, shear_y, shift_x.trunc(), shift_y.trunc()


def _every_level(x: Levels) -> Shaped[Tensor, " 256"]:
    return torch.arange(256, device=x.device)


def _looked_up(x: Levels, table: UInt8[Tensor, "n c 256"]) -> Levels:
    return table.gather(2, x.flatten(2).long()).view_as(x)


POINTWISE: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, _: autocontrast(x),
    lambda x, _: equalised(x),
    lambda x, amount: posterised(x, MOST_BITS_LOST - (amount.abs() * MOST_BITS_LOST).long()),
    lambda x, amount: solarised(x, 256 - (amount.abs() * 256).long()),
)
MOVES = 5
"""Of `moved`: turn, two shears, two shifts. No operation does what a corruption of CIFAR-10-C does."""
