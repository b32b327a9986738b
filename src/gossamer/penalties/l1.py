"""The l1 norm, and the l1 norm of non-negative weights.

L1              R(w) = lam sum |w|              prox(u, tau) = sign(u) max(|u| - tau lam, 0)
NonNegativeL1   R(w) = lam sum w, w >= 0        prox(u, tau) = max(u - tau lam, 0)
"""

# pyright: strict

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._backend import foreach
from .checks import checked_strength
from .maps import ratio, soft, softs, times
from .protocol import Tau, Taus


@dataclass(frozen=True)
class L1:
    """The l1 norm, lam sum |w|.

    Args:
        lam: strength, at least 0.
    """

    lam: float
    convex: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", checked_strength(type(self).__name__, self.lam))

    def value(self, w: Tensor) -> Tensor:
        return self.lam * w.abs().sum()

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        return soft(u, tau * self.lam)

    def proxes(self, us: Sequence[Tensor], taus: Taus) -> list[Tensor]:
        return softs(us, times(taus, self.lam))

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return ratio(u.abs(), tau * self.lam)

    def subgradient(self, w: Tensor) -> Tensor:
        return self.lam * w.sign()

    def problems(self, shape: Sequence[int]) -> list[str]:
        return []


@dataclass(frozen=True)
class NonNegativeL1:
    """The l1 norm of non-negative weights: lam sum w, infinite if an entry is negative. Weights stay at or above 0.

    Args:
        lam: strength, at least 0.
    """

    lam: float
    convex: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", checked_strength(type(self).__name__, self.lam))

    def value(self, w: Tensor) -> Tensor:
        return torch.where(w >= 0, self.lam * w, math.inf).sum()

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        return (u - tau * self.lam).clamp_min_(0.0)

    def proxes(self, us: Sequence[Tensor], taus: Taus) -> list[Tensor]:
        taus = times(taus, self.lam)
        kept = foreach.sub(list(us), taus if isinstance(taus, (int, float)) else list(taus))
        foreach.clamp_min_(kept, 0.0)
        return list(kept)

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return ratio(u.clamp_min(0.0), tau * self.lam)

    def subgradient(self, w: Tensor) -> Tensor:
        return self.lam * w.sign()

    def problems(self, shape: Sequence[int]) -> list[str]:
        return []
