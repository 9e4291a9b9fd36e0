"""Square: a random search over square patches, which sees nothing of a network but its logits."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geophone.core.errors import GeophoneError
from geophone.core.registry import PERTURBATIONS
from geophone.core.rng import Draws
from geophone.core.types import Model
from geophone.perturb.attacks.ascent import classes_of, is_fooled, logits_at
from geophone.perturb.attacks.base import Attack
from geophone.perturb.attacks.losses import margin
from geophone.perturb.attacks.norms import L1, L2, LINF, Norm
from geophone.perturb.checks import check_number

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which of 10,000 queries the share of an image that a square covers is halved; other budgets are scaled."""

BLOCK = 64
"""Queries whose random numbers are drawn at once."""


@dataclass(frozen=True)
class _Square(Attack):
    """What the norms share: the search. Subclasses say what to try."""

    queries: int = 1000
    p_init: float = 0.8
    black_box: ClassVar[bool] = True
    placing: ClassVar[int]
    """How many random numbers a query takes, besides one for each channel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "queries", 1.0)
        check_number(self, "p_init", 0.0, 1.0)

    def search(self, x: Tensor, y: Tensor, model: Model, rng: Draws, stop: bool) -> Tensor:
        """Try squares on each example until it is fooled; of what was tried the largest margin is kept."""
        if x.ndim != 4:
            raise GeophoneError(f"{type(self).__name__} puts squares on images [n, c, h, w], and x is {list(x.shape)}.")
        classes = classes_of(y)
        tried = best = self.start(x, rng)
        out, largest = tried.clone(), x.new_full((len(x),), -math.inf)
        rows = torch.arange(len(x), device=x.device)
        for query in range(self.queries):
            turn = query % BLOCK
            if not turn:
                block = rng.uniform(f"queries from {query}", BLOCK, self.placing + x.shape[1])
            if query:
                tried = self.propose(x, best, block[:, turn], self.side(query, x))
            with torch.no_grad():
                logits = logits_at(model, tried, y, classes)
            margins = margin(logits, y)
            best = torch.where((margins > largest)[:, None, None, None], tried, best)
            largest = margins.maximum(largest)
            fooled = is_fooled(logits, y)
            if bool(fooled.any()):
                out[rows[fooled]] = tried[fooled]
                left = ~fooled
                x, y, best, largest, rows = x[left], y[left], best[left], largest[left], rows[left]
                rng, block = rng[left], block[left]
                if not len(rows):
                    return out
        if bool(largest.isnan().any()):
            raise GeophoneError("the model's logits are NaN: check its weights and its logits.")
        out[rows] = best
        return out

    def side(self, query: int, x: Float[Tensor, "n c h w"]) -> int:
        """Side of the square, which shrinks as the search goes on."""
        elapsed = (query - 1) * 10_000 // self.queries
        share = self.p_init / 2 ** sum(elapsed > edge for edge in HALVINGS)
        height, width = x.shape[2:]
        return max(1, min(round(math.sqrt(share * height * width)), height, width))

    def start(self, x: Float[Tensor, "n c h w"], rng: Draws) -> Float[Tensor, "n c h w"]:
        """What is tried first."""
        raise NotImplementedError

    def propose(
        self, x: Float[Tensor, "n c h w"], best: Float[Tensor, "n c h w"], draws: Float[Tensor, "n m"], side: int
    ) -> Float[Tensor, "n c h w"]:
        """What is tried next, from the best so far and uniform draws."""
        raise NotImplementedError


@PERTURBATIONS.register
@dataclass(frozen=True)
class LinfSquare(_Square):
    """Square attack in the l-infinity ball, black box: a query sets a random square to x ± eps.

    The first query sets every column to x ± eps; columns and squares have one sign for each channel. A change is kept
    where it raises the margin max_{j≠y} z_j - z_y, and an example is left once it is fooled: the result is the image
    that fooled the network, else the one with the largest margin. Only the logits are used, so a network can't hide
    behind its gradients. Squares lie at places of their own on each image. Costs at most `queries` forward passes.

    Attributes:
        eps: Largest change of a value, in [0, 1].
        queries: How many images are tried, at least 1; AutoAttack tries 5000.
        p_init: Share of the image that the first squares cover, in [0, 1].

    References:
        Andriushchenko et al. 2020, arXiv:1912.00049.
    """

    eps: float = 8 / 255
    levels: ClassVar[tuple[float, ...]] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    norm: ClassVar[Norm] = LINF
    placing: ClassVar[int] = 2

    def start(self, x: Float[Tensor, "n c h w"], rng: Draws) -> Float[Tensor, "n c h w"]:
        """Vertical stripes."""
        return (x + self.eps * _signs(rng.uniform("start", x.shape[1], 1, x.shape[3]), x)).clamp_(0, 1)

    def propose(
        self, x: Float[Tensor, "n c h w"], best: Float[Tensor, "n c h w"], draws: Float[Tensor, "n m"], side: int
    ) -> Float[Tensor, "n c h w"]:
        """A square of x ± eps on the best image."""
        corner = _corner(draws[:, :2], x, side)
        inside = (x + self.eps * _signs(draws[:, 2:, None, None], x)).clamp_(0, 1)
        return torch.where(_square(corner, x, side), inside, best)


@dataclass(frozen=True)
class _MassSquare(_Square):
    """Square in a norm that is a budget over all values: a query moves the budget of one window to another."""

    placing: ClassVar[int] = 5

    def start(self, x: Float[Tensor, "n c h w"], rng: Draws) -> Float[Tensor, "n c h w"]:
        """Bumps of random signs, side by side over the whole image."""
        height, width = x.shape[2:]
        side = max(1, min(height, width) // 5)
        down, across = height // side, width // side
        top, left = (height - down * side) // 2, (width - across * side) // 2
        bump = self.bump(side, x)
        turned = rng.uniform("turn", 1, down, 1, across, 1) < 0.5
        bumps = torch.where(turned, bump.T[:, None], bump[:, None])
        tiles = bumps * _signs(rng.uniform("start", x.shape[1], down, 1, across, 1), x)
        delta = torch.zeros_like(x)
        delta[:, :, top : top + down * side, left : left + across * side] = tiles.reshape(
            *x.shape[:2], down * side, across * side
        )
        return self.fill(x, delta)

    def propose(
        self, x: Float[Tensor, "n c h w"], best: Float[Tensor, "n c h w"], draws: Float[Tensor, "n m"], side: int
    ) -> Float[Tensor, "n c h w"]:
        """The best image with the budget of a window, and what was not spent, put on a bump in another window."""
        order, width = self.norm.order, x.shape[3]
        side = min(max(side, 3) // 2 * 2 + 1, x.shape[2], width)  # odd, so that the halves of a bump differ
        delta = best - x
        filled, emptied = _corner(draws[:, :2], x, side), _corner(draws[:, 2:4], x, side)
        leaves, enters = _square(emptied, x, side), _square(filled, x, side)
        mass = delta.abs() ** order
        unspent = (self.eps**order - mass.sum((1, 2, 3), keepdim=True)).clamp(min=0)
        freed = torch.where(leaves | enters, mass, 0).sum((2, 3), keepdim=True)
        budget = (freed + unspent / x.shape[1]) ** (1 / order)
        if order == 1:
            # As in the authors' code: too much, which the projection takes back from everywhere, and so makes sparse.
            budget = budget * x.shape[1]

        offsets = torch.arange(side, device=x.device)
        at = (filled[:, :1, None] + offsets[:, None]) * width + filled[:, 1:, None] + offsets
        at = at.flatten(1)[:, None].expand(-1, x.shape[1], -1)  # of the values in the window, among h·w
        bump = self.bump(side, x)
        bumps = torch.where(draws[:, 4:5] < 0.5, bump.T.flatten(), bump.flatten())[:, None]
        mixed = _unit(delta.flatten(2).gather(2, at), order) + bumps * _signs(draws[:, 5:, None], x)
        mixed = _unit(mixed, order) * budget.flatten(2)
        delta = torch.where(leaves, 0, delta).flatten(2).scatter(2, at, mixed).reshape(x.shape)
        return self.fill(x, delta)

    def bump(self, side: int, like: Tensor) -> Float[Tensor, "s s"]:
        """Two rectangles of opposite signs, each highest in its middle, of norm 1 together."""
        upper, lower = self._hill(side // 2, side, like), self._hill(side - side // 2, side, like)
        return _unit(torch.cat([upper, -lower]).flatten(), self.norm.order).reshape(side, side)

    def _hill(self, height: int, width: int, like: Tensor) -> Float[Tensor, "a b"]:
        """Σ_k k^-2 (in l1 k^-4) over the k whose square of half-width k - 1 about the middle holds a value; norm 1."""
        down, across = (torch.arange(length, device=like.device) - length // 2 for length in (height, width))
        ring = torch.maximum(down.abs()[:, None], across.abs())
        k = torch.arange(1, max(height, width) // 2 + 2, device=like.device, dtype=like.dtype)
        sums = (k ** (-4 if self.norm.order == 1 else -2)).flip(0).cumsum(0).flip(0)
        return _unit(sums[ring].flatten(), self.norm.order).reshape(height, width)

    def fill(self, x: Float[Tensor, "n c h w"], delta: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images of that perturbation, in the ball and in [0, 1]."""
        raise NotImplementedError


