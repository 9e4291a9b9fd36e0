"""Active-set methods for non-negative least squares: all that is compiled of them.

`enter`, `leave` and `settle` are the moves, and the kernels after them find their generators each in its own way.
Those in use have slots 0 … size - 1: `place` says which generator, `z` its multiplier, `target` its b, and `factor` is
the Cholesky factor of their Gram matrix. What fills the slots, and from how many candidates, is the kernel's business.
"""

import numpy as np

from geophone.metrics.geometry.compiled import compiled

TOUCHING = 1e-7
"""Distance between two hulls, relative to the longest point about the mean, that counts as 0.

Points come from their Gram matrix, which halves the digits, and usually from float32.
"""

_TIE = 1e-9  # of a score, relative to the largest there could be: on the hyperplane

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


@compiled
def lawson_hanson(gram, b, tolerance, z, place, factor, work):  # type: ignore[no-untyped-def]
    """Minimise ½ zᵀGz − bᵀz over z ≥ 0 by the active-set method of Lawson and Hanson.

    Args:
        gram: `[m, m]`.
        b: `[m]`.
        tolerance: Relative to the largest b_i/√G_ii.
        z: The answer, `[m]`; what it holds before does not matter.
        place: Room for `[m]` int64; on return its first entries are the generators in use.
        factor: Room for `[m, m]`.
        work: Room for `[5, m]`.

    Returns:
        How many generators are in use.
    """
    m = len(b)
    slope, row, solution, used, target = work[0], work[1], work[2], work[3], work[4]
    state = np.zeros(m, dtype=np.int8)  # 0 outside, 1 in use, 2 barred until something enters
    top = 0.0
    for i in range(m):
        z[i] = 0.0
        slope[i] = b[i]
        if gram[i, i] > 0:
            top = max(top, b[i] / np.sqrt(gram[i, i]))
    size = 0
    for _ in range(10 * m + 30):
        best, entering = tolerance * top, -1
        for i in range(m):
            if state[i] == 0 and gram[i, i] > 0:
                steep = slope[i] / np.sqrt(gram[i, i])
                if steep > best:
                    best, entering = steep, i
        if entering < 0:
            break
        for i in range(size):
            row[i] = gram[entering, place[i]]
        if not enter(factor, size, row, gram[entering, entering]):
            state[entering] = 2
            continue
        for i in range(size):
            state[place[i]] = 0
        place[size], used[size], target[size] = entering, 0.0, b[entering]
        size = settle(factor, place, used, target, size + 1, solution)
        stayed = False
        slope[:] = b
        for i in range(size):
            state[place[i]] = 1
            stayed = stayed or place[i] == entering
            line, much = gram[place[i]], used[i]
            for j in range(m):
                slope[j] -= much * line[j]
        if not stayed:
            state[entering] = 2  # it can't grow: rounding had given it a slope
            continue
        for i in range(m):
            if state[i] == 2:
                state[i] = 0
    for i in range(size):
        z[place[i]] = used[i]
    return size


@compiled
def solve_all(gram, b, tolerance, z):  # type: ignore[no-untyped-def]
    """`lawson_hanson` of every row of b, `[q, m]`, into z."""
    m = gram.shape[0]
    place = np.empty(m, dtype=np.int64)
    factor = np.empty((m, m))
    work = np.empty((5, m))
    for q in range(b.shape[0]):
        lawson_hanson(gram, b[q], tolerance, z[q], place, factor, work)


@compiled
def project_some(gram, b, signs, owner, rows, tolerance, found, residual):  # type: ignore[no-untyped-def]
    """`cone` of some rows of b, into the same rows of `found` and `residual`; with more room where it is needed."""
    n = gram.shape[0]
    cap = 32
    factor = np.empty((cap, cap))
    for q in rows:
        while True:
            size, left = cone(gram, b[q], signs[q], owner, tolerance, found[q], factor)
            if size >= 0:
                break
            cap = min(2 * cap, n)  # more generators are in use than there is room for
            factor = np.empty((cap, cap))
        residual[q] = left


