"""One training run, from a configuration to a folder of results. Reads top to bottom.

Everything random follows from the seed, and the state between two optimizer steps is complete: a run stopped at any step and resumed ends
with the same weights and metrics, bit for bit, as one that was never stopped.
"""

import math
import signal
import threading
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from .. import checkpoint
from ..convert import sparsify
from ..layers import sparse_layers
from ..ledger import PARTS, Ledger
from ..train import Diverged, Rewirer, Step, fit
from . import extras
from .config import Config, settings
from .folder import Folder
from .progress import Silent
from .tasks import stream


@dataclass
class Position:
    """Where a run stands between two optimizer steps."""

    epoch: int = 0  # epochs completed
    step: int = 0  # optimizer steps in the epoch under way
    loss: float = 0.0  # sum of their losses
    seconds: float = 0.0  # of training so far, evaluation excluded


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the run was saved between two steps."""

    def __init__(self, folder: Folder, epoch: int, step: int):
        self.folder, self.epoch, self.step = folder, epoch, step
        super().__init__(f"stopped at step {step} of epoch {epoch}")


def run(config: Config, path: Path | str, *, resume: bool = False, watch: Silent | None = None) -> dict[str, Any]:
    """Trains what ``config`` describes and leaves everything in the folder ``path``.

    Args:
        resume: continue the run in the folder, if there is one; it must have the same configuration.
        watch: told of every step and epoch.

    Returns: the figures in ``result.json``; ``status`` is ``finished``, or ``diverged`` if the loss became NaN or infinite: the checkpoint
    of the last epoch is kept then.

    Raises: Unfit, before any work; Stopped on Ctrl-C or SIGTERM, after saving.
    """
    config, folder, watch = config.resolved(), Folder(path), watch or Silent()
    config.task.check()
    if config.tensorboard:
        extras.require("board", "tensorboard: true")
    folder.begin(config, resume)
    if folder.over:
        return folder.figures()

    torch.set_num_threads(config.threads or 1)
    torch.manual_seed(config.seed)
    data = config.task.load()
    each = math.ceil(math.ceil(len(data.train_y) / config.batch) / config.accumulate)  # optimizer steps per epoch
    steps = each * config.epochs
    model = config.model.build(data.shape, data.classes, stream(config.seed, "init"))
    model, final = sparsified(model, config)
    optimizer = config.optimizer.build(model, config.density_exponent, final)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, step_size(config, steps))
    rewirer = rewiring(model, optimizer, config, steps, final)
    ledger = Ledger(model, data.inputs(data.train_x[:1]), optimizer=optimizer)
    parts: dict[str, Any] = {"optimizer": optimizer, "rewirer": rewirer, "scheduler": scheduler, "ledger": ledger}
    at = Position()

    def record(loss: float | None) -> None:
        """One line of metrics, and the checkpoint that belongs to it."""
        measured = config.task.metrics(model, data)
        row = {"epoch": at.epoch, "step": at.epoch * each, "train_loss": loss, **measured, "density": density(ledger)}
        row |= {"lr": optimizer.param_groups[-1]["lr"], "flops": ledger.flops.total, "dense_flops": ledger.dense_flops}
        folder.append({**row, "seconds": round(at.seconds, 3)})
        write_events(folder, config, row)
        checkpoint.save(folder.checkpoint, model, **parts, extra=asdict(at))
        watch.epoch(row)

    with Interrupt() as interrupt:
        if folder.checkpoint.is_file():
            at = Position(**checkpoint.load(folder.checkpoint, model, **parts))
            folder.cut(at.epoch)
            watch.begin(folder.path.name, config.epochs, each, at.epoch * each + at.step)
        else:
            folder.cut(-1)
            watch.begin(folder.path.name, config.epochs, each, 0)
            record(None)
        clock = time.perf_counter()

        def on_step(step: Step) -> None:
            nonlocal clock
            now = time.perf_counter()
            at.step, at.loss, at.seconds, clock = at.step + 1, at.loss + step.loss, at.seconds + now - clock, now
            watch.step(step.loss)
            if interrupt.wanted:
                checkpoint.save(folder.checkpoint, model, **parts, extra=asdict(at))
                raise Stopped(folder, at.epoch + 1, at.step)

        while at.epoch < config.epochs:
            if interrupt.wanted:
                raise Stopped(folder, at.epoch + 1, 0)
            batches = data.batches(config.batch, config.seed, at.epoch, at.step * config.accumulate)
            clock = time.perf_counter()
            try:
                fit(
                    model,
                    batches,
                    optimizer,
                    rewirer=rewirer,
                    scheduler=scheduler,
                    clip=config.clip,
                    accumulate=config.accumulate,
                    autocast=torch.bfloat16 if config.autocast else None,
                    ledger=ledger,
                    on_step=on_step,
                )
            except Diverged as error:
                result = {
                    "status": "diverged",
                    "step": at.epoch * each + at.step + 1,
                    "loss": str(error.loss),
                    "checkpoint_epoch": at.epoch,
                }
                result |= figures(config, model, ledger, rewirer, at)
                folder.finish(result)
                watch.end(folder.path.name, result)
                return result
            loss = at.loss / at.step
            at = Position(at.epoch + 1, seconds=at.seconds)
            record(loss)

    last = {key: value for key, value in folder.rows()[-1].items() if key not in ("lr", "seconds", "density", "flops", "dense_flops")}
    result = {"status": "finished", "metrics": last, **figures(config, model, ledger, rewirer, at)}
    folder.finish(result)
    watch.end(folder.path.name, result)
    return result


# -------------------------------------------------------------------- the parts


def sparsified(model: nn.Module, config: Config) -> tuple[nn.Module, dict[str, float]]:
    """The model, sparse if the method is, at its first size; and, if the support shrinks later, each layer's density at the end.

    A layer that the budget makes dense stays so; the others begin ``method.start`` times as large as they end, or full.
    """
    if not config.method.sparse:
        return model, {}
    options: dict[str, Any] = {"layout": config.layout, "unit": config.unit, "min_fan_in": config.min_fan_in}
    options["rng"] = stream(config.seed, "support")
    if config.method.start == 1.0:
        return sparsify(model, config.density, budget=config.budget, exclude=config.exclude, **options), {}
    plan = sparsify(deepcopy(model), config.density, budget=config.budget, exclude=config.exclude, layout="csr", unit=config.unit)
    final = {row.name: row.density for row in plan.sparsity_report.rows if row.sparse}  # type: ignore[union-attr]
    first = {name: min(1.0, config.method.start * density) for name, density in final.items()}
    return sparsify(model, 1.0, budget=first, include=[f"re:^{name}$" for name in final], **options), final


def rewiring(model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, steps: int, final: dict[str, float]) -> Rewirer | None:
    """The Rewirer of a sparse method; None for a dense model."""
    if not config.method.sparse:
        return None
    topology = config.method.topology(steps, config.density if final else None, config.min_fan_in)
    if final:
        topology = replace(topology, budget=final)
    return Rewirer(model, optimizer, topology, rng=stream(config.seed, "topology"))


def step_size(config: Config, steps: int):
    """The factor on the step size after t optimizer steps: linear warm-up, then (or times) half a cosine to 0 at the end."""

    def factor(t: int) -> float:
        warm = min(1.0, (t + 1) / config.warm_up) if config.warm_up else 1.0
        return warm * (0.5 * (1 + math.cos(math.pi * min(t, steps) / steps)) if config.schedule == "cosine" else 1.0)

    return factor


def density(ledger: Ledger) -> float:
    """Share of the weights of all linear and convolutional layers that may be non-zero now."""
    return sum(entry.n for entry in ledger.entries) / sum(entry.weights for entry in ledger.entries)


def figures(config: Config, model: nn.Module, ledger: Ledger, rewirer: Rewirer | None, at: Position) -> dict[str, Any]:
    """What a run cost and what it left."""
    layers = sparse_layers(model)
    kept = sum(p.numel() for p in model.parameters()) - sum(m.values.numel() - m.support.weights for m in layers.values())
    whole = sum(p.numel() for p in model.parameters()) - sum(m.values.numel() - m.dense_shape.numel() for m in layers.values())
    return {
        "epochs": at.epoch,
        "density": density(ledger),
        "nonzero": kept,
        "parameters": whole,
        "flops": {**dict(zip(PARTS, ledger.flops, strict=True)), "total": ledger.flops.total},
        "dense_flops": ledger.dense_flops,
        "flops_ratio": ledger.ratio if ledger.dense_flops else None,
        "simulated": ledger.simulated,
        "bytes": ledger.bytes(rewirer),
        "peak_bytes": ledger.peak_bytes,
        "dense_bytes": ledger.dense_bytes(),
        "seconds": round(at.seconds, 3),
        "kernels": sorted({name for layer in layers.values() for name in layer.kernels.values()}) or ["torch"],
        "config": settings(config),
    }


def write_events(folder: Folder, config: Config, row: dict[str, Any]) -> None:
    """TensorBoard events of one epoch, if asked for."""
    if not config.tensorboard:
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path), purge_step=row["epoch"]) as writer:
        for key, value in row.items():
            if value is not None and key not in ("epoch", "step"):
                writer.add_scalar(key, value, row["epoch"])


class Interrupt:
    """Inside this context Ctrl-C and SIGTERM only set ``wanted``, to be looked at between two steps; a second Ctrl-C stops at once."""

    def __init__(self):
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
