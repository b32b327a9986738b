"""One training run, from a configuration to a folder of results. Reads top to bottom.

Everything random follows from the seed, and the state between two optimizer steps is complete: a run stopped at any step and resumed ends
with the same weights and metrics, bit for bit, as one that was never stopped.
"""

import math
import re
import signal
import threading
import time
from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .. import _budgets as budgets
from .. import checkpoint
from .._backend.native import keep_freed_memory
from .._errors import UsageError
from .._plan import Plan, plan
from ..convert.sparsify import AUTO, reinitialise_, sparsify
from ..layers import sparse_layers
from ..ledger import PARTS, Ledger
from ..recover.diagnose import Watch
from ..rules import SparseOptimizer
from ..selection import select
from ..training.loop import Step, fit
from ..training.multilevel import Multilevel
from ..training.events import Diverged, Event
from ..training.rewirer import Rewirer
from ..training.target import TargetDensity
from . import extras
from .config import Config, settings
from .folder import Folder, named
from .methods import Coarse, Proximal
from .models import Model
from .progress import Silent
from .tasks import Data, stream

LONGEST = 10**8  # optimizer steps: schedules list their events
ACCOUNTS = (
    "lr",
    "density",
    "flops",
    "dense_flops",
    "seconds",
)  # in every line of metrics, beside what the task measures


@dataclass
class Position:
    """Where a run stands between two optimizer steps."""

    epoch: int = 0  # epochs completed
    step: int = 0  # optimizer steps in the epoch under way
    loss: float = 0.0  # sum of their losses
    seconds: float = 0.0  # of training so far, evaluation excluded
    rows: list[dict[str, Any]] = field(default_factory=list)  # metrics, one line per epoch so far
    grown: int = 0  # blocks that came where something was sensed, at all events so far
    sensed: int = 0  # blocks that were sensed for them
    least_selective: float = 0.0  # the largest share of the sensed that any layer grew at any event

    def note(self, event: Event | None) -> None:
        """Counts what an event grew of what was sensed."""
        if event is None:
            return
        for name, sensed in event.sensed.items():
            if sensed:
                grown = event.grown[name]
                self.grown, self.sensed = self.grown + grown, self.sensed + sensed
                self.least_selective = max(self.least_selective, grown / sensed)


