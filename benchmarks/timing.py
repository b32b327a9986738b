"""What the benchmarks share: interleaved timing, the machine's roofline, tables, and their places in the documentation.

interleaved   all variants in turn, round after round, until the budget is spent: what disturbs the machine disturbs all of them. A turn
              is one call that is not timed (so threads are awake and caches are the variant's own) and one that is; of these, median
              and quartiles. Where the process holds several OpenMP runtimes, a turn waits first, until the other's threads sleep.
roofline      peak:       the best of several products of big dense matrices, 2 n^3 flops, or of the native module's own loop of
                          multiply-adds where it has one and that is faster
              bandwidth:  the best of several triads a = b + s c on vectors much larger than the last cache, counted as three numbers
                          per element (as STREAM counts: the line that is fetched before it is overwritten does not count)
"""

import argparse
import json
import os
import re
import sys
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
from gossamer.cli.console import markdown, show
from gossamer.cli.environment import environment

PEERS = ("sparseprop", "sparselab")
WAIT = 0.01  # seconds until the threads of another OpenMP runtime have stopped spinning
Result = dict[str, Any]  # section -> what was measured, ready for JSON


class Timing(NamedTuple):
    """Seconds of one variant: the median of its timed calls, the quartiles, how many there were."""

    seconds: float
    low: float
    high: float
    repeats: int

    @staticmethod
    def of(samples: Sequence[float]) -> "Timing":
        """The summary of timed calls."""
        low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
        return Timing(median(samples), low, high, len(samples))

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles over the median."""
        return (self.high - self.low) / 2 / self.seconds


def interleaved(calls: Mapping[str, Callable[[], object]], budget: float, least: int = 5) -> dict[str, Timing]:
    """Times the calls in turn for ``budget`` seconds, but at least ``least`` rounds."""
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


def batch_last(t: Tensor) -> Tensor:
    """The same tensor, its first dimension innermost in memory."""
    return t.permute(*range(1, t.dim()), 0).contiguous().permute(-1, *range(t.dim() - 1))


def error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-300))


class Mismatch(ArithmeticError):
    """A kernel computes something else: there is no time to report."""


# -------------------------------------------------------------------- the machine


def openmp() -> list[str]:
    """File names of the OpenMP runtimes in this process (empty where the system does not say)."""
    maps = Path("/proc/self/maps")
    names = (line.rsplit("/", 1)[-1].strip() for line in maps.read_text().splitlines()) if maps.is_file() else ()
    return sorted({name for name in names if re.match(r"lib(g|i)?omp\d*[-.]", name)})


def machine() -> dict[str, Any]:
    """Versions, processor, commit, threads, vector instructions, OpenMP runtimes, peers: all that a time depends on."""
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


def roofline(budget: float, quick: bool) -> dict[str, float]:
    """Measured peak, flops / second in float32, and memory bandwidth, bytes / second."""
    size, numbers = (128, 1 << 14) if quick else (2048, 1 << 26)
    a, b, c = (torch.randn(size, size) for _ in range(3))
    u, v, w = (torch.randn(numbers) for _ in range(3))
    calls = {"matmul": lambda: torch.mm(a, b, out=c), "triad": lambda: torch.add(v, w, alpha=3.0, out=u)}
    best = _fastest(calls, budget)
    peaks = {"flops by matmul": 2 * size**3 / best["matmul"], **_native_peak()}
    return {"flops": max(peaks.values()), **peaks, "bytes": 12 * numbers / best["triad"]}


def _fastest(calls: Mapping[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """Seconds of each call's fastest repeat, for ``budget`` seconds each."""
    best = {}
    for name, call in calls.items():
        call()
        begin, taken = time.perf_counter(), []
        while len(taken) < 3 or time.perf_counter() - begin < budget:
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        best[name] = min(taken)
    return best


def _native_peak() -> dict[str, float]:
    """What the native module measures by its own loop of multiply-adds, if it is there and does."""
    with suppress(ImportError):
        measure = getattr(import_module("gossamer._backend.native"), "peak_flops", None)
        return {} if measure is None else {"flops by multiply-adds": float(measure())}
    return {}


# -------------------------------------------------------------------- arguments, tables, files


class Table(NamedTuple):
    """A table of strings and what there is to say below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    left: int = 1  # columns aligned to the left


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--budget", type=float, metavar="SECONDS", help="time spent on each cell (a variant at a density)"
    )
    made.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs; its times mean nothing")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    made.add_argument(
        "--from", type=Path, metavar="FILE", dest="source", nargs="+", help="measure nothing, read what --json wrote"
    )
    made.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables between their marks in this page")
    made.add_argument(
        "--mark", metavar="NAME", help="only this one: the marks are <!-- table: NAME --> and <!-- end -->"
    )
    return made


def ready(args: argparse.Namespace) -> None:
    """Threads and random state as asked; freed memory kept, which helps dense and sparse steps alike."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.manual_seed(args.seed)


def read(files: Sequence[Path]) -> Result:
    """What ``--json`` wrote; the rows of several files in one, under the first one's heading."""
    first, *others = (json.loads(file.read_text()) for file in files)
    for other in others:
        for name, found in other.items():
            if name not in first:
                first[name] = found
            elif isinstance(found, list):
                first[name] += found
    return first


def finish(
    args: argparse.Namespace,
    result: Result,
    tables: Mapping[str, Callable[[Result], Table]],
    more: Mapping[str, str] | None = None,
) -> int:
    """Prints the table of every section that was measured, and writes what was asked for, ``more`` texts too. Returns the exit code."""
    made = {name: table(result) for name, table in tables.items() if name in result}
    notes = [about(result["machine"])] + ["QUICK: tiny sizes, these times mean nothing"] * bool(result["quick"])
    for name, table in made.items():
        made[name] = table = table._replace(notes=[*table.notes, *notes])
        show(table.title, table.columns, table.rows, table.notes, table.left)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.markdown is None:
        return 0
    texts = {
        name: markdown(table.columns, table.rows) + "\n" + "\n".join(table.notes) for name, table in made.items()
    } | dict(more or {})
    wanted = list(texts) if args.mark is None else [args.mark]
    missing = [name for name in wanted if name not in texts]
    if missing:
        print(
            f"nothing measured here belongs between the marks of {missing[0]!r}; there is {', '.join(texts)}",
            file=sys.stderr,
        )
        return 2
    return fill(args.markdown, {name: texts[name] for name in wanted})


def fill(path: Path, texts: Mapping[str, str]) -> int:
    """Puts each text between its marks in a page; changes nothing and returns 2 if a mark is not there exactly once."""
    page = path.read_text()
    for name, text in texts.items():
        between = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(between.findall(page)) != 1:
            print(f"{path} must hold the marks <!-- table: {name} --> and <!-- end --> once", file=sys.stderr)
            return 2
        page = between.sub(lambda marks, text=text: f"{marks[1]}{text}\n{marks[2]}", page)
    path.write_text(page)
    return 0


def about(machine: Mapping[str, Any]) -> str:
    """One line: where this was measured."""
    peers = "".join(f", {name} {version}" for name, version in machine["peers"].items())
    where = f"{machine['processor']}, {machine['threads']} threads, {machine['vector instructions of torch']}"
    return f"{where}; torch {machine['torch']}, gossamer {machine['gossamer']}{peers}; {machine['started'][:10]}."


def millis(seconds: float) -> str:
    """Milliseconds, three digits."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def times(ratio: float) -> str:
    """A ratio, as a speed-up is said."""
    return f"{ratio:.2g}x" if ratio < 1 else f"{ratio:.1f}x"
