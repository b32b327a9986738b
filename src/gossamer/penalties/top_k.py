"""At most n entries that are not zero: iterative hard thresholding (Blumensath & Davies 2009).

R(w)         = 0 where at most n entries of w are non-zero, else infinite
prox(u, tau) = the n entries of u of largest magnitude (among equals, of lower index), 0 elsewhere;
               u, if tau = 0
"""

# pyright: strict

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._errors import UsageError, check_density
from .maps import pairs
from .protocol import Tau, Taus


def _is_whole(n: object) -> bool:
    """Whether ``n`` is an int, and not a bool."""
    return isinstance(n, int) and not isinstance(n, bool)


@dataclass(frozen=True)
class TopK:
    """At most ``n`` non-zero entries in each tensor.

    Args:
        n: number of entries kept in each tensor, at least 1.
        density: in place of ``n``: the fraction of the entries kept in each tensor, in (0, 1]; at least one entry.
    """

    n: int | None = None
    density: float | None = None
    convex: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if (self.n is None) == (self.density is None):
            raise UsageError("TopK", "give either n or density, not both", got=(self.n, self.density))
        if self.n is not None and not (_is_whole(self.n) and self.n >= 1):
            raise UsageError("TopK", "n, the number of kept entries, must be an int of at least 1", got=self.n)
        if self.density is not None:
            check_density("TopK", self.density)

    def count(self, w: Tensor) -> int:
        """The number of entries of this tensor that are kept."""
        return min(w.numel(), self.n if self.n is not None else max(1, round((self.density or 0.0) * w.numel())))

    def value(self, w: Tensor) -> Tensor:
        return torch.where(w.count_nonzero() <= self.count(w), 0.0, math.inf)

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        if not u.numel() or (not isinstance(tau, Tensor) and tau == 0.0):
            return u.clone()
        k, size = self.count(u), u.abs().flatten()
        least = size.topk(k, sorted=True)[0][-1]
        above, level = size > least, size == least
        kept = above | (level & (level.cumsum(0) <= k - above.sum()))
        kept = kept.view(u.shape)
        return torch.where(kept | (tau == 0.0) if isinstance(tau, Tensor) else kept, u, 0.0)

    def proxes(self, us: Sequence[Tensor], taus: Taus) -> list[Tensor]:
        return [self.prox(u, tau) for u, tau in pairs(us, taus)]

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return torch.full_like(u, math.inf)

    def subgradient(self, w: Tensor) -> Tensor:
        return torch.zeros_like(w)

    def problems(self, shape: Sequence[int]) -> list[str]:
        numel = math.prod(shape)
        return [f"it would keep {self.n} of only {numel} entries"] if self.n is not None and self.n > numel else []