class Trial(NamedTuple):
    """All parts of a run, built and checked against each other."""

    config: Config
    data: Data
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    rewirer: Rewirer | Multilevel | None  # None for a dense model, and where the optimizer alone decides
    target: TargetDensity | None  # of the density, if it is steered to
    ledger: Ledger
    each: int  # optimizer steps per epoch
    plan: Plan | None  # of the layouts, where they were measured

    @property
    def states(self) -> dict[str, Any]:
        """The parts besides the model that a checkpoint holds."""
        return {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "rewirer": self.rewirer,
            "ledger": self.ledger,
            "target": self.target,
        }

    def save(self, folder: Folder, at: Position) -> None:
        """Writes the checkpoint, with the configuration and its digest."""
        extra = {**asdict(at), "config": named(settings(self.config))}
        checkpoint.save(folder.checkpoint, self.model, **self.states, extra=extra)

    def load(self, folder: Folder) -> Position:
        """Reads the checkpoint; returns where it was saved. One of other settings, asked for by name, is written again with these."""
        extra = checkpoint.load(folder.checkpoint, self.model, **self.states)
        said, at = extra.pop("config"), Position(**extra)
        if said["sha256"] != named(settings(self.config))["sha256"]:
            self.save(folder, at)
        return at


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the run was saved between two steps."""

    def __init__(self, folder: Folder, at: Position):
        self.folder, self.at = folder, at
        super().__init__(f"stopped at step {at.step} of epoch {at.epoch + 1} of {folder.path.name}")


def build(config: Config, planned: Plan | None = None) -> Trial:
    """Data, model, optimizer and all the rest, in the state before the first step. Raises UsageError where they do not go together.

    ``planned`` is the plan of a run that is resumed under the layout ``auto``; without one the layers are measured.
    """
    config = config.resolved()
    if config.tensorboard:
        extras.require("board", "tensorboard: true")
    torch.set_num_threads(config.threads or 1)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    data = config.task.load()
    model = config.model.build(data.shape, data.classes, stream(config.seed, "init"))
    planned = (
        (planned or measured_plan(*planning(config, data))) if config.layout == AUTO and config.method.sparse else None
    )
    model, final = sparsified(model, config, planned)
    each = math.ceil(math.ceil(len(data.train_y) / config.batch) / config.accumulate)
    if each * config.epochs > LONGEST:
        raise UsageError(
            "epochs",
            f"a run has at most {LONGEST:,} optimizer steps",
            got=each * config.epochs,
            remedy="fewer --epochs",
        )
    optimizer = config.optimizer.build(model, config.density_exponent, final, allow_compact=config.layout != "shadow")
    scheduler = LambdaLR(optimizer, step_size(config, each * config.epochs))
    rewirer = rewiring(model, optimizer, config, each * config.epochs, final)
    target = steering(optimizer, rewirer, config, each * config.epochs)
    ledger = Ledger(model, data.inputs(data.train_x[:1]), optimizer=optimizer)
    return Trial(config, data, model, optimizer, scheduler, rewirer, target, ledger, each, planned)


def run(
    config: Config, path: Path | str, *, resume: bool = False, change: Collection[str] = (), watch: Silent | None = None
) -> dict[str, Any]:
    """Trains what ``config`` describes and leaves everything in the folder ``path``.

    Args:
        resume: continue the run in the folder, if there is one; it must have the same configuration.
        change: settings that may be others than those the run had so far, by their keys.
        watch: told of every step and epoch.

    Returns: the figures in ``result.json``; ``status`` is ``finished``, or ``diverged`` if the loss became NaN or infinite: the checkpoint
    of the last epoch is kept then.

    Raises: UsageError, before any work, if another process writes there, or where a file cannot be written; Stopped on Ctrl-C or SIGTERM, after
    saving.
    """
    config, folder, watch = config.resolved(), Folder(path), watch or Silent()
    if folder.over:  # nothing will be written
        folder.check(config, resume, change)
        folder.tidy()
        return folder.figures()
    with folder.locked():
        folder.check(config, resume, change)
        trial = build(config, folder.plan())
        folder.begin(config, trial.plan)
        with Interrupt() as interrupt:
            result = train(trial, folder, watch, interrupt)
        folder.finish(result)
    watch.end(folder.path.name, result)
    return result


def train(trial: Trial, folder: Folder, watch: Silent, interrupt: "Interrupt") -> dict[str, Any]:
    """From the folder's checkpoint, if there is one, to the end; returns the result. Raises Stopped."""
    config, each = trial.config, trial.each
    at, clock = Position(), time.perf_counter()

    def record(loss: float | None) -> None:
        """One line of metrics, and the checkpoint that belongs to it."""
        row = measured(trial, at, loss)
        at.rows.append(row)
        folder.append(row)
        write_events(folder, config, row)
        trial.save(folder, at)
        watch.epoch(row)

    def on_step(step: Step) -> None:
        nonlocal clock
        now = time.perf_counter()
        at.step, at.loss, at.seconds, clock = at.step + 1, at.loss + step.loss, at.seconds + now - clock, now
        at.note(step.event)
        watch.step(step.loss)
        if diagnosis is not None:
            diagnosis()
        if interrupt.wanted:
            trial.save(folder, at)
            raise Stopped(folder, at)

    diagnosis = Watch(trial.rewirer, folder.diagnosis) if config.diagnose and trial.rewirer is not None else None
    begun = folder.checkpoint.is_file()
    if begun:
        at = trial.load(folder)
    folder.restore(at.rows, at.epoch * each + at.step)
    watch.begin(folder.path.name, config.epochs, each, at.epoch * each + at.step)
    if too_short := config.method.too_short(each * config.epochs):
        watch.say(folder.path.name, too_short)
    if not begun:
        record(None)
    while at.epoch < config.epochs:
        if interrupt.wanted:
            raise Stopped(folder, at)
        clock = time.perf_counter()
        try:
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
                on_step=on_step,
            )
        except Diverged as error:
            where = {"step": at.epoch * each + at.step + 1, "loss": str(error.loss), "checkpoint_epoch": at.epoch}
            return {"status": "diverged", **where, **figures(trial, at)}
        loss = at.loss / at.step
        at = replace(at, epoch=at.epoch + 1, step=0, loss=0.0)
        record(loss)
    last = {key: value for key, value in at.rows[-1].items() if key not in ACCOUNTS}
    return {"status": "finished", "metrics": last, **figures(trial, at)}


# -------------------------------------------------------------------- the parts


def planning(config: Config, data: Data) -> tuple[Any, ...]:
    """What a plan of this run depends on: the arguments of :func:`measured_plan`."""
    picked = config.density, config.budget, config.block, config.exclude
    return config.model, (config.batch, *data.shape), data.classes, *picked, config.autocast, torch.get_num_threads()


@lru_cache(maxsize=8)
def measured_plan(
    model: Model,
    batch: tuple[int, ...],
    classes: int,
    density: float,
    budget: str,
    block: tuple[int, int],
    exclude: tuple[str, ...],
    autocast: bool,
    threads: int,
) -> Plan:
    """The plan of a model at its final density; measured once in a process, so that a method and its null models follow the same."""
    net = model.build(batch[1:], classes, stream(0, "init"))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return plan(
            net, batch, density=density, budget=budget, block=block, blocks=(), exclude=exclude, threads=threads
        )


