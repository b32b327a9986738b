# pyright: strict
"""One run as a value: its parts, and the settings of the run itself.

A setting that the library has too has the library's default.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from .._budgets import BUDGETS
from .._errors import UsageError, check_at_least, check_choice, check_density
from ..convert.groups import parameter_groups
from ..convert.initial import reinitialise_
from ..convert.sparsify import AUTO, sparsify
from ..layouts import LAYOUTS
from ..training.loop import fit
from ..training.multilevel import Multilevel
from ..training.rewirer import Rewirer
from .catalog import dense, proximal
from .parts import Part, default_part, is_rule, parameters

SCHEDULES = ("cosine", "halving", "constant")
SEEDS = 2**63  # torch's generators and NumPy's take these
WHOLE, REAL = 2**31, 1e10  # every other number stays below, in size: float32 and int32 hold its products with weights
THREADS = max(256, os.cpu_count() or 1)
ELSEWHERE = ("task.data", "null_models", "tensorboard", "diagnose")  # settings that do not decide a run's figures

Tree = dict[str, Any]  # nested settings, as YAML and JSON hold them: str, numbers, None, lists, dicts


def library(function: Callable[..., Any], name: str) -> Any:  # the default of any type that a signature may have
    """The default that a function of the library declares."""
    return inspect.signature(function).parameters[name].default


@dataclass(frozen=True)
class Config:
    """Everything that decides a run.

    Args:
        task: data set and metrics.
        model: network.
        method: how the support is chosen and changed.
        optimizer: how the values move.
        target: none, or targetdensity: the strength of the penalty is steered so that the run ends at ``density``.
        density: fraction of the weights of the sparse layers that may be non-zero, in (0, 1].
        budget: how layers share it: erk, er, uniform or pooled.
        start: size of each layer's support at the first step over its size at the end, at most the whole layer; above
            1 the support shrinks while training. gmp starts dense.
        initial: density at the first step of methods proximal and multilevel; null: 1 for proximal, the density for
            multilevel.
        gain: factor on the initial values; 0.41 gives those of torch's own layers.
        positive_bias: draw the biases from 0 to this over the root of the fan-in; null: biases are 0.
        layout: csr (sparse storage and kernels), masked (dense ones: a simulation), or auto: per layer the faster one,
            measured here; shadow (dense storage, sparse products, dense weight gradient) for method proximal.
        block: rows and columns of the tiles that are kept or not, [1, 1] for single weights.
        exclude: names or 're:PATTERN' of layers that stay dense.
        min_fan_in: incoming blocks that every output unit keeps.
        newborn: optimizer state of a connection that grows: fresh, zero, sensed or auto.
        epochs: passes over the training set.
        batch: examples per batch.
        accumulate: batches per optimizer step.
        schedule: of the step size: cosine (to 0 at the end), halving (after each fifth of the run) or constant.
        warm_up: optimizer steps over which the step size grows linearly from 0.
        density_exponent: the step size of a layer is divided by its density to this power.
        clip: largest norm of the gradient; null: no limit.
        autocast: forward pass in bfloat16.
        seed: of the initial values, the support, the topology's choices and the order of the data.
        threads: threads of torch; null: all that it would use.
        null_models: also train dense, and static random at the same budget, with the same seed and steps.
        tensorboard: also write TensorBoard events.
        diagnose: at every event write to diagnosis.jsonl what the sensing of each layer is worth
            (gossamer.recover.diagnose).
    """

    task: Part = default_part("task", "digits")
    model: Part = default_part("model", "mlp")
    method: Part = default_part("method", "csst")
    optimizer: Part = default_part("optimizer", "sgd")
    target: Part = default_part("target", "none")
    density: float = 0.05
    budget: str = library(sparsify, "budget")
    start: float = 1.0
    initial: float | None = None
    gain: float = library(reinitialise_, "gain")
    positive_bias: float | None = library(reinitialise_, "positive_bias")
    layout: str = library(sparsify, "layout")
    block: tuple[int, int] = library(sparsify, "block")
    exclude: tuple[str, ...] = ()
    min_fan_in: int = library(sparsify, "min_fan_in")
    newborn: str = library(Rewirer, "newborn")
    epochs: int = 40
    batch: int = 32
    accumulate: int = library(fit, "accumulate")
    schedule: str = "cosine"
    warm_up: int = 0
    density_exponent: float = library(parameter_groups, "density_exponent")
    clip: float | None = library(fit, "clip")
    autocast: bool = False
    seed: int = 0
    threads: int | None = None
    null_models: bool = False
    tensorboard: bool = False
    diagnose: bool = False

    def __post_init__(self) -> None:
        for key, value in flat(settings(self)).items():
            check_range(key, value)
        check_density("density", self.density)
        if self.initial is not None:
            check_density("initial", self.initial)
        for name, choices in (("budget", BUDGETS), ("layout", (*LAYOUTS, AUTO)), ("schedule", SCHEDULES)):
            check_choice(name, name, getattr(self, name), choices)
        least = {"start": 1, "min_fan_in": 0, "epochs": 1, "batch": 1, "accumulate": 1, "warm_up": 0, "seed": 0}
        for name, value in least.items():
            check_at_least(name, name, getattr(self, name), value)
        if min(self.block) < 1:
            raise UsageError("block", "rows and columns of a tile are at least 1", got=self.block)
        if self.threads is not None:
            check_at_least("threads", "threads", self.threads, 1)
        if self.threads is not None and self.threads > THREADS:
            what = f"this machine has {os.cpu_count()} cores; at most {THREADS} threads are started"
            raise UsageError("threads", what, got=self.threads)
        if self.clip is not None and not self.clip > 0.0:
            raise UsageError("clip", "the largest norm of the gradient is a positive number", got=self.clip)
        if not abs(self.density_exponent) <= 10.0:
            what = "a power of the density, a number in [-10, 10]"
            raise UsageError("density_exponent", what, got=self.density_exponent)

    def resolved(self) -> "Config":
        """The same with every default that depends on the machine written out."""
        return dataclasses.replace(self, threads=self.threads or torch.get_num_threads())

    # ---------------------------------------------------------------- what kind of run it is

    @property
    def sparse(self) -> bool:
        """Whether the model is made sparse."""
        return self.method.constructor is not dense

    @property
    def multilevel(self) -> bool:
        """Whether coarse steps on a frozen support alternate with fine ones."""
        return self.method.constructor is Multilevel

    @property
    def zeros_by_penalty(self) -> bool:
        """Whether the optimizer makes the zeros, not a topology."""
        return self.multilevel or self.method.constructor is proximal

    @property
    def has_rule(self) -> bool:
        """Whether the optimizer is a rule with a penalty."""
        return is_rule(self.optimizer.constructor)

    @property
    def steered(self) -> bool:
        """Whether the strength of the penalty is steered to the density."""
        return self.target.name != "none"

    @property
    def starts_dense(self) -> bool:
        """Whether layers start dense: the method only prunes, so its ``final_density`` has no default."""
        final = parameters(self.method.constructor).get("final_density")
        return self.start == 1.0 and final is not None and final.default is inspect.Parameter.empty

    @property
    def shrinks(self) -> bool:
        """Whether the support is larger at the first step than at the end, by a topology."""
        return self.starts_dense or self.start > 1.0

    def topology(self) -> Any:  # None for a method without topology, else a TopologyLike: together.py checks it
        """The record that the method's settings make, with what the run gives it. Raises UsageError."""
        final = {"final_density": self.density} if self.shrinks else {}
        return None if self.multilevel else self.method.make(min_fan_in=self.min_fan_in, budget=self.budget, **final)


