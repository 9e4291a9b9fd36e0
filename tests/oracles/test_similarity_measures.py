"""The measures of similarity against their written definitions in numpy and scipy, and closed forms."""

import math

import numpy as np
import polars as pl
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch
from scipy.spatial.distance import pdist, squareform

from geophone.core.errors import GeophoneError
from geophone.core.registry import METRICS
from geophone.core.rng import stream
from geophone.core.types import Batch, Pair
from geophone.data import synthetic
from geophone.metrics import (
    Undefined,
    cka_deconfounded,
    cka_without_pcs,
    compact,
    knn_alignment,
    knn_overlap,
    rbf_cka,
)
from geophone.metrics.similarity.moments import SMALL
from geophone.metrics.similarity.pairwise import TURNS
from geophone.models import SmallCNN
from geophone.models.tap import positions, spatial_mean
from geophone.perturb import GaussianNoise
from geophone.probes.layers import measure
from geophone.probes.pairs import compare
from geophone.stats import PairSample
from geophone.train import initialised

SIZES = [(20, 5, 8), (40, 12, 7), (60, 6, 6)]


def normal(n, d, *names):
    return torch.randn(n, d, generator=stream("similarity", n, d, *names), dtype=torch.float64)


def pair(n, p, q, seed=0):
    a = normal(n, p, "a", seed) * torch.linspace(0.3, 3, p, dtype=torch.float64) + 2
    return a, (a @ normal(p, q, "w", seed) / math.sqrt(p)).relu() + 0.3 * normal(n, q, "b", seed)


# The definitions, on n × n matrices where there is a choice.


def centring(n):
    return np.eye(n) - 1 / n


def hsic_0(k, m):
    """tr(K H L H) / (n - 1)²."""
    n, h = len(k), centring(len(k))
    return np.trace(k @ h @ m @ h) / (n - 1) ** 2


def hsic_1(k, m):
    """The unbiased estimator, Song et al. 2012."""
    n, ones = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    both = np.trace(k @ m) + ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (both - 2 / (n - 2) * ones @ k @ m @ ones) / (n * (n - 3))


def alignment(hsic, k, m):
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def rbf(x, fraction, zeros):
    square = squareform(pdist(x, "sqeuclidean"))
    median = np.median(square if zeros else pdist(x, "sqeuclidean"))
    return np.exp(-square / (2 * fraction**2 * median))


def correlations(a, b, share=None):
    """Cosines of the principal angles of the column spaces, or of those of the first left singular vectors."""
    bases = []
    for side in (a, b):
        u, s, _ = np.linalg.svd(side - side.mean(0), full_matrices=False)
        held = np.cumsum(s**2) / np.sum(s**2)
        bases.append(u[:, : int(np.sum(s > 1e-5 * s[0])) if share is None else int(np.sum(held < share)) + 1])
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


def unit_norm(x):
    x = x - x.mean(0)
    return x / np.linalg.norm(x)


def aligned_distance(a, b):
    """The squared distance after the best rotation, found by scipy, in a space that holds both."""
    d = max(a.shape[1], b.shape[1])
    a, b = (np.pad(unit_norm(side), ((0, 0), (0, d - side.shape[1]))) for side in (a, b))
    turn, _ = scipy.linalg.orthogonal_procrustes(b, a)
    return np.sum((a - b @ turn) ** 2)


def predicted(a, b):
    """R² of an ordinary least squares fit of a on b with an intercept, over all of a's units together."""
    design = np.column_stack([np.ones(len(b)), b])
    rest = a - design @ np.linalg.lstsq(design, a, rcond=None)[0]
    return 1 - np.sum(rest**2) / np.sum((a - a.mean(0)) ** 2)


def whitened(a, b):
    """With the matrix of contrasts and its covariance written out."""
    n = len(a)
    contrasts = np.array([np.eye(n)[i] - np.eye(n)[j] for i in range(n) for j in range(i + 1, n)])
    cov = (contrasts @ contrasts.T) ** 2
    d, e = pdist(a, "sqeuclidean"), pdist(b, "sqeuclidean")
    solved = np.linalg.solve(cov, np.column_stack([d, e]))
    return d @ solved[:, 1] / math.sqrt(d @ solved[:, 0] * (e @ solved[:, 1]))


