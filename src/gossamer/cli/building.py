"""From a configuration to the parts of a run: data, model, optimizer, rewirer, and control of the penalty."""

import math
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .. import _budgets as budgets
from .._backend.native import keep_freed_memory
from .._errors import UsageError, misfits
from .._plan import Plan, plan
from .._schedules import step_of
from ..convert.groups import parameter_groups
from ..convert.initial import reinitialise_
from ..convert.sparsify import AUTO, sparsify
from ..layers import sparse_layers
from ..ledger import Ledger
from ..penalties import L1, GroupL1
from ..rules import Rule, SparseOptimizer
from ..selection import select
from ..topology import GMP, Static, Topology
from ..training.multilevel import Multilevel
from ..training.rewirer import Rewirer
from ..training.target import TargetDensity
from . import extras
from .catalog import CATALOG
from .parts import Part, parameters
from .record import Config
from .tasks import Data, stream

LONGEST = 10**8  # optimizer steps of a run; bounded because schedules hold a list of their events


class ModelLike(Protocol):
    """A record of the settings of a network."""

    def build(self, shape: tuple[int, ...], classes: int, rng: torch.Generator) -> nn.Module:
        """The dense network with initial values."""
        ...


class Trial(NamedTuple):
    """All parts of a run."""

    config: Config
    task: Any  # a TaskLike
    data: Data
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    rewirer: Rewirer | Multilevel | None  # None for a dense model, and if only the optimizer changes the support
    target: TargetDensity | None  # steers the penalty, if the configuration has a target
    ledger: Ledger
    each: int  # optimizer steps per epoch
    plan: Plan | None  # the measured layouts, for layout auto

    @property
    def states(self) -> dict[str, Any]:
        """The parts that a checkpoint holds in addition to the model."""
        return {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "rewirer": self.rewirer,
            "ledger": self.ledger,
            "target": self.target,
        }


def build(config: Config, planned: Plan | None = None) -> Trial:
    """Makes all parts of a run, in their state before the first step.

    Args:
        config: the settings.
        planned: for layout ``auto``, the plan of the run that is resumed; None measures the layers.

    Raises: UsageError if the parts do not fit together.
    """
    config = config.resolved()
    if config.tensorboard:
        extras.require("board", "tensorboard: true")
    torch.set_num_threads(config.threads or 1)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    task = config.task.make()
    data = task.load()
    model = network(config.model, data.shape, data.classes, stream(config.seed, "init"))
    if config.layout != AUTO or not config.sparse:
        planned = None
    elif planned is None:
        planned = measured_plan(*planning(config, data))
    model, final = sparsified(model, config, planned)
    each = math.ceil(math.ceil(len(data.train_y) / config.batch) / config.accumulate)
    steps = each * config.epochs
    if steps > LONGEST:
        what = f"a run has at most {LONGEST:,} optimizer steps"
        raise UsageError("epochs", what, got=steps, remedy="use fewer --epochs")
    optimizer = optimizer_of(config, model, final)
    scheduler = LambdaLR(optimizer, step_size(config, steps))
    rewirer = rewiring(model, optimizer, config, steps, final)
    target = steering(optimizer, rewirer, config, steps)
    ledger = Ledger(model, data.inputs(data.train_x[:1]), optimizer=optimizer)
    return Trial(config, task, data, model, optimizer, scheduler, rewirer, target, ledger, each, planned)


# -------------------------------------------------------------------- the model


