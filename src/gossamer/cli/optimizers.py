"""Optimizers: frozen records of settings that become a torch optimizer over a model's parameter groups."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from .._errors import UsageError, check_at_least, nearest
from ..convert.groups import parameter_groups
from ..layers import sparse_layers
from ..penalties import GROUPS, L1, GroupL1, LogL1, NonNegativeL1, TopK
from ..rules import RDA, XRDA, AdaBreg, LinBreg, ProxSGD, Rule, SparseOptimizer


class Optimizer:
    """What every optimizer setting does."""

    shrinks: ClassVar[bool] = False  # makes zeros by itself
    mirrors: ClassVar[bool] = False  # ... by a mirror variable
    lr: float
    weight_decay: float

    def build(
        self, model: nn.Module, density_exponent: float, final: Mapping[str, float], allow_compact: bool = False
    ) -> torch.optim.Optimizer:
        """The torch optimizer; the step size of layer l is lr times its density to the power -density_exponent.

        ``final`` holds the densities that count by layer name, where they differ from those the layers begin with; ``allow_compact``: something
        else lets the support grow.
        """
        groups = parameter_groups(model, lr=self.lr, weight_decay=self.weight_decay, density_exponent=density_exponent)
        layers = sparse_layers(model)
        for group in groups:
            if group["name"] in final:
                ratio = (layers[group["name"]].density / final[group["name"]]) ** density_exponent
                group["lr"], group["weight_decay"] = group["lr"] * ratio, group["weight_decay"] / ratio
        return self.over(groups, allow_compact)

    def over(self, groups: list[dict[str, Any]], allow_compact: bool) -> torch.optim.Optimizer:
        """The torch optimizer over these parameter groups."""
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    Args:
        lr: step size.
        momentum: of the gradient.
        nesterov: Nesterov's form of momentum.
        weight_decay: pull of the non-zero weights towards 0; biases and normalisation have none.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4

    def __post_init__(self):
        _check("sgd", self.lr, self.weight_decay)
        if not 0.0 <= self.momentum < 1.0:
            raise UsageError("optimizer sgd", "momentum lies in [0, 1)", got=self.momentum)
        if self.nesterov and self.momentum == 0.0:
            raise UsageError("optimizer sgd", "nesterov needs a momentum above 0", remedy="nesterov: false")

    def over(self, groups: list[dict[str, Any]], allow_compact: bool) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Args:
        lr: step size.
        beta1: decay of the average gradient.
        beta2: decay of the average squared gradient.
        weight_decay: pull of the non-zero weights towards 0; biases and normalisation have none.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2

    def __post_init__(self):
        _check("adamw", self.lr, self.weight_decay)
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError("optimizer adamw", f"{name} lies in [0, 1)", got=getattr(self, name))

    def over(self, groups: list[dict[str, Any]], allow_compact: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2))


class Shrinking(Optimizer):
    """What the optimizers that make zeros by themselves do."""

    shrinks = True

    def rule(self) -> Rule:
        """The rule. Raises UsageError."""
        raise NotImplementedError

    def over(self, groups: list[dict[str, Any]], allow_compact: bool) -> torch.optim.Optimizer:
        rule = self.rule()
        return SparseOptimizer(
            [self._fitted(group, rule) for group in groups], rule, self.lr, allow_compact=allow_compact
        )

    def _fitted(self, group: dict[str, Any], rule: Rule) -> dict[str, Any]:
        """The group, under plain l1 where the penalty's groups are not those of its tensors: rows of a matrix, kernels of a convolution."""
        fits = not isinstance(rule.penalty, GroupL1) or not any(
            rule.penalty.problems(tuple(p.shape)) for p in group["params"]
        )
        return (
            group if fits or not group["penalised"] else {**group, "rule": replace(rule, penalty=L1(rule.penalty.lam))}
        )  # type: ignore


@dataclass(frozen=True)
class ProximalSGD(Shrinking):
    """Proximal gradient descent with l1.

    Args:
        lr: step size.
        lam: strength of the penalty.
        penalty: l1, nonnegative (l1 of weights that stay at or above 0), or whole groups by their l2 norm: row (an output unit), kernel,
            channel (an output filter); plain l1 where a tensor has no such groups.
        momentum: of the mean gradient.
        weight_decay: pull of the non-zero weights towards 0; biases and normalisation have none.
    """

    lr: float = 0.5
    lam: float = 1e-4
    penalty: str = "l1"
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self):
        _check("proxsgd", self.lr, self.weight_decay)
        self.rule()

    def rule(self) -> Rule:
        return ProxSGD(penalty_of(self), self.momentum)


@dataclass(frozen=True)
class IHT(Shrinking):
    """Iterative hard thresholding: after each gradient step every weight tensor keeps its largest entries.

    Args:
        lr: step size.
        keep: share of each tensor's weights that is kept.
        momentum: of the mean gradient.
        weight_decay: pull of the non-zero weights towards 0; biases and normalisation have none.
    """

    lr: float = 0.5
    keep: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self):
        _check("iht", self.lr, self.weight_decay)
        self.rule()

    def rule(self) -> Rule:
        return ProxSGD(TopK(density=self.keep), self.momentum)