@compiled
def cone(gram, b, signs, owner, tolerance, found, factor):  # type: ignore[no-untyped-def]
    """Minimise ½ zᵀDGDz − bᵀDz over z ≥ 0, D the points' labels, by Lawson and Hanson with column generation.

    Slopes of all points are worked out only when those of the pool are all at most 0; then the steepest point of every
    manifold joins the pool. So a program costs little more than its own size, whatever the number of points.

    Args:
        gram: Of points of length 1 (or 0), without labels, `[n, n]`.
        b: Likewise, `[n]`.
        signs: The manifolds' labels, `[P]`.
        owner: Which manifold a point is of, `[n]`.
        tolerance: Of a slope, relative to the largest |b_i|.
        found: The answer, `[n]`.
        factor: Room for the generators in use, `[cap, cap]`.

    Returns:
        Generators in use, or −1 if there was no room for them, and the relative KKT residual.
    """
    n, p, cap = len(b), len(signs), factor.shape[0]
    place = np.empty(cap, np.int64)
    z, target = np.empty(cap), np.empty(cap)
    signed, row, solution = np.empty(cap), np.empty(cap), np.empty(cap)
    pool = np.empty(n, np.int64)
    state = np.zeros(n, np.int8)  # 0 outside, 1 in the pool, 2 in use, 3 barred until something enters
    slope = np.empty(n)
    steepest, best_of = np.empty(p, np.int64), np.empty(p)
    top = 0.0
    for i in range(n):
        found[i] = 0.0
        top = max(top, abs(b[i]))
    threshold = tolerance * top
    size, pooled = 0, 0
    for _ in range(20 * n + 50):
        # Among the pool.
        best, entering = threshold, -1
        for i in range(size):
            signed[i] = z[i] * signs[owner[place[i]]]
        for k in range(pooled):
            j = pool[k]
            if state[j] == 1:
                value = b[j]
                for i in range(size):
                    value -= gram[j, place[i]] * signed[i]
                value *= signs[owner[j]]
                if value > best:
                    best, entering = value, j
        if entering < 0:
            # Among all.
            slope[:] = b
            for i in range(size):
                line, much = gram[place[i]], signed[i]
                for j in range(n):
                    slope[j] -= much * line[j]
            best_of[:] = threshold
            steepest[:] = -1
            for j in range(n):
                if state[j] == 0 and slope[j] * signs[owner[j]] > best_of[owner[j]]:
                    best_of[owner[j]], steepest[owner[j]] = slope[j] * signs[owner[j]], j
            more = False
            for mu in range(p):
                if steepest[mu] >= 0:
                    pool[pooled], state[steepest[mu]] = steepest[mu], 1
                    pooled, more = pooled + 1, True
            if more:
                continue
            break
        if size == cap and cap < n:
            return -1, 0.0
        for i in range(size):
            row[i] = gram[entering, place[i]] * signs[owner[place[i]]] * signs[owner[entering]]
        if size == cap or not enter(factor, size, row, gram[entering, entering]):
            state[entering] = 3
            continue
        place[size], z[size], target[size] = entering, 0.0, b[entering] * signs[owner[entering]]
        for i in range(size + 1):
            state[place[i]] = 1
        size = settle(factor, place, z, target, size + 1, solution)
        stayed = False
        for i in range(size):
            state[place[i]] = 2
            if place[i] == entering:
                stayed = True
        if stayed:
            for k in range(pooled):
                if state[pool[k]] == 3:
                    state[pool[k]] = 1
        else:
            state[entering] = 3  # rounding had given it a slope
    left = 0.0
    slope[:] = b
    for i in range(size):
        line, much = gram[place[i]], z[i] * signs[owner[place[i]]]
        for j in range(n):
            slope[j] -= much * line[j]
    for j in range(n):
        left = max(left, slope[j] * signs[owner[j]])
    for i in range(size):
        left = max(left, abs(slope[place[i]]))
        found[place[i]] = z[i]
    return size, left / max(top, 1e-300)