PARTS = tuple(field.name for field in dataclasses.fields(Config) if field.type is Part)
KEYS = tuple(field.name for field in dataclasses.fields(Config))


# -------------------------------------------------------------------- Config -> settings


def settings(config: Config) -> Tree:
    """The nested dict that ``parse`` turns into this configuration again; what YAML and JSON hold."""
    return {key: _tree(getattr(config, key)) for key in KEYS}


def flat(tree: Mapping[str, Any]) -> Tree:
    """Settings by dotted key."""
    out: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inner = flat(cast(Mapping[str, Any], value))
            out.update({f"{key}.{name}": one for name, one in inner.items()})
        else:
            out[key] = value
    return out


def differences(old: Tree, new: Tree, apart: Collection[str] = ()) -> list[str]:
    """Sentences on the settings that differ between two runs and decide figures, except keys or parts ``apart``."""
    a, b = flat(old), flat(new)
    apart = (*ELSEWHERE, *apart)
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key) and not {key, key.partition(".")[0]} & {*apart}]
    return [f"{key} was {a.get(key)!r}, is {b.get(key)!r}" for key in keys]


def check_range(key: str, value: object) -> None:
    """Refuses numbers that no part of a run could hold."""
    if isinstance(value, (list, tuple)):
        for one in cast(Sequence[object], value):
            check_range(key, one)
    elif isinstance(value, int):
        seed = key.rpartition(".")[2] == "seed"
        if not abs(value) < (SEEDS if seed else WHOLE):
            raise UsageError(key, f"a whole number below 2^{63 if seed else 31} in size", got=value)
    elif isinstance(value, float) and not abs(value) <= REAL:
        raise UsageError(key, f"a finite number of at most {REAL:.0e} in size", got=value)


def _tree(value: Any) -> Any:  # a setting of any plain type
    """A part as a dict with its name, tuples as lists."""
    if isinstance(value, Part):
        return {"name": value.name, **{key: _tree(one) for key, one in value.settings.items()}}
    return [_tree(one) for one in cast(Sequence[Any], value)] if isinstance(value, (tuple, list)) else value
