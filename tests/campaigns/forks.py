"""Commands in forked children of one warm process (torch is imported once), and what they leave behind."""

import contextlib
import io
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from gossamer.cli import job, sweep
from gossamer.cli import main as cli
from gossamer.cli.config import parse

parse({"task": "planted"}, "")  # parsers, and what they import, are warm in every child
assert job and sweep


def forked(work: Callable[[], int], kill_after: float | None = None) -> tuple[int, str]:
    """(exit code or minus the signal, standard error) of ``work`` in a child; it may be killed after some seconds."""
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            _child(work, said.fileno())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read().decode(errors="replace")


def _child(work: Callable[[], int], said: int) -> None:
    """Runs the work and never returns."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said, 2)
        torch.set_num_threads(1)
        with contextlib.redirect_stderr(
            io.TextIOWrapper(io.FileIO(2, "w", closefd=False), errors="backslashreplace", write_through=True)
        ):
            with contextlib.redirect_stdout(io.StringIO()):
                code = work()
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
    finally:
        os._exit(code)


def command(*argv: str) -> Callable[[], int]:
    """The command line as the work of a child."""
    return lambda: cli.main(argv)


def left(folder: Path) -> dict[str, object]:
    """All files below a folder by name, with the content that must be the same in every run: no times, no machine."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if not path.is_dir()}


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":
        return {key: t.reshape(-1).view(torch.uint8).numpy().tobytes() for key, t in load_file(path).items()}
    if path.name == "metrics.jsonl":
        return [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in path.read_text().splitlines()
        ]
    if path.name == "result.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
    if path.name == "config.yaml":
        return path.read_text()
    return None  # environment and tables hold times


def unlike(one: dict[str, object], other: dict[str, object]) -> tuple[list[str], list[str]]:
    """(files that only the first has, files that differ or that it lacks)."""
    stray = [name for name in one if name not in other]
    return stray, [name for name in other if name not in one or one[name] != other[name]]
