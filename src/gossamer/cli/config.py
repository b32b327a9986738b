"""One run as a value, and the way from YAML and flags to it. The constructors' signatures are the schema; jsonargparse checks the types.

A part with settings is ``method: csst`` or ``method: {name: csst, every: 50}`` in YAML, ``--method csst --method.every 50`` on the command
line.
"""

import dataclasses
import os
import re
from argparse import SUPPRESS, ArgumentError
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch

from .._budgets import BUDGETS
from .._errors import UsageError, check_at_least, check_density, nearest
from ..convert.sparsify import AUTO
from ..layouts import LAYOUTS
from .methods import CSST, METHODS, Coarse, Method, Proximal
from .models import MLP, MODELS, Model
from .optimizers import OPTIMIZERS, SGD, Optimizer
from .strict_yaml import read_yaml as read_yaml
from .tasks import TASKS, Digits, Task

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SCHEDULES = ("cosine", "halving", "constant")
SEEDS = 2**63  # torch's generators and NumPy's take these
WHOLE, REAL = 2**31, 1e10  # every other number stays below, in size: float32 and int32 hold its products with weights
THREADS = max(256, os.cpu_count() or 1)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run.

    Args:
        task: data set and metrics.
        model: network.
        method: how the support is chosen and changed.
        optimizer: how the values move.
        density: share of the weights of the sparse layers that may be non-zero, in (0, 1].
        budget: how layers share it: erk, er, uniform or pooled.
        layout: csr (sparse storage and kernels), masked (dense ones: a simulation), or auto: per layer the faster one, measured here;
            shadow (dense storage, sparse products, dense weight gradient) for method proximal.
        block: rows and columns of the tiles that are kept or not, [1, 1] for single weights.
        exclude: names or 're:PATTERN' of layers that stay dense.
        min_fan_in: incoming weights that every output unit keeps.
        epochs: passes over the training set.
        batch: examples per batch.
        accumulate: batches per optimizer step.
        schedule: of the step size: cosine (to 0 at the end), halving (after each fifth of the run) or constant.
        warm_up: optimizer steps over which the step size grows linearly from 0.
        density_exponent: the step size of a layer is divided by its density to this power.
        clip: largest norm of the gradient; no limit by default.
        autocast: forward pass in bfloat16.
        seed: of the initial values, the support, the topology's choices and the order of the data.
        threads: threads of torch; all it would use by default.
        null_models: also train dense, and static random at the same budget, with the same seed and steps.
        tensorboard: also write TensorBoard events.
        diagnose: at every event write to diagnosis.jsonl what the sensing of each layer is worth (gossamer.recover.diagnose).
    """

    task: Task = Digits()
    model: Model = MLP()
    method: Method = CSST()
    optimizer: Optimizer = SGD()
    density: float = 0.05
    budget: str = "erk"
    layout: str = "csr"
    block: tuple[int, int] = (1, 1)
    exclude: tuple[str, ...] = ()
    min_fan_in: int = 0
    epochs: int = 40
    batch: int = 32
    accumulate: int = 1
    schedule: str = "cosine"
    warm_up: int = 0
    density_exponent: float = 0.0
    clip: float | None = None
    autocast: bool = False
    seed: int = 0
    threads: int | None = None
    null_models: bool = False
    tensorboard: bool = False
    diagnose: bool = False

    def __post_init__(self):
        for key, value in flat(settings(self)).items():
            _check_range(key, value)
        check_density("density", self.density)
        for name, choices in (("budget", BUDGETS), ("layout", (*LAYOUTS, AUTO)), ("schedule", SCHEDULES)):
            _check_choice(name, getattr(self, name), choices)
        least = {"min_fan_in": 0, "epochs": 1, "batch": 1, "accumulate": 1, "warm_up": 0, "seed": 0}
        for name, value in least.items():
            check_at_least(name, name, getattr(self, name), value)
        if min(self.block) < 1:
            raise UsageError("block", "rows and columns of a tile are at least 1", got=self.block)
        if self.threads is not None:
            check_at_least("threads", "threads", self.threads, 1)
            if self.threads > THREADS:
                raise UsageError(
                    "threads",
                    f"this machine has {os.cpu_count()} cores; at most {THREADS} threads are started",
                    got=self.threads,
                )
        if self.clip is not None and not self.clip > 0.0:
            raise UsageError("clip", "the largest norm of the gradient is a positive number", got=self.clip)
        if not abs(self.density_exponent) <= 10.0:
            raise UsageError(
                "density_exponent", "a power of the density, a number in [-10, 10]", got=self.density_exponent
            )
        _check_together(self)

    def resolved(self) -> "Config":
        """The same with every default that depends on the machine written out."""
        return dataclasses.replace(self, threads=self.threads or torch.get_num_threads())


KINDS: dict[str, dict[str, type]] = {"task": TASKS, "model": MODELS, "method": METHODS, "optimizer": OPTIMIZERS}  # type: ignore[dict-item]
PLAIN = {f.name: f.default for f in dataclasses.fields(Config) if f.name not in KINDS}
ELSEWHERE = ("task.data", "null_models", "tensorboard", "diagnose")  # settings that do not decide a run's figures

Tree = dict[str, Any]


# -------------------------------------------------------------------- Config -> settings


def name_of(part: Any) -> str:
    """The name of a task, model, method or optimizer in its registry."""
    return next(name for registry in KINDS.values() for name, kind in registry.items() if kind is type(part))


def settings(config: Config) -> Tree:
    """The nested dict that :func:`parse` turns into this configuration again; what YAML and JSON hold."""
    tree: Tree = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        tree[field.name] = {"name": name_of(value), **dataclasses.asdict(value)} if field.name in KINDS else value
    return _lists(tree)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out.update({f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {key: value})
    return out


def differences(old: Tree, new: Tree, apart: Collection[str] = ()) -> list[str]:
    """Sentences on the settings in which two runs differ, apart from where data lie, what is reported, and the keys or parts ``apart``."""
    a, b = flat(old), flat(new)
    apart = (*ELSEWHERE, *apart)
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key) and not {key, key.partition(".")[0]} & {*apart}]
    return [f"{key} was {a.get(key)!r}, is {b.get(key)!r}" for key in keys]


# -------------------------------------------------------------------- settings -> Config


def parse(tree: Mapping[str, Any], where: str) -> Config:
    """The configuration these settings describe; raises UsageError on an unknown key or name, with the nearest one, or a wrong type."""
    tree = canonical(tree, where)
    parser = schema(names(tree))
    for key, value in flat(tree).items():
        if value is None and not _may_be_none(key, tree):
            raise UsageError(
                where,
                f"{key}: a value is missing",
                remedy=f"leave the key out for its default, {parser.get_default(key)}",
            )
    try:
        typed = parser.parse_object(tree)
    except (ArgumentError, OverflowError) as error:
        remedy = "gossamer run --help lists the keys and their types; a list is written '[64, 32]'"
        raise UsageError(where, expected(str(error)), remedy=remedy) from error
    for key, value in flat(typed.as_dict()).items():
        _check_range(key, value)
    parts = {kind: registry[tree[kind]["name"]](**_dict(typed.get(kind))) for kind, registry in KINDS.items()}
    return Config(**parts, **{key: typed[key] for key in PLAIN})


def canonical(tree: Mapping[str, Any], where: str) -> Tree:
    """Settings with dotted keys nested and every part as ``{name: ..., settings}``; unknown keys and names are refused."""
    out: Tree = {kind: {} for kind in KINDS}
    for key, value in tree.items():
        top, _, inner = str(key).partition(".")
        if top in KINDS:
            given = {inner: value} if inner else ({"name": value} if not isinstance(value, Mapping) else dict(value))
            out[top] = {**out[top], **given}
        elif key in PLAIN:
            out[key] = value
        else:
            raise UsageError(
                where,
                f"unknown key {key!r}{nearest(str(key), [*PLAIN, *KINDS])}",
                remedy="gossamer run --help lists the keys",
            )
    for kind, registry in KINDS.items():
        part = out[kind] = {"name": name_of(getattr(Config, kind)), **out[kind]}
        if not isinstance(part["name"], str) or part["name"] not in registry:
            raise UsageError(
                where,
                f"unknown {kind} {part['name']!r}{nearest(part['name'], registry)}",
                remedy=f"one of {', '.join(registry)}",
            )
        fields = ["name", *(f.name for f in dataclasses.fields(registry[part["name"]]))]
        for inner in part:
            if inner not in fields:
                what = f"unknown key {f'{kind}.{inner}'!r} of {kind} {part['name']}"
                raise UsageError(
                    where,
                    what + nearest(f"{kind}.{inner}", [f"{kind}.{f}" for f in fields]),
                    remedy=f"it has {', '.join(fields)}",
                )
    return out


def merged(below: Tree, above: Mapping[str, Any], where: str) -> Tree:
    """Settings ``below`` overridden by ``above`` (dotted keys); another name of a part discards the settings of the former one."""
    tree = canonical(below, where)
    for kind in KINDS:
        chosen = above.get(kind, above.get(f"{kind}.name"))
        name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
        if name is not None and name != tree[kind]["name"]:
            tree[kind] = {"name": name}
    parts = {key: value for key, value in above.items() if key in KINDS}
    for kind, value in parts.items():
        tree[kind] = {**tree[kind], **(value if isinstance(value, Mapping) else {"name": value})}
    return canonical({**tree, **{key: value for key, value in above.items() if key not in KINDS}}, where)


def names(tree: Mapping[str, Any]) -> dict[str, str]:
    """The chosen name of every part of canonical settings."""
    return {kind: tree[kind]["name"] for kind in KINDS}


def schema(chosen: Mapping[str, str], **more: Any) -> "ArgumentParser":
    """The jsonargparse parser of a run with these parts: one option per constructor argument, helped by its docstring."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(**more, exit_on_error=False, allow_abbrev=False)
    for kind, registry in KINDS.items():
        default = name_of(getattr(Config, kind))
        parser.add_argument(f"--{kind}.name", type=str, default=default, metavar="NAME", help=", ".join(registry))
    for kind, registry in KINDS.items():
        if dataclasses.fields(registry[chosen[kind]]):
            parser.add_class_arguments(registry[chosen[kind]], kind)
    for action in parser._actions:
        if action.option_strings and action.option_strings[0].removeprefix("--") in KINDS:
            action.help = SUPPRESS  # jsonargparse's option that reads the group from a file
    parser.add_class_arguments(Config, as_group=False, skip=set(KINDS))
    return parser