def nearest(x, k):
    return [set(np.argsort(row)[1 : k + 1]) for row in squareform(pdist(x))]


def overlap(a, b, k=10):
    return np.mean([len(one & other) for one, other in zip(nearest(a, k), nearest(b, k), strict=True)]) / k


def u_centred(gram):
    """Székely and Rizzo's, entry by entry."""
    n, hollow = len(gram), gram - np.diag(np.diag(gram))
    rows, whole = hollow.sum(1), hollow.sum()
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                found[i, j] = hollow[i, j] - (rows[i] + rows[j]) / (n - 2) + whole / ((n - 1) * (n - 2))
    return found


def near_alignment(a, b, k=10):
    grams, near = [u_centred(x @ x.T) for x in (a, b)], [nearest(x, k) for x in (a, b)]

    def summed(one, other):
        return sum(grams[one][i, j] * grams[other][i, j] for i in range(len(a)) for j in near[one][i] & near[other][i])

    return summed(0, 1) / math.sqrt(summed(0, 0) * summed(1, 1))


def without_components(x, k=1):
    x = x - x.mean(0)
    _, _, axes = np.linalg.svd(x, full_matrices=False)
    return x - x @ axes[:k].T @ axes[:k]


def dissimilarities(x):
    return pdist(x, "correlation")


def linear(x):
    return x @ x.T


ORACLES = {
    "cka": lambda a, b: alignment(hsic_1, linear(a), linear(b)),
    "cka_biased": lambda a, b: alignment(hsic_0, linear(a), linear(b)),
    "cka_rbf": lambda a, b: alignment(hsic_1, rbf(a, 0.5, False), rbf(b, 0.5, False)),
    "cka_rbf_kornblith": lambda a, b: alignment(hsic_0, rbf(a, 0.5, True), rbf(b, 0.5, True)),
    "cka_without_first_pc": lambda a, b: alignment(hsic_1, *(linear(without_components(x)) for x in (a, b))),
    "cca": lambda a, b: np.mean(correlations(a, b)),
    "r2_cca": lambda a, b: np.mean(correlations(a, b) ** 2),
    "svcca": lambda a, b: np.mean(correlations(a, b, share=0.99)),
    "procrustes": aligned_distance,
    "angular_distance": lambda a, b: math.acos(1 - aligned_distance(a, b) / 2),
    "linear_regression_r2": predicted,
    "rsa_correlation": lambda a, b: scipy.stats.spearmanr(dissimilarities(a), dissimilarities(b)).statistic,
    "rsa_euclidean": lambda a, b: scipy.stats.pearsonr(pdist(a, "sqeuclidean"), pdist(b, "sqeuclidean")).statistic,
    "rsa_whitened": whitened,
    "mutual_knn": overlap,
    "cknna": near_alignment,
}
MUTANTS = {
    "cka": ORACLES["cka_biased"],
    "cka_biased": lambda a, b: alignment(lambda k, m: np.sum(k * m), linear(a), linear(b)),  # not centred
    "cka_rbf": lambda a, b: alignment(hsic_1, rbf(a, 0.5, True), rbf(b, 0.5, True)),  # the other median
    "cka_rbf_kornblith": lambda a, b: alignment(hsic_0, rbf(a, 0.5, False), rbf(b, 0.5, False)),
    "cka_without_first_pc": ORACLES["cka"],
    "cca": ORACLES["svcca"],
    "r2_cca": ORACLES["cca"],
    "svcca": lambda a, b: np.mean(correlations(a, b, share=0.9)),
    "procrustes": lambda a, b: aligned_distance(a + a.mean(0), b) ** 0.5,  # not squared
    "angular_distance": lambda a, b: math.acos(1 - aligned_distance(a, b)),
    "linear_regression_r2": lambda a, b: predicted(b, a),  # the other side
    "rsa_correlation": lambda a, b: scipy.stats.pearsonr(dissimilarities(a), dissimilarities(b)).statistic,
    "rsa_euclidean": lambda a, b: scipy.stats.pearsonr(pdist(a), pdist(b)).statistic,  # not squared
    "rsa_whitened": ORACLES["rsa_euclidean"],
    "mutual_knn": lambda a, b: overlap(a, b, 9),
    "cknna": lambda a, b: near_alignment(a, b, 9),
}


