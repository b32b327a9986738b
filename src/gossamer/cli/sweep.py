"""Several configurations and seeds from one file: runs what is missing, resumes what was interrupted, prints the table.

out: runs/fashion                       where the folders of the runs go
base: {task: fashion-mnist, epochs: 15}     settings of all runs
grid:                                       blocks; a run for every combination of the values in a block
  - {method: [dense], seed: [0, 1, 2]}
  - {method: [static, csst], density: [0.1, 0.02], seed: [0, 1, 2]}
"""

import dataclasses
import itertools
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from .._errors import UsageError, nearest
from .config import THREADS, Config, Tree, differences, merged, parse, read_yaml, settings
from .folder import Folder
from .progress import watch_for
from .report import report
from .run import Interrupt, run

KEYS = ("out", "base", "grid")
MOST = 10_000  # runs of a sweep
LONGEST = 200  # letters of a folder's name


class Job(NamedTuple):
    """One run of a sweep."""

    label: str
    config: Config
    folder: Folder


def sweep(file: str, out: str | None = None, jobs: int = 1, threads: int | None = None) -> None:
    """Run every configuration of a sweep file that is not finished yet, then print the table over all seeds.

    Args:
        file: YAML file with the keys base (settings of all runs), grid (blocks of lists of values) and out.
        out: folder for the runs; by default the file's ``out``, else runs/ and the file's name.
        jobs: runs at a time, each in a process of its own.
        threads: threads of each run; by default an equal share of this machine's cores when there are several jobs.
    """
    if not 1 <= jobs <= THREADS:
        raise UsageError("gossamer sweep", f"--jobs must be at least 1, and at most {THREADS}", got=jobs)
    if threads is None and jobs > 1:
        threads = max(1, (os.cpu_count() or 1) // jobs)
    todo, folder = plan(Path(file), out, threads)
    damaged = {job.label: job.folder.damage for job in todo if job.folder.damage}
    for job in todo:
        job.folder.tidy()
    remaining = [job for job in todo if not job.folder.over and job.label not in damaged]
    for task in {job.config.task for job in remaining}:
        task.check()
    print(f"{len(todo)} runs in {folder}: {len(todo) - len(remaining)} finished, {len(remaining)} to do", flush=True)
    try:
        failed = _side_by_side(remaining, jobs) if jobs > 1 else _one_by_one(remaining)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"{str(stop) or 'stopped'}; everything is saved, and the same command continues"
        ) from stop
    failed = {**damaged, **failed}
    if len(failed) < len(todo):
        report(str(folder))
    if failed:
        raise UsageError(
            "gossamer sweep",
            f"{len(failed)} of {len(todo)} runs failed",
            reasons=[f"{name}: {why}" for name, why in failed.items()],
        )


def plan(file: Path, out: str | None, threads: int | None) -> tuple[list[Job], Path]:
    """All runs of a sweep file, every configuration checked, and the folder they go to. Raises UsageError."""
    tree = read_yaml(file)
    for key in tree:
        if key not in KEYS:
            raise UsageError(
                str(file), f"unknown key {key!r}{nearest(str(key), KEYS)}", remedy=f"a sweep has {', '.join(KEYS)}"
            )
    said = tree.get("out", "")
    if not isinstance(said, str):
        raise UsageError(str(file), "out is the path of a folder", got=said)
    folder = Path(out or said or Path("runs") / file.stem)
    base, blocks = tree.get("base") or {}, tree.get("grid") or [{}]
    blocks = [blocks] if isinstance(blocks, Mapping) else blocks
    if (
        not isinstance(base, Mapping)
        or not isinstance(blocks, list)
        or not all(isinstance(block, Mapping) for block in blocks)
    ):
        raise UsageError(
            str(file), "base is a mapping of settings, grid a list of mappings from keys to lists of values"
        )
    if (
        runs := sum(math.prod(len(v) if isinstance(v, list) else 1 for v in block.values()) for block in blocks)
    ) > MOST:
        raise UsageError(str(file), f"the grid asks for {runs:,} runs, more than {MOST:,}")
    jobs: dict[str, Job] = {}
    for choice in itertools.chain.from_iterable(combinations(block) for block in blocks):
        label = slug(choice) or "run"
        if len(label) > LONGEST or label.strip(".") == "":
            raise UsageError(
                str(file),
                f"no folder can be called {label[:40]!r}...: a choice of the grid is too long",
                remedy="put it into base",
            )
        config = parse(merged(dict(base), choice, str(file)), str(file))
        config = dataclasses.replace(config, threads=threads or config.threads, null_models=False)
        if label in jobs:
            raise UsageError(str(file), f"the grid asks for {label} twice")
        jobs[label] = Job(label, config, Folder(folder / label))
    for job in jobs.values():
        _check_same(job)
    return list(jobs.values()), folder


def combinations(block: Mapping[str, Any]) -> Iterator[Tree]:
    """Every choice of one value per key; a value that is no list stands for itself."""
    lists = [value if isinstance(value, list) else [value] for value in block.values()]
    for values in itertools.product(*lists):
        yield dict(zip(block, values, strict=True))


def slug(choice: Mapping[str, Any]) -> str:
    """A folder's name for a choice: ``csst-density0.1-seed0``."""

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
    """A folder that is there already must hold this run, its number of threads apart if it is over."""
    if job.folder.status == "new" or job.folder.damage:
        return
    old, new = job.folder.settings(), settings(job.config.resolved())
    if job.folder.over:
        old["threads"] = new["threads"]
    different = differences(old, new)
    if different:
        raise UsageError(
            str(job.folder.path),
            "holds a run with another configuration",
            reasons=different,
            remedy="another --out, or move that folder away",
        )


# -------------------------------------------------------------------- doing it


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
    """Each run in its own process, ``at_once`` at a time. Ctrl-C lets all of them save. Returns those that failed, and how."""
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
                    failed[job.label] = f"exit code {process.exitcode}; what it said is above"
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
