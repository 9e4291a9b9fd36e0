"""Timing two ways of doing the same, alternately, so that a busy machine slows both."""

import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

HEAD = "| what | ratio, median | spread | repeats | bare | aim |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Ratio:
    """Ours over the bare work: one ratio for each repeat."""

    name: str
    ratios: list[float]
    bare_seconds: float
    aim: str = ""

    def __str__(self) -> str:
        low, high = min(self.ratios), max(self.ratios)
        return (
            f"| {self.name} | **{median(self.ratios):.2f}** | {low:.2f}–{high:.2f} | {len(self.ratios)} "
            f"| {self.bare_seconds:.2f} s | {self.aim} |"
        )


def seconds(work: Callable[[], object]) -> float:
    """Time of one call: of all the process's threads on a CPU, so that a busy machine counts less; else wall time."""
    if not torch.cuda.is_available():
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(name: str, ours: Callable[[], object], bare: Callable[[], object], repeats: int, aim: str = "") -> Ratio:
    """Each repeat times the bare work and ours, one after the other; the first pair warms up and does not count."""
    pairs = [(seconds(bare), seconds(ours)) for _ in range(repeats + 1)][1:]
    return Ratio(name, [o / b for b, o in pairs], median(b for b, _ in pairs), aim)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """What this was measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
