"""Manifold geometry: the published method's definition, worked out with public solvers, over ours, part by part.

Both sides have as many BLAS threads, which are set before numpy is loaded: a process of its own for each number,
whatever `--threads` says.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog

from benchmarks import reference_manifolds as reference
from geophone.metrics import participation_ratio
from geophone.metrics.dimensionality import components
from geophone.metrics.geometry import ManifoldGeometry, manifold_geometry, mean_field
from geophone.stats import Moments

Array = np.ndarray
M, N_T = 50, 300
PARTS = ("preparation", "directions", "programs", "geometry")


@dataclass
class Clock:
    """Seconds of a whole and of its parts; what is in no other part is preparation."""

    cpu: float = 0.0
    wall: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS[1:], 0.0))

    @property
    def preparation(self) -> float:
        return self.cpu - sum(self.parts.values())

    def of(self, part: str) -> float:
        return self.preparation if part == "preparation" else self.parts[part]

    @contextmanager
    def all(self) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, whose CPU time goes to a part."""

        def done(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                self.parts[part] += time.process_time() - start

        return done


def clouds(p: int, n: int, m: int = M, rank: int = 0, seed: int = 0) -> list[Array]:
    """Gaussian ellipsoids of 10 axes and noise about random centres, which share `rank` strong directions."""
    rng = np.random.default_rng([seed, p, n, m, rank])
    centers = rng.standard_normal((p, n))
    if rank:
        centers = 0.7 * centers + rng.standard_normal((p, rank)) @ rng.standard_normal((rank, n))
    return [
        center + 0.5 * rng.standard_normal((m, 10)) @ rng.standard_normal((10, n)) + 0.1 * rng.standard_normal((m, n))
        for center in centers
    ]


def of_reference(
    manifolds: Sequence[Array], n_reps: int, share: float
) -> tuple[Clock, Array, list[Array], list[tuple[float, float, float]]]:
    """Its time, the directions and samples it had, and capacity, radius and dimension of each manifold.

    With a share below 1 only that part of the samples is solved for, and the time of the programs and of the geometry
    is divided by it.
    """
    rng, clock = np.random.default_rng(0), Clock()
    found, samples = [], []
    with clock.all():
        x, q = reference.centers(manifolds)
        v, _ = clock.timed("directions", reference.directions)(x, n_reps, rng)
        basis = q @ v
        for points in reference.centred(manifolds):
            s = reference.reduced(points, basis)
            t = rng.standard_normal((len(s), N_T))[:, : max(round(share * N_T), 2)]
            anchors = clock.timed("programs", reference.anchors)(s, t, 0.0)
            found.append(clock.timed("geometry", reference.geometry)(t, anchors, 0.0))
            samples.append(t)
    for part in ("programs", "geometry"):
        more = clock.parts[part] * (N_T / samples[0].shape[1] - 1)
        clock.parts[part] += more
        clock.cpu += more
        clock.wall += more
    return clock, basis, samples, found


def of_ours(manifolds: Sequence[Any], **settings: Any) -> tuple[Clock, ManifoldGeometry]:
    """Its time and what it found."""
    clock, made = Clock(), mean_field._Manifold.of
    kept = {name: getattr(mean_field, name) for name in ("fit_directions", "project_all")}
    mean_field.fit_directions = clock.timed("directions", kept["fit_directions"])
    mean_field.project_all = clock.timed("programs", kept["project_all"])
    mean_field._Manifold.of = clock.timed("geometry", made)
    try:
        with clock.all():
            found = manifold_geometry(manifolds, **settings)
    finally:
        mean_field.fit_directions, mean_field.project_all = kept["fit_directions"], kept["project_all"]
        mean_field._Manifold.of = made
    return clock, found


def middle(clocks: Sequence[Clock], what: Callable[[Clock], float]) -> float:
    return median(what(clock) for clock in clocks)


def beside(p: int, n: int, n_reps: int, rank: int, repeats: int, share: float) -> str:
    """A row: the reference once, ours before and after it."""
    manifolds = clouds(p, n, rank=rank)
    run = partial(of_ours, manifolds, mode="reference", n_reps=n_reps, n_t=N_T)
    ours = [run()[0] for _ in range(repeats - repeats // 2)]
    theirs, basis, samples, values = of_reference(manifolds, n_reps, share)
    ours += [run()[0] for _ in range(repeats // 2)]
    _, same = of_ours(manifolds, mode="reference", basis=basis, samples=samples)
    ours_values = torch.stack([same.capacities, same.radii, same.dimensions], 1).numpy()
    apart = np.abs(ours_values / np.array(values) - 1).max(0)
    ratios = sorted(theirs.cpu / clock.cpu for clock in ours)
    cells = [
        f"{p}, {n:,}, {n_reps}{', rank 3' if rank else ''}",
        f"{theirs.cpu:.2f}",
        f"{middle(ours, lambda c: c.cpu):.3f}",
        f"**{median(ratios):.0f}** ({ratios[0]:.0f}–{ratios[-1]:.0f})",
        f"{theirs.wall / middle(ours, lambda c: c.wall):.0f}",
    ]
    for part in PARTS:
        them, us = theirs.of(part), middle(ours, lambda c, part=part: c.of(part))
        cells.append(f"{them:.3f} / {us:.4f} = {them / us:.1f}")
    cells.append(" ".join(f"{value:.0e}" for value in apart))
    return row(cells)


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def head(*names: str) -> str:
    return f"\n{row(names)}\n|{'---|' * len(names)}"


def say(text: str) -> None:
    print(text, flush=True)


def analyses(cases: Sequence[tuple[int, int, int, int]], repeats: int, share: float) -> None:
    if share < 1:
        say(f"\n--quick: {share:.0%} of the reference's programs were solved, and their time was multiplied.")
    say(
        head(
            "P, N, n_reps",
            "reference, CPU s",
            "ours",
            f"times as fast, of {repeats}",
            "by wall time",
            *(f"{part}, CPU s" for part in PARTS),
            "largest relative difference of α, R, D on the same directions and samples",
        )
    )
    for p, n, n_reps, rank in cases:
        say(beside(p, n, n_reps, rank, repeats, share))


def whole_data(sizes: Sequence[int], repeats: int) -> None:
    """Participation ratio and the components of 90 % of the variance, of all points together."""
    say(head("all 2,500 points: N", "of which", "reference, CPU s", "ours", "times as fast", "values: reference, ours"))
    for n in sizes:
        manifolds = clouds(50, n)
        points = torch.from_numpy(np.concatenate(manifolds))
        for name, theirs, ours in (
            ("participation ratio", reference.participation_ratio, participation_ratio.compute),
            ("components of 90 % (the reference: at most)", reference.evd90, nine_tenths),
        ):
            found: list[float] = []

            def run(points: torch.Tensor = points, ours: Any = ours, found: list[float] = found) -> None:
                found.append(ours(Moments.of_rows(points)))

            us = median(cpu(run) for _ in range(repeats if n < 5000 else 1))
            them = cpu(lambda theirs=theirs, x=manifolds, found=found: found.append(theirs(x)))
            values = f"{found[-1]:.9g}, {found[0]:.9g}"
            say(row([f"{n:,}", name, f"{them:.2f}", f"{us:.2f}", f"**{them / us:.1f}**", values]))


def nine_tenths(moments: Moments) -> int:
    return components(moments, 0.9)


def cpu(work: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of a call, of all threads."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def growth(repeats: int) -> None:
    """Ours as one size grows, from P = 50, N = 2,000, M = 50, n_t = 300, n_reps = 1."""
    say(head("ours: what grows", "CPU s of the whole", *(f"{part}" for part in PARTS)))
    usual = {"p": 50, "n": 2000, "m": M, "n_t": N_T}
    changes = [{}]
    for name, values in {"p": (10, 100, 200), "m": (25, 100, 200), "n": (500, 5000), "n_t": (100, 1000)}.items():
        changes += [{name: value} for value in values]
    symbols = {"p": "P", "n": "N", "m": "M", "n_t": "n_t"}
    for change in changes:
        sizes = usual | change
        manifolds = clouds(sizes["p"], sizes["n"], sizes["m"])
        of_ours(manifolds[:10], mode="reference", n_t=2, n_reps=1)
        settings = {"mode": "reference", "n_t": sizes["n_t"], "n_reps": 1}
        clocks = [of_ours(manifolds, **settings)[0] for _ in range(repeats)]
        name = ", ".join(f"{symbols[key]} = {value:,}" for key, value in change.items()) or "as above"
        say(growing(name, clocks))
    clocks = [of_ours(clouds(50, 2000))[0] for _ in range(repeats)]
    say(growing('`mode="default"` as it comes (at most 60 starts)', clocks))


def growing(name: str, clocks: Sequence[Clock]) -> str:
    whole = f"**{middle(clocks, lambda c: c.cpu):.3f}**"
    return row([name, whole, *(f"{middle(clocks, lambda c, part=part: c.of(part)):.4f}" for part in PARTS)])


def joint(repeats: int, quick: bool) -> None:
    """A sample of GLUE: one program with all points of all manifolds."""
    from geophone.metrics.geometry.glue import glue

    say(head("GLUE, a sample: P, M, N", "cvxopt, CPU ms", "ours", "times as fast", "capacities (samples)"))
    for p, m, n in ((2, 200, 300), (8, 60, 300), (10, 50, 300)):
        manifolds = clouds(p, n, m)
        points = np.concatenate(reference.centred(manifolds))
        rng = np.random.default_rng(0)
        count, squares = 4 if quick else 20, []

        def sample(
            p: int = p,
            m: int = m,
            n: int = n,
            points: Array = points,
            rng: np.random.Generator = rng,
            squares: list[float] = squares,
        ) -> None:
            t = rng.standard_normal(n)
            signs = rng.permutation(np.where(np.arange(p) < p // 2, 1.0, -1.0)).repeat(m)
            squares.append(float(np.sum((t - projected_out(points * signs[:, None], t)) ** 2)))

        them = 1e3 * cpu(sample, count)
        glue(manifolds, n_t=4)
        found = []
        us = median(5 * cpu(lambda x=manifolds, found=found: found.append(glue(x, n_t=200))) for _ in range(repeats))
        capacities = f"{p / np.mean(squares):.3f} ({count}), {found[-1].capacity:.3f} (200)"
        say(row([f"{p}, {m}, {n}", f"{them:.1f}", f"{us:.3f}", f"**{them / us:.0f}**", capacities]))


def projected_out(z: Array, t: Array) -> Array:
    """V nearest to t with v·z_i ≤ 0, by cvxopt."""
    matrix = reference.cvxopt.matrix
    given = (matrix(np.eye(len(t))), matrix(-t), matrix(z), matrix(0.0, (len(z), 1)))
    return np.array(reference.cvxopt.solvers.qp(*given, options=reference.TOLERANCES)["x"]).ravel()


def separations(repeats: int) -> None:
    """A simulated dichotomy: can a hyperplane with a bias tell the manifolds of both labels apart?"""
    from geophone.metrics.geometry.separability import separated
    from geophone.metrics.geometry.simulated import simulated_capacity

    say(
        head(
            "a dichotomy separable? P = M = 20, n features",
            "HiGHS, CPU ms",
            "cvxopt, hard margin",
            "ours",
            "times as fast as HiGHS",
            "as cvxopt",
            "answers that agree",
        )
    )
    manifolds = clouds(20, 500, 20)
    points = np.concatenate(manifolds)
    points = (points - points.mean(0)) / 20
    critical = simulated_capacity(manifolds, repeats=20).critical or 20.0
    rng = np.random.default_rng(0)
    for share in (0.7, 1.0, 1.4):
        n = round(share * critical)
        times: list[list[float]] = []
        answers = []
        for _ in range(4 * repeats):
            matrix = rng.standard_normal((points.shape[1], n))
            x = points @ (matrix / np.linalg.norm(matrix, axis=0))
            x = np.ascontiguousarray(x - x.mean(0))
            side = rng.permutation(np.where(np.arange(20) < 10, 1.0, -1.0)).repeat(20)
            said: list[Any] = []
            ways = (linear_program, hard_margin, lambda x, side: separated(torch.from_numpy(x), side))
            times.append(
                [1e3 * cpu(lambda way=way, x=x, side=side, said=said: said.append(way(x, side))) for way in ways]
            )
            answers.append(said)
        highs, qp, us = np.median(times, 0)
        agree = [sum(bool(a[i]) == bool(a[2]) for a in answers) for i in (0, 1)]
        cells = [f"{n} ({share:g} N_c)", f"{highs:.1f}", f"{qp:.1f}", f"{us:.2f}", f"**{highs / us:.1f}**"]
        say(row([*cells, f"**{qp / us:.1f}**", f"{agree[0]} and {agree[1]} of {len(answers)}"]))


def linear_program(x: Array, side: Array) -> bool:
    """Whether there is a w with y_i (w·x_i + b) ≥ 1, by HiGHS."""
    rows = np.c_[x, np.ones(len(x))] * side[:, None]
    return linprog(np.zeros(rows.shape[1]), A_ub=-rows, b_ub=-np.ones(len(x)), bounds=(None, None)).status == 0


def hard_margin(x: Array, side: Array) -> bool:
    """Whether the hard-margin support vector machine that cvxopt finds has all signs right."""
    rows = np.c_[x, np.ones(len(x))] * side[:, None]
    matrix, n = reference.cvxopt.matrix, rows.shape[1]
    penalty = np.eye(n)
    penalty[-1, -1] = 0
    options = reference.TOLERANCES | {"abstol": 1e-8, "reltol": 1e-8, "feastol": 1e-8, "maxiters": 100}
    given = (matrix(penalty), matrix(0.0, (n, 1)), matrix(-rows), matrix(-1.0, (len(x), 1)))
    try:
        found = reference.cvxopt.solvers.qp(*given, options=options)
    except (ValueError, ArithmeticError):
        return False
    return bool((rows @ np.array(found["x"]).ravel() > 0).all())


def on_cuda(repeats: int) -> None:
    """Ours on a GPU over ours on the CPU, both wall time."""
    say(head("P, N: ours, n_reps = 1", "CPU, wall s", "CUDA, wall s", "times as fast", "relative difference of α"))
    for p, n in ((10, 500), (50, 2000), (100, 5000)):
        manifolds = [torch.from_numpy(cloud) for cloud in clouds(p, n)]
        on_device = [cloud.cuda() for cloud in manifolds]
        walls, capacities = [], []
        for given in (manifolds, on_device):
            taken = []
            for _ in range(repeats + 1):
                torch.cuda.synchronize()
                start = time.perf_counter()
                found = manifold_geometry(given, mode="reference", n_reps=1, n_t=N_T)
                torch.cuda.synchronize()
                taken.append(time.perf_counter() - start)
            walls.append(median(taken[1:]))
            capacities.append(found.capacity)
        slow, fast = walls
        differs = abs(capacities[1] / capacities[0] - 1)
        say(row([f"{p}, {n:,}", f"{slow:.3f}", f"{fast:.3f}", f"**{slow / fast:.1f}**", f"{differs:.0e}"]))


def first_call() -> None:
    """The kernels of all that is timed."""
    from geophone.metrics.geometry.glue import glue
    from geophone.metrics.geometry.simulated import simulated_capacity

    small = clouds(6, 60, 12)
    start = time.perf_counter()
    manifold_geometry(small, n_t=2, n_reps=1)
    analysis = time.perf_counter() - start
    glue(small, n_t=2)
    simulated_capacity(small, repeats=2)
    every = time.perf_counter() - start
    say(f"\nFirst call in this process: {analysis:.1f} s; with those of GLUE and simulation {every:.1f} s.")


def one_thread(repeats: int, quick: bool) -> None:
    torch.set_num_threads(1)
    first_call()
    share = 0.1 if quick else 1.0
    sizes = (500, 2000) if quick else (500, 2000, 5000)
    cases = [(p, n, 1, 0) for p in ((10, 50) if quick else (10, 50, 100)) for n in sizes]
    analyses(cases, repeats, share)
    analyses([(10, 2000, 10, 3)] if quick else [(10, 2000, 10, 3), (50, 2000, 10, 3)], repeats, share)
    whole_data(sizes, repeats)
    growth(repeats)
    joint(repeats, quick)
    separations(repeats)
    if torch.cuda.is_available():
        on_cuda(repeats)


def two_threads(repeats: int, quick: bool) -> None:
    torch.set_num_threads(2)
    first_call()
    analyses([(10, 2000, 1, 0)] if quick else [(10, 2000, 1, 0), (50, 2000, 1, 0)], repeats, 0.1 if quick else 1.0)


def manifolds(repeats: int, device: str, quick: bool = False) -> None:
    say(f"M = {M}, n_t = {N_T}, κ = 0. Kernels are compiled anew for the first process, and loaded by the second.")
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for threads, work in ((1, one_thread), (2, two_threads)):
                os.environ.update(dict.fromkeys(names[:3], str(threads)) | {names[3]: folder})
                say(f"\n#### {threads} BLAS thread{'s' if threads > 1 else ''}")
                process = get_context("spawn").Process(target=work, args=(repeats, quick))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(process.exitcode)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
