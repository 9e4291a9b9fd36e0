"""Running jobs: in this process, in several, or on a Ray cluster. What was finished is never done again."""

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import polars as pl
import torch

from geophone.analysis.claims import CLAIMS, Claim, judge, write_claims
from geophone.core import table
from geophone.core.arguments import checked
from geophone.core.checksums import read_json, write_json
from geophone.core.errors import GeophoneError, plain
from geophone.core.files import clear, reserved
from geophone.core.provenance import now, write_provenance
from geophone.core.registry import load_entry_points, load_plugin
from geophone.core.types import device_name
from geophone.models.load import CARD, network_is_whole
from geophone.models.run import usable_device
from geophone.study.study import Study, Task
from geophone.study.tasks import CHECKPOINT, Job, Progress, snapshot_folder
from geophone.train.loop import checkpoint_is_whole

THREADS = 1
"""Torch threads of a job, unless told otherwise: the same on every machine and for any number of workers."""

DEATHS = 4
"""How often a job may lose its worker process before it is given up."""


@checked
def run_study(
    study: Study,
    out: Path | str,
    *,
    name: str = "study",
    executor: Executor | None = None,
    threads: int | None = None,
    device: str = "cpu",
    plugins: Sequence[Path | str] = (),
    progress: Progress | None = None,
    finished: Callable[[int, int], None] | None = None,
) -> Path:
    """Run all jobs of a study that are not done yet; the folder of its table.

    Interrupted at any moment, it loses at most what its running jobs did since their last epoch; the same call goes on.
    A job that fails does not stop the others; their errors are raised together at the end.

    Args:
        study: What to run.
        out: Folder for the table, the networks and the provenance. For a cluster it must be shared by all machines.
        name: The study's name.
        executor: Any `concurrent.futures.Executor`; default this process, one job after the other.
        threads: Torch threads per job; default `THREADS`, on every machine and with any number of workers: with another
            number sums differ in their last digits, and training carries that into every value. A resumed study keeps
            its number.
        device: Where networks are trained and measured, such as "cuda".
        plugins: Files to load in every worker.
        progress: Called with (stage, steps done, steps in all) by jobs in this process.
        finished: Called with (jobs done, jobs in all).

    Raises:
        GeophoneError: `out` belongs to another study or is in use, or jobs failed.
    """
    started, clock = now(), time.monotonic()
    usable_device(device)
    load_entry_points()
    out = Path(out).resolve()  # workers may have another working folder
    jobs = [job.resolved() for job in study.jobs()]
    pairs = [pair.resolved() for pair in getattr(study, "comparisons", tuple)()]
    every: list[Task] = [*jobs, *pairs]
    with _locked(out):
        threads = _settle(out, name, study, device, threads)
        damaged = _remove_damaged(out, every)
        tasks_open = any(not task.shard(out).is_file() for task in every)
        failures: list[str] = []

        def report() -> None:
            if finished is not None:
                finished(sum(task.shard(out).is_file() for task in every), len(every))

        if tasks_open:  # verdicts on fewer rows
            (out / CLAIMS).unlink(missing_ok=True)
        report()
        for stage in (jobs, pairs):  # networks are compared when they are trained
            tasks = [task for task in stage if not task.shard(out).is_file()]
            for task, error in _outcomes(tasks, out, executor, device, threads, tuple(map(Path, plugins)), progress):
                if error is None and not task.shard(out).is_file():
                    error = GeophoneError(
                        f"its rows are not in {out}. Several machines need a folder that all of them share."
                    )
                if error is not None:
                    reason = getattr(error, "cause", error)  # Ray wraps errors in a coloured traceback
                    failures.append(plain(f"{task.label}: {reason}"))
                    continue
                report()
            if failures:
                break
        write_provenance(
            out,
            title=f"Study {name}, size {study.size}",
            question=study.question,
            study=name,
            seconds=time.monotonic() - clock if tasks_open else 0.0,
            started=started,
            device=device_name(device),
            threads=threads,
            seeds=sorted({job.seed for job in jobs}),
            jobs=[job.id for job in jobs if job.shard(out).is_file()],
            resumed=True,
            notes=[*(f"done anew: {name} was corrupt" for name in damaged), *(f"failed: {f}" for f in failures)],
        )
        claims: Sequence[Claim] = getattr(study, "claims", tuple)()
        if claims and not failures:
            rows = table.read(out / "table").filter(pl.col("job").is_in([job.id for job in jobs]))
            write_claims(judge(claims, rows), out)
    if failures:
        raise GeophoneError(f"{len(failures)} of {len(every)} jobs failed. " + " | ".join(failures))
    return out


