"""Regularised dual averaging (Xiao 2010, in the special case that Siegel, Chen, Zhang, Xu 2020 print as equation 9):

    u_n <- u_{n-1} - s_n g_n                     u_0 = w_0
    S_n <- S_{n-1} + s_n
    w_n <- prox_{S_n R}(u_n)                     the threshold grows with all steps taken

State: u, and the number S for all tensors together. Cost per step: O(N) beside the gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._schedules import Schedule
from ..penalties import Penalty
from .checks import check_penalty
from .latent import drawn_back, shown_by
from .rule import State, StepInfo


@dataclass(frozen=True)
class RDA:
    """Regularised dual averaging.

    Args:
        penalty: R; any but the adaptive ones.
    """

    penalty: Penalty
    needs_dense: ClassVar[bool] = True
    zeros_follow_state: ClassVar[bool] = True

    def __post_init__(self):
        check_penalty("RDA", self.penalty, plain=True)

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        return {"u": w.detach().clone()}

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, now: StepInfo) -> None:
        s, u = now.lr, state["u"]
        torch._foreach_add_(u, g, alpha=-s)  # u <- u - s g
        now.sums["S"] = now.sums.get("S", 0.0) + s  # S <- S + s
        torch._foreach_copy_(w, self.penalty.proxes(u, now.sums["S"] * now.strength))  # w <- prox_{S R}(u)

    def restart_(self, w: list[Tensor], state: State, now: StepInfo) -> None:
        """The weights were written by somebody else: u becomes theirs."""
        S = now.sums.get("S", 0.0)
        for p, u in zip(w, state["u"], strict=True):
            back = drawn_back(u, self.penalty.zero_threshold(u, S), now.strength)
            u.copy_(torch.where(p != 0, shown_by(self.penalty, p, S * now.strength), back))

    def zero_thresholds(self, w: list[Tensor], state: State, now: StepInfo) -> list[Tensor]:
        return [self.penalty.zero_threshold(u, now.sums.get("S", 0.0)) for u in state["u"]]

    def schedules(self) -> dict[str, Schedule]:
        return {}
