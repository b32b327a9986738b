"""kill -9 at random points of `gossamer run` and `gossamer sweep`, and power cuts: the run that goes on ends as one
that was never stopped.

A kill comes at a random time, or just before a random call that changes a folder. A power cut keeps what was
synchronised: of everything else each file, and each change of a name, is lost or kept at random (or all is lost); a
file that was not synchronised keeps a part.
"""

import builtins
import io
import itertools
import os
import random
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gossamer as gs
from campaigns.forks import command, forked, left, unlike
from campaigns.tally import Tally
from gossamer import checkpoint

TINY = ["--task=planted", "--task.features=12", "--task.relevant=6", "--task.examples=60", "--model.widths=[16,16]"]
TINY += ["--density=0.3", "--batch=16", "--epochs=3", "--threads=1"]
CSST = ["--method.every=4", "--method.last_every=5", "--method.window=3"]
SHADOW = [
    "--method=proximal",
    "--optimizer=linbreg",
    "--layout=shadow",
    "--target=targetdensity",
    "--target.every=1",
    "--optimizer.lr=0.5",
]
L1 = ["--optimizer.penalty=l1", "--optimizer.penalty.lam=0.02"]
SHADOW += [*L1, "--optimizer.momentum=0.9"]
SWEEP = """
base:
  task: {name: planted, features: 12, relevant: 6, examples: 60}
  model.widths: [16, 16]
  density: 0.3
  batch: 16
  epochs: 2
  threads: 1
grid:
  - {method: [dense, {name: csst, every: 4, last_every: 5, window: 3}], seed: [0, 1]}
"""
CALLS = ("fsync", "replace", "unlink", "mkdir", "open", "write", "ftruncate")


class Job(NamedTuple):
    """A command, how it is continued, and what it leaves if nobody stops it."""

    argv: list[str]
    on: list[str]  # more arguments, to go on
    whole: dict[str, object]
    seconds: float
    calls: int  # of CALLS


ALONE = [*TINY, "--null_models=false"]
COMMANDS = {
    "run": ["run", *ALONE, *CSST],
    "run, adamw, rigl": ["run", *ALONE, "--method=rigl", "--method.every=4", "--optimizer=adamw"],
    "run, a rule": ["run", *ALONE, *SHADOW],
    "run, multilevel": ["run", *ALONE, "--method=multilevel", "--optimizer=adabreg", *L1, "--method.coarse=2"],
    "run beside null models": ["run", *TINY, *CSST, "--null_models=true"],
    "sweep": ["sweep", "sweep.yaml"],
}


class Jobs(dict[str, Job]):
    """The commands that are killed, each run once in peace when it is first asked for."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        (folder / "sweep.yaml").write_text(SWEEP)

    def __missing__(self, name: str) -> Job:
        argv = [str(self.folder / word) if word.endswith(".yaml") else word for word in COMMANDS[name]]
        out, counter, begun = self.folder / f"whole {name}", self.folder / "count", time.perf_counter()
        code, said = forked(_counted(command(*argv, "--out", str(out)), counter))
        assert code == 0, said
        on = ["--resume"] if argv[0] == "run" else []
        self[name] = Job(argv, on, left(out), time.perf_counter() - begun, int(counter.read_text()))
        return self[name]


def saves(cases: int, rng: random.Random) -> list[Tally]:
    """kill -9 at a random call of one save: the file is the old checkpoint or the new one; the next save tidies up."""
    tally = Tally("kill -9 while saving")
    with tempfile.TemporaryDirectory() as folder:
        path, counter = Path(folder) / "x" / "run.safetensors", Path(folder) / "count"
        models = [gs.SparseLinear(30, 20, density=0.3, rng=torch.Generator().manual_seed(i)) for i in range(2)]

        def save(i: int) -> int:
            checkpoint.save(path, models[i], extra={"i": i})
            return 0

        forked(_counted(lambda: save(0), counter))
        for _ in range(cases):
            save(0)
            call = rng.randrange(1, int(counter.read_text()) + 1)
            forked(_before_call(lambda: save(1), call, die))
            tally.cases += 1
            found = gs.SparseLinear(30, 20, density=0.3)
            try:
                i = checkpoint.load(path, found)["i"]
            except gs.UsageError as error:
                tally.add("differing", f"before call {call}: {error}")
                continue
            if not torch.equal(found.to_dense(), models[i].to_dense()):
                tally.add("differing", f"before call {call}: not the weights of save {i}")
            save(0)
            if [p.name for p in path.parent.iterdir()] != [path.name]:
                tally.add("stray", f"before call {call}: {[p.name for p in path.parent.iterdir()]}")
    return [tally]


def kills(cases: int, rng: random.Random) -> list[Tally]:
    """kill -9, up to three times in a row."""
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = Jobs(Path(folder))
        for case in range(cases):
            name, out = rng.choice(sorted(COMMANDS)), Path(folder) / f"{case}"
            job, tally = commands[name], tallies.setdefault(name, Tally(f"kill -9, {name}"))
            tally.cases += 1
            how = []
            for _ in range(rng.choice((1, 1, 2, 3))):
                work = command(*_arguments(job, out))
                if rng.random() < 0.5:
                    seconds = rng.random() * job.seconds
                    forked(work, kill_after=seconds)
                    how.append(f"after {seconds:.3f} s")
                else:
                    call = rng.randrange(1, job.calls + 1)
                    forked(_before_call(work, call, die))
                    how.append(f"before call {call}")
            finish(job, out, tally, ", ".join(how))
    return sorted(tallies.values(), key=lambda tally: tally.kind)


def power_cuts(cases: int, rng: random.Random) -> list[Tally]:
    """The machine goes dark at a random call that changes a folder."""
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = Jobs(Path(folder))
        for case in range(cases):
            name, place = rng.choice(sorted(COMMANDS)), Path(folder) / f"{case}"
            job, tally = commands[name], tallies.setdefault(name, Tally(f"power cut, {name}"))
            tally.cases += 1
            place.mkdir()
            out, after = place / "out", Path(folder) / f"{case} after"
            call, luck, seed = rng.randrange(1, job.calls + 1), rng.choice((0.0, 0.5)), rng.random()
            disk = Disk(place)
            cut = partial(disk.cut, after, luck, random.Random(seed))
            forked(disk.recording(_before_call(command(*_arguments(job, out)), call, cut)))
            if after.exists():
                shutil.rmtree(place)
                after.rename(place)
            finish(job, out, tally, f"call {call}, luck {luck}")
    return sorted(tallies.values(), key=lambda tally: tally.kind)


def finish(job: Job, out: Path, tally: Tally, how: str) -> None:
    """Goes on to the end, and compares with the run that nobody stopped."""
    code, said = forked(command(*_arguments(job, out)))
    if "Traceback" in said:
        tally.add("tracebacks", f"{how}: {said[-300:]}")
    elif code != 0:
        tally.add("differing", f"{how}: exit code {code}, {said[-300:]}")
    else:
        stray, different = unlike(left(out), job.whole)
        if stray:
            tally.add("stray", f"{how}: {stray}")
        if different:
            tally.add("differing", f"{how}: {different}")
    shutil.rmtree(out, ignore_errors=True)


def _arguments(job: Job, out: Path) -> list[str]:
    begun = (out / "config.yaml").is_file()
    if begun and job.on:
        return [job.argv[0], "--out", str(out), *job.on]
    return [*job.argv, "--out", str(out)]


# -------------------------------------------------------------------- the calls that change a folder


def die() -> None:
    """kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def _before_call(work: Callable[[], int], number: int, act: Callable[[], Any]) -> Callable[[], int]:
    """The work, with ``act`` just before the ``number``-th call that changes a folder or a file."""
    calls = itertools.count(1)

    def note() -> None:
        if next(calls) == number:
            act()

    return _noting(work, note)