@pytest.mark.parametrize(("n", "p", "q"), SIZES)
@pytest.mark.parametrize("name", ORACLES)
def test_equals_the_written_definition(name, n, p, q):
    """To 1e-10: condition numbers are below 1e4, and 1e-16 · 1e4² in scatters is 1e-8 of a square that is small.

    The oracles of angles and of neighbours lose as much themselves.
    """
    a, b = pair(n, p, q)
    assert METRICS[name](a, b) == pytest.approx(ORACLES[name](a.numpy(), b.numpy()), abs=1e-10)
    assert METRICS[name](a, b) != pytest.approx(MUTANTS[name](a.numpy(), b.numpy()), abs=1e-4)


def test_procrustes_equals_scipys():
    """Its disparity also fits the scale, which leaves 1 - s² of 2 - 2 s."""
    a, b = pair(50, 7, 7)
    _, _, disparity = scipy.spatial.procrustes(a.numpy(), b.numpy())
    assert METRICS["procrustes"](a, b) == pytest.approx(2 - 2 * math.sqrt(1 - disparity), abs=1e-12)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_without_any_number_of_components(k):
    a, b = pair(40, 6, 9)
    wanted = alignment(hsic_1, *(linear(without_components(x.numpy(), k)) for x in (a, b)))
    assert cka_without_pcs(a, b, k) == pytest.approx(wanted, abs=1e-11)
    with pytest.raises(Undefined, match="nothing varies once the first 6"):
        cka_without_pcs(a, b, 6)
    with pytest.raises(Undefined, match="nothing varies"):
        cka_without_pcs(a, b, 100)
    with pytest.raises(GeophoneError, match="k is 0 or more"):
        cka_without_pcs(a, b, -1)


@pytest.mark.parametrize(("zeros", "debiased"), [(False, True), (True, True), (False, False), (True, False)])
@pytest.mark.parametrize("fraction", [0.2, 1.0])
def test_every_option_of_the_gaussian_kernel(fraction, zeros, debiased):
    a, b = pair(31, 4, 6)
    wanted = alignment(hsic_1 if debiased else hsic_0, *(rbf(x.numpy(), fraction, zeros) for x in (a, b)))
    assert rbf_cka(a, b, fraction, zeros=zeros, debiased=debiased) == pytest.approx(wanted, abs=1e-11)
    with pytest.raises(GeophoneError, match="above 0"):
        rbf_cka(a, b, 0.0)


@pytest.mark.parametrize(("debiased", "name", "wide"), [(True, "cka", 1e4), (False, "cka_biased", 1e6)])
def test_a_wide_kernel_gives_linear_cka(debiased, name, wide):
    """The gap falls as 1/fraction². The mutant, a kernel near 1 and not less 1, loses the digits that it is about."""
    a, b = pair(40, 5, 5)
    wanted = METRICS[name](a, b)
    assert rbf_cka(a, b, 1e2, debiased=debiased) == pytest.approx(wanted, abs=1e-3)
    assert rbf_cka(a, b, 1e7, debiased=debiased) == pytest.approx(wanted, abs=1e-10)
    assert rbf_cka(a, b, wide, debiased=debiased) == pytest.approx(wanted, abs=1e-7)
    with np.errstate(invalid="ignore"):  # on some processors no digit is left at all, and it is 0/0
        near_one = alignment(hsic_1 if debiased else hsic_0, *(rbf(x.numpy(), wide, False) for x in (a, b)))
    assert not abs(near_one - wanted) <= 1e-6


def test_deconfounding_equals_a_regression_of_gram_matrices():
    """Ordinary least squares of the U-centred entries on the confounder's, and what it leaves over."""
    a, b = pair(30, 5, 6)
    c = 0.5 * a[:, 2:] + normal(30, 3, "confounder")
    x, y, z = (u_centred(linear(m.numpy())).ravel() for m in (a, b, c))
    rest = [v - z * np.linalg.lstsq(z[:, None], v, rcond=None)[0] for v in (x, y)]
    wanted = rest[0] @ rest[1] / np.linalg.norm(rest[0]) / np.linalg.norm(rest[1])
    assert cka_deconfounded(a, b, c) == pytest.approx(wanted, abs=1e-11)
    # The partial correlation of the three, in closed form.
    xy, xz, yz = (METRICS["cka"](*two) for two in ((a, b), (a, c), (b, c)))
    assert cka_deconfounded(a, b, c) == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)), abs=1e-9)
    assert cka_deconfounded(a, b, c) != pytest.approx(xy, abs=1e-2)
    # Images are flattened, and turning, scaling and shifting any of the three changes nothing.
    turn = torch.linalg.qr(normal(6, 6, "turn")).Q
    images = (7 * c + 30).reshape(30, 1, 3, 1)
    assert cka_deconfounded(a + 30, 1e-3 * b @ turn, images) == pytest.approx(wanted, abs=1e-9)