def _outcomes(
    jobs: Sequence[Task],
    out: Path,
    executor: Executor | None,
    device: str,
    threads: int,
    plugins: tuple[Path, ...],
    progress: Progress | None,
) -> Iterator[tuple[Task, BaseException | None]]:
    """Each job with its error, if it had one, as they end."""
    if executor is None:
        for job in jobs:
            failure = None
            try:
                work(job, out, device, threads, plugins, progress)
            except GeophoneError as error:
                failure = error
            yield job, failure
        return
    job_of = {executor.submit(work, job, out, device, threads, plugins): job for job in jobs}
    waiting = set(job_of)
    try:
        while waiting:
            # The time-out lets Ctrl-C through: the signal handler that polars installs restarts an endless wait.
            ended, waiting = futures.wait(waiting, timeout=0.5, return_when=futures.FIRST_COMPLETED)
            for future in ended:
                yield job_of[future], future.exception()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise


def work(
    job: Task, out: Path, device: str, threads: int, plugins: tuple[Path, ...] = (), progress: Progress | None = None
) -> Path:
    """One job as a worker does it: plug-ins loaded, number of threads set and restored."""
    load_entry_points()
    for plugin in plugins:
        load_plugin(plugin)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return job.run(out, device, progress or (_reports[-1] if _reports else None))
    finally:
        torch.set_num_threads(before)


def _remove_damaged(out: Path, tasks: Sequence[Task]) -> list[str]:
    """Delete what is not as it was written, so that it is made anew; the names of what was deleted, within `out`.

    Rows go by themselves. A network takes the rows that were measured on it along, and so its job trains it anew.
    """
    gone: list[Path] = []
    for task in tasks:
        shard = task.shard(out)
        if shard.is_file() and not table.is_whole(shard):
            gone.append(shard)
        if not isinstance(task, Job):
            continue
        folder = task.folder(out)
        checkpoint = folder / CHECKPOINT
        if checkpoint.is_file() and not checkpoint_is_whole(checkpoint):
            gone.append(checkpoint)
        networks = [folder, *(snapshot_folder(folder, epoch) for epoch in task.training.snapshots)]
        if broken := [one for one in networks if (one / CARD).is_file() and not network_is_whole(one)]:
            # The cards last: while one is there, whoever is killed here finds the damage again.
            gone += [shard, checkpoint, *(one / CARD for one in broken)]
    gone = [path for path in dict.fromkeys(gone) if path.is_file()]
    for path in gone:
        path.unlink()
    return [str(path.relative_to(out)) for path in gone]


