"""AdaBreg: linearised Bregman iterations with Adam's step in the mirror variable (Bungert, Roith, Tenbrinck, Burger
2022, "A Bregman learning framework for sparse neural networks"):

    v_0 = w_0 / delta + p_0, p_0 in dJ(w_0), which is 0 where w_0 = 0
    m <- b1 m + (1 - b1) g,    q <- b2 q + (1 - b2) g^2
    v <- v - s / (1 - b1^t)  m / (sqrt(q) / sqrt(1 - b2^t) + eps)
    w <- prox_{delta J}(delta v)

Without penalty and with delta = 1 this is Adam (Kingma & Ba 2015).

State: v, m, q. Cost per step: O(N), without the gradient.
"""

# pyright: strict

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._backend import foreach
from .._errors import UsageError
from ..penalties import Penalty
from .checks import check_momentum, check_penalty, check_positive
from .mirror import Mirror
from .rule import State, StepInfo


@dataclass(frozen=True)
class AdaBreg(Mirror):
    """Linearised Bregman iterations with Adam's step.

    Args:
        penalty: J, convex.
        delta: weight of the quadratic part of the mirror map, positive.
        betas: b1, decay of the mean gradient m, and b2, decay of the mean squared gradient q; both in [0, 1).
        eps: positive, added to the square root of q.
    """

    penalty: Penalty
    delta: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_penalty("AdaBreg", self.penalty, convex=True)
        # pyright trusts the annotation, but a caller may pass anything
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:  # pyright: ignore
            raise UsageError("AdaBreg", "betas must be two numbers", got=self.betas)
        object.__setattr__(self, "betas", tuple(self.betas))
        for beta in self.betas:
            check_momentum("AdaBreg", "each of betas", beta)
        check_positive("AdaBreg", "delta", self.delta)
        check_positive("AdaBreg", "eps", self.eps)

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        v = self.mirrored(w, strength)
        return {"v": v, "m": torch.zeros_like(w), "q": torch.zeros_like(w)}

    def descend_(self, g: list[Tensor], state: State, step: StepInfo) -> None:
        (b1, b2), (v, m, q) = self.betas, (state[key] for key in ("v", "m", "q"))
        foreach.lerp_(m, g, 1 - b1)  # m <- b1 m + (1 - b1) g
        foreach.mul_(q, b2)
        foreach.addcmul_(q, g, g, 1 - b2)  # q <- b2 q + (1 - b2) g^2
        scale = foreach.sqrt(q)
        foreach.div_(scale, math.sqrt(1 - b2**step.t_group))
        foreach.add_(scale, self.eps)
        foreach.addcdiv_(v, m, scale, -step.lr / (1 - b1**step.t_group))  # v <- v - s / (1 - b1^t) m / (...)