def test_deconfounding_takes_out_what_both_sides_got_from_the_images():
    """Pairs of random networks of one layer: alike by CKA, unrelated once the images' own similarities are out."""
    images, found = normal(80, 10, "images"), []
    for i in range(20):
        one, other = (images @ normal(10, 50, side, i) + normal(80, 50, side, "noise", i) for side in ("one", "two"))
        found.append(cka_deconfounded(one, other, images))
        assert METRICS["cka"](one, other) > 0.6
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(20) < 0.1
    with pytest.raises(Undefined, match="explains all"):
        cka_deconfounded(images, other, images @ torch.linalg.qr(normal(10, 10, "q")).Q)
    with pytest.raises(Undefined, match="do not vary"):
        cka_deconfounded(one, other, torch.ones(80, 3, 2))
    with pytest.raises(Undefined, match="at least 5"):
        cka_deconfounded(one[:4], other[:4], images[:4])


# Closed forms.


def test_repeating_every_row_changes_nothing_but_what_is_debiased():
    a, b = pair(40, 6, 5)
    again = [torch.cat([side] * 3) for side in (a, b)]
    plug_in = ("cka_biased", "procrustes", "angular_distance", "cca", "r2_cca", "svcca", "pwcca", "rsa_whitened")
    for name in (*plug_in, "linear_regression_r2"):
        assert METRICS[name](*again) == pytest.approx(METRICS[name](a, b), abs=1e-9), name
    for name in ("cka", "cka_rbf", "mutual_knn"):
        assert METRICS[name](*again) != pytest.approx(METRICS[name](a, b), abs=1e-4), name


def test_two_dead_units_and_a_copy_add_no_direction():
    a, b = pair(60, 6, 5)
    more = torch.cat([b, torch.zeros(60, 2).double(), b[:, :1] + b[:, 1:2]], dim=1)
    for name in ("cca", "r2_cca", "pwcca", "linear_regression_r2"):
        assert METRICS[name](a, more) == pytest.approx(METRICS[name](a, b), abs=1e-9)
    noisy = torch.cat([b, SMALL**0.5 / 10 * normal(60, 1, "rounding")], dim=1)
    assert METRICS["cca"](a, noisy) == pytest.approx(METRICS["cca"](a, b), abs=1e-6)


@pytest.mark.parametrize("name", ["cka_biased", "rsa_whitened"])
def test_moving_a_few_rows_has_its_closed_limit(name):
    """Davari et al.: CKA(X, X + c 1_S v') → u'Ku / (|u|² ‖K‖), K centred, u the centred indicator of S. Error 1/c."""
    a, _ = pair(100, 8, 2)
    member = torch.zeros(100, 1).double()
    member[:3] = 1
    direction = normal(1, 8, "direction")
    k, u = linear((a - a.mean(0)).numpy()), (member - member.mean()).numpy()[:, 0]
    limit = u @ k @ u / (u @ u * np.linalg.norm(k))
    found = METRICS[name](a, a + 1e7 * member * direction)
    assert found == pytest.approx(limit, abs=1e-6)
    assert limit < 0.2
    # Mutant: the indicator as it is.
    raw = member.numpy()[:, 0]
    assert abs(found - raw @ k @ raw / (raw @ raw * np.linalg.norm(k))) > 1e-4


def unrelated(name, n, p, q, times):
    """Mean over draws of independent normal responses, and its standard error."""
    found = [METRICS[name](normal(n, p, "left", i), normal(n, q, "right", i)) for i in range(times)]
    return np.mean(found), np.std(found, ddof=1) / math.sqrt(times)


