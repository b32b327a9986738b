"""The folder of one run: what is in it, what may be done with it, and what can be mended.

config.yaml              the resolved configuration
environment.json         where it began: versions, machine, commit
plan.json                with layout auto: what was measured, and the layout of each layer
metrics.jsonl            one line per epoch
checkpoint.safetensors   the last good state: after every epoch, and where it was interrupted; with the configuration and the metrics so far
diagnosis.jsonl          with ``diagnose``: one line per event and layer
result.json              the figures, once the run has finished or diverged
lock                     while a run writes here: the number of its process

Every file is replaced at once and synchronised. The checkpoint is the truth: a damaged configuration and metrics are mended from it, and a
damaged result is computed again from it.
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
    """A run's folder; ``status`` is new, stopped, finished or diverged."""

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
        """How far the run in this folder has come. A result that cannot be read is none: the run comes to the same from its checkpoint."""
        result = read_json(self.result)
        if result is not None and result.get("status") in OVER and _complete(result):
            return result["status"]
        return "stopped" if self.config.is_file() else "new"

    @property
    def over(self) -> bool:
        """True if nothing is left to do."""
        return self.status in OVER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process from writing here. Makes the folder; where nothing was written into it, it goes again. Raises UsageError."""
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
        """Removes the lock of a process that died when nothing was left to do; one that is held stays."""
        if self.lock.exists():
            with suppress(UsageError), self.locked():
                pass

    def settings(self) -> Tree:
        """The configuration of the run in this folder: the result's, that of config.yaml, or the checkpoint's where that is damaged. Raises
        UsageError if none can be read."""
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
        remedy = "delete it, and give the same settings again without --resume: what the folder holds is continued"
        raise UsageError(str(self.config), f"damaged, and no checkpoint holds a copy: {damage}", remedy=remedy)

    @property
    def damage(self) -> str:
        """What keeps the run in this folder from being read, in a sentence; "" if nothing does."""
        try:
            if self.status != "new":
                self.settings()
        except UsageError as error:
            return str(error)
        return ""

    def check(self, config: Config, resume: bool, change: Collection[str] = ()) -> None:
        """Refuses (UsageError) a folder that holds another run, or this one if ``resume`` is not asked for; settings named in ``change`` may be
        others than those the run had so far."""
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
        ]  # an edited config.yaml is another
        different = dict.fromkeys(sentence for before in befores for sentence in differences(before, now, change))
        if different:
            remedy = "the same settings (none at all takes them from the folder), --change KEYS to go on with others, or another --out"
            raise UsageError(
                str(self.path), "the run in this folder has another configuration", reasons=different, remedy=remedy
            )

    def plan(self) -> Plan | None:
        """The plan that the run in this folder follows, if it follows one. Raises UsageError."""
        if not self.planned.is_file():
            return None
        try:
            return Plan.from_json(self.planned.read_text(encoding="utf-8"))
        except (UsageError, ValueError, RecursionError) as error:
            if not self.checkpoint.is_file():
                return None  # nothing followed it yet: it is measured again
            what = "damaged: the layouts that the checkpoint was made with are not known"
            raise UsageError(str(self.planned), what, reasons=[str(error)[:200]], remedy="another --out") from error

    def begin(self, config: Config, plan: Plan | None = None) -> None:
        """Writes what stands before the first step, where it is not there, or is not what it should be."""
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
        """The metrics, one dict per epoch; a line that cannot be read is left out."""
        return [row for row in read_lines(self.metrics) if "epoch" in row]

    def restore(self, rows: list[dict[str, Any]], step: int) -> None:
        """Makes the metrics those of the checkpoint that is resumed from, and forgets diagnoses of later steps."""
        write(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        if self.diagnosis.is_file():
            write(
                self.diagnosis,
                "".join(json.dumps(row) + "\n" for row in read_lines(self.diagnosis) if row.get("step", 0) <= step),
            )

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the figures; the run is over."""
        write(self.result, json.dumps(result, indent=2) + "\n")

    def figures(self) -> dict[str, Any]:
        """What :meth:`finish` wrote."""
        return json.loads(self.result.read_text(encoding="utf-8"))

    def _said(self) -> dict[str, Any] | None:
        """What the checkpoint says of its configuration; None if there is no checkpoint. Raises UsageError."""
        if not self.checkpoint.exists():
            return None
        remedy = f"delete {self.checkpoint.name}, and --resume begins the run anew; or another --out"
        try:
            extra = checkpoint.inspect(self.checkpoint)["extra"]
        except UsageError as error:
            raise UsageError(error.who, error.what, reasons=error.reasons, remedy=remedy) from error
        said = extra.get("config")
        if not isinstance(said, dict) or not isinstance(said.get("settings"), dict) or said != named(said["settings"]):
            raise UsageError(str(self.checkpoint), "this checkpoint is not that of a run", remedy=remedy)
        return said


def named(tree: Tree) -> dict[str, Any]:
    """Settings, and the digest of those that decide a run's figures: what a checkpoint holds of its configuration."""
    deciding = {key: value for key, value in flat(tree).items() if key not in ELSEWHERE}
    return {"sha256": hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(), "settings": tree}


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file, or it is damaged."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError, OSError):
        return None
    return tree if isinstance(tree, dict) else None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines, those that cannot be read left out: torn by a kill, or never written in full."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _complete(result: dict[str, Any]) -> bool:
    """Whether a result has its figures; that of a folder that only holds others has none."""
    config = result.get("config")
    if not isinstance(config, dict) or any(key not in config for key in KEYS):
        return False
    return bool(config["null_models"]) or all(
        key in result for key in (*FIGURES, "metrics" if result["status"] == "finished" else "step")
    )
