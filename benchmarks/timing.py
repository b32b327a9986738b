"""The measurement of time in all benchmarks, and the record of the machine.

interleaved   all variants in turn, round after round, until the budget is spent, so that a disturbance of the machine
              affects all of them. A turn is one call without timing (it wakes the threads and fills the caches) and one
              with timing; median and quartiles are those of the timed calls. If the process has several OpenMP
              runtimes, a turn first waits until the threads of the other runtime sleep.
roofline      peak:       the best of several products of large dense matrices, 2 n^3 flops; or of the loop of
                          multiply-adds in the native module, if it has one that is faster
              bandwidth:  the best of several triads a = b + s c on vectors much larger than the last cache, counted as
                          three numbers per element (as in STREAM, without the read of a line before it is overwritten)
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer._backend.dispatch import ENVIRONMENT
from gossamer._backend.native import keep_freed_memory
from gossamer.cli.environment import environment

PEERS = ("sparseprop", "sparselab")
WAIT = 0.01  # seconds until the threads of another OpenMP runtime have stopped spinning


class Timing(NamedTuple):
    """Seconds of one variant: the median of its timed calls, the quartiles, and the number of calls."""

    seconds: float
    low: float
    high: float
    repeats: int

    @staticmethod
    def of(samples: Sequence[float]) -> "Timing":
        """The summary of timed calls."""
        low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
        return Timing(median(samples), low, high, len(samples))

    @staticmethod
    def read(record: Mapping[str, Any]) -> "Timing":
        """The summary in a record, whose other entries are ignored."""
        return Timing(*(record[field] for field in Timing._fields))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median."""
        return (self.high - self.low) / 2 / self.seconds


def prepare(threads: int, seed: int) -> None:
    """Sets threads and random state, and keeps freed memory, which speeds up dense and sparse steps."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.manual_seed(seed)


def interleaved(calls: Mapping[str, Callable[[], object]], budget: float, least: int = 5) -> dict[str, Timing]:
    """Times the calls in turn for ``budget`` seconds, and for at least ``least`` rounds."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    wait = WAIT if len(openmp()) > 1 else 0.0
    begin, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - begin < budget:
        for name, call in calls.items():
            time.sleep(wait)
            call()
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: Timing.of(taken) for name, taken in samples.items()}


def repeated(call: Callable[[], object], budget: float, least: int) -> Timing:
    """Times one call for ``budget`` seconds, and at least ``least`` times, after one call without timing."""
    call()
    begin, taken = time.perf_counter(), list[float]()
    while len(taken) < least or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return Timing.of(taken)


def batch_last(t: Tensor) -> Tensor:
    """The same tensor, with its first dimension innermost in memory."""
    return t.permute(*range(1, t.dim()), 0).contiguous().permute(-1, *range(t.dim() - 1))


# -------------------------------------------------------------------- the machine


def openmp() -> list[str]:
    """File names of the OpenMP runtimes in this process; empty if the system does not list them."""
    maps = Path("/proc/self/maps")
    names = (line.rsplit("/", 1)[-1].strip() for line in maps.read_text().splitlines()) if maps.is_file() else ()
    return sorted({name for name in names if re.match(r"lib(g|i)?omp\d*[-.]", name)})


def machine() -> dict[str, Any]:
    """All that a time depends on: versions, processor, commit, threads, vector instructions, OpenMP runtimes, peers."""
    versions: dict[str, str] = {}
    for peer in PEERS:
        with suppress(metadata.PackageNotFoundError):
            versions[peer] = metadata.version(peer)
    return {
        **environment(),
        "threads": torch.get_num_threads(),
        "vector instructions of torch": torch.backends.cpu.get_cpu_capability(),
        "openmp": openmp(),
        "peers": versions,
        "kernels forced": os.environ.get(ENVIRONMENT),
    }


def about(machine: Mapping[str, Any]) -> str:
    """The machine of a measurement on one line."""
    peers = "".join(f", {name} {version}" for name, version in machine["peers"].items())
    where = f"{machine['processor']}, {machine['threads']} threads, {machine['vector instructions of torch']}"
    return f"{where}; torch {machine['torch']}, gossamer {machine['gossamer']}{peers}; {machine['started'][:10]}."


def roofline(budget: float, quick: bool) -> dict[str, float]:
    """The measured peak in float32, flops / second, and the memory bandwidth, bytes / second."""
    size, numbers = (128, 1 << 14) if quick else (2048, 1 << 26)
    a, b, c = (torch.randn(size, size) for _ in range(3))
    u, v, w = (torch.randn(numbers) for _ in range(3))
    calls = {"matmul": lambda: torch.mm(a, b, out=c), "triad": lambda: torch.add(v, w, alpha=3.0, out=u)}
    best = _fastest(calls, budget)
    peaks = {"flops by matmul": 2 * size**3 / best["matmul"], **_native_peak()}
    return {"flops": max(peaks.values()), **peaks, "bytes": 12 * numbers / best["triad"]}


def _fastest(calls: Mapping[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """Seconds of each call's fastest repeat, with ``budget`` seconds for each call."""
    best = {}
    for name, call in calls.items():
        call()
        begin, taken = time.perf_counter(), list[float]()
        while len(taken) < 3 or time.perf_counter() - begin < budget:
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        best[name] = min(taken)
    return best


def _native_peak() -> dict[str, float]:
    """The peak by the loop of multiply-adds in the native module, if there is one."""
    with suppress(ImportError):
        measure = getattr(import_module("gossamer._backend.native"), "peak_flops", None)
        return {} if measure is None else {"flops by multiply-adds": float(measure())}
    return {}


# -------------------------------------------------------------------- numbers in tables


def millis(seconds: float) -> str:
    """Milliseconds, three digits."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def times(ratio: float) -> str:
    """A speed-up: ``2.3x``."""
    return f"{ratio:.2g}x" if ratio < 1 else f"{ratio:.1f}x"
