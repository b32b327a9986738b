# pyright: strict
"""What does not go together in a configuration is refused here, before any work."""

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
    """What a run needs of a task."""

    def check(self) -> None:
        """Raises UsageError if the task cannot be loaded here: missing files or packages."""
        ...

    def load(self) -> Any:  # a gossamer.cli.tasks.Data
        """The data, read and verified. Raises UsageError."""
        ...

    def metrics(self, model: nn.Module, data: Any) -> dict[str, float]:
        """What is measured on the test set; ``accuracy`` is one of them."""
        ...


def check_parts(config: Config) -> None:
    """Makes every part that needs no data. Refuses what its constructor refuses, and what does not fit."""
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
            raise UsageError(f"{kind} {name}", f"this is no {kind}", reasons=reasons, remedy=remedy)


def check_together(config: Config) -> None:
    """Refuses methods, optimizers and layouts that do not go together."""
    _check_layout(config)
    _check_optimizer(config)
    _check_sizes(config)
    if config.multilevel and config.clip is not None:
        what = "method multilevel measures a gradient in its fine steps that clipping does not see"
        raise UsageError("clip", what, remedy="no clip")
    if config.has_rule and config.null_models:
        what = f"{config.optimizer.name} makes zeros by itself: the null models need an optimizer without penalty"
        raise UsageError("null_models", what, remedy="--null_models false, and runs of their own in a sweep")
    if tuple(config.block) != (1, 1) and config.zeros_by_penalty:
        raise UsageError("block", f"method {config.method.name} is of single weights", got=config.block)


def _check_layout(config: Config) -> None:
    method = config.method.name
    if (config.zeros_by_penalty and not config.multilevel) != (config.layout == "shadow"):
        reasons = [
            "proximal revives any zero, and needs layout shadow: dense storage and weight gradient",
            "layout shadow needs proximal",
        ]
        what = f"method {method} with layout {config.layout}"
        raise UsageError("layout", what, reasons=reasons, remedy="--layout shadow --method proximal, or neither")
    if config.multilevel and config.layout != "csr":
        raise UsageError("layout", f"method multilevel with layout {config.layout}", remedy="--layout csr")


def _check_optimizer(config: Config) -> None:
    method, optimizer = config.method.name, config.optimizer.name
    if config.zeros_by_penalty and not config.has_rule:
        what = f"method {method} leaves the zeros to the optimizer, and {optimizer} makes none"
        raise UsageError("optimizer", what, remedy=f"--optimizer {' or '.join(_rules())}")
    if config.multilevel and not _is_mirror(config.optimizer.constructor):
        what = f"method multilevel needs a mirror variable, and {optimizer} has none"
        raise UsageError("optimizer", what, remedy="linbreg or adabreg")
    if config.has_rule and method in ("dense", "static"):
        what = f"{optimizer} makes zeros by itself, and method {method} keeps the support as it is"
        raise UsageError("optimizer", what, remedy="--method proximal --layout shadow")
    if config.steered and not (config.zeros_by_penalty and config.has_rule):
        what = f"there is no penalty to steer in method {method} with optimizer {optimizer}"
        raise UsageError("target", what, remedy="--method proximal or multilevel; or --target none")


def _check_sizes(config: Config) -> None:
    method = config.method.name
    if config.start > 1.0 and not config.method.takes("final_density"):
        takers = [name for name, one in METHODS.items() if "final_density" in inspect.signature(one).parameters]
        what = f"method {method} does not shrink the support while training"
        raise UsageError("start", what, got=config.start, remedy=f"--start 1; or --method {', '.join(takers)}")
    if config.initial is not None and not config.zeros_by_penalty:
        remedy = "--initial null; --start 10 begins ten times as large"
        what = f"methods proximal and multilevel have an initial density; method {method} begins at start x density"
        raise UsageError("initial", what, got=config.initial, remedy=remedy)


def _rules() -> list[str]:
    return [name for name, constructor in OPTIMIZERS.items() if is_rule(constructor)]


def _is_mirror(constructor: Constructor) -> bool:
    """Whether these rules have a mirror variable; of a function, or of a user's rule, Multilevel itself decides."""
    return constructor not in OPTIMIZERS.values() or (inspect.isclass(constructor) and issubclass(constructor, Mirror))


def _is_record(constructor: Constructor) -> bool:
    """Whether a model's constructor makes a cheap record of settings, not the network itself."""
    return inspect.isclass(constructor) and not issubclass(constructor, nn.Module)
