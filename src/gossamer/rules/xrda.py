"""Extended regularised dual averaging with momentum and adaptively weighted l1 (Siegel, Chen, Zhang, Xu 2020, "Training
sparse neural networks using compressed sensing"; the numbers are its equations').

For step sizes s_n, averaging alpha_n and time scales T:

    r_n <- e r_{n-1} + (1 - e) |w_n|             e = exp(-s_n / T_r)                                                (5)
    z_n <- (beta + 1) / (beta + r_n / max r_n)                                                                      (3)
    S_n <- alpha_n S_{n-1} + s_n z_n             entry by entry; or S_n <- alpha_n S_{n-1} + s_n, threshold S_n z_n (10)
    u_n <- alpha_n u_{n-1} + (1 - alpha_n) w_n                                                                      (10)
    v_n <- e v_{n-1} + (1 - e) g_n               e = exp(-s_n / T_v)                                                (12)
    u_n <- u_n - s_n v_n
    w_{n+1} <- prox_{S_n R}(u_n)                 soft threshold at lam S_n

alpha = 0 is proximal gradient descent, alpha = 1 is regularised dual averaging. With 1 - alpha_n = s_n / s_0 the fixed
point of S is s_0, so the threshold stays constant while the step size goes to 0: ``averaging="paired"``.

The order of the lines, the accumulation of S entry by entry (``accumulate=True``) and the decay of *all* parameters are
those of the authors' program. The paper prints one number S_n for all entries (``accumulate=False``). Four things
differ from that program: a matrix of zeros gets weight 0 and can become non-zero (there 0/0); the step count is saved;
gradients are not changed; the host reads no value of a tensor.

State: u, unless averaging is the number 0; v, if T_v is set; r and S (entry by entry) for an adaptive penalty. With the
gradient this is up to six times the dense size. Cost per step: O(N), without the gradient.
"""

# pyright: strict

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._backend import foreach
from .._errors import UsageError, is_real
from .._schedules import Schedule
from ..penalties import Penalty, Tau, Taus, is_adaptive
from .checks import check_penalty, value_of
from .latent import reduced_to_zero, shown_by
from .rule import State, StepInfo

PAIRED = "paired"


