"""Extended regularised dual averaging with momentum and adaptively weighted l1 (Siegel, Chen, Zhang, Xu 2020, "Training sparse
neural networks using compressed sensing"; the numbers are its equations'). For step sizes s_n, averaging alpha_n and time scales T:

    r_n <- e r_{n-1} + (1 - e) |w_n|             e = exp(-s_n / T_r)                                                    (5)
    z_n <- (beta + 1) / (beta + r_n / max r_n)                                                                          (3)
    S_n <- alpha_n S_{n-1} + s_n z_n             entry by entry; or S_n <- alpha_n S_{n-1} + s_n, threshold S_n z_n     (10)
    u_n <- alpha_n u_{n-1} + (1 - alpha_n) w_n                                                                          (10)
    v_n <- e v_{n-1} + (1 - e) g_n               e = exp(-s_n / T_v)                                                    (12)
    u_n <- u_n - s_n v_n
    w_{n+1} <- prox_{S_n R}(u_n)                 soft threshold at lam S_n

alpha = 0 is proximal gradient descent, alpha = 1 is regularised dual averaging. With 1 - alpha_n = s_n / s_0 the fixed point of S is s_0,
so the threshold stays while the step size goes to 0: ``averaging="paired"``.

The order of the lines, the accumulation of S entry by entry (``accumulate=True``) and the decay of *all* parameters are the authors'
program's; the paper prints one number S_n for all entries (``accumulate=False``). Unlike that program: an all-zero matrix gets weight 0 and
can come back (there 0/0), the step count is saved, no gradient is changed, and nothing of a tensor is read by the host.

State: u unless averaging is the number 0; v if T_v; r and S (entry by entry) for an adaptive penalty. With the gradient up to six times
the dense size. Cost per step: O(N) beside the gradient.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._errors import UsageError, is_real
from .._schedules import Schedule
from ..penalties import Penalty
from .checks import check_penalty, value_of
from .latent import drawn_back, shown_by
from .rule import State, StepInfo

PAIRED = "paired"


@dataclass(frozen=True)
class XRDA:
    """Extended regularised dual averaging.

    Args:
        penalty: R; with ``LogL1`` the method of the paper.
        averaging: alpha, a number in [0, 1]; a schedule t -> alpha_t; or ``"paired"``: 1 - lr / (largest lr so far).
        time_scale: T_v of the momentum, in units of the step size; None is no momentum. 9.5 with steps near 1 is a momentum of 0.9.
        magnitude_time_scale: T_r of the magnitudes (adaptive penalties); None takes ``time_scale``, and without either nothing is averaged.
        weight_decay: added to the gradient of every parameter, biases and normalisation too, on top of the group's own.
        accumulate: thresholds accumulate entry by entry.
    """

    penalty: Penalty
    averaging: float | str | Schedule = PAIRED
    time_scale: float | None = 9.5
    magnitude_time_scale: float | None = None
    weight_decay: float = 0.0
    accumulate: bool = True
    needs_dense: ClassVar[bool] = True
    zeros_follow_state: ClassVar[bool] = False

    def __post_init__(self):
        check_penalty("XRDA", self.penalty)
        a = self.averaging
        if a != PAIRED and not callable(a) and not (is_real(a) and 0.0 <= a <= 1.0):  # type: ignore[operator]
            raise UsageError("XRDA", "averaging is a number in [0, 1], a schedule, or 'paired'", got=a)
        for name in ("time_scale", "magnitude_time_scale"):
            value = getattr(self, name)
            if value is not None and not (is_real(value) and value > 0.0):
                raise UsageError(
                    "XRDA", f"{name} is a positive number of step sizes", got=value, remedy="None averages nothing"
                )
        if not is_real(self.weight_decay) or not 0.0 <= self.weight_decay < math.inf:
            raise UsageError("XRDA", "weight_decay is a number of at least 0", got=self.weight_decay)

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        if self.averaging != 0.0:
            state["u"] = w.detach().clone()
        if self.time_scale is not None:
            state["v"] = torch.zeros_like(w)
        if self.penalty.adaptive:
            state["r"] = torch.zeros_like(_adaptive(self.penalty).magnitudes(w))
            if self.accumulate:
                state["S"] = torch.zeros_like(state["r"])
        return state

    def alpha(self, now: StepInfo) -> float:
        """alpha_t of a step."""
        if callable(self.averaging):
            return value_of("averaging", self.averaging, now.t)
        if self.averaging == PAIRED:
            return 1 - now.lr / now.lr0 if now.lr0 > 0.0 else 0.0
        return float(self.averaging)  # type: ignore[arg-type]

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, now: StepInfo) -> None:
        s, a = now.lr, self.alpha(now)
        if self.weight_decay:
            g = list(torch._foreach_add(g, w, alpha=self.weight_decay))
        taus = self._thresholds(w, state, now, s, a)
        if "u" in state:
            u = state["u"]
            torch._foreach_lerp_(u, w, 1 - a)  # u <- a u + (1 - a) w
        else:
            u = w
        v = g
        if "v" in state:
            v = state["v"]
            torch._foreach_lerp_(v, g, 1 - _decay(s, self.time_scale))  # v <- e v + (1 - e) g
        torch._foreach_add_(u, v, alpha=-s)  # u <- u - s v
        torch._foreach_copy_(w, self.penalty.proxes(u, taus))  # w <- prox_{S R}(u)

    def _thresholds(self, w: list[Tensor], state: State, now: StepInfo, s: float, a: float) -> Any:
        """S_n times the strength: one number, or for an adaptive penalty a tensor for each of ``w``."""
        if not self.penalty.adaptive:
            now.sums["S"] = a * now.sums.get("S", 0.0) + s  # S <- a S + s
            return now.sums["S"] * now.strength
        penalty, r = _adaptive(self.penalty), state["r"]
        torch._foreach_lerp_(r, penalty.moments(w), 1 - _decay(s, self.magnitude_time_scale or self.time_scale))
        z = penalty.weightings(r, w)
        if not self.accumulate:
            now.sums["S"] = a * now.sums.get("S", 0.0) + s
            return torch._foreach_mul(z, now.sums["S"] * now.strength)
        torch._foreach_mul_(state["S"], a)
        torch._foreach_add_(state["S"], z, alpha=s)  # S <- a S + s z
        return state["S"] if now.strength == 1.0 else torch._foreach_mul(state["S"], now.strength)

    def restart_(self, w: list[Tensor], state: State, now: StepInfo) -> None:
        """The weights were written by somebody else: u becomes theirs."""
        if "u" not in state:
            return
        levels, S = self.zero_thresholds(w, state, now), now.sums.get("S", 0.0)
        for i, (p, u, level) in enumerate(zip(w, state["u"], levels, strict=True)):
            tau: Any = S
            if self.penalty.adaptive:
                penalty, r = _adaptive(self.penalty), state["r"][i]
                tau = state["S"][i] if self.accumulate else penalty.weightings([r], [p])[0] * S
            u.copy_(
                torch.where(p != 0, shown_by(self.penalty, p, tau * now.strength), drawn_back(u, level, now.strength))
            )

    def zero_thresholds(self, w: list[Tensor], state: State, now: StepInfo) -> list[Tensor]:
        if "u" in state:
            u = state["u"]
        else:
            v = state.get("v") or state.get("g")
            u = torch._foreach_sub(w, torch._foreach_mul(v, now.lr)) if v else w
        S: Any = now.sums.get("S", 0.0)
        if not self.penalty.adaptive:
            return [self.penalty.zero_threshold(p, S) for p in u]
        penalty = _adaptive(self.penalty)
        if self.accumulate:
            return [penalty.zero_threshold(p, tau) for p, tau in zip(u, state["S"], strict=True)]
        return [penalty.zero_threshold(p, z * S) for p, z in zip(u, penalty.weightings(state["r"], u), strict=True)]

    def schedules(self) -> dict[str, Schedule]:
        return {"averaging": self.averaging} if callable(self.averaging) else {}


def _decay(s: float, time_scale: float | None) -> float:
    return 0.0 if time_scale is None else math.exp(-s / time_scale)


def _adaptive(penalty: Any) -> Any:
    """An adaptive penalty, which has ``magnitudes`` and ``weights`` beyond what every penalty has."""
    return penalty
