"""Regularised dual averaging (Xiao 2010, in the special case that Siegel, Chen, Zhang, Xu 2020 print as equation 9):

    u_n <- u_{n-1} - s_n g_n                     u_0 = w_0
    S_n <- S_{n-1} + s_n
    w_n <- prox_{S_n R}(u_n)                     the threshold grows with every step

State: u, and one number S for all tensors. Cost per step: O(N), without the gradient.
"""

# pyright: strict

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._backend import foreach
from .._schedules import Schedule
from ..penalties import Penalty
from .checks import check_penalty
from .latent import reduced_to_zero, shown_by
from .rule import State, StepInfo


@dataclass(frozen=True)
class RDA:
    """Regularised dual averaging.

    Args:
        penalty: R; any penalty that is not adaptive.
    """

    penalty: Penalty
    needs_dense: ClassVar[bool] = True
    zeros_follow_state: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_penalty("RDA", self.penalty, plain=True)

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        return {"u": w.detach().clone()}

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, step: StepInfo) -> None:
        s, u = step.lr, state["u"]
        foreach.add_(u, g, alpha=-s)  # u <- u - s g
        step.sums["S"] = step.sums.get("S", 0.0) + s  # S <- S + s
        foreach.copy_(w, self.penalty.proxes(u, step.sums["S"] * step.strength))  # w <- prox_{S R}(u)

    def restart_(self, w: list[Tensor], state: State, step: StepInfo) -> None:
        """Restarts u from the weights, after other code has written to them."""
        S = step.sums.get("S", 0.0)
        for p, u in zip(w, state["u"], strict=True):
            off = reduced_to_zero(u, self.penalty.zero_threshold(u, S), step.strength)
            u.copy_(torch.where(p != 0, shown_by(self.penalty, p, S * step.strength), off))

    def zero_thresholds(self, w: list[Tensor], state: State, step: StepInfo) -> list[Tensor]:
        return [self.penalty.zero_threshold(u, step.sums.get("S", 0.0)) for u in state["u"]]

    def schedules(self) -> dict[str, Schedule]:
        return {}