def sparsified(model: nn.Module, config: Config, planned: Plan | None = None) -> tuple[nn.Module, dict[str, float]]:
    """The model, sparse if the method is, at its first size; and, if the support shrinks later, each layer's density at the end.

    A layer that the budget makes dense stays so; the others begin ``method.start`` times as large as they end, or full.
    """
    if not config.method.sparse:
        return model, {}
    options: dict[str, Any] = {
        "layout": planned or config.layout,
        "block": config.block,
        "min_fan_in": config.min_fan_in,
    }
    options["fuse"] = True  # the command line's own models: nobody hooks, slices or changes them
    options["rng"] = stream(config.seed, "support")
    if config.method.shrinks:
        given = select("sparsify", model, 1.0, "pooled", config.block, None, config.exclude)
        names = list(given.blocks)
        shapes = [tuple(given.owners[name].weight.shape) for name in names]  # type: ignore[union-attr, arg-type]
        begin = budgets.resolve(config.budget, names, shapes, config.method.initial or config.density, "sparsify")
        first = dict(zip(names, begin, strict=True))  # no layer stays dense: all shrink
        model = sparsify(model, 1.0, budget=first, include=[f"re:^{re.escape(name)}$" for name in names], **options)
        gain, bias = config.method.gain, config.method.positive_bias
        return reinitialise_(model, gain=gain, positive_bias=bias, rng=stream(config.seed, "init")), {}
    if config.method.start == 1.0:
        return sparsify(model, config.density, budget=config.budget, exclude=config.exclude, **options), {}
    last = sparsify(
        deepcopy(model), config.density, budget=config.budget, exclude=config.exclude, layout="csr", block=config.block
    )
    final = {row.name: row.density for row in last.sparsity_report.rows if row.sparse}  # type: ignore[union-attr]
    first = {name: min(1.0, config.method.start * density) for name, density in final.items()}
    return sparsify(model, 1.0, budget=first, include=[f"re:^{name}$" for name in final], **options), final


def rewiring(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, steps: int, final: dict[str, float]
) -> Rewirer | Multilevel | None:
    """What changes the support beside the optimizer; None for a dense model, and where the optimizer alone does."""
    if isinstance(config.method, Coarse) and isinstance(optimizer, SparseOptimizer):
        return Multilevel(model, optimizer, config.method.coarse, fine_lr_scale=config.method.fine_lr_scale)
    if not config.method.sparse or config.method.shrinks:
        return None
    topology = config.method.topology(steps, config.density if final else None, config.min_fan_in)
    if final:
        topology = replace(topology, budget=final)
    return Rewirer(model, optimizer, topology, rng=stream(config.seed, "topology"))


def steering(optimizer: torch.optim.Optimizer, rewirer: Any, config: Config, steps: int) -> TargetDensity | None:
    """What steers to the asked density, if it is to be."""
    method = config.method
    if not isinstance(method, (Proximal, Coarse)) or not method.target or not isinstance(optimizer, SparseOptimizer):
        return None
    often = max(1, steps // 100)
    if not isinstance(method, Coarse):
        return TargetDensity(optimizer, config.density, steps, reach=method.reach, every=min(10, often))
    every = (method.coarse + 1) * max(1, min(50, often) // (method.coarse + 1))  # a measurement costs half a fine step
    return TargetDensity(optimizer, config.density, steps, reach=method.reach, every=every, multilevel=rewirer)


def step_size(config: Config, steps: int) -> Callable[[int], float]:
    """The factor on the step size after t optimizer steps: linear warm-up, times the schedule's."""
    shapes: dict[str, Callable[[float], float]] = {  # of the share of the run that is over
        "cosine": lambda p: 0.5 * (1 + math.cos(math.pi * p)),
        "halving": lambda p: 0.5 ** int(5 * p + 1e-9),
        "constant": lambda p: 1.0,
    }

    def factor(t: int) -> float:
        warm = min(1.0, (t + 1) / config.warm_up) if config.warm_up else 1.0
        return warm * shapes[config.schedule](min(t, steps) / steps)

    return factor


def density(ledger: Ledger) -> float:
    """Share of the weights of all linear and convolutional layers that may be non-zero now."""
    return ledger.kept / ledger.weights


def measured(trial: Trial, at: Position, loss: float | None) -> dict[str, Any]:
    """One line of metrics: the task's, measured now, and the accounts so far."""
    metrics = trial.config.task.metrics(trial.model, trial.data)
    step, ledger = at.epoch * trial.each, trial.ledger
    accounts = (
        trial.optimizer.param_groups[-1]["lr"],
        density(ledger),
        ledger.flops.total,
        ledger.dense_flops,
        round(at.seconds, 3),
    )
    return {
        "epoch": at.epoch,
        "step": step,
        "train_loss": loss,
        **metrics,
        **dict(zip(ACCOUNTS, accounts, strict=True)),
    }


def figures(trial: Trial, at: Position) -> dict[str, Any]:
    """What a run cost and what it left."""
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
        "events": events(trial),
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


def events(trial: Trial) -> int | None:
    """Changes of the support so far; None where the optimizer changes it at every step."""
    if trial.rewirer is None:
        return None if trial.config.method.shrinks else 0
    return sum(trial.rewirer.topology.when(t) is not None for t in range(1, trial.rewirer.t + 1))


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