@PERTURBATIONS.register
@dataclass(frozen=True)
class L2Square(_MassSquare):
    """Square attack in the l2 ball, black box: a query moves the perturbation of one square to another.

    The perturbation begins as bumps of random signs on a grid. A query empties a random window, and puts what that
    frees, with whatever the box [0, 1] left unspent, on a bump of two unlike halves in another window. The result and
    the search are those of `LinfSquare`.

    Attributes:
        eps: Largest Euclidean length of the change of an image, at least 0.
        queries: How many images are tried, at least 1; AutoAttack tries 5000.
        p_init: Share of the image that the first windows cover, in [0, 1].

    References:
        Andriushchenko et al. 2020, arXiv:1912.00049, Alg. 3.
    """

    eps: float = 0.5
    levels: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.5, 1.0)
    norm: ClassVar[Norm] = L2

    def fill(self, x: Float[Tensor, "n c h w"], delta: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The perturbation scaled to the length eps, then clipped."""
        return (x + self.eps * self.norm.steepest(delta)).clamp_(0, 1)


@PERTURBATIONS.register
@dataclass(frozen=True)
class L1Square(_MassSquare):
    """Square attack in the l1 ball, black box: a query moves the perturbation of one square to another.

    As `L2Square`, with steeper bumps, and with the projection on the ball and [0, 1] at once.

    Attributes:
        eps: Largest sum of absolute changes of an image's values, at least 0.
        queries: How many images are tried, at least 1; AutoAttack tries 5000.
        p_init: Share of the image that the first windows cover, in [0, 1].

    References:
        Croce & Hein 2021, arXiv:2103.01208, sec. 4.
    """

    eps: float = 12.0
    levels: ClassVar[tuple[float, ...]] = (3.0, 6.0, 12.0, 24.0)
    norm: ClassVar[Norm] = L1

    def fill(self, x: Float[Tensor, "n c h w"], delta: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The nearest perturbation in the ball that keeps the image in [0, 1]."""
        return self.norm.inside(x + delta, x, self.eps)


def _signs(draws: Float[Tensor, "n ..."], like: Tensor) -> Float[Tensor, "n ..."]:
    """Uniform draws as signs."""
    return torch.where(draws < 0.5, -1, 1).to(like.dtype)


def _corner(draws: Float[Tensor, "n 2"], x: Float[Tensor, "n c h w"], side: int) -> Int[Tensor, "n 2"]:
    """Uniform draws as the row and the column of a square's first corner."""
    height, width = x.shape[2:]
    down, across = draws[:, 0] * (height - side + 1), draws[:, 1] * (width - side + 1)
    return torch.stack([down, across], dim=1).long()


def _square(corner: Int[Tensor, "n 2"], x: Float[Tensor, "n c h w"], side: int) -> Bool[Tensor, "n 1 h w"]:
    """The values that a square covers."""
    down, across = (
        torch.arange(length, device=x.device) - corner[:, axis, None] for axis, length in enumerate(x.shape[2:])
    )
    covered = ((down >= 0) & (down < side))[:, :, None] & ((across >= 0) & (across < side))[:, None]
    return covered[:, None]


def _unit(values: Float[Tensor, "*rest m"], order: float) -> Float[Tensor, "*rest m"]:
    """Values along the last axis, divided by their norm; zeros stay."""
    length = torch.linalg.vector_norm(values, order, dim=-1, keepdim=True)
    return values / length.clamp(min=torch.finfo(values.dtype).tiny)
