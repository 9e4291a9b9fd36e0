"""The moves of an active-set method for non-negative least squares, for kernels that find their generators as they go.

Those in use have slots 0 … size - 1: `place` says which generator, `z` its multiplier, `target` its b, and `factor` is
the Cholesky factor of their Gram matrix. What fills the slots, and from how many candidates, is the kernel's business.
"""

import numpy as np

from geophone.geometry.compiled import compiled

DEPENDENT = 1e-14
"""Of a generator's squared length, what must be left outside of the span of those in use for it to enter."""


@compiled
def enter(factor, size, row, length):  # type: ignore[no-untyped-def]
    """Add a generator to the factor: O(size²). False, and nothing is added, if it is in the span of those in use.

    Args:
        factor: `[cap, cap]`, its first `size` rows filled.
        size: Generators in use.
        row: Its inner products with them, `[cap]`; overwritten.
        length: Its squared length.
    """
    left = length
    for i in range(size):
        value = row[i]
        for j in range(i):
            value -= factor[i, j] * row[j]
        row[i] = value / factor[i, i]
        left -= row[i] * row[i]
    if left <= DEPENDENT * length:
        return False
    for i in range(size):
        factor[size, i] = row[i]
    factor[size, size] = np.sqrt(left)
    return True


@compiled
def leave(factor, place, z, target, size, out):  # type: ignore[no-untyped-def]
    """Free one slot; those after it move up, and Givens rotations make the factor triangular again: O(size²)."""
    for i in range(out, size - 1):
        place[i], z[i], target[i] = place[i + 1], z[i + 1], target[i + 1]
        for j in range(i + 2):
            factor[i, j] = factor[i + 1, j]
    for i in range(out, size - 1):
        x, y = factor[i, i], factor[i, i + 1]
        length = np.hypot(x, y)
        c, s = x / length, y / length
        factor[i, i], factor[i, i + 1] = length, 0.0
        for j in range(i + 1, size - 1):
            u, v = factor[j, i], factor[j, i + 1]
            factor[j, i], factor[j, i + 1] = c * u + s * v, c * v - s * u


@compiled
def settle(factor, place, z, target, size, solution):  # type: ignore[no-untyped-def]
    """Move the multipliers to the minimum over those in use; whatever reaches 0 on the way leaves. The new size.

    The inner loop of Lawson and Hanson: multipliers were feasible for what was in use and are optimal for what stays.

    Args:
        factor: See `enter`.
        place: Generators in use.
        z: Their multipliers, at least 0; the newest has 0.
        target: Their b.
        size: How many.
        solution: Room, `[cap]`.
    """
    while size > 0:
        for i in range(size):
            value = target[i]
            for j in range(i):
                value -= factor[i, j] * solution[j]
            solution[i] = value / factor[i, i]
        for i in range(size - 1, -1, -1):
            value = solution[i] / factor[i, i]
            solution[i] = value
            for j in range(i):
                solution[j] -= factor[i, j] * value
        step, leaving = 1.0, -1
        for i in range(size):
            if solution[i] <= 0:
                share = z[i] / (z[i] - solution[i]) if z[i] > 0 else 0.0
                if leaving < 0 or share < step:
                    step, leaving = share, i
        if leaving < 0:
            for i in range(size):
                z[i] = solution[i]
            return size
        for i in range(size):
            z[i] += step * (solution[i] - z[i])
        z[leaving] = 0.0
        for out in range(size - 1, -1, -1):
            if z[out] <= 0:
                leave(factor, place, z, target, size, out)
                size -= 1
    return size
