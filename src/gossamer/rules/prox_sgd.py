"""Proximal gradient descent with momentum, for the loss L and the penalty R:

    v <- mu v + (1 - mu) g                       momentum as a mean, as in xRDA
    w <- prox_{s R}(w - s v)                     s = lr

With this momentum, lr corresponds to lr / (1 - mu) of ``torch.optim.SGD``. mu = 0 is ISTA with stochastic gradients
(Combettes & Wajs 2005; equation 7 of Siegel, Chen, Zhang, Xu 2020). With ``TopK`` it is iterative hard thresholding
(Blumensath & Davies 2009) as a training method.

State: v if mu > 0. Cost per step: O(N), without the gradient. The forward pass may be sparse; the weight gradient is
dense.
"""

# pyright: strict

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._backend import foreach
from .._schedules import Schedule
from ..penalties import Penalty
from .checks import check_momentum, check_penalty
from .rule import State, StepInfo


@dataclass(frozen=True)
class ProxSGD:
    """Proximal gradient descent.

    Args:
        penalty: R; any penalty that is not adaptive.
        momentum: mu, in [0, 1).
    """

    penalty: Penalty
    momentum: float = 0.0
    needs_dense: ClassVar[bool] = True
    zeros_follow_state: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_penalty("ProxSGD", self.penalty, plain=True)
        check_momentum("ProxSGD", "momentum", self.momentum)

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        return {"v": torch.zeros_like(w)} if self.momentum else {}

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, step: StepInfo) -> None:
        s, mu = step.lr, self.momentum
        v = g
        if mu:
            v = state["v"]
            foreach.lerp_(v, g, 1 - mu)  # v <- mu v + (1 - mu) g
        foreach.add_(w, v, alpha=-s)  # w <- w - s v
        foreach.copy_(w, self.penalty.proxes(w, s * step.strength))  # w <- prox_{s R}(w)

    def zero_thresholds(self, w: list[Tensor], state: State, step: StepInfo) -> list[Tensor]:
        v = state.get("v") or state.get("g")  # the next gradient is not known, so the last one is used
        u = foreach.sub(w, foreach.mul(v, step.lr)) if v else w
        return [self.penalty.zero_threshold(p, step.lr) for p in u]

    def schedules(self) -> dict[str, Schedule]:
        return {}
