"""Proximal gradient descent with momentum, for the loss L and the penalty R:

    v <- mu v + (1 - mu) g                       momentum as a mean, as in xRDA: lr here is lr / (1 - mu) of torch.optim.SGD
    w <- prox_{s R}(w - s v)                     s = lr

mu = 0 is ISTA with stochastic gradients (equation 7 of Siegel, Chen, Zhang, Xu 2020; Combettes & Wajs 2005); with ``TopK`` it is
iterative hard thresholding (Blumensath & Davies 2009) as training.

State: v if mu > 0. Cost per step: O(N) beside the gradient; the forward pass may be sparse, the weight gradient is dense.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._schedules import Schedule
from ..penalties import Penalty
from .checks import check_momentum, check_penalty
from .rule import State, StepInfo


@dataclass(frozen=True)
class ProxSGD:
    """Proximal gradient descent.

    Args:
        penalty: R; any but the adaptive ones.
        momentum: mu, in [0, 1).
    """

    penalty: Penalty
    momentum: float = 0.0
    needs_dense: ClassVar[bool] = True
    zeros_follow_state: ClassVar[bool] = False

    def __post_init__(self):
        check_penalty("ProxSGD", self.penalty, plain=True)
        check_momentum("ProxSGD", "momentum", self.momentum)

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        return {"v": torch.zeros_like(w)} if self.momentum else {}

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, now: StepInfo) -> None:
        s, mu = now.lr, self.momentum
        v = g
        if mu:
            v = state["v"]
            torch._foreach_lerp_(v, g, 1 - mu)  # v <- mu v + (1 - mu) g
        torch._foreach_add_(w, v, alpha=-s)  # w <- w - s v
        torch._foreach_copy_(w, self.penalty.proxes(w, s * now.strength))  # w <- prox_{s R}(w)

    def zero_thresholds(self, w: list[Tensor], state: State, now: StepInfo) -> list[Tensor]:
        v = state.get("v") or state.get("g")  # the next gradient is not known: the last one stands for it
        u = torch._foreach_sub(w, torch._foreach_mul(v, now.lr)) if v else w
        return [self.penalty.zero_threshold(p, now.lr) for p in u]

    def schedules(self) -> dict[str, Schedule]:
        return {}
