"""Several configurations and seeds from one file: starts missing runs, resumes interrupted ones, prints the table.

out: runs/fashion                           folder of the runs
base: {task: fashion-mnist, epochs: 15}     settings of all runs
grid:                                       blocks: one run for every combination of the values in a block
  - {method: [dense], seed: [0, 1, 2]}
  - {method: [static, csst], density: [0.1, 0.02], seed: [0, 1, 2]}
"""

import itertools
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .._errors import UsageError, nearest
from .arguments import split
from .config import configure
from .folder import Folder
from .progress import watch_for
from .record import KEYS as SETTINGS
from .record import THREADS, Config, Tree, differences, settings
from .report import report
from .run import Interrupt, run
from .strict_yaml import read_yaml

WHO = "gossamer sweep"
OPTIONS = ("out", "jobs", "threads", "help")
HELP = """usage: gossamer sweep FILE.yaml [--jobs N] [--threads N] [--out DIR] [--key value ...]

Train all unfinished configurations of a sweep file, then print the table.

  FILE.yaml      has the keys base (settings of all runs), grid (blocks of lists of
                 values) and out (folder of the runs)
  --jobs N       number of runs at the same time, one process each (default: 1)
  --threads N    threads of each run (default: the setting in FILE.yaml; with several
                 jobs, the cores of this machine divided by the jobs)
  --out DIR      folder of the runs (default: out in FILE.yaml, else runs/FILE)
  --key value    any setting, for all runs; it replaces all values of this key in the
                 grid

example: gossamer sweep experiments/fashion.yaml --epochs 1 --seed 0 --out runs/short
"""
KEYS = ("out", "base", "grid")
MOST = 10_000  # runs of a sweep
LONGEST = 200  # letters of a folder's name


class Job(NamedTuple):
    """One run of a sweep."""

    label: str
    config: Config
    folder: Folder


def command(argv: Sequence[str]) -> None:
    """The command ``gossamer sweep``. Raises UsageError."""
    given = split(WHO, argv, OPTIONS, ("help",))
    if given.says("help"):
        print(HELP, end="")
        return
    if given.file is None:
        raise UsageError(WHO, "the sweep file is missing", remedy="gossamer sweep experiments/fashion.yaml")
    known = [*SETTINGS, *OPTIONS]
    for key in given.settings:
        if "." not in key and key not in known:
            near = nearest(f"--{key}", [f"--{name}" for name in known])
            raise UsageError(WHO, f"unknown option --{key}{near}", remedy=f"{WHO} --help lists the options")
    numbers = {key: _count(key, given.options.get(key)) for key in ("jobs", "threads")}
    sweep(str(given.file), given.options.get("out"), numbers["jobs"] or 1, numbers["threads"], given.settings)


