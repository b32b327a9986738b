"""What the rules of mirror descent share: the mirror map J_delta(w) = J(w) + |w|^2 / (2 delta), J the penalty, and its variable v.

    v_0 = w_0 / delta + p_0, p_0 in dJ(w_0), which is 0 where w_0 = 0
    a step of v                                  the rule's own: ``descend_``
    w <- prox_{delta J}(delta v)                 l1: delta soft(v, lam)

A weight that is zero stays so until |v| has grown beyond lam. w = prox_{delta J}(delta v) holds after every step, so |v| <= lam where w = 0
and v = w / delta + lam sign(w) elsewhere: which weights are zero follows from v and the strength alone.
"""

from typing import ClassVar

import torch
from torch import Tensor

from .._schedules import Schedule
from ..penalties import Penalty
from .latent import drawn_back
from .rule import State, StepInfo


class Mirror:
    """A rule whose weights are the image of a mirror variable; made into one by ``descend_`` and the state that it needs beside v."""

    penalty: Penalty
    delta: float
    needs_dense: ClassVar[bool] = True
    zeros_follow_state: ClassVar[bool] = True

    def mirrored(self, w: Tensor, strength: float) -> Tensor:
        """v_0."""
        return w.detach() / self.delta + strength * self.penalty.subgradient(w.detach())

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, now: StepInfo) -> None:
        self.descend_(g, state, now)
        self.show_(w, state, now)

    def descend_(self, g: list[Tensor], state: State, now: StepInfo) -> None:
        """The step of the mirror variable."""
        raise NotImplementedError

    def show_(self, w: list[Tensor], state: State, now: StepInfo) -> None:
        """The weights that belong to the mirror variable."""
        u = state["v"] if self.delta == 1.0 else torch._foreach_mul(state["v"], self.delta)
        torch._foreach_copy_(w, self.penalty.proxes(u, self.delta * now.strength))  # w <- prox_{delta J}(delta v)

    def restart_(self, w: list[Tensor], state: State, now: StepInfo) -> None:
        """The weights were written by somebody else: v becomes theirs."""
        for p, v in zip(w, state["v"], strict=True):
            back = drawn_back(v, self.penalty.zero_threshold(v, 1.0), now.strength)
            v.copy_(torch.where(p != 0, self.mirrored(p, now.strength), back))

    def zero_thresholds(self, w: list[Tensor], state: State, now: StepInfo) -> list[Tensor]:
        return [self.penalty.zero_threshold(v, 1.0) for v in state["v"]]

    def schedules(self) -> dict[str, Schedule]:
        return {}