def expected(message: str) -> str:
    """jsonargparse's message in fewer lines: the key, what is expected, what was got."""
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    message = re.sub(r'Parser key "([\w.]+)":\s+', r"\1: ", message)
    message = re.sub(r"\s*\n\s*", " ", message).strip()
    return message if len(message) <= 400 else f"{message[:400]}..."


# -------------------------------------------------------------------- details


def _check_range(key: str, value: Any) -> None:
    """Refuses numbers that no part of a run could hold."""
    if isinstance(value, (list, tuple)):
        for one in value:
            _check_range(key, one)
    elif isinstance(value, int):
        seed = key.rpartition(".")[2] == "seed"
        if not abs(value) < (SEEDS if seed else WHOLE):
            raise UsageError(key, f"a whole number below 2^{63 if seed else 31} in size", got=value)
    elif isinstance(value, float) and not abs(value) <= REAL:
        raise UsageError(key, f"a finite number of at most {REAL:.0e} in size", got=value)


def _check_choice(key: str, value: str, choices: Mapping[str, Any] | tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(
            key, f"unknown {key} {value!r}{nearest(value, choices)}", remedy=f"one of {', '.join(choices)}"
        )


def _check_together(config: Config) -> None:
    """Refuses methods, optimizers and layouts that do not go together."""
    method, optimizer = name_of(config.method), name_of(config.optimizer)
    shrinks = optimizer + " makes zeros by itself"
    if isinstance(config.method, Proximal) != (config.layout == "shadow"):
        what = f"method {method} with layout {config.layout}"
        reasons = [
            "proximal brings any zero back, and wants layout shadow: dense storage and weight gradient",
            "layout shadow wants proximal",
        ]
        raise UsageError("layout", what, reasons=reasons, remedy="--layout shadow --method proximal, or neither")
    if isinstance(config.method, Coarse) and config.layout != "csr":
        raise UsageError("layout", f"method multilevel with layout {config.layout}", remedy="--layout csr")
    if config.method.shrinks and not config.optimizer.shrinks:
        remedy = f"--optimizer {' or '.join(name for name, kind in OPTIMIZERS.items() if kind.shrinks)}"
        raise UsageError(
            "optimizer", f"method {method} leaves the zeros to the optimizer, and {optimizer} makes none", remedy=remedy
        )
    if isinstance(config.method, Coarse) and not config.optimizer.mirrors:
        raise UsageError(
            "optimizer",
            f"method multilevel needs a mirror variable, and {optimizer} has none",
            remedy="linbreg or adabreg",
        )
    if isinstance(config.method, Coarse) and config.clip is not None:
        raise UsageError(
            "clip", "fine steps of method multilevel measure a gradient that clipping does not see", remedy="no clip"
        )
    if config.optimizer.shrinks and method in ("dense", "static"):
        raise UsageError(
            "optimizer",
            f"{shrinks}, and method {method} keeps the support as it is",
            remedy="--method proximal --layout shadow",
        )
    if config.optimizer.shrinks and config.null_models:
        raise UsageError(
            "null_models",
            f"{shrinks}: the null models need an optimizer without penalty",
            remedy="--null_models false, and runs of their own in a sweep",
        )
    if unit_of_tiles(config) and config.method.shrinks:
        raise UsageError("block", f"method {method} is of single weights", got=config.block)


def unit_of_tiles(config: Config) -> bool:
    """Whether tiles are kept instead of single weights."""
    return tuple(config.block) != (1, 1)


def _may_be_none(key: str, tree: Tree) -> bool:
    """Whether the constructor's signature allows no value; jsonargparse takes None for anything."""
    kind, _, name = key.rpartition(".")
    owner = KINDS[kind][tree[kind]["name"]] if kind else Config
    return type(None) in get_args(owner.__dataclass_fields__[name].type)


def _dict(part: Any) -> Tree:
    return {key: value for key, value in vars(part).items() if key != "name"}


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(v) for key, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, (tuple, list)) else value
