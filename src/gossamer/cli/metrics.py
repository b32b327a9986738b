"""The measurements of a run: one line of metrics per epoch, and the figures of the whole run."""

from dataclasses import dataclass, field
from typing import Any

from ..layers import sparse_layers
from ..ledger import PARTS, Ledger
from ..training.events import Event
from .building import Trial
from .folder import Folder
from .record import Config, settings

ACCOUNTS = (
    "lr",
    "density",
    "flops",
    "dense_flops",
    "seconds",
)  # in every line of metrics, in addition to the metrics of the task


@dataclass
class Position:
    """The position of a run between two optimizer steps, and its counts so far."""

    epoch: int = 0  # completed epochs
    step: int = 0  # optimizer steps in the current epoch
    loss: float = 0.0  # sum of the losses of these steps
    seconds: float = 0.0  # time of training, without evaluation
    rows: list[dict[str, Any]] = field(default_factory=list)  # metrics, one line per epoch
    grown: int = 0  # blocks that grew in layers with sensed blocks, at all events
    sensed: int = 0  # blocks that were sensed for these events
    least_selective: float = 0.0  # the largest value of grown / sensed of any layer and event
    events: int = 0  # changes of the support

    def note(self, event: Event | None) -> None:
        """Counts the grown and the sensed blocks of an event."""
        if event is None:
            return
        self.events += 1
        for name, sensed in event.sensed.items():
            if sensed:
                grown = event.grown[name]
                self.grown, self.sensed = self.grown + grown, self.sensed + sensed
                self.least_selective = max(self.least_selective, grown / sensed)


def density(ledger: Ledger) -> float:
    """The current fraction of weights that may be non-zero, over all linear and convolutional layers."""
    return ledger.kept / ledger.weights


def measured(trial: Trial, at: Position, loss: float | None) -> dict[str, Any]:
    """One line of metrics: the current metrics of the task, and the accounts of the run so far."""
    metrics = trial.task.metrics(trial.model, trial.data)
    step, ledger = at.epoch * trial.each, trial.ledger
    lr, flops = trial.optimizer.param_groups[-1]["lr"], ledger.flops.total
    accounts = (lr, density(ledger), flops, ledger.dense_flops, round(at.seconds, 3))
    named = dict(zip(ACCOUNTS, accounts, strict=True))
    return {"epoch": at.epoch, "step": step, "train_loss": loss, **metrics, **named}


def figures(trial: Trial, at: Position) -> dict[str, Any]:
    """The figures of a run: costs, sizes and settings."""
    model, ledger, layers = trial.model, trial.ledger, sparse_layers(trial.model)
    stored = sum(p.numel() for p in model.parameters())
    return {
        "epochs": at.epoch,
        "density": density(ledger),
        "nonzero": stored - sum(m.values.numel() - m.support.weights for m in layers.values()),
        "parameters": stored - sum(m.values.numel() - m.dense_shape.numel() for m in layers.values()),
        "flops": {**dict(zip(PARTS, ledger.flops, strict=True)), "total": ledger.flops.total},
        "dense_flops": ledger.dense_flops,
        "flops_ratio": ledger.ratio if ledger.dense_flops else None,
        "simulated": ledger.simulated,
        "events": events(trial, at),
        "grown": at.grown,
        "sensed": at.sensed,
        "least_selective": at.least_selective if at.sensed else None,
        "bytes": ledger.bytes(trial.rewirer),
        "peak_bytes": ledger.peak_bytes,
        "dense_bytes": ledger.dense_bytes(),
        "seconds": round(at.seconds, 3),
        "layouts": {name: layer.layout.name for name, layer in layers.items()},
        "planned": {row.name: row.wins for row in trial.plan.rows} if trial.plan else {},
        "kernels": sorted({name for layer in layers.values() for name in layer.kernels.values()}) or ["torch"],
        "config": settings(trial.config),
    }


def events(trial: Trial, at: Position) -> int | None:
    """The number of changes of the support; None if the optimizer changes it at every step."""
    return None if trial.rewirer is None and trial.config.zeros_by_penalty else at.events


def write_events(folder: Folder, config: Config, row: dict[str, Any]) -> None:
    """Writes the TensorBoard events of one epoch if the configuration has ``tensorboard``."""
    if not config.tensorboard:
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path), purge_step=row["epoch"]) as writer:
        for key, value in row.items():
            if value is not None and key not in ("epoch", "step"):
                writer.add_scalar(key, value, row["epoch"])
