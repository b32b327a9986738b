"""Linearised Bregman iterations: mirror descent with the mirror map J_delta(w) = J(w) + |w|^2 / (2 delta), J the penalty
(Bungert, Roith, Tenbrinck, Burger 2022, "A Bregman learning framework for sparse neural networks", LinBreg):

    v_0 = w_0 / delta + p_0, p_0 in dJ(w_0), which is 0 where w_0 = 0
    m <- beta m + (1 - beta) s g                 the step size inside the mean, as in the authors' program
    v <- v - m                                   beta = 0: v <- v - s g
    w <- prox_{delta J}(delta v)                 l1: delta soft(v, lam)

A weight that is zero stays so until |v| has grown beyond lam. w = prox_{delta J}(delta v) holds after every step, so |v| <= lam where w = 0
and v = w / delta + lam sign(w) elsewhere. Without penalty and with delta = 1 this is SGD.

State: v; m if beta > 0. Cost per step: O(N) beside the gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..penalties import Penalty
from ..schedules import Schedule
from .rule import Now, State, check_momentum, check_penalty, check_positive


@dataclass(frozen=True)
class LinBreg:
    """Linearised Bregman iterations.

    Args:
        penalty: J, convex.
        delta: weight of the quadratic part of the mirror map, positive; the step in w is delta lr.
        momentum: beta, in [0, 1).
    """

    penalty: Penalty
    delta: float = 1.0
    momentum: float = 0.0
    revives: ClassVar[bool] = True
    instant: ClassVar[bool] = True

    def __post_init__(self):
        check_penalty("LinBreg", self.penalty, convex=True)
        check_momentum("LinBreg", "momentum", self.momentum)
        check_positive("LinBreg", "delta", self.delta)

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        state = {"v": w.detach() / self.delta + strength * self.penalty.subgradient(w.detach())}
        return {**state, "m": torch.zeros_like(w)} if self.momentum else state

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, now: Now) -> None:
        self.descend_(g, state, now)
        self.show_(w, state, now)

    def descend_(self, g: list[Tensor], state: State, now: Now) -> None:
        """The step of the mirror variable."""
        s, beta, v = now.lr, self.momentum, state["v"]
        if not beta:
            torch._foreach_add_(v, g, alpha=-s)  # v <- v - s g
            return
        m = state["m"]
        torch._foreach_mul_(m, beta)
        torch._foreach_add_(m, g, alpha=(1 - beta) * s)  # m <- beta m + (1 - beta) s g
        torch._foreach_sub_(v, m)  # v <- v - m

    def show_(self, w: list[Tensor], state: State, now: Now) -> None:
        """The weights that belong to the mirror variable."""
        u = state["v"] if self.delta == 1.0 else torch._foreach_mul(state["v"], self.delta)
        torch._foreach_copy_(w, self.penalty.proxes(u, self.delta * now.strength))  # w <- prox_{delta J}(delta v)

    def levels(self, w: list[Tensor], state: State, now: Now) -> list[Tensor]:
        return [self.penalty.level(v, 1.0) for v in state["v"]]

    def schedules(self) -> dict[str, Schedule]:
        return {}
