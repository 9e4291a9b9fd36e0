"""Centred Gram matrices and the Hilbert-Schmidt independence criterion between many layers at once.

A Gram matrix of uncentred float32 responses loses all its digits to the mean. Here the features of a layer are centred
before anything is multiplied, and products are summed in float64.
"""

from collections.abc import Sequence
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

CONSTANT = 2.0**-40
"""Variance, as a share of the squared mean, at which float32 responses do not vary: (2⁻²⁰)², 8 ulp."""
NOUGHT = 1e-9
"""Share of a Gram matrix's squares below which what U-centring leaves of it is rounding."""
SMALLEST, LARGEST = 1e-12, 1e12
"""Between these, float32 holds fourth powers of sums of responses that metrics take."""
LEAST = 4
"""Rows that the unbiased estimator needs."""
_COLUMNS = 2**13  # summed in float32 before a partial sum is added in float64
_BLOCKS, _LEAST_ROWS = 4, 32  # of rows, so that the half of a symmetric product is not computed twice
_CACHED = 2**18  # numbers that stay in a core's cache: 1 MiB


def in_range(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows whose squares leave the range of float32, scaled by a power of two so that they do not; others as they are.

    A power of two rounds nothing.
    """
    power = power_of(x)
    return torch.ldexp(x, power) if power is not None else x


def power_of(x: Float[Tensor, "n d"]) -> Tensor | None:
    """The power of two that brings the largest number to about 1; None where its square is in range as it is, or 0."""
    largest = x.abs().max()
    return -largest.frexp().exponent if 0 < largest < inf and not SMALLEST < largest < LARGEST else None


def centred(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows about their mean; exact zeros where they vary no more than float32 rounds them."""
    mean = x.mean(0)
    u = x - mean
    return u * _varies(u.square().sum(), len(x), mean)


def centred_gram(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """U U' of the rows about their mean; exact zeros where they vary no more than float32 rounds them.

    On a CPU some columns at a time, so that the centred ones never leave the cache, and in blocks of rows, so that what
    is mirrored is not computed twice.
    """
    n, mean = len(x), x.mean(0)
    if x.device.type != "cpu":
        u = x - mean
        made = u @ u.T
    else:
        made, step = x.new_zeros(n, n), max(_LEAST_ROWS, -(-n // _BLOCKS))
        for columns, some in zip(x.split(_CACHED // n, 1), mean.split(_CACHED // n), strict=True):
            u = columns - some
            for i in range(0, n, step):
                made[i : i + step, : i + step].addmm_(u[i : i + step], u[: i + step].T)
        for i in range(step, n, step):
            made[:i, i : i + step] = made[i : i + step, :i].T
    return made.mul_(_varies(made.diagonal().sum(), n, mean))


def _varies(scatter: Tensor, n: int, mean: Tensor) -> Tensor:
    return scatter > CONSTANT * n * (mean @ mean)


def u_centred(grams: Float[Tensor, "l n n"]) -> Float[Tensor, "l n n"]:
    """U-centred Gram matrices, in place: their inner products are unbiased HSICs, times n(n − 3).

        Ã_ij = K̃_ij − r_i/(n−2) − r_j/(n−2) + s/((n−1)(n−2)),  Ã_ii = 0

    with K̃ the Gram matrix without its diagonal, r its row sums and s their total.

    References:
        Székely & Rizzo 2014, arXiv:1310.2926; Song et al. 2012 (the same estimator written out).
    """
    n = grams.shape[1]
    diagonal = grams.diagonal(dim1=1, dim2=2)
    diagonal.zero_()
    rows = grams.sum(2)
    share = rows / (n - 2) - rows.sum(1, keepdim=True) / (2 * (n - 1) * (n - 2))
    grams -= share[:, :, None]
    grams -= share[:, None, :]
    diagonal.zero_()
    return grams


def products(a: Float[Tensor, "p n m"], b: Float[Tensor, "q n m"]) -> Float[Tensor, "p q"]:
    """Inner products of all matrices with all others, summed in float64: one matrix product."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    parts = zip(flat_a.split(_COLUMNS, 1), flat_b.split(_COLUMNS, 1), strict=True)
    return torch.stack([(x @ y.T).double() for x, y in parts]).sum(0)


def own_products(a: Float[Tensor, "p n m"]) -> Float[Tensor, "p p"]:
    """Inner products of all matrices with one another, exactly symmetric; the diagonal holds their squared norms."""
    made = products(a, a)
    return (made + made.T) / 2


def norms(a: Float[Tensor, "p n m"]) -> Float[Tensor, " p"]:
    """Inner products of all matrices with themselves, summed in float64."""
    return torch.stack([part.square().sum(1).double() for part in a.flatten(1).split(_COLUMNS, 1)]).sum(0)


def cross_products(
    first: Sequence[Float[Tensor, "n _"]], second: Sequence[Float[Tensor, "n _"]] | None, debiased: bool = True
) -> tuple[Float[Tensor, "p q"], Float[Tensor, " p"], Float[Tensor, " q"]]:
    """Inner products of centred Gram matrices of all rows: between all layers of two sets, and of each with itself.

    The ratio product/√(norm · norm) is linear CKA. It is computed in the space that costs less: of samples, where tiles
    of all Gram matrices are made and multiplied at once (n²(D₁ + D₂) + n² L₁ L₂), or of features (2 n D₁ D₂), D the
    total number of features of a set.

    Args:
        first: Responses of each layer to the same images, `[n, d]`.
        second: Those of the other set; None: the first set with itself.
        debiased: Whether the unbiased HSIC is used, else the biased one.

    Returns:
        Products `[p, q]`, and the norms of both sets, each layer in a unit of its own; a norm that is rounding is 0.
    """
    ours = [_unit(centred(in_range(x))) for x in first]
    theirs = ours if second is None else [_unit(centred(in_range(x))) for x in second]
    if _by_samples(len(ours[0]), [x.shape[1] for x in ours], [x.shape[1] for x in theirs]):
        made = _in_samples(ours, None if second is None else theirs, debiased)
    else:
        made = _in_features(ours, theirs, debiased)
    both, own_a, own_b = made
    if second is None:  # exactly symmetric, and each layer is exactly like itself
        both = (both + both.T) / 2
        own_a = own_b = both.diagonal()
    least = NOUGHT * len(ours[0]) ** 2
    return both, torch.where(own_a > least, own_a, 0), torch.where(own_b > least, own_b, 0)


def _unit(u: Tensor) -> Tensor:
    """Centred rows of root-mean-square length 1, so that no product leaves the range of float32."""
    length = u.double().square().sum(1).mean().sqrt()
    return u if length == 0 else (u / length).to(u.dtype)


def _by_samples(n: int, ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Whether the space of samples costs less."""
    samples = n * (sum(ours) + sum(theirs)) + n * len(ours) * len(theirs)
    own = sum(d * d for d in (*ours, *theirs))
    return samples < 2 * (sum(ours) * sum(theirs) + own)


def _in_samples(
    ours: Sequence[Tensor], theirs: Sequence[Tensor] | None, debiased: bool, tile: int = 1024
) -> tuple[Tensor, Tensor, Tensor]:
    n = len(ours[0])
    sets = [ours] if theirs is None else [ours, theirs]
    # With centred rows, row i of a Gram matrix without its diagonal sums to −|x_i|², so tiles need no first pass.
    shares = [[_share(x) if debiased else None for x in one] for one in sets]
    total = own_a = own_b = torch.zeros((), dtype=torch.float64, device=ours[0].device)
    for i in range(0, n, tile):
        for j in range(0, i + 1, tile):
            twice = 1 if i == j else 2
            tiles = [
                torch.stack([_tile(x, share, i, j, tile) for x, share in zip(one, part, strict=True)])
                for one, part in zip(sets, shares, strict=True)
            ]
            total = total + twice * products(tiles[0], tiles[-1])
            own_a = own_a + twice * norms(tiles[0])
            own_b = own_b + twice * norms(tiles[-1])
    return total, own_a, own_b


def _share(x: Tensor) -> Tensor:
    """What U-centring takes off row i of a Gram matrix of centred rows, and off column i."""
    n = len(x)
    square = x.double().square().sum(1)
    return (-square / (n - 2) + square.sum() / (2 * (n - 1) * (n - 2))).to(x.dtype)


def _tile(x: Tensor, share: Tensor | None, i: int, j: int, tile: int) -> Tensor:
    made = x[i : i + tile] @ x[j : j + tile].T
    if share is not None:
        made -= share[i : i + tile, None]
        made -= share[None, j : j + tile]
        if i == j:
            made.fill_diagonal_(0)
    return made


def _in_features(ours: Sequence[Tensor], theirs: Sequence[Tensor], debiased: bool) -> tuple[Tensor, Tensor, Tensor]:
    n = len(ours[0])
    squares = [torch.stack([x.double().square().sum(1) for x in one]) for one in (ours, theirs)]

    def corrected(product: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if not debiased:
            return product
        return product - n / (n - 2) * (a * b).sum(-1) + a.sum(-1) * b.sum(-1) / ((n - 1) * (n - 2))

    def square_norm(x: Tensor, y: Tensor) -> Tensor:
        parts = zip(x.split(1024), y.split(1024), strict=True)
        return torch.stack([(a.T @ b).double() for a, b in parts]).sum(0).square().sum()

    total = torch.stack([torch.stack([square_norm(x, y) for y in theirs]) for x in ours])
    own = [
        corrected(torch.stack([square_norm(x, x) for x in one]), square, square)
        for one, square in zip((ours, theirs), squares, strict=True)
    ]
    return corrected(total, squares[0][:, None], squares[1][None]), own[0], own[1]
