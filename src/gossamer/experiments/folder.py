"""The folder of one run: what is in it, and what may be done with it.

config.yaml              the resolved configuration
environment.json         where it began: versions, machine, commit
plan.json                with layout auto: what was measured, and the layout of each layer
metrics.jsonl            one line per epoch
checkpoint.safetensors   the last good state: after every epoch, and where it was interrupted
diagnosis.jsonl          with ``diagnose``: one line per event and layer
result.json              the figures, once the run has finished or diverged
"""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from ..errors import Unfit
from ..plan import Plan
from .config import Config, Tree, differences, settings
from .environment import environment


class Folder:
    """A run's folder; ``status`` is new, stopped, finished or diverged."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.planned = self.path / "plan.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.result = self.path / "result.json"

    @property
    def status(self) -> str:
        """How far the run in this folder has come."""
        if self.result.is_file():
            return json.loads(self.result.read_text())["status"]
        return "stopped" if self.config.is_file() else "new"

    @property
    def over(self) -> bool:
        """True if nothing is left to do."""
        return self.status in ("finished", "diverged")

    def settings(self) -> Tree:
        """The configuration in this folder."""
        return yaml.safe_load(self.config.read_text())

    def check(self, config: Config, resume: bool) -> None:
        """Refuses (Unfit) a folder that holds another run, or this one if ``resume`` is not asked for."""
        if self.status == "new":
            return
        if not resume:
            remedy = "another --out" if self.over else "--resume to continue it, or another --out"
            raise Unfit(str(self.path), f"this folder already holds a run, which has {self.status}", remedy=remedy)
        different = differences(self.settings(), settings(config))
        if different:
            remedy = "the same settings (none at all takes them from the folder), or another --out"
            raise Unfit(str(self.path), "the run in this folder has another configuration", reasons=different, remedy=remedy)

    def plan(self) -> Plan | None:
        """The plan that the run in this folder follows, if it follows one."""
        return Plan.from_json(self.planned.read_text()) if self.planned.is_file() else None

    def begin(self, config: Config, plan: Plan | None = None) -> None:
        """Makes the folder, unless it is there."""
        if self.status == "new":
            self.path.mkdir(parents=True, exist_ok=True)
            write(self.environment, json.dumps(environment(), indent=2) + "\n")
            if plan is not None:
                write(self.planned, plan.to_json())
            write(self.config, yaml.safe_dump(settings(config), sort_keys=False))

    def append(self, row: dict[str, Any]) -> None:
        """Adds one line to the metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The metrics, one dict per epoch."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()] if self.metrics.is_file() else []

    def cut(self, epochs: int) -> None:
        """Forgets the metrics after so many epochs: they were written after the checkpoint that is resumed from."""
        rows = [row for row in self.rows() if row["epoch"] <= epochs]
        write(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the figures; the run is over."""
        write(self.result, json.dumps(result, indent=2) + "\n")

    def figures(self) -> dict[str, Any]:
        """What :meth:`finish` wrote."""
        return json.loads(self.result.read_text())


def write(path: Path, text: str) -> None:
    """Replaces a file at once, so that an interruption leaves the old one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