def sweep(
    file: str,
    out: str | None = None,
    jobs: int = 1,
    threads: int | None = None,
    overrides: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Trains all unfinished configurations of a sweep file, then prints the table over all seeds.

    Args:
        file: YAML file with the keys base (settings of all runs), grid (blocks of lists of values) and out.
        out: folder of the runs; by default ``out`` in the file, else runs/ and the name of the file.
        jobs: number of runs at the same time, one process each.
        threads: threads of each run; by default the setting in the file, and with several jobs the cores of this
            machine divided by the jobs.
        overrides: settings of all runs, by dotted key. They replace all values of their key in the grid.

    Raises: UsageError, also after the other runs if a run failed. KeyboardInterrupt on Ctrl-C, after saving.
    """
    if not 1 <= jobs <= THREADS:
        raise UsageError(WHO, f"--jobs must be at least 1, and at most {THREADS}", got=jobs)
    if threads is None and jobs > 1:
        threads = max(1, (os.cpu_count() or 1) // jobs)
    todo, folder = plan(Path(file), out, threads, overrides)
    damaged = {job.label: job.folder.damage for job in todo if job.folder.damage}
    for job in todo:
        job.folder.tidy()
    remaining = [job for job in todo if not job.folder.over and job.label not in damaged]
    for task in {job.config.task for job in remaining}:
        task.make().check()
    print(f"{len(todo)} runs in {folder}: {len(todo) - len(remaining)} finished, {len(remaining)} to do", flush=True)
    try:
        failed = _side_by_side(remaining, jobs) if jobs > 1 else _one_by_one(remaining)
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped"
        raise KeyboardInterrupt(f"{said}; the state is saved: repeat the command to continue") from stop
    failed = {**damaged, **failed}
    if len(failed) < len(todo):
        report(str(folder))
    if failed:
        reasons = [f"{name}: {why}" for name, why in failed.items()]
        raise UsageError(WHO, f"{len(failed)} of {len(todo)} runs failed", reasons=reasons)


# -------------------------------------------------------------------- the list of runs


def plan(
    file: Path, out: str | None, threads: int | None, overrides: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[Job], Path]:
    """All runs of a sweep file, with checked configurations, and their common folder. Raises UsageError."""
    said, base, blocks = contents(file)
    folder = Path(out or said or Path("runs") / file.stem)
    blocks = [overridden(block, overrides) for block in blocks]
    own = {"null_models": False, **({"threads": threads} if threads else {})}
    jobs: dict[str, Job] = {}
    for choice in itertools.chain.from_iterable(combinations(block) for block in blocks):
        label = slug(choice) or "run"
        if len(label) > LONGEST or label.strip(".") == "":
            what = f"{label[:40]!r}... cannot be the name of a folder: values of the grid are too long or only dots"
            raise UsageError(str(file), what, remedy="put them into base")
        if label in jobs and overrides:
            continue  # the overrides made two blocks equal
        if label in jobs:
            raise UsageError(str(file), f"the grid contains the run {label} twice")
        config = configure((str(file), base), (str(file), choice), (WHO, overrides), (WHO, own))
        jobs[label] = Job(label, config, Folder(folder / label))
    for job in jobs.values():
        _check_same(job)
    return list(jobs.values()), folder


def contents(file: Path) -> tuple[str, Tree, list[Tree]]:
    """The folder, the settings of all runs, and the blocks of the grid of a sweep file. Raises UsageError."""
    tree = read_yaml(file)
    for key in tree:
        if key not in KEYS:
            remedy = f"a sweep file has the keys {', '.join(KEYS)}; gossamer run {file} trains one configuration"
            raise UsageError(str(file), f"unknown key {key!r}{nearest(str(key), KEYS)}", remedy=remedy)
    said, base, grid = tree.get("out", ""), tree.get("base") or {}, tree.get("grid") or [{}]
    if not isinstance(said, str):
        raise UsageError(str(file), "out must be the path of a folder", got=said)
    blocks: Any = [grid] if isinstance(grid, Mapping) else grid
    mappings = isinstance(blocks, list) and all(isinstance(block, Mapping) for block in blocks)
    if not isinstance(base, Mapping) or not mappings:
        what = "base must be a mapping of settings, and grid a list of mappings from keys to lists of values"
        raise UsageError(str(file), what)
    runs = sum(math.prod(len(v) if isinstance(v, list) else 1 for v in block.values()) for block in blocks)
    if runs > MOST:
        raise UsageError(str(file), f"the grid has {runs:,} runs, more than {MOST:,}")
    return said, dict(base), blocks


def overridden(block: Tree, overrides: Mapping[str, str]) -> Tree:
    """The block in which ``overrides`` replaces all values of its keys."""
    out: Tree = {}
    for key, values in block.items():
        name = key.removesuffix(".name")
        if name in overrides or f"{name}.name" in overrides:
            values = [overrides.get(name, overrides.get(f"{name}.name"))]
        inner = {word.removeprefix(f"{key}."): v for word, v in overrides.items() if word.startswith(f"{key}.")}
        choices = values if isinstance(values, list) else [values]
        shown = [_within(value, inner) if isinstance(value, Mapping) else value for value in choices]
        out[key] = [value for i, value in enumerate(shown) if value not in shown[:i] or value == choices[i]]
    return out


def _within(part: Mapping[str, Any], inner: Mapping[str, str]) -> Tree:
    """The settings of a part with those of ``inner`` replaced."""
    return {key: inner.get(key, value) for key, value in part.items()}


def _count(name: str, given: str | None) -> int | None:
    """The whole number of an option, or None if the option was not given."""
    if given is not None and not given.isdecimal():
        raise UsageError(WHO, f"{name}: Expected a int. Got value: {given}", remedy=f"--{name} 2")
    return None if given is None else int(given)


def combinations(block: Mapping[str, Any]) -> Iterator[Tree]:
    """Every choice of one value per key. A value that is no list is the only choice."""
    lists = [value if isinstance(value, list) else [value] for value in block.values()]
    for values in itertools.product(*lists):
        yield dict(zip(block, values, strict=True))


def slug(choice: Mapping[str, Any]) -> str:
    """The name of a run's folder: ``csst-density0.1-seed0``."""

    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return "-".join(words(v) if k == "name" else f"{k}{words(v)}" for k, v in value.items())
        return "x".join(map(words, value)) if isinstance(value, list) else str(value)

    parts = [
        words(value) if key in ("method", "task", "model", "optimizer") else f"{key}{words(value)}"
        for key, value in choice.items()
    ]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _check_same(job: Job) -> None:
    """Refuses an existing folder with another run. If that run is over, the number of threads may differ."""
    if job.folder.status == "new" or job.folder.damage:
        return
    old, new = job.folder.settings(), settings(job.config.resolved())
    if job.folder.over:
        old["threads"] = new["threads"]
    different = differences(old, new)
    if different:
        remedy = "use another --out, or move that folder"
        raise UsageError(
            str(job.folder.path), "holds a run with another configuration", reasons=different, remedy=remedy
        )


# -------------------------------------------------------------------- training


def _one_by_one(jobs: list[Job]) -> dict[str, str]:
    failed = {}
    with watch_for(len(jobs)) as watch:
        for job in jobs:
            try:
                run(job.config, job.folder.path, resume=True, watch=watch)
            except UsageError as error:
                failed[job.label] = str(error)
    return failed


def _side_by_side(jobs: list[Job], at_once: int) -> dict[str, str]:
    """Trains each run in its own process, ``at_once`` at a time. On Ctrl-C all of them save.

    Returns: label and reason of each failed run.
    """
    context = multiprocessing.get_context("spawn")
    waiting, busy, failed = list(jobs), {}, {}
    with watch_for(len(jobs)) as watch, Interrupt() as interrupt:
        while busy or (waiting and not interrupt.wanted):
            while waiting and len(busy) < at_once and not interrupt.wanted:
                job = waiting.pop(0)
                process = context.Process(target=_child, args=(job.config, str(job.folder.path)))
                process.start()
                busy[process.sentinel] = (process, job)
            for sentinel in wait(list(busy), timeout=0.5):
                process, job = busy.pop(sentinel)  # type: ignore[call-overload]
                process.join()
                if job.folder.over:
                    watch.end(job.label, job.folder.figures())
                elif not interrupt.wanted:
                    failed[job.label] = f"exit code {process.exitcode}; its message is above"
            if interrupt.wanted:
                for process, _ in busy.values():
                    process.terminate()  # SIGTERM: the run saves and stops
    if interrupt.wanted:
        raise KeyboardInterrupt
    return failed


def _child(config: Config, path: str) -> None:
    try:
        run(config, path, resume=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except UsageError as error:
        sys.exit(f"{path}: {error}")