@pytest.mark.parametrize(("n", "p", "q"), [(64, 96, 48), (128, 32, 64)])
def test_biased_cka_of_noise(n, p, q):
    """√(pq / ((n-1+p)(n-1+q))), within 2 %; the debiased one within three standard errors of 0."""
    mean, _ = unrelated("cka_biased", n, p, q, 10)
    assert mean == pytest.approx(math.sqrt(p * q / ((n - 1 + p) * (n - 1 + q))), rel=0.02)
    assert mean != pytest.approx(math.sqrt(p * q / ((n + p) * (n + q))) / 2, rel=0.02)
    for name in ("cka", "cka_rbf", "cka_without_first_pc", "rsa_euclidean", "rsa_correlation"):
        mean, error = unrelated(name, n, p, q, 20)
        assert abs(mean) < 3 * error, name


@pytest.mark.parametrize(("name", "wanted"), [("r2_cca", 6 / 59), ("linear_regression_r2", 6 / 59)])
def test_explained_variance_of_noise(name, wanted):
    """Σ ρ² is pq/(n-1) in expectation, R² q/(n-1): with p = 4, q = 6 and n = 60 both give 6/59."""
    mean, error = unrelated(name, 60, 4, 6, 200)
    assert abs(mean - wanted) < 3 * error
    assert abs(mean - 4 / 59) > 3 * error


def test_one_sided_permutation_leaves_debiased_near_zero_and_biased_far_from_it():
    """The mean over all permutations of a debiased numerator is exactly 0; 100 of them, three standard errors."""
    a, b = normal(50, 80, "a"), normal(50, 80, "a") @ normal(80, 60, "w")
    orders = [torch.randperm(50, generator=stream("permutation", i)) for i in range(100)]
    for name in ("cka", "cka_rbf", "cka_without_first_pc", "rsa_euclidean"):
        found = np.array([METRICS[name](a, b[order]) for order in orders])
        assert abs(found.mean()) < 3 * found.std() / math.sqrt(100), name
    assert METRICS["cka_biased"](a, b[orders[0]]) > 0.4


def test_double_centred_distances_are_linear_cka():
    a, b = pair(40, 9, 4)
    assert METRICS["rsa_whitened"](a, b) == pytest.approx(METRICS["cka_biased"](a, b), abs=1e-12)
    assert METRICS["rsa_euclidean"](a, b) != pytest.approx(METRICS["cka_biased"](a, b), abs=1e-3)


@pytest.mark.parametrize(("n", "p", "q"), SIZES)
def test_the_nuclear_norm_lies_between_its_bounds(n, p, q):
    """‖X'Y‖_F ≤ ‖X'Y‖_* ≤ √rank ‖X'Y‖_F, both ends reached: by one direction, and by a rotation of white responses."""
    a, b = pair(n, p, q)
    x, y = unit_norm(a.numpy()), unit_norm(b.numpy())
    frobenius, nuclear = np.linalg.norm(x.T @ y), 1 - METRICS["procrustes"](a, b) / 2
    assert frobenius < nuclear < math.sqrt(min(p, q)) * frobenius
    one = 1 - METRICS["procrustes"](a[:, :1], b) / 2
    assert one == pytest.approx(np.linalg.norm(unit_norm(a.numpy()[:, :1]).T @ y), abs=1e-12)
    white = torch.linalg.qr(a - a.mean(0)).Q
    turned = white @ torch.linalg.qr(normal(p, p, "turn")).Q
    assert METRICS["procrustes"](white, turned) == pytest.approx(0, abs=1e-12)
    assert METRICS["cka_biased"](white, turned) == pytest.approx(1, abs=1e-12)


def test_rounding_above_one_is_no_error_and_real_excess_is():
    """The cosine of a side with itself rounds to 1 ± 1e-16; cross moments of other examples may give more than 1."""
    for i in range(20):
        a = normal(30, 4, "self", i)
        assert 0 <= METRICS["angular_distance"](a, a) < 1e-7
        assert METRICS["procrustes"](a, a) >= 0
    a, _ = pair(40, 5, 5)
    moments = METRICS["procrustes"].statistic
    one, other = moments.of(Pair(a, a)), moments.of(Pair(0.9 * a, 0.9 * a))
    mixed = moments(other.a, one.b, one.cross, one.third_a, one.third_b, one.fourth)
    for name in ("procrustes", "angular_distance"):
        with pytest.raises(GeophoneError, match="above 1"):
            METRICS[name](mixed)