def network(part: Part, shape: tuple[int, ...], classes: int, rng: torch.Generator) -> nn.Module:
    """The dense network of a model. The constructor makes it, or makes a record whose ``build`` makes it.

    torch's global generator is seeded from ``rng`` meanwhile.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.initial_seed())
        made = part.make(shape=shape, classes=classes, rng=rng)
        if isinstance(made, nn.Module):
            return made
        if reasons := misfits(made, ModelLike):
            remedy = "give a class or function that makes a torch.nn.Module; docs/cli.md shows one"
            raise UsageError(f"model {part.name}", "this makes no model", reasons=reasons, remedy=remedy)
        return made.build(shape, classes, rng)


def planning(config: Config, data: Data) -> tuple[Any, ...]:
    """The arguments of :func:`measured_plan` for this run: all that its plan depends on."""
    picked = config.density, config.budget, config.block, config.exclude
    return config.model, (config.batch, *data.shape), data.classes, *picked, config.autocast, torch.get_num_threads()


@lru_cache(maxsize=8)
def measured_plan(
    model: Part,
    batch: tuple[int, ...],
    classes: int,
    density: float,
    budget: str,
    block: tuple[int, int],
    exclude: tuple[str, ...],
    autocast: bool,
    threads: int,
) -> Plan:
    """The plan of a model at its final density. It is measured once per process: the null models use the same plan."""
    net = network(model, batch[1:], classes, stream(0, "init"))
    picked = {"density": density, "budget": budget, "block": block, "exclude": exclude}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return plan(net, batch, blocks=(), threads=threads, **picked)  # type: ignore[arg-type]


def sparsified(model: nn.Module, config: Config, planned: Plan | None = None) -> tuple[nn.Module, dict[str, float]]:
    """Makes the model sparse, unless the method is dense.

    If the support shrinks later, each sparse layer begins with ``start`` times its final density, at most 1, or with
    density 1. A layer that the budget makes dense stays dense.

    Returns: the model at its first density, and the final density of each layer that shrinks.
    """
    if not config.sparse:
        return model, {}
    given = {"budget": config.budget, "exclude": config.exclude, "block": config.block}
    options: dict[str, Any] = {
        "layout": planned or config.layout,
        "min_fan_in": config.min_fan_in,
        "fuse": config.model.name in CATALOG["model"],  # safe: no hooks or changes by the user in these models
        "rng": stream(config.seed, "support"),
    }
    final: dict[str, float] = {}
    if config.zeros_by_penalty:
        first = initial_densities(model, config)
        model = sparsify(model, 1.0, budget=first, include=_exactly(first), block=config.block, **options)
    elif not config.shrinks:
        model = sparsify(model, config.density, **given, **options)
    else:
        last = sparsify(deepcopy(model), config.density, layout="csr", **given)
        final = {row.name: row.density for row in last.sparsity_report.rows if row.sparse}  # type: ignore[union-attr]
        times = math.inf if config.starts_dense else config.start
        first = {name: min(1.0, times * density) for name, density in final.items()}
        model = sparsify(model, 1.0, budget=first, include=_exactly(first), block=config.block, **options)
    if config.zeros_by_penalty or config.gain != 1.0 or config.positive_bias is not None:
        rng = stream(config.seed, "init")
        model = reinitialise_(model, gain=config.gain, positive_bias=config.positive_bias, rng=rng)
    return model, final


def initial_densities(model: nn.Module, config: Config) -> dict[str, float]:
    """The density of each layer at the first step, for methods in which a penalty makes the zeros.

    A layer with density 1 is made sparse too.
    """
    given = select("sparsify", model, 1.0, "pooled", config.block, None, config.exclude)
    names = list(given.blocks)
    shapes = [tuple(given.owners[name].weight.shape) for name in names]  # type: ignore[union-attr, arg-type]
    initial = config.initial or (config.density if config.multilevel else 1.0)
    return dict(zip(names, budgets.resolve(config.budget, names, shapes, initial, "sparsify"), strict=True))


def _exactly(densities: Mapping[str, float]) -> list[str]:
    """Patterns that match exactly these layers."""
    return [f"re:^{re.escape(name)}$" for name in densities]


# -------------------------------------------------------------------- optimizer and rewirer


def optimizer_of(config: Config, model: nn.Module, final: Mapping[str, float]) -> torch.optim.Optimizer:
    """The optimizer. The step size of a layer is lr * density ** -density_exponent.

    ``final`` holds the density of each layer that shrinks, by layer name. It replaces the initial density.
    """
    part, power = config.optimizer, config.density_exponent
    own_decay = config.has_rule and "weight_decay" in parameters(part.constructor)  # xRDA decays all parameters itself
    decay = 0.0 if own_decay else part.settings.get("weight_decay")
    groups = parameter_groups(model, lr=part.settings.get("lr"), weight_decay=decay, density_exponent=power)
    layers = sparse_layers(model)
    for group in groups:
        if power and group["name"] in final:
            ratio = (layers[group["name"]].density / final[group["name"]]) ** power
            group["lr"] = group["lr"] * ratio
            if "weight_decay" in group:
                group["weight_decay"] = group["weight_decay"] / ratio
    if not config.has_rule:
        return part.make(params=groups)
    rule = part.make(density=config.density)
    groups = [fitted(group, rule) for group in groups]
    return SparseOptimizer(groups, rule, part.settings["lr"], allow_compact=config.layout != "shadow")


def fitted(group: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """The group, with plain l1 if the groups of the penalty (rows, kernels, channels) do not exist in its tensors."""
    penalty = rule.penalty
    if not isinstance(penalty, GroupL1) or not group["penalised"]:
        return group
    fits = not any(penalty.problems(tuple(p.shape)) for p in group["params"])
    return group if fits else {**group, "rule": replace(rule, penalty=L1(penalty.lam))}  # type: ignore[type-var]


def rewiring(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, steps: int, final: dict[str, float]
) -> Rewirer | Multilevel | None:
    """The object that changes the support; None for a dense model, and if only the optimizer changes the support."""
    if config.multilevel:
        return config.method.make(model=model, optimizer=optimizer)
    if not config.sparse or config.zeros_by_penalty:
        return None
    topology = topology_of(config, steps)
    if final and isinstance(topology, Topology):  # Rewirer refuses any other object
        topology = replace(topology, budget=final)
    return Rewirer(model, optimizer, topology, rng=stream(config.seed, "topology"), newborn=config.newborn)


def topology_of(config: Config, steps: int) -> Topology:
    """The topology of a run of ``steps`` optimizer steps.

    A run that is too short for an exchange is static; if its support shrinks, it is pruned once.
    """
    settings, short = config.topology(), too_short(config, steps)
    if short is None:
        return settings.resolve(steps)
    if not config.shrinks:
        return replace(Static().resolve(), name=config.method.name)
    stop = step_of(config.method.name, "stop", config.method.settings["stop"], steps)
    pruning = GMP(stop=stop, every=stop, final_density=config.density, min_fan_in=config.min_fan_in)
    return replace(pruning.resolve(), name=config.method.name)


def too_short(config: Config, steps: int) -> str | None:
    """Why a run of ``steps`` steps has no exchange, as a sentence; None if it has one, or if the method has none."""
    every, stop = (config.method.settings.get(name) for name in ("every", "stop"))
    if every is None or stop is None or config.starts_dense:
        return None
    last = step_of(config.method.name, "stop", stop, steps)
    if every < last:
        return None
    what = f"the first exchange would come at step {every}, and exchanges end before step {last} of {steps}"
    return f"no weight will be exchanged: {what} (--method.every, --method.stop, --epochs)"


def steering(optimizer: torch.optim.Optimizer, rewirer: Any, config: Config, steps: int) -> TargetDensity | None:
    """The control of the penalty's strength, if the configuration has a target."""
    multilevel = rewirer if config.multilevel else None
    return config.target.make(optimizer=optimizer, density=config.density, steps=steps, multilevel=multilevel)


def step_size(config: Config, steps: int) -> Callable[[int], float]:
    """The factor on the step size as a function of the steps made: linear warm-up times the schedule."""
    shapes: dict[str, Callable[[float], float]] = {  # functions of the completed fraction of the run
        "cosine": lambda p: 0.5 * (1 + math.cos(math.pi * p)),
        "halving": lambda p: 0.5 ** int(5 * p + 1e-9),
        "constant": lambda p: 1.0,
    }

    def factor(t: int) -> float:
        warm = min(1.0, (t + 1) / config.warm_up) if config.warm_up else 1.0
        return warm * shapes[config.schedule](min(t, steps) / steps)

    return factor