@compiled
def nearest_points(x, side, tolerance, any_plane):  # type: ignore[no-untyped-def]
    """The nearest points of two convex hulls, by Wolfe's method on the differences of points of either side.

    With v = x_i − x_j (i of the side 1, j of −1) it minimises ½ |Σ z v|² + ½ κ (Σ z − 1)² over z ≥ 0, κ the squared
    scale: the point of the hull of all v that is nearest to 0, shortened by a known factor. The steepest of the many
    differences is found from the products of n points with Σ z v, so none are ever formed but those in use. It stops
    when none is steep; or, with `any_plane`, when a plane across Σ z v has the sides on either side of it.

    Returns:
        The distance, and whether the last plane keeps the sides further apart than `TOUCHING`.
    """
    n, r = x.shape
    cap = min(n, r + 1) + 1
    factor = np.empty((cap, cap))
    place, other = np.empty(cap, np.int64), np.empty(cap, np.int64)
    z, target = np.empty(cap), np.empty(cap)
    row, solution = np.empty(cap), np.empty(cap)
    v = np.empty((cap, r))  # by their place in a pool: `place` holds which
    free = np.arange(cap)
    u = np.zeros(r)
    ones = 0
    for i in range(n):
        if side[i] > 0:
            ones += 1
    kappa, longest = 0.0, 0.0
    for i in range(n):
        length = 0.0
        for a in range(r):
            length += x[i, a] * x[i, a]
            u[a] += x[i, a] / ones if side[i] > 0 else -x[i, a] / (n - ones)
        kappa += length / n
        longest = max(longest, length)
    longest = np.sqrt(longest)
    if kappa == 0:
        return 0.0, False
    size, total, apart, gap = 0, 0.0, False, 0.0
    for _ in range(50 * n + 100):
        low, high = -1, -1
        least, most = np.inf, -np.inf
        for i in range(n):
            value = 0.0
            for a in range(r):
                value += x[i, a] * u[a]
            if side[i] > 0:
                if value < least:
                    least, low = value, i
            elif value > most:
                most, high = value, i
        gap = least - most
        if size:
            length = 0.0
            for a in range(r):
                length += u[a] * u[a]
            apart = gap > TOUCHING * longest * np.sqrt(length)
            if any_plane and apart:
                break
            if kappa * (1 - total) - gap <= tolerance * kappa:
                break
        known = False
        for i in range(size):
            if other[place[i]] == low * n + high:
                known = True
        if known or size == cap:
            break
        new = free[size]
        length = 0.0
        for a in range(r):
            v[new, a] = x[low, a] - x[high, a]
            length += v[new, a] * v[new, a]
        for i in range(size):
            value = kappa
            for a in range(r):
                value += v[place[i], a] * v[new, a]
            row[i] = value
        if not enter(factor, size, row, length + kappa):
            break
        place[size], z[size], target[size], other[new] = new, 0.0, kappa, low * n + high
        size = settle(factor, place, z, target, size + 1, solution)
        # Slots that left give their room back.
        used = np.zeros(cap, np.bool_)
        for i in range(size):
            used[place[i]] = True
        spare = size
        for i in range(cap):
            if not used[i]:
                free[spare] = i
                spare += 1
        total = 0.0
        u[:] = 0.0
        for i in range(size):
            total += z[i]
            for a in range(r):
                u[a] += z[i] * v[place[i], a]
    length = 0.0
    for a in range(r):
        length += u[a] * u[a]
    return np.sqrt(length) / max(total, 1e-300), apart


@compiled
def held_out(gram, side, fold, folds, c):  # type: ignore[no-untyped-def]
    """Balanced accuracy of the squared-hinge machine on each fold in turn, averaged. `gram` has the intercept's 1."""
    n = len(side)
    mean = 0.0
    for k in range(folds):
        m = 0
        train = np.empty(n, np.int64)
        for i in range(n):
            if fold[i] != k:
                train[m] = i
                m += 1
        program = np.empty((m, m))
        for i in range(m):
            for j in range(m):
                program[i, j] = gram[train[i], train[j]] * side[train[i]] * side[train[j]]
            program[i, i] += 0.5 / c
        z = np.empty(m)
        lawson_hanson(program, np.ones(m), 1e-12, z, np.empty(m, np.int64), np.empty((m, m)), np.empty((5, m)))
        hits, points = np.zeros(2), np.zeros(2)
        for i in range(n):
            if fold[i] == k:
                score, size = 0.0, 0.0
                for j in range(m):
                    part = z[j] * gram[i, train[j]]
                    score += side[train[j]] * part
                    size += abs(part)
                of = 0 if side[i] > 0 else 1
                points[of] += 1
                if abs(score) <= _TIE * size:
                    hits[of] += 0.5
                elif score * side[i] > 0:
                    hits[of] += 1
        mean += 0.5 * (hits[0] / points[0] + hits[1] / points[1]) / folds
    return mean