@dataclass(frozen=True)
class DualAveraging(Shrinking):
    """Regularised dual averaging with l1.

    Args:
        lr: step size.
        lam: strength of the penalty, times the sum of all steps.
        penalty: l1, nonnegative (l1 of weights that stay at or above 0), or whole groups by their l2 norm: row (an output unit), kernel,
            channel (an output filter); plain l1 where a tensor has no such groups.
        weight_decay: pull of the non-zero weights towards 0; biases and normalisation have none.
    """

    lr: float = 0.1
    lam: float = 1e-6
    penalty: str = "l1"
    weight_decay: float = 0.0

    def __post_init__(self):
        _check("rda", self.lr, self.weight_decay)
        self.rule()

    def rule(self) -> Rule:
        return RDA(penalty_of(self))


@dataclass(frozen=True)
class ExtendedDualAveraging(Shrinking):
    """xRDA with adaptively weighted l1; step size and averaging are paired.

    Args:
        lr: step size.
        lam: strength of the penalty on the largest weights.
        beta: small weights are penalised up to 1 + 1 / beta times as much.
        group: kernel or channel, if the entries of convolutions share thresholds.
        shrinking: shrink such a group as one, by its l2 norm.
        averaging: a number in [0, 1] instead of the pairing.
        time_scale: of the momentum, in units of the step size.
        magnitude_time_scale: of the averaged magnitudes; null is that of the momentum.
        accumulate: thresholds accumulate weight by weight, as in the authors' program.
        weight_decay: pull of all parameters towards 0, biases and normalisation too.
    """

    lr: float = 0.5
    lam: float = 1e-5
    beta: float = 1 / 499
    group: str | None = None
    shrinking: bool = False
    averaging: float | None = None
    time_scale: float = 9.5
    magnitude_time_scale: float | None = None
    accumulate: bool = True
    weight_decay: float = 5e-4

    def __post_init__(self):
        _check("xrda", self.lr, self.weight_decay)
        self.rule()

    def rule(self) -> Rule:
        averaging = "paired" if self.averaging is None else self.averaging
        penalty = LogL1(self.lam, self.beta, self.group, self.shrinking)
        return XRDA(penalty, averaging, self.time_scale, self.magnitude_time_scale, self.weight_decay, self.accumulate)

    def over(self, groups: list[dict[str, Any]], allow_compact: bool) -> torch.optim.Optimizer:
        return super().over([{**group, "weight_decay": 0.0} for group in groups], allow_compact)


@dataclass(frozen=True)
class Bregman(Shrinking):
    """LinBreg: linearised Bregman iterations (mirror descent) with l1.

    Args:
        lr: step size.
        lam: strength of the penalty: a weight is zero until its mirror variable exceeds it.
        penalty: l1, nonnegative (l1 of weights that stay at or above 0), or whole groups by their l2 norm: row (an output unit), kernel,
            channel (an output filter); plain l1 where a tensor has no such groups.
        delta: weight of the quadratic part of the mirror map.
        momentum: of the mean gradient.
        weight_decay: pull of the non-zero weights towards 0; biases and normalisation have none.
    """

    lr: float = 0.5
    lam: float = 0.1
    penalty: str = "l1"
    delta: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    mirrors: ClassVar[bool] = True

    def __post_init__(self):
        _check("linbreg", self.lr, self.weight_decay)
        self.rule()

    def rule(self) -> Rule:
        return LinBreg(penalty_of(self), self.delta, self.momentum)


@dataclass(frozen=True)
class AdamBregman(Shrinking):
    """AdaBreg: LinBreg with Adam's step in the mirror variable.

    Args:
        lr: step size.
        lam: strength of the penalty: a weight is zero until its mirror variable exceeds it.
        penalty: l1, nonnegative (l1 of weights that stay at or above 0), or whole groups by their l2 norm: row (an output unit), kernel,
            channel (an output filter); plain l1 where a tensor has no such groups.
        delta: weight of the quadratic part of the mirror map.
        beta1: decay of the average gradient.
        beta2: decay of the average squared gradient.
        eps: added to its root.
        weight_decay: pull of the non-zero weights towards 0; biases and normalisation have none.
    """

    lr: float = 1e-3
    lam: float = 0.1
    penalty: str = "l1"
    delta: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    mirrors: ClassVar[bool] = True

    def __post_init__(self):
        _check("adabreg", self.lr, self.weight_decay)
        self.rule()

    def rule(self) -> Rule:
        return AdaBreg(penalty_of(self), self.delta, (self.beta1, self.beta2), self.eps)


PENALTIES: dict[str, Any] = {
    "l1": L1,
    "nonnegative": NonNegativeL1,
    **{name: partial(GroupL1, group=name) for name in GROUPS},
}
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adamw": AdamW,
    "proxsgd": ProximalSGD,
    "iht": IHT,
    "rda": DualAveraging,
    "xrda": ExtendedDualAveraging,
    "linbreg": Bregman,
    "adabreg": AdamBregman,
}


def penalty_of(optimizer: Any) -> Any:
    """The penalty that an optimizer's settings name. Raises UsageError."""
    name, lam = optimizer.penalty, optimizer.lam
    if name not in PENALTIES:
        raise UsageError(
            "optimizer", f"unknown penalty {name!r}{nearest(name, PENALTIES)}", remedy=f"one of {', '.join(PENALTIES)}"
        )
    return PENALTIES[name](lam)


def _check(name: str, lr: float, weight_decay: float) -> None:
    check_at_least(f"optimizer {name}", "lr", lr, 0.0)
    check_at_least(f"optimizer {name}", "weight_decay", weight_decay, 0.0)