def _counted(work: Callable[[], int], file: Path) -> Callable[[], int]:
    """The work; the number of its calls that change a folder or a file goes into a file."""
    calls = [0]

    def note() -> None:
        calls[0] += 1

    def run() -> int:
        code = _noting(work, note)()
        os.write(os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), str(calls[0]).encode())
        return code

    return run


def _noting(work: Callable[[], int], note: Callable[[], None]) -> Callable[[], int]:
    """The work, with ``note`` before each call of CALLS and each writing into an open file."""

    def noted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            note()
            return real(*args, **options)

        return call

    def opened(*args: Any, **options: Any) -> Any:
        file = plain(*args, **options)
        if file.writable():
            file.write = noted(file.write)
        return file

    def run() -> int:
        for name in CALLS:
            setattr(os, name, noted(getattr(os, name)))
        builtins.open = io.open = opened
        return work()

    plain = open
    return run


# -------------------------------------------------------------------- what is on the disk for certain


class Disk:
    """What was synchronised below a folder: contents by inode, names by folder."""

    def __init__(self, root: Path):
        self.root = root
        self.contents: dict[int, bytes] = {}
        self.names: dict[str, dict[str, int]] = {str(root): {}}

    def recording(self, work: Callable[[], int]) -> Callable[[], int]:
        """The work; every call of fsync is noted."""

        def run() -> int:
            real = os.fsync

            def fsync(handle: int) -> None:
                real(handle)
                path, what = os.readlink(f"/proc/self/fd/{handle}"), os.fstat(handle)
                if stat.S_ISDIR(what.st_mode):
                    self.names[path] = _names(Path(path))
                else:
                    self.contents[what.st_ino] = Path(path).read_bytes()

            os.fsync = fsync
            return work()

        return run

    def cut(self, to: Path, luck: float, rng: random.Random) -> None:
        """Writes what the disk holds after a power cut to another folder, and dies."""
        self._write(self.root, to, luck, rng)
        die()

    def _write(self, folder: Path, to: Path, luck: float, rng: random.Random) -> None:
        to.mkdir()
        sure, now = self.names.get(str(folder), {}), _names(folder)
        for name in sorted({*sure, *now}):
            there = now if rng.random() < luck else sure  # this change of the name was, or was not, on its way
            if name not in there:
                continue
            path = folder / name
            if path.is_dir():
                self._write(path, to / name, luck, rng)
            else:
                (to / name).write_bytes(self._bytes(path, there[name], luck, rng))

    def _bytes(self, path: Path, inode: int, luck: float, rng: random.Random) -> bytes:
        sure = self.contents.get(inode, b"")
        if luck and path.is_file() and path.stat().st_ino == inode and (now := path.read_bytes()) != sure:
            return now[: rng.randrange(len(now) + 1)] if rng.random() < luck else sure
        return sure


def _names(folder: Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(folder)} if folder.is_dir() else {}
