"""The common part of the rules of mirror descent: the mirror map J_delta(w) = J(w) + |w|^2 / (2 delta) and its variable
v. J is the penalty.

    v_0 = w_0 / delta + p_0, p_0 in dJ(w_0), which is 0 where w_0 = 0
    a step of v                                  each rule has its own: ``descend_``
    w <- prox_{delta J}(delta v)                 l1: delta soft(v, lam)

A zero weight stays zero until |v| has grown beyond lam (l1). w = prox_{delta J}(delta v) holds after every step, so
|v| <= lam where w = 0, and v = w / delta + lam sign(w) elsewhere. So v and the strength alone decide which weights are
zero.
"""

# pyright: strict

from typing import ClassVar

import torch
from torch import Tensor

from .._backend import foreach
from .._schedules import Schedule
from ..penalties import Penalty
from .latent import reduced_to_zero
from .rule import State, StepInfo


class Mirror:
    """The part of a :class:`~gossamer.rules.rule.MirrorRule` that does not depend on the step of v.

    A subclass adds ``init``, with an entry ``"v"``, and ``descend_``.
    """

    penalty: Penalty
    delta: float
    needs_dense: ClassVar[bool] = True
    zeros_follow_state: ClassVar[bool] = True

    def mirrored(self, w: Tensor, strength: float) -> Tensor:
        """v_0."""
        return w.detach() / self.delta + strength * self.penalty.subgradient(w.detach())

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, step: StepInfo) -> None:
        self.descend_(g, state, step)
        self.show_(w, state, step)

    def descend_(self, g: list[Tensor], state: State, step: StepInfo) -> None:
        """The step of the mirror variable."""
        raise NotImplementedError

    def show_(self, w: list[Tensor], state: State, step: StepInfo) -> None:
        """Writes the weights that belong to the mirror variable into ``w``."""
        u = state["v"] if self.delta == 1.0 else foreach.mul(state["v"], self.delta)
        foreach.copy_(w, self.penalty.proxes(u, self.delta * step.strength))  # w <- prox_{delta J}(delta v)

    def restart_(self, w: list[Tensor], state: State, step: StepInfo) -> None:
        """Restarts v from the weights, after other code has written to them."""
        for p, v in zip(w, state["v"], strict=True):
            off = reduced_to_zero(v, self.penalty.zero_threshold(v, 1.0), step.strength)
            v.copy_(torch.where(p != 0, self.mirrored(p, step.strength), off))

    def zero_thresholds(self, w: list[Tensor], state: State, step: StepInfo) -> list[Tensor]:
        return [self.penalty.zero_threshold(v, 1.0) for v in state["v"]]

    def schedules(self) -> dict[str, Schedule]:
        return {}
