# pyright: strict
"""Checks, before any work, that the settings of a configuration fit together."""

import inspect
from typing import Any, Protocol

import torch
from torch import nn

from .._errors import UsageError, misfits
from ..rules import Rule
from ..rules.mirror import Mirror
from ..topology import TopologyLike
from .catalog import METHODS, OPTIMIZERS, Constructor
from .parts import is_rule
from .record import Config


class TaskLike(Protocol):
    """The methods that a run calls on a task."""

    def check(self) -> None:
        """Raises UsageError if the task cannot be loaded here: missing files or packages."""
        ...

    def load(self) -> Any:  # a gossamer.cli.tasks.Data
        """The data, read and verified. Raises UsageError."""
        ...

    def metrics(self, model: nn.Module, data: Any) -> dict[str, float]:
        """The metrics on the test set; ``accuracy`` must be one of them."""
        ...


def check_parts(config: Config) -> None:
    """Makes every part that needs no data. Raises UsageError if a constructor does, or if a part does not fit."""
    protocols: dict[str, type] = {"task": TaskLike, "method": TopologyLike, "optimizer": Rule}
    made: dict[str, Any] = {"task": config.task.make(), "method": config.topology()}
    if config.has_rule:
        made["optimizer"] = config.optimizer.make(density=config.density)
    else:
        config.optimizer.make(params=[torch.zeros(1, requires_grad=True)])
    if _is_record(config.model.constructor):
        config.model.make()
    if config.multilevel and (coarse := config.method.settings["coarse"]) < 0:
        raise UsageError("Multilevel", "coarse must be at least 0, a whole number", got=coarse)
    for kind, thing in made.items():
        reasons = [] if thing is None and kind == "method" else misfits(thing, protocols[kind])
        if reasons:
            name = getattr(config, kind).name
            remedy = f"docs/cli.md shows what a {kind} needs"
            raise UsageError(f"{kind} {name}", f"it cannot serve as the {kind}", reasons=reasons, remedy=remedy)


def check_together(config: Config) -> None:
    """Raises UsageError if the method, the optimizer and the layout do not fit together."""
    _check_layout(config)
    _check_optimizer(config)
    _check_sizes(config)
    if config.multilevel and config.clip is not None:
        what = "clipping does not work with method multilevel: its fine steps compute a gradient that is not clipped"
        raise UsageError("clip", what, remedy="--clip null")
    if config.has_rule and config.null_models:
        what = f"the null models need an optimizer without penalty, and {config.optimizer.name} has one"
        raise UsageError("null_models", what, remedy="--null_models false, and a sweep with separate runs")
    if tuple(config.block) != (1, 1) and config.zeros_by_penalty:
        what = f"method {config.method.name} supports only single weights"
        raise UsageError("block", what, got=config.block, remedy="--block '[1, 1]'")


def _check_layout(config: Config) -> None:
    method = config.method.name
    if (config.zeros_by_penalty and not config.multilevel) != (config.layout == "shadow"):
        reasons = [
            "method proximal can revive any zero, and needs the dense storage and weight gradient of layout shadow",
            "layout shadow needs method proximal",
        ]
        what = f"method {method} does not work with layout {config.layout}"
        raise UsageError("layout", what, reasons=reasons, remedy="--layout shadow --method proximal, or neither")
    if config.multilevel and config.layout != "csr":
        what = f"method multilevel does not work with layout {config.layout}"
        raise UsageError("layout", what, remedy="--layout csr")


def _check_optimizer(config: Config) -> None:
    method, optimizer = config.method.name, config.optimizer.name
    if config.zeros_by_penalty and not config.has_rule:
        what = f"method {method} needs an optimizer that makes zeros, and {optimizer} makes none"
        raise UsageError("optimizer", what, remedy=f"--optimizer {' or '.join(_rules())}")
    if config.multilevel and not _is_mirror(config.optimizer.constructor):
        what = f"method multilevel needs a mirror variable, and {optimizer} has none"
        raise UsageError("optimizer", what, remedy="--optimizer linbreg or adabreg")
    if config.has_rule and method in ("dense", "static"):
        what = f"optimizer {optimizer} makes zeros, and method {method} does not change the support"
        raise UsageError("optimizer", what, remedy="--method proximal --layout shadow")
    if config.steered and not (config.zeros_by_penalty and config.has_rule):
        what = f"method {method} with optimizer {optimizer} has no penalty to steer"
        raise UsageError("target", what, remedy="--method proximal or multilevel; or --target none")


def _check_sizes(config: Config) -> None:
    method = config.method.name
    if config.start > 1.0 and not config.method.takes("final_density"):
        takers = [name for name, one in METHODS.items() if "final_density" in inspect.signature(one).parameters]
        what = f"method {method} does not shrink the support during training"
        raise UsageError("start", what, got=config.start, remedy=f"--start 1; or --method {', '.join(takers)}")
    if config.initial is not None and not config.zeros_by_penalty:
        remedy = "--initial null, and --start 10 for an initial density of 10 x density"
        what = f"only methods proximal and multilevel use it; method {method} begins at start x density"
        raise UsageError("initial", what, got=config.initial, remedy=remedy)


def _rules() -> list[str]:
    return [name for name, constructor in OPTIMIZERS.items() if is_rule(constructor)]


def _is_mirror(constructor: Constructor) -> bool:
    """Whether an optimizer of the catalog has a mirror variable. True for other ones: Multilevel checks them itself."""
    return constructor not in OPTIMIZERS.values() or (inspect.isclass(constructor) and issubclass(constructor, Mirror))


def _is_record(constructor: Constructor) -> bool:
    """Whether the constructor of a model makes a record of settings, which is cheap, and not the network."""
    return inspect.isclass(constructor) and not issubclass(constructor, nn.Module)