@pytest.mark.parametrize(("n", "p", "q"), [(12, 7, 8), (20, 10, 10), (9, 4, 6)])
def test_correlations_that_are_one_whatever_the_responses(n, p, q):
    """At least p + q - (n - 1) of them, so the measures have no value; with one image more than p + q they have one."""

    def white(rows, *names):  # so that SVCCA keeps every direction
        x = normal(rows, *names)
        return torch.linalg.qr(x - x.mean(0)).Q

    a, b = white(n, p, "free"), white(n, q, "free too")
    sure = p + q - (n - 1)
    rho = correlations(a.numpy(), b.numpy())
    assert np.all(rho[:sure] > 1 - 1e-12)
    if sure < min(p, q):
        assert rho[sure] < 1 - 1e-6
    for name in ("cca", "r2_cca", "svcca", "pwcca"):
        with pytest.raises(Undefined, match=f"more images than units .* {sure} correlations would be 1"):
            METRICS[name](a, b)
        with pytest.raises(Undefined, match="1 correlations"):
            METRICS[name](white(p + q, p, "free"), white(p + q, q, "free too"))
        assert METRICS[name](white(p + q + 1, p, "free"), white(p + q + 1, q, "free too")) < 1 - 1e-6


def test_a_fit_that_is_perfect_whatever_the_responses_has_no_value():
    a = normal(12, 3, "any")
    with pytest.raises(Undefined, match="second side"):
        METRICS["linear_regression_r2"](a, normal(12, 11, "many"))
    assert METRICS["linear_regression_r2"](a, normal(12, 10, "many")) < 1
    assert METRICS["linear_regression_r2"](normal(12, 11, "many"), a) < 1


# Neighbours.


def test_any_number_of_neighbours():
    a, b = pair(40, 4, 5)
    for k in (1, 5, 20):
        assert knn_overlap(a, b, k) == pytest.approx(overlap(a.numpy(), b.numpy(), k), abs=1e-12)
        assert knn_alignment(a, b, k) == pytest.approx(near_alignment(a.numpy(), b.numpy(), k), abs=1e-12)
    # All of them: debiased linear CKA.
    assert knn_alignment(a, b, 39) == pytest.approx(METRICS["cka"](a, b), abs=1e-12)
    for call in (knn_overlap, knn_alignment):
        with pytest.raises(GeophoneError, match="k is 1 or more"):
            call(a, b, 0)
        with pytest.raises(Undefined, match="at least"):
            call(a, b, 40)
    with pytest.raises(Undefined, match="at least 41"):
        knn_overlap(a, b, 39)


def test_neighbours_of_unrelated_responses_are_shared_by_chance():
    found = [knn_overlap(normal(50, 5, "left", i), normal(50, 8, "right", i)) for i in range(40)]
    assert abs(np.mean(found) - 10 / 49) < 3 * np.std(found) / math.sqrt(40)


def test_rows_that_are_equally_far_share_a_place():
    """Half of the rows of either side dead, at random: the overlap is that of chance, and no order of rows matters.

    Mutant: ties by the order of the rows, as argsort breaks them, make dead rows neighbours of the same first few.
    """
    found, by_order = [], []
    for i in range(20):
        generator = stream("dead", i)
        a, b = (
            normal(100, 4, side, i) * (torch.rand(100, 1, generator=generator) < 0.5).double() for side in ("a", "b")
        )
        found.append(knn_overlap(a, b))
        order = torch.randperm(100, generator=generator)
        assert knn_overlap(a[order], b[order]) == pytest.approx(found[-1], abs=1e-12)
        near = [torch.cdist(x, x).fill_diagonal_(torch.inf).argsort(stable=True)[:, :10].tolist() for x in (a, b)]
        by_order.append(np.mean([len(set(x) & set(y)) for x, y in zip(*near, strict=True)]) / 10)
    assert abs(np.mean(found) - 10 / 99) < 3 * np.std(found) / math.sqrt(20)
    assert np.mean(by_order) > 2 * 10 / 99
    # A side of two points: each has 4 others where it is and 5 elsewhere, of which 3 of its 7 nearest are drawn.
    two = torch.tensor([[0.0]] * 5 + [[1.0]] * 5).double()
    assert knn_overlap(two, two, 7) == pytest.approx((4 + 5 * (3 / 5) ** 2) / 7, abs=1e-12)


