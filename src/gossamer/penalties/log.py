"""Adaptively weighted l1 (Siegel, Chen, Zhang, Xu 2020, "Training sparse neural networks using compressed sensing"; the
numbers are its equations').

    R(w) = lam (beta + 1) sum_i M_i log(beta + |w_i| / M_i)       M_i: the largest |w| of the tensor

The logarithm is concave in |w|. At magnitudes r it is majorised, up to a constant, by lam sum weight(r) |w| with

    weight(r) = (beta + 1) / (beta + r / max r)        1 at the largest entry of a tensor, 1 + 1/beta at zero       (3)
    r         = running average of |w|                 kept by the rule                                             (5)

``prox(u, tau)`` is the proximal map of the majoriser: a soft threshold at lam tau, tau = step size times weight(r).
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
from .checks import checked_strength
from .maps import norms, pairs, ratio, root, shrink, soft, softs, spread, times
from .protocol import Tau, Taus


@dataclass(frozen=True)
class LogL1:
    """Adaptively weighted l1.

    Args:
        lam: strength, at least 0.
        beta: positive; a small beta penalises small weights more. The authors' program has F = 500 for 1 + 1/beta,
            which is ``beta=1/499``.
        group: ``"kernel"`` or ``"channel"``: the entries of such a group of a convolution share one threshold, as in
            the authors' program. r is the mean of |w| over the group, and the weight is multiplied by the square root
            of its size. None, and tensors that do not have four dimensions: each entry has its own threshold.
        shrinking: whether a whole group is shrunk by its l2 norm, as in early versions of that program. r is then the
            norm of the group.
    """

    lam: float
    beta: float = 2e-3
    group: str | None = None
    shrinking: bool = False
    convex: ClassVar[bool] = False
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", checked_strength(type(self).__name__, self.lam))
        if not is_real(self.beta) or not 0.0 < self.beta < math.inf:
            what = "beta must be a positive number; the smaller it is, the more small weights are penalised"
            raise UsageError("LogL1", what, got=self.beta)
        if self.group not in (None, "kernel", "channel"):
            raise UsageError("LogL1", f"unknown group {self.group!r}", remedy="None, 'kernel' or 'channel'")
        if self.shrinking and self.group is None:
            remedy = "group='kernel' or 'channel', or shrinking=False"
            raise UsageError("LogL1", "shrinking=True needs groups", remedy=remedy)

    def group_in(self, w: Tensor) -> str | None:
        """The kind of group that this tensor is divided into; None for single entries."""
        return self.group if w.dim() == 4 else None

    def magnitudes(self, w: Tensor) -> Tensor:
        """r of the present weights: |w|, or one number per group, (out, in) or (out,)."""
        group = self.group_in(w)
        if group is None:
            return w.abs()
        return norms(w, group) if self.shrinking else w.abs().mean((2, 3) if group == "kernel" else (1, 2, 3))

    def weights(self, r: Tensor, w: Tensor) -> Tensor:
        """(3) times the square root of the size of a group. It has the shape of ``r``.

        A tensor of zeros gets weight 0, so that its entries can become non-zero.
        """
        largest = r.max()
        relative = r / largest.clamp_min(torch.finfo(r.dtype).tiny)
        group = self.group_in(w)
        scale = (self.beta + 1) * (1.0 if group is None else root(w, group))
        return (relative + self.beta).reciprocal_().mul_((largest > 0).to(r.dtype) * scale)

    def batched_magnitudes(self, ws: Sequence[Tensor]) -> list[Tensor]:
        """:meth:`magnitudes` of many tensors."""
        return list(foreach.abs(list(ws))) if self.group is None else [self.magnitudes(w) for w in ws]

    def batched_weights(self, rs: Sequence[Tensor], ws: Sequence[Tensor]) -> list[Tensor]:
        """:meth:`weights` of many tensors. Without groups it is batched, except for two launches per tensor."""
        if self.group is not None:
            return [self.weights(r, w) for r, w in zip(rs, ws, strict=True)]
        largest = foreach.norm(list(rs), math.inf)
        z = [r / most.clamp_min(torch.finfo(r.dtype).tiny) for r, most in zip(rs, largest, strict=True)]
        foreach.add_(z, self.beta)
        foreach.reciprocal_(z)
        foreach.mul_(z, [(most > 0).to(most.dtype) * (self.beta + 1) for most in largest])
        return z

    def value(self, w: Tensor) -> Tensor:
        r = self.magnitudes(w)
        largest = r.max()
        logs = torch.log(self.beta + r / largest.clamp_min(torch.finfo(r.dtype).tiny)).sum()
        group = self.group_in(w)
        size = 1.0 if group is None else root(w, group) * (1.0 if self.shrinking else w.numel() / r.numel())
        return self.lam * (self.beta + 1) * largest * logs * size

    def majoriser(self, w: Tensor, tau: Tensor) -> Tensor:
        """lam sum tau |w|, or with ``shrinking`` lam sum_G tau_G |w_G|_2."""
        group = self.group_in(w)
        sizes = norms(w, group) if self.shrinking and group else w.abs()
        return self.lam * (sizes * (tau if sizes.shape == tau.shape else spread(tau, w))).sum()

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        group, tau = self.group_in(u), tau * self.lam
        if group is None or not isinstance(tau, Tensor):
            return soft(u, tau)
        return shrink(u, tau, group) if self.shrinking else soft(u, spread(tau, u))

    def proxes(self, us: Sequence[Tensor], taus: Taus) -> list[Tensor]:
        if self.group is None and not isinstance(taus, float):
            return softs(us, times(taus, self.lam))
        return [self.prox(u, tau) for u, tau in pairs(us, taus)]

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        group, tau = self.group_in(u), tau * self.lam
        if group is None or not isinstance(tau, Tensor):
            return ratio(u.abs(), tau)
        if self.shrinking:
            return spread(ratio(norms(u, group), tau), u).expand_as(u)
        return ratio(u.abs(), spread(tau, u))

    def subgradient(self, w: Tensor) -> Tensor:
        r, group = self.magnitudes(w), self.group_in(w)
        weights = self.weights(r, w)
        if self.shrinking and group:
            return self.lam * spread(weights / r.clamp_min(torch.finfo(r.dtype).tiny), w) * w
        return self.lam * (weights if weights.shape == w.shape else spread(weights, w)) * w.sign()

    def problems(self, shape: Sequence[int]) -> list[str]:
        return []
