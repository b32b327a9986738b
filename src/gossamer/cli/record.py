# pyright: strict
"""The configuration of one run: its parts, and the settings of the run itself.

A setting that is also a parameter of a library function has the default of that function.
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
SEEDS = 2**63  # the generators of torch and NumPy accept smaller seeds
WHOLE, REAL = 2**31, 1e10  # bounds of all other numbers: float32 and int32 hold their products with weights
THREADS = max(256, os.cpu_count() or 1)
ELSEWHERE = ("task.data", "null_models", "tensorboard", "diagnose")  # settings that do not change the results of a run

Tree = dict[str, Any]  # nested settings, as YAML and JSON hold them: str, numbers, None, lists, dicts


def library(function: Callable[..., Any], name: str) -> Any:  # the default of any type that a signature may have
    """The default that a function of the library declares."""
    return inspect.signature(function).parameters[name].default


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Args:
        task: data set and metrics.
        model: network.
        method: how the support is chosen and changed.
        optimizer: how the values of the weights are updated.
        target: control of the penalty; targetdensity steers its strength so that the run ends at ``density``.
        density: fraction of the weights of the sparse layers that may be non-zero, in (0, 1].
        budget: how the layers share the non-zero weights: erk, er, uniform or pooled.
        start: size of each layer's support at the first step, as a multiple of its size at the end, at most the whole
            layer; above 1 the support shrinks during training. Method gmp starts dense.
        initial: density at the first step, for methods proximal and multilevel; null is 1 for proximal and ``density``
            for multilevel.
        gain: factor on the initial values; 0.41 gives the initial values of torch's layers.
        positive_bias: draw each initial bias uniformly between 0 and this value over the square root of the fan-in;
            null sets the biases to 0.
        layout: storage of the sparse layers. csr: sparse storage and kernels. masked: dense storage and kernels, a
            simulation. auto: the faster of the two for each layer, measured on this machine. shadow: dense storage and
            weight gradient, sparse products, for method proximal.
        block: rows and columns of the blocks that are kept or removed as a whole; [1, 1] for single weights.
        exclude: names or 're:PATTERN' of layers that stay dense.
        min_fan_in: least number of incoming blocks of every output unit.
        newborn: optimizer state of a connection that grows: fresh, zero, sensed or auto.
        epochs: passes over the training set.
        batch: examples per batch.
        accumulate: batches per optimizer step.
        schedule: course of the step size: cosine (to 0 at the end), halving (after each fifth of the run) or constant.
        warm_up: optimizer steps over which the step size grows linearly from 0.
        density_exponent: the step size of a layer is divided by its density to this power.
        clip: largest norm of the gradient; null sets no limit.
        autocast: run the forward pass in bfloat16.
        seed: seed of the initial values, the support, the choices of the method and the order of the data.
        threads: threads of torch; null takes torch's default.
        null_models: also train two null models with the same seed and steps, dense and static random at the same
            budget.
        tensorboard: also write TensorBoard events.
        diagnose: at every event write a diagnosis of each layer's sensing to diagnosis.jsonl
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
            raise UsageError("block", "rows and columns of a block must be at least 1", got=self.block)
        if self.threads is not None:
            check_at_least("threads", "threads", self.threads, 1)
        if self.threads is not None and self.threads > THREADS:
            what = f"at most {THREADS} threads are allowed; this machine has {os.cpu_count()} cores"
            raise UsageError("threads", what, got=self.threads)
        if self.clip is not None and not self.clip > 0.0:
            raise UsageError("clip", "the largest norm of the gradient must be a positive number", got=self.clip)
        if not abs(self.density_exponent) <= 10.0:
            what = "the exponent of the density must be a number in [-10, 10]"
            raise UsageError("density_exponent", what, got=self.density_exponent)

    def resolved(self) -> "Config":
        """A copy in which explicit values replace the defaults that depend on the machine."""
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
        """Whether the optimizer, and not a topology, makes the zeros."""
        return self.multilevel or self.method.constructor is proximal

    @property
    def has_rule(self) -> bool:
        """Whether the optimizer is a rule with a penalty."""
        return is_rule(self.optimizer.constructor)

    @property
    def steered(self) -> bool:
        """Whether the strength of the penalty is steered so that the run ends at the density."""
        return self.target.name != "none"

    @property
    def starts_dense(self) -> bool:
        """Whether layers start dense: true for methods that only prune (``final_density`` has no default)."""
        final = parameters(self.method.constructor).get("final_density")
        return self.start == 1.0 and final is not None and final.default is inspect.Parameter.empty

    @property
    def shrinks(self) -> bool:
        """Whether a topology makes the support smaller from the first step to the last."""
        return self.starts_dense or self.start > 1.0

    def topology(self) -> Any:  # None or a TopologyLike; together.py checks it
        """The topology of the method, None if the method has none. Raises UsageError."""
        final = {"final_density": self.density} if self.shrinks else {}
        return None if self.multilevel else self.method.make(min_fan_in=self.min_fan_in, budget=self.budget, **final)


PARTS = tuple(field.name for field in dataclasses.fields(Config) if field.type is Part)
KEYS = tuple(field.name for field in dataclasses.fields(Config))


# -------------------------------------------------------------------- Config -> settings


def settings(config: Config) -> Tree:
    """The configuration as a nested dict for YAML and JSON. ``parse`` turns it back into a configuration."""
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
    """One sentence for each setting that differs between two runs and can change their results.

    The keys and parts in ``apart`` are not compared.
    """
    a, b = flat(old), flat(new)
    apart = (*ELSEWHERE, *apart)
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key) and not {key, key.partition(".")[0]} & {*apart}]
    return [f"{key} was {a.get(key)!r}, is {b.get(key)!r}" for key in keys]


def check_range(key: str, value: object) -> None:
    """Raises UsageError if a number is too large for the arithmetic of a run."""
    if isinstance(value, (list, tuple)):
        for one in cast(Sequence[object], value):
            check_range(key, one)
    elif isinstance(value, int):
        seed = key.rpartition(".")[2] == "seed"
        if not abs(value) < (SEEDS if seed else WHOLE):
            raise UsageError(key, f"must be a whole number below 2^{63 if seed else 31} in size", got=value)
    elif isinstance(value, float) and not abs(value) <= REAL:
        raise UsageError(key, f"must be a finite number of at most {REAL:.0e} in size", got=value)


def _tree(value: Any) -> Any:  # Any: settings of all plain types
    """The value for YAML: a part becomes a dict with its name, a tuple becomes a list."""
    if isinstance(value, Part):
        return {"name": value.name, **{key: _tree(one) for key, one in value.settings.items()}}
    return [_tree(one) for one in cast(Sequence[Any], value)] if isinstance(value, (tuple, list)) else value