def test_tied_dissimilarities_have_their_mean_rank():
    """Two units give correlations of ±1 only: all ties, which rounding must not break."""
    a, b = normal(20, 2, "two units"), normal(20, 3, "three units")
    rounded = [np.round(dissimilarities(x.numpy()), 9) for x in (a, b)]
    assert METRICS["rsa_correlation"](a, b) == pytest.approx(scipy.stats.spearmanr(*rounded).statistic, abs=1e-9)
    assert METRICS["rsa_correlation"](a, a) == pytest.approx(1, abs=1e-12)


# What has no value.


@pytest.mark.parametrize("name", ORACLES)
def test_undefined_is_said(name):
    a, b = pair(60, 5, 4)
    for flat in (torch.zeros(60, 4).double(), torch.full((60, 4), 1000.1).double()):
        for sides in ((a, flat), (flat, b)):
            with pytest.raises(Undefined, match="do not vary"):
                METRICS[name](*sides)
    few = {"mutual_knn": 11, "cknna": 10, "cka": 3, "cka_rbf": 3, "cka_without_first_pc": 3}.get(name, 2)
    with pytest.raises(Undefined, match=f"at least {few + 1} images, has {few}"):
        METRICS[name](a[:few], b[:few])


def test_special_cases_without_a_value():
    a, _ = pair(60, 5, 4)
    # One-hot responses are all equally far apart: nothing is left after U-centring but rounding.
    corners = torch.eye(60, dtype=torch.float64)
    for name in ("cka", "cka_rbf", "cknna"):
        with pytest.raises(Undefined, match="equally far apart"):
            METRICS[name](a, corners)
    with pytest.raises(Undefined, match="equally far apart"):
        METRICS["rsa_euclidean"](a, corners)
    dead = a * (torch.arange(60) < 15).double()[:, None]
    with pytest.raises(Undefined, match="half of the distances are 0"):
        METRICS["cka_rbf"](a, dead)
    with pytest.raises(Undefined, match="45 of 60 images have the same response in every unit"):
        METRICS["rsa_correlation"](a, dead)
    with pytest.raises(Undefined, match="nothing varies once"):
        METRICS["cka_without_first_pc"](a, a[:, :1])
    for call in (rbf_cka, cka_without_pcs, knn_overlap, knn_alignment):
        broken = a.clone()
        broken[3, 2] = torch.nan
        with pytest.raises(Undefined, match="NaN"):
            call(broken, a)


# Wide sides.


def test_a_compact_matrix_has_the_same_gram_matrix():
    x = normal(30, 400, "wide") + 5
    narrow = compact(x)
    assert narrow.shape == (30, 29)
    u = x - x.mean(0)
    assert torch.allclose(narrow @ narrow.T, u @ u.T, atol=1e-11)
    assert compact(normal(30, 4, "x") @ normal(4, 400, "y")).shape == (30, 4)
    assert compact(x.float()).dtype == torch.float64
    # A bias of 1000 in float32, and nothing else: no more than its rounding varies.
    flat = torch.full((30, 400), 1000.1) * (1 + 1e-8 * normal(30, 400, "rounding").float())
    assert compact(flat).shape == (30, 0)


@pytest.mark.parametrize("name", sorted(TURNS))
def test_a_wide_side_made_narrow_gives_the_same(name):
    """Of rank 6, so that canonical correlations have a value. Gram matrices are exact to 1e-13, their roots 1e-7."""
    a = normal(40, 6, "scores") @ normal(6, 150, "axes") + 3
    b = (normal(40, 6, "scores") + 0.5 * normal(40, 6, "others")) @ normal(6, 90, "more axes")
    assert METRICS[name](compact(a), compact(b)) == pytest.approx(METRICS[name](a, b), abs=1e-9)
    # Mutant: its columns without their lengths.
    wrong = compact(a) / compact(a).norm(dim=0)
    if not name.endswith("cca"):
        assert METRICS[name](wrong, compact(b)) != pytest.approx(METRICS[name](a, b), abs=1e-4)


