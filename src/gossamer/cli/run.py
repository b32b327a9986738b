"""One training run, from a configuration to a folder of results.

All random numbers follow from the seed. A checkpoint holds the complete state between two optimizer steps. A run that
was stopped at any step and resumed therefore gives the same weights and metrics, bit for bit, as an uninterrupted run.
"""

import signal
import threading
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .. import checkpoint
from ..recover.diagnose import Watch
from ..training.events import Diverged
from ..training.loop import Step, fit
from .building import Trial, build, too_short
from .folder import Folder, named
from .metrics import ACCOUNTS, Position, figures, measured, write_events
from .progress import Silent
from .record import Config, settings


class Stopped(KeyboardInterrupt):
    """A run was stopped by Ctrl-C or SIGTERM. Its state was saved between two steps."""

    def __init__(self, folder: Folder, at: Position):
        self.folder, self.at = folder, at
        super().__init__(f"stopped at step {at.step} of epoch {at.epoch + 1} of {folder.path.name}")


def save(trial: Trial, folder: Folder, at: Position) -> None:
    """Writes the checkpoint, the configuration and its digest."""
    extra = {**asdict(at), "config": named(settings(trial.config))}
    checkpoint.save(folder.checkpoint, trial.model, **trial.states, extra=extra)


def load(trial: Trial, folder: Folder) -> Position:
    """Reads the checkpoint; returns its position in the run.

    If settings were changed on resuming, the checkpoint is written again with the new ones.
    """
    extra = checkpoint.load(folder.checkpoint, trial.model, **trial.states)
    said, at = extra.pop("config"), Position(**extra)
    if said["sha256"] != named(settings(trial.config))["sha256"]:
        save(trial, folder, at)
    return at


def run(
    config: Config, path: Path | str, *, resume: bool = False, change: Collection[str] = (), watch: Silent | None = None
) -> dict[str, Any]:
    """Trains the configuration and writes all results into the folder ``path``.

    Args:
        config: the settings of the run.
        path: folder of the run.
        resume: continue the run in the folder, if there is one; it must have the same configuration.
        change: keys of settings that may differ from the settings of the run so far.
        watch: shows the progress.

    Returns: the figures in ``result.json``. ``status`` is ``finished``, or ``diverged`` if the loss became NaN or
    infinite. A diverged run keeps the checkpoint of the last epoch.

    Raises: UsageError, before any work, if the settings do not fit together, if another process writes into the
    folder, or if a file cannot be written. Stopped on Ctrl-C or SIGTERM, after saving.
    """
    config, folder, watch = config.resolved(), Folder(path), watch or Silent()
    if folder.over:  # the results are complete: read them, write nothing
        folder.check(config, resume, change)
        folder.tidy()
        return folder.figures()
    with folder.locked():
        folder.check(config, resume, change)
        trial = build(config, folder.plan())
        folder.begin(config, trial.plan)
        with Interrupt() as interrupt:
            result = Training(trial, folder, watch, interrupt).to_the_end()
        folder.finish(result)
    watch.end(folder.path.name, result)
    return result


class Training:
    """The training of a trial, from the checkpoint in its folder, if there is one, to the end."""

    def __init__(self, trial: Trial, folder: Folder, watch: Silent, interrupt: "Interrupt"):
        self.trial, self.folder, self.watch, self.interrupt = trial, folder, watch, interrupt
        self.clock = time.perf_counter()
        rewirer = trial.rewirer if trial.config.diagnose else None
        self.diagnosis = Watch(rewirer, folder.diagnosis) if rewirer is not None else None
        self.begun = folder.checkpoint.is_file()
        self.at = load(trial, folder) if self.begun else Position()

    def to_the_end(self) -> dict[str, Any]:
        """Trains the remaining epochs; returns the result. Raises Stopped."""
        config, each, label = self.trial.config, self.trial.each, self.folder.path.name
        done = self.at.epoch * each + self.at.step
        self.folder.restore(self.at.rows, done)
        self.watch.begin(label, config.epochs, each, done)
        if sentence := too_short(config, each * config.epochs):
            self.watch.say(label, sentence)
        if not self.begun:
            self.record(None)
        while self.at.epoch < config.epochs:
            if self.interrupt.wanted:
                raise Stopped(self.folder, self.at)
            try:
                self.epoch()
            except Diverged as error:
                at = self.at
                where = {"step": at.epoch * each + at.step + 1, "loss": str(error.loss), "checkpoint_epoch": at.epoch}
                return {"status": "diverged", **where, **figures(self.trial, at)}
            loss = self.at.loss / self.at.step
            self.at = replace(self.at, epoch=self.at.epoch + 1, step=0, loss=0.0)
            self.record(loss)
        last = {key: value for key, value in self.at.rows[-1].items() if key not in ACCOUNTS}
        return {"status": "finished", "metrics": last, **figures(self.trial, self.at)}

    def epoch(self) -> None:
        """Trains the rest of the current epoch."""
        trial, config, at = self.trial, self.trial.config, self.at
        self.clock = time.perf_counter()
        fit(
            trial.model,
            trial.data.batches(config.batch, config.seed, at.epoch, at.step * config.accumulate),
            trial.optimizer,
            rewirer=trial.rewirer,
            scheduler=trial.scheduler,
            target=trial.target,
            clip=config.clip,
            accumulate=config.accumulate,
            autocast=torch.bfloat16 if config.autocast else None,
            ledger=trial.ledger,
            on_step=self.on_step,
        )

    def on_step(self, step: Step) -> None:
        """Counts a step. After Ctrl-C or SIGTERM it saves and raises Stopped."""
        at, now = self.at, time.perf_counter()
        at.step, at.loss, at.seconds = at.step + 1, at.loss + step.loss, at.seconds + now - self.clock
        self.clock = now
        at.note(step.event)
        self.watch.step(step.loss)
        if self.diagnosis is not None:
            self.diagnosis()
        if self.interrupt.wanted:
            save(self.trial, self.folder, at)
            raise Stopped(self.folder, at)

    def record(self, loss: float | None) -> None:
        """Writes one line of metrics and the checkpoint of the same step."""
        row = measured(self.trial, self.at, loss)
        self.at.rows.append(row)
        self.folder.append(row)
        write_events(self.folder, self.trial.config, row)
        save(self.trial, self.folder, self.at)
        self.watch.epoch(row)


class Interrupt:
    """A context in which Ctrl-C and SIGTERM set ``wanted``, which is read between steps.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