@dataclass(frozen=True)
class XRDA:
    """Extended regularised dual averaging.

    Args:
        penalty: R; ``LogL1`` gives the method of the paper.
        averaging: alpha: a number in [0, 1]; a schedule t -> alpha_t; or ``"paired"``: 1 - lr / (largest lr so far).
        time_scale: T_v of the momentum, in units of the step size; None is no momentum. At step size 1, 9.5 is a
            momentum of 0.9.
        magnitude_time_scale: T_r of the magnitudes (adaptive penalties). None uses ``time_scale``; if that is None
            too, nothing is averaged.
        weight_decay: this factor times the weight is added to the gradient of every parameter, biases and
            normalisation too, in addition to the group's ``weight_decay``.
        accumulate: whether thresholds accumulate entry by entry.
    """

    penalty: Penalty
    averaging: float | str | Schedule = PAIRED
    time_scale: float | None = 9.5
    magnitude_time_scale: float | None = None
    weight_decay: float = 0.0
    accumulate: bool = True
    needs_dense: ClassVar[bool] = True
    zeros_follow_state: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_penalty("XRDA", self.penalty)
        a = self.averaging
        if a != PAIRED and not callable(a) and not (is_real(a) and 0.0 <= float(a) <= 1.0):
            raise UsageError("XRDA", "averaging must be a number in [0, 1], a schedule, or 'paired'", got=a)
        for name in ("time_scale", "magnitude_time_scale"):
            value = getattr(self, name)
            if value is not None and not (is_real(value) and value > 0.0):
                what = f"{name} must be a positive number, in units of the step size"
                raise UsageError("XRDA", what, got=value, remedy="None averages nothing")
        if not is_real(self.weight_decay) or not 0.0 <= self.weight_decay < math.inf:
            raise UsageError("XRDA", "weight_decay must be a finite number of at least 0", got=self.weight_decay)

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        if self.averaging != 0.0:
            state["u"] = w.detach().clone()
        if self.time_scale is not None:
            state["v"] = torch.zeros_like(w)
        if is_adaptive(self.penalty):
            state["r"] = torch.zeros_like(self.penalty.magnitudes(w))
            if self.accumulate:
                state["S"] = torch.zeros_like(state["r"])
        return state

    def alpha(self, step: StepInfo) -> float:
        """alpha_t of a step."""
        if callable(self.averaging):
            return value_of("averaging", self.averaging, step.t)
        if self.averaging == PAIRED:
            return 1 - step.lr / step.largest_lr if step.largest_lr > 0.0 else 0.0
        return float(self.averaging)

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, step: StepInfo) -> None:
        s, a = step.lr, self.alpha(step)
        if self.weight_decay:
            g = list(foreach.add(g, w, alpha=self.weight_decay))
        taus = self._thresholds(w, state, step, s, a)
        if "u" in state:
            u = state["u"]
            foreach.lerp_(u, w, 1 - a)  # u <- a u + (1 - a) w
        else:
            u = w
        v = g
        if "v" in state:
            v = state["v"]
            foreach.lerp_(v, g, 1 - _decay(s, self.time_scale))  # v <- e v + (1 - e) g
        foreach.add_(u, v, alpha=-s)  # u <- u - s v
        foreach.copy_(w, self.penalty.proxes(u, taus))  # w <- prox_{S R}(u)

    def _thresholds(self, w: list[Tensor], state: State, step: StepInfo, s: float, a: float) -> Taus:
        """S_n times the strength: one number, or, for an adaptive penalty, one tensor for each of ``w``."""
        if not is_adaptive(self.penalty):
            return self._summed(step, s, a)
        r = state["r"]
        scale = self.magnitude_time_scale or self.time_scale
        foreach.lerp_(r, self.penalty.batched_magnitudes(w), 1 - _decay(s, scale))  # r <- e r + (1 - e) |w|
        z = self.penalty.batched_weights(r, w)
        if not self.accumulate:
            return foreach.mul(z, self._summed(step, s, a))
        foreach.mul_(state["S"], a)
        foreach.add_(state["S"], z, alpha=s)  # S <- a S + s z
        return state["S"] if step.strength == 1.0 else foreach.mul(state["S"], step.strength)

    def _summed(self, step: StepInfo, s: float, a: float) -> float:
        step.sums["S"] = a * step.sums.get("S", 0.0) + s  # S <- a S + s
        return step.sums["S"] * step.strength

    def restart_(self, w: list[Tensor], state: State, step: StepInfo) -> None:
        """Restarts u from the weights, after other code has written to them."""
        if "u" not in state:
            return
        thresholds, taus = self.zero_thresholds(w, state, step), self._kept(w, state, step)
        for p, u, threshold, tau in zip(w, state["u"], thresholds, taus, strict=True):
            off = reduced_to_zero(u, threshold, step.strength)
            u.copy_(torch.where(p != 0, shown_by(self.penalty, p, tau * step.strength), off))

    def zero_thresholds(self, w: list[Tensor], state: State, step: StepInfo) -> list[Tensor]:
        u = state.get("u")
        if u is None:
            v = state.get("v") or state.get("g")  # the next gradient is not known, so the last one is used
            u = list(foreach.sub(w, foreach.mul(v, step.lr))) if v else w
        taus = self._kept(u, state, step)
        return [self.penalty.zero_threshold(p, tau) for p, tau in zip(u, taus, strict=True)]

    def _kept(self, w: list[Tensor], state: State, step: StepInfo) -> Sequence[Tau]:
        """The threshold S of each tensor as the last step left it, at strength 1."""
        S = step.sums.get("S", 0.0)
        if not is_adaptive(self.penalty):
            return [S] * len(w)
        return state["S"] if self.accumulate else [z * S for z in self.penalty.batched_weights(state["r"], w)]

    def schedules(self) -> dict[str, Schedule]:
        return {"averaging": self.averaging} if callable(self.averaging) else {}


def _decay(s: float, time_scale: float | None) -> float:
    return 0.0 if time_scale is None else math.exp(-s / time_scale)
