"""Linearised Bregman iterations: mirror descent with the mirror map J_delta(w) = J(w) + |w|^2 / (2 delta), J the
penalty (Bungert, Roith, Tenbrinck, Burger 2022, "A Bregman learning framework for sparse neural networks", LinBreg):

    v_0 = w_0 / delta + p_0, p_0 in dJ(w_0), which is 0 where w_0 = 0
    m <- beta m + (1 - beta) s g                 the step size inside the mean, as in the authors' program
    v <- v - m                                   beta = 0: v <- v - s g
    w <- prox_{delta J}(delta v)                 l1: delta soft(v, lam)

A weight that is zero stays zero until |v| has grown beyond lam. w = prox_{delta J}(delta v) holds after every step, so
|v| <= lam where w = 0 and v = w / delta + lam sign(w) elsewhere. Without penalty and with delta = 1 this is SGD.

State: v; m if beta > 0. Cost per step: O(N), without the gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._backend import foreach
from ..penalties import Penalty
from .checks import check_momentum, check_penalty, check_positive
from .mirror import Mirror
from .rule import State, StepInfo


@dataclass(frozen=True)
class LinBreg(Mirror):
    """Linearised Bregman iterations.

    Args:
        penalty: J, convex.
        delta: weight of the quadratic part of the mirror map, positive; the step in w is delta lr.
        momentum: beta, in [0, 1).
    """

    penalty: Penalty
    delta: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        check_penalty("LinBreg", self.penalty, convex=True)
        check_momentum("LinBreg", "momentum", self.momentum)
        check_positive("LinBreg", "delta", self.delta)

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        state = {"v": self.mirrored(w, strength)}
        return {**state, "m": torch.zeros_like(w)} if self.momentum else state

    def descend_(self, g: list[Tensor], state: State, step: StepInfo) -> None:
        s, beta, v = step.lr, self.momentum, state["v"]
        if not beta:
            foreach.add_(v, g, alpha=-s)  # v <- v - s g
            return
        m = state["m"]
        foreach.mul_(m, beta)
        foreach.add_(m, g, alpha=(1 - beta) * s)  # m <- beta m + (1 - beta) s g
        foreach.sub_(v, m)  # v <- v - m
