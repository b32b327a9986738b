"""Optimizers: frozen records of settings that become a torch optimizer over a model's parameter groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..convert import parameter_groups
from ..errors import Unfit, check_at_least
from ..layers import sparse_layers


class Optimizer:
    """What every optimizer setting does."""

    lr: float
    weight_decay: float

    def build(self, model: nn.Module, density_exponent: float, final: Mapping[str, float]) -> torch.optim.Optimizer:
        """The torch optimizer; the step size of layer l is lr times its density to the power -density_exponent.

        ``final`` holds the densities that count by layer name, where they differ from those the layers begin with.
        """
        groups = parameter_groups(model, lr=self.lr, weight_decay=self.weight_decay, density_exponent=density_exponent)
        layers = sparse_layers(model)
        for group in groups:
            if group["name"] in final:
                ratio = (layers[group["name"]].density / final[group["name"]]) ** density_exponent
                group["lr"], group["weight_decay"] = group["lr"] * ratio, group["weight_decay"] / ratio
        return self.over(groups)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
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
            raise Unfit("optimizer sgd", "momentum lies in [0, 1)", got=self.momentum)
        if self.nesterov and self.momentum == 0.0:
            raise Unfit("optimizer sgd", "nesterov needs a momentum above 0", remedy="nesterov: false")

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
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
                raise Unfit("optimizer adamw", f"{name} lies in [0, 1)", got=getattr(self, name))

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2))


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adamw": AdamW}


def _check(name: str, lr: float, weight_decay: float) -> None:
    check_at_least(f"optimizer {name}", "lr", lr, 0.0)
    check_at_least(f"optimizer {name}", "weight_decay", weight_decay, 0.0)
