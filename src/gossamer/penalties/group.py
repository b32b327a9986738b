"""The group l1 norm (Yuan & Lin 2006): whole groups of weights go to zero.

R(w)         = lam sum_G sqrt|G| |w_G|_2
prox(u, tau) = u_G max(0, 1 - tau lam sqrt|G| / |u_G|_2)      in every group G
"""

# pyright: strict

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .checks import check_group, checked_strength, group_problems
from .maps import norms, pairs, ratio, root, shrink, spread
from .protocol import Tau, Taus


@dataclass(frozen=True)
class GroupL1:
    """The group l1 norm, lam sum_G sqrt|G| |w_G|_2.

    Args:
        lam: strength, at least 0.
        group: ``"row"`` of a matrix (an output unit), ``"kernel"`` (an input-output pair) or
            ``"channel"`` (an output filter) of a convolution.
    """

    lam: float
    group: str = "row"
    convex: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", checked_strength(type(self).__name__, self.lam))
        check_group("GroupL1", self.group)

    def value(self, w: Tensor) -> Tensor:
        return self.lam * root(w, self.group) * norms(w, self.group).sum()

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        return shrink(u, tau * self.lam * root(u, self.group), self.group)

    def proxes(self, us: Sequence[Tensor], taus: Taus) -> list[Tensor]:
        return [self.prox(u, tau) for u, tau in pairs(us, taus)]

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return spread(ratio(norms(u, self.group), tau * self.lam * root(u, self.group)), u).expand_as(u)

    def subgradient(self, w: Tensor) -> Tensor:
        size = spread(norms(w, self.group), w)
        return self.lam * root(w, self.group) * torch.where(size > 0, w / size, 0.0)

    def problems(self, shape: Sequence[int]) -> list[str]:
        return group_problems(self.group, shape)
