"""The folder of one run: its files, the checks before a run uses it, and the repair of damaged files.

config.yaml              the resolved configuration
environment.json         versions, machine and commit at the beginning of the run
plan.json                with layout auto: the measurements, and the layout of each layer
metrics.jsonl            one line per epoch
checkpoint.safetensors   the state after the last epoch or at the interruption, with configuration and metrics
diagnosis.jsonl          with ``diagnose``: one line per event and layer
result.json              the figures of a finished or diverged run
lock                     while a run writes here: the id of its process

Every file is replaced atomically and synchronised to disk. Damaged metrics and a damaged configuration are restored
from the checkpoint. A damaged result is computed again from it.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from .. import checkpoint
from .._errors import UsageError
from .._plan import Plan
from ..checkpoint.disk import append, lock, make, sweep, unwritten, write
from .environment import environment
from .record import ELSEWHERE, KEYS, Config, Tree, differences, flat, settings
from .strict_yaml import read_yaml

OVER = ("finished", "diverged")
FIGURES = (
    "config",
    "density",
    "nonzero",
    "parameters",
    "flops_ratio",
    "simulated",
    "peak_bytes",
    "seconds",
    "kernels",
)  # of every result


class Folder:
    """The folder of a run; ``status`` is new, stopped, finished or diverged."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.planned = self.path / "plan.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.diagnosis = self.path / "diagnosis.jsonl"
        self.result = self.path / "result.json"
        self.lock = self.path / "lock"

    @property
    def status(self) -> str:
        """new, stopped, finished or diverged.

        A run whose result cannot be read is stopped: resuming its checkpoint gives the same result.
        """
        result = read_json(self.result)
        if result is not None and result.get("status") in OVER and _complete(result):
            return result["status"]
        return "stopped" if self.config.is_file() else "new"

    @property
    def over(self) -> bool:
        """Whether the run has finished or diverged."""
        return self.status in OVER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context in which no other process writes into the folder.

        It makes the folder, and removes it if it stays empty. Raises UsageError.
        """
        try:
            made = make(self.path)
        except OSError as error:
            raise unwritten(self.path, error) from error
        try:
            with lock(self.lock, str(self.path)):
                for path in (self.config, self.environment, self.planned, self.metrics, self.checkpoint, self.result):
                    sweep(path)
                yield
        finally:
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()

    def tidy(self) -> None:
        """Removes the lock of a process that has ended. A lock that is held stays."""
        if self.lock.exists():
            with suppress(UsageError), self.locked():
                pass

    def settings(self) -> Tree:
        """The settings of the run: from the result, else from config.yaml, else from the checkpoint.

        Raises: UsageError if none of them can be read.
        """
        if self.over:
            return self.figures()["config"]
        try:
            tree = read_yaml(self.config)
            lacking = [key for key in KEYS if key not in tree]
            if not lacking:
                return tree
            damage = f"it lacks {', '.join(lacking)}"
        except UsageError as error:
            damage = error.what
        with suppress(UsageError):
            if said := self._said():
                return said["settings"]
        remedy = "delete it, and give the same settings again without --resume: the run in the folder continues"
        raise UsageError(str(self.config), f"damaged, and no checkpoint holds a copy: {damage}", remedy=remedy)

    @property
    def damage(self) -> str:
        """Why the run in this folder cannot be read, as a sentence; "" if it can."""
        try:
            if self.status != "new":
                self.settings()
        except UsageError as error:
            return str(error)
        return ""

    def check(self, config: Config, resume: bool, change: Collection[str] = ()) -> None:
        """Raises UsageError if the folder holds another run, or this run without ``resume``.

        The settings in ``change`` may differ.
        """
        begun = self.status != "new"
        if begun and not resume:
            remedy = "another --out" if self.over else "--resume to continue it, or another --out"
            raise UsageError(str(self.path), f"this folder already holds a run, which has {self.status}", remedy=remedy)
        now = settings(config)
        if self.over and change and differences(self.settings(), now):
            what = f"the run in this folder has {self.status} with other settings"
            raise UsageError(str(self.path), what, reasons=differences(self.settings(), now), remedy="another --out")
        said = None if self.over else self._said()
        befores = [
            *([self.settings()] if begun else []),
            *([said["settings"]] if said else []),
        ]  # both: an edited config.yaml differs from the checkpoint, and is another configuration
        different = dict.fromkeys(sentence for before in befores for sentence in differences(before, now, change))
        if different:
            remedy = "use the same settings (omit them to take those of the folder), --change KEYS to change some, "
            remedy += "or another --out"
            raise UsageError(
                str(self.path), "the run in this folder has another configuration", reasons=different, remedy=remedy
            )

    def plan(self) -> Plan | None:
        """The plan of the run in this folder, None without a plan. Raises UsageError if it is damaged."""
        if not self.planned.is_file():
            return None
        try:
            return Plan.from_json(self.planned.read_text(encoding="utf-8"))
        except (UsageError, ValueError, RecursionError) as error:
            if not self.checkpoint.is_file():
                return None  # no checkpoint depends on the plan: it can be measured again
            what = "damaged: the layouts of the model in the checkpoint cannot be read"
            raise UsageError(str(self.planned), what, reasons=[str(error)[:200]], remedy="another --out") from error

    def begin(self, config: Config, plan: Plan | None = None) -> None:
        """Writes the files that must exist before the first step, if they are missing or damaged."""
        if read_json(self.environment) is None:
            write(self.environment, json.dumps(environment(), indent=2) + "\n")
        if plan is not None and (not self.planned.is_file() or not self.checkpoint.is_file()):
            write(self.planned, plan.to_json())
        with suppress(UsageError):
            if not differences(read_yaml(self.config), settings(config)):
                return
        write(self.config, yaml.safe_dump(settings(config), sort_keys=False))

    def append(self, row: dict[str, Any]) -> None:
        """Adds one line to the metrics."""
        append(self.metrics, json.dumps(row))

    def rows(self) -> list[dict[str, Any]]:
        """The metrics, one dict per epoch, without unreadable lines."""
        return [row for row in read_lines(self.metrics) if "epoch" in row]

    def restore(self, rows: list[dict[str, Any]], step: int) -> None:
        """Replaces the metrics by ``rows`` of the checkpoint, and removes diagnoses of later steps."""
        write(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        if self.diagnosis.is_file():
            write(
                self.diagnosis,
                "".join(json.dumps(row) + "\n" for row in read_lines(self.diagnosis) if row.get("step", 0) <= step),
            )

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the figures of a finished or diverged run."""
        write(self.result, json.dumps(result, indent=2) + "\n")

    def figures(self) -> dict[str, Any]:
        """Reads the figures that :meth:`finish` wrote."""
        return json.loads(self.result.read_text(encoding="utf-8"))

    def _said(self) -> dict[str, Any] | None:
        """The configuration in the checkpoint; None without a checkpoint. Raises UsageError."""
        if not self.checkpoint.exists():
            return None
        remedy = f"delete {self.checkpoint.name}, and --resume starts the run again; or use another --out"
        try:
            extra = checkpoint.inspect(self.checkpoint)["extra"]
        except UsageError as error:
            raise UsageError(error.who, error.what, reasons=error.reasons, remedy=remedy) from error
        said = extra.get("config")
        if not isinstance(said, dict) or not isinstance(said.get("settings"), dict) or said != named(said["settings"]):
            raise UsageError(str(self.checkpoint), "gossamer run did not write this checkpoint", remedy=remedy)
        return said


def named(tree: Tree) -> dict[str, Any]:
    """The configuration for a checkpoint: the settings, and a digest of those that can change the results."""
    deciding = {key: value for key, value in flat(tree).items() if key not in ELSEWHERE}
    return {"sha256": hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(), "settings": tree}


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing or damaged."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError, OSError):
        return None
    return tree if isinstance(tree, dict) else None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines. Unreadable lines, which a killed process leaves, are skipped."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _complete(result: dict[str, Any]) -> bool:
    """Whether a result has all its figures. A job with null models has no figures in its own result."""
    config = result.get("config")
    if not isinstance(config, dict) or any(key not in config for key in KEYS):
        return False
    return bool(config["null_models"]) or all(
        key in result for key in (*FIGURES, "metrics" if result["status"] == "finished" else "step")
    )