def _settle(out: Path, name: str, study: Study, device: str, threads: int | None) -> int:
    """Write down what this folder is for, or check it; the number of threads to use."""
    path = out / "study.json"
    if path.is_file():
        other = (
            "Delete it and run the same command again, with the --threads and --device that the study was begun with "
            "(provenance.json has them), or choose another --out."
        )
        known = read_json(path, other)
        its_name, its_size, its_threads, its_device = (known.get(k) for k in ("study", "size", "threads", "device"))
        texts = all(isinstance(text, str) for text in (its_name, its_size, its_device))
        if not texts or type(its_threads) is not int or its_threads < 1:
            raise GeophoneError(f"{path} is not readable: it does not say which study is in the folder. {other}")
        if (its_name, its_size) != (name, study.size):
            raise GeophoneError(
                f"{out} holds the study {its_name} at size {its_size}, not {name} at size {study.size}. "
                "Choose another folder with --out."
            )
        if torch.device(device).type != str(its_device).partition(":")[0]:
            raise GeophoneError(
                f"{out} was begun on {its_device}; {device} would give other digits. Choose another --out."
            )
        if threads not in (None, its_threads):
            raise GeophoneError(
                f"{out} was begun with {its_threads} threads a job; {threads} would give other numbers. Leave out "
                "--threads, or choose another --out."
            )
        return its_threads
    settled = threads or THREADS
    write_json(path, {"study": name, "size": study.size, "device": device, "threads": settled})
    return settled


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder, and clear away what a killed one left half-written."""
    with reserved(out):
        for folder in (out / "jobs").glob("*"):
            clear(folder)
        yield


@contextmanager
def process_executor(workers: int, progress: Progress | None = None) -> Iterator[Executor]:
    """An executor of so many processes of this machine, which report the progress of their jobs.

    A job whose process dies is tried again in a new one and goes on after its last finished epoch; the others are not
    disturbed. The processes end at once when the block is left by an error or Ctrl-C, and when this process is killed.
    """
    pool = _Workers(workers, progress)
    try:
        yield pool
    except BaseException:
        pool.stop()
        raise
    finally:
        pool.shutdown()


class _Workers(Executor):
    """Processes that do one job each at a time, so that one that dies takes no other job along."""

    def __init__(self, workers: int, progress: Progress | None) -> None:
        self._threads = ThreadPoolExecutor(workers)
        self._idle: SimpleQueue[_Process | None] = SimpleQueue()
        self._progress, self._telling = progress, Lock()
        self._leash, self._hand = _CONTEXT.Pipe(duplex=False)
        for _ in range(workers):
            self._idle.put(None)  # started when it is needed

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do it in the next process that is idle."""
        return self._threads.submit(self._do, fn, *args, **kwargs)

    def _do(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        process, how = self._idle.get(), ""
        try:
            for _ in range(DEATHS):
                process = process or _Process(self._leash)
                try:
                    kind, what = process.do((fn, args, kwargs), self._tell)
                except EOFError:
                    how, process = process.end(), None
                    if self._hand.closed:
                        break
                else:
                    if kind == "raised":
                        raise what
                    return what
            raise GeophoneError(f"its process died {DEATHS} times: {how}.")
        finally:
            self._idle.put(process)

    def _tell(self, what: str, done: int, steps: int) -> None:
        if self._progress is not None:
            with self._telling:
                self._progress(what, done, steps)

    def stop(self) -> None:
        """End the processes at once, whatever they do, and start nothing any more."""
        self._hand.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes when their jobs are done; without `wait`, at once."""
        if not wait:
            self.stop()
        self._threads.shutdown(wait=True, cancel_futures=cancel_futures)
        self._hand.close()
        while not self._idle.empty():
            if process := self._idle.get():
                process.end()


class _Process:
    """A process that waits for jobs, does them and tells of them over a pipe of its own."""

    def __init__(self, leash: Connection) -> None:
        self._here, there = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(there, leash))
        self._process.start()
        there.close()

    def do(self, call: tuple[Any, ...], progress: Progress) -> tuple[str, Any]:
        """How it ended ("returned" or "raised"), and with what.

        Raises:
            EOFError: the process died.
        """
        try:
            self._here.send(call)
        except ConnectionError:
            raise EOFError from None
        while True:
            try:
                kind, what = self._here.recv()
            except OSError:  # it died amid a message
                raise EOFError from None
            if kind == "progress":
                progress(*what)
            else:
                return kind, what

    def end(self) -> str:
        """Wait until it has ended; how it did, in words."""
        self._here.close()
        self._process.join()
        code = self._process.exitcode or 0
        if code == -signal.SIGKILL:
            return "killed, as the system does where memory runs out (try fewer --workers)"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"it left with status {code}"


def _serve(pipe: Connection, leash: Connection) -> None:
    """A process's work: one call after the other; it ends with the pipe, or when the leash is let go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def end_with_the_parent() -> None:
        wait([leash])
        os._exit(1)

    Thread(target=end_with_the_parent, daemon=True).start()
    last = 0.0

    def report(what: str, done: int, steps: int) -> None:
        nonlocal last
        if done == steps or time.monotonic() - last > 0.2:
            last = time.monotonic()
            pipe.send(("progress", (what, done, steps)))

    _reports.append(report)
    with suppress(EOFError):
        while True:
            fn, args, kwargs = pipe.recv()
            try:
                answer = ("returned", fn(*args, **kwargs))
            except Exception as error:
                answer = ("raised", error if _survives(error) else GeophoneError(f"{type(error).__name__}: {error}"))
            pipe.send(answer)


def _survives(error: Exception) -> bool:
    """Whether an error can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True


_CONTEXT = get_context("spawn")

_reports: list[Progress] = []
"""In a worker process, what its jobs report to."""


@contextmanager
def ray_executor(workers: int | None = None) -> Iterator[Executor]:
    """An executor whose jobs run on Ray: the cluster at `$RAY_ADDRESS`, else `workers` processes of this machine.

    A job whose worker dies is tried again, up to three times, and goes on after its last finished epoch.

    Raises:
        GeophoneError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise GeophoneError("Ray is not installed. Run: pip install 'geophone[ray]'") from None
    own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level="error", ignore_reinit_error=True, **own)

    class RayExecutor(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return ray.remote(num_cpus=1, max_retries=3)(fn).remote(*args, **kwargs).future()

    try:
        yield RayExecutor()
    finally:
        ray.shutdown()