@pytest.mark.parametrize("name", ["rsa_correlation", "pwcca"])
def test_what_depends_on_the_units_is_not_made_narrow(name):
    a = normal(40, 6, "scores") @ normal(6, 150, "axes") + 3
    b = normal(40, 6, "scores") + normal(40, 6, "others")
    assert METRICS[name](compact(a), b) != pytest.approx(METRICS[name](a, b), abs=1e-3)


# The sample.


def test_a_metric_of_plain_matrices_reads_every_row_and_one_of_a_data_set_a_sample():
    n = PairSample.most + 400
    a, b = normal(n, 3, "many"), normal(n, 3, "many")
    b[:, 0] += normal(n, 1, "noise")[:, 0]
    sample = PairSample.of(Pair(a, b, torch.arange(n)))
    assert sample.n == PairSample.most
    whole, part = METRICS["rsa_euclidean"](a, b), METRICS["rsa_euclidean"](sample)
    assert whole == pytest.approx(ORACLES["rsa_euclidean"](a.numpy(), b.numpy()), abs=1e-10)
    kept = sample.index.numpy()
    assert part == pytest.approx(ORACLES["rsa_euclidean"](a.numpy()[kept], b.numpy()[kept]), abs=1e-10)
    assert part != whole
    assert torch.equal(sample.a, a[kept])
    # Chosen by a hash: 1000 of 1400, of which 500 ± 8.5 of the first half (hypergeometric); five deviations.
    assert abs(int((sample.index < n // 2).sum()) - 500) < 43


def test_a_sample_is_the_same_whatever_the_batches():
    n = 1500
    data = Pair(normal(n, 2, "a"), normal(n, 3, "b"), torch.arange(n) * 3)
    whole = PairSample.of(data)
    order = torch.randperm(n, generator=stream("batches"))
    parts = [PairSample.of(Pair(data.a[i], data.b[i], data.index[i])) for i in order.split(400)]
    merged = parts[3] + (parts[0] + parts[2]) + parts[1]
    for one, other in zip(whole._fields(), merged._fields(), strict=True):
        assert torch.equal(one, other)
    # Mutant: the first rows that come.
    first = torch.cat([part.index for part in parts])[: PairSample.most]
    assert not torch.equal(first.sort().values, whole.index.sort().values)
    with pytest.raises(GeophoneError, match="positions in their data set"):
        PairSample.of(Pair(data.a, data.b))


@pytest.mark.parametrize("reduce", [spatial_mean, positions], ids=["images", "places"])
def test_measured_over_a_data_set_no_batches_show(reduce, monkeypatch):
    """Rows of a network's layers, 60 sampled: the same from batches of 7 as from one, and for two networks as well.

    Responses are float32, which rounds convolutions by 1e-6 or so differently in batches of another size.
    """
    monkeypatch.setattr(PairSample, "most", 60)
    data = synthetic(classes=3, train=9, val=3, test=90, size=8)
    one, other = (initialised(lambda: SmallCNN(3, data.mean, data.std, width=4), seed) for seed in (0, 1))
    names, layers, split = ["rsa_euclidean", "cka_rbf", "cka_biased"], ["*relu*"], data.test
    few, whole = (
        measure(one, split, [GaussianNoise(0.2)], layers, names, batch_size=size, reduce=reduce) for size in (7, 90)
    )
    assert few["value"].to_list() == pytest.approx(whole["value"].to_list(), abs=1e-5)
    assert set(few.filter(pl.col("metric") == "rsa_euclidean")["n"]) == {60}
    assert few["value"].null_count() == 0
    few, whole = (compare(one, other, split, names, layers, batch_size=size, reduce=reduce) for size in (7, 90))
    assert few["value"].to_list() == pytest.approx(whole["value"].to_list(), abs=1e-5)

    # Mutant: indices that start again with every batch choose other rows.
    def restarting(batch, rows):
        return Batch(rows, torch.zeros(len(rows), dtype=torch.int64), torch.arange(len(rows)))

    monkeypatch.setattr(Batch, "with_rows", restarting)
    wrong = compare(one, other, split, names, layers, batch_size=7, reduce=reduce)
    assert wrong["value"].to_list() != pytest.approx(whole["value"].to_list(), abs=1e-4)
