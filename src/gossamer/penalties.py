"""Penalties R(w): value, proximal map, and the subgradient that initialises a mirror variable. Frozen values; they hold no state.

    prox(u, tau) = argmin_w  tau R(w) + |w - u|^2 / 2

    L1              lam sum |w|                                   soft threshold at tau lam
    NonNegativeL1   lam sum w, w >= 0                             max(u - tau lam, 0)
    GroupL1         lam sum_G sqrt|G| |w_G|_2                     group shrinkage (Yuan & Lin 2006)
    LogL1           lam (beta + 1) sum_i M_i log(beta + |w_i| / M_i)    through its majoriser, a weighted l1: see the class
    TopK            0 where at most n entries are non-zero, else infinite: keeps the n largest (iterative hard thresholding)

Groups of a tensor: ``row`` of a matrix (out, in); ``kernel`` (out, in) and ``channel`` (out,) of a convolution (out, in, kh, kw).
``proxes`` is ``prox`` of many tensors at once, batched with torch's foreach functions where the map is element by element.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ._errors import UsageError, check_density, is_real

GROUPS = {"row": 2, "kernel": 4, "channel": 4}  # the dimensions of the tensors that each kind of group cuts
Tau = float | Tensor


@runtime_checkable
class Penalty(Protocol):
    """What a rule asks of a penalty. ``convex``: a mirror map may be built on it. ``adaptive``: the rule passes weights in ``tau``."""

    convex: ClassVar[bool]
    adaptive: ClassVar[bool]

    def value(self, w: Tensor) -> Tensor:
        """R(w), a tensor of no dimensions."""
        ...

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        """argmin_w tau R(w) + |w - u|^2 / 2, a new tensor of the shape of ``u``."""
        ...

    def proxes(self, us: Sequence[Tensor], taus: float | Sequence[Tensor]) -> list[Tensor]:
        """``prox`` of each, at one ``tau`` for all or one for each."""
        ...

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        """Entry by entry the least factor f for which prox(u, f tau) is zero there, in the shape of ``u``; infinite where none is."""
        ...

    def subgradient(self, w: Tensor) -> Tensor:
        """An element of the subdifferential at ``w``, 0 where w is 0."""
        ...

    def problems(self, shape: Sequence[int]) -> list[str]:
        """Why it cannot penalise a tensor of this shape, in sentences; [] if it can."""
        ...


@dataclass(frozen=True)
class Zero:
    """No penalty: what biases and normalisation get."""

    convex: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def value(self, w: Tensor) -> Tensor:
        return w.new_zeros(())

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        return u.clone()

    def proxes(self, us: Sequence[Tensor], taus: float | Sequence[Tensor]) -> list[Tensor]:
        return list(us)

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return torch.full_like(u, math.inf)

    def subgradient(self, w: Tensor) -> Tensor:
        return torch.zeros_like(w)

    def problems(self, shape: Sequence[int]) -> list[str]:
        return []


@dataclass(frozen=True)
class L1:
    """lam sum |w|."""

    lam: float
    convex: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def __post_init__(self):
        _check_lam(self)

    def value(self, w: Tensor) -> Tensor:
        return self.lam * w.abs().sum()

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        return soft(u, tau * self.lam)

    def proxes(self, us: Sequence[Tensor], taus: float | Sequence[Tensor]) -> list[Tensor]:
        return softs(us, times(taus, self.lam))

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return ratio(u.abs(), tau * self.lam)

    def subgradient(self, w: Tensor) -> Tensor:
        return self.lam * w.sign()

    def problems(self, shape: Sequence[int]) -> list[str]:
        return []


@dataclass(frozen=True)
class NonNegativeL1:
    """lam sum w, infinite where an entry is negative: weights stay at or above 0."""

    lam: float
    convex: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def __post_init__(self):
        _check_lam(self)

    def value(self, w: Tensor) -> Tensor:
        return torch.where(w >= 0, self.lam * w, math.inf).sum()

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        return (u - tau * self.lam).clamp_min_(0.0)

    def proxes(self, us: Sequence[Tensor], taus: float | Sequence[Tensor]) -> list[Tensor]:
        kept = torch._foreach_sub(list(us), times(taus, self.lam))
        torch._foreach_clamp_min_(kept, 0.0)
        return list(kept)

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return ratio(u.clamp_min(0.0), tau * self.lam)

    def subgradient(self, w: Tensor) -> Tensor:
        return self.lam * w.sign()

    def problems(self, shape: Sequence[int]) -> list[str]:
        return []


@dataclass(frozen=True)
class GroupL1:
    """lam sum_G sqrt|G| |w_G|_2: whole groups go to zero.

    Args:
        lam: strength.
        group: ``"row"`` of a matrix (an output unit), ``"kernel"`` (an input-output pair) or ``"channel"`` (an output filter) of a
            convolution.
    """

    lam: float
    group: str = "row"
    convex: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def __post_init__(self):
        _check_lam(self)
        _check_group("GroupL1", self.group)

    def value(self, w: Tensor) -> Tensor:
        return self.lam * root(w, self.group) * norms(w, self.group).sum()

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        return shrink(u, tau * self.lam * root(u, self.group), self.group)

    def proxes(self, us: Sequence[Tensor], taus: float | Sequence[Tensor]) -> list[Tensor]:
        return [self.prox(u, tau) for u, tau in _pairs(us, taus)]

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return spread(ratio(norms(u, self.group), tau * self.lam * root(u, self.group)), u).expand_as(u)

    def subgradient(self, w: Tensor) -> Tensor:
        size = spread(norms(w, self.group), w)
        return self.lam * root(w, self.group) * torch.where(size > 0, w / size, 0.0)

    def problems(self, shape: Sequence[int]) -> list[str]:
        return _group_problems(self.group, shape)


@dataclass(frozen=True)
class LogL1:
    """Adaptively weighted l1 (Siegel, Chen, Zhang, Xu 2020, "Training sparse neural networks using compressed sensing", equations 3 to 5).

    The logarithm is concave in |w|; where the magnitudes are r, it is majorised up to a constant by lam sum weight(r) |w| with

        weight(r) = (beta + 1) / (beta + r / max r)        1 at the largest entry of a tensor, 1 + 1/beta at zero            (3)
        r         = running average of |w|                 kept by the rule                                                  (5)

    ``prox(u, tau)`` is that of the majoriser: ``tau`` is the step times the weights, a tensor shaped like :meth:`magnitudes`. The
    authors' program has F = 500 for 1 + 1/beta: ``beta=1/499``.

    Args:
        lam: strength.
        beta: how much more small weights are penalised.
        group: as in the authors' program, convolutions may share thresholds: r is the mean of |w| over a ``"kernel"`` or a
            ``"channel"``, and the weight grows by the root of its size; every weight still passes its own threshold. Tensors of other
            than four dimensions are always taken entry by entry (None).
        shrinking: shrink a group as one by its l2 norm, as in early versions of that program: r is then the norm of the group.
    """

    lam: float
    beta: float = 2e-3
    group: str | None = None
    shrinking: bool = False
    convex: ClassVar[bool] = False
    adaptive: ClassVar[bool] = True

    def __post_init__(self):
        _check_lam(self)
        if not is_real(self.beta) or not 0.0 < self.beta < math.inf:
            raise UsageError(
                "LogL1", "beta is a positive number; small values penalise small weights most", got=self.beta
            )
        if self.group not in (None, "kernel", "channel"):
            raise UsageError("LogL1", f"unknown group {self.group!r}", remedy="None, 'kernel' or 'channel'")
        if self.shrinking and self.group is None:
            raise UsageError(
                "LogL1", "shrinking is done to groups", remedy="group='kernel' or 'channel', or shrinking=False"
            )

    def cut(self, w: Tensor) -> str | None:
        """The kind of group that this tensor is cut into, None for single entries."""
        return self.group if w.dim() == 4 else None

    def magnitudes(self, w: Tensor) -> Tensor:
        """r of one moment: |w|, or one number per group, (out, in) or (out,)."""
        kind = self.cut(w)
        if kind is None:
            return w.abs()
        return norms(w, kind) if self.shrinking else w.abs().mean((2, 3) if kind == "kernel" else (1, 2, 3))

    def weights(self, r: Tensor, w: Tensor) -> Tensor:
        """(3), in the shape of ``r``, times the root of a group's size; 0 for a tensor that is all zero, which so can come back."""
        largest = r.max()
        ratio = r / largest.clamp_min(torch.finfo(r.dtype).tiny)
        kind = self.cut(w)
        scale = (self.beta + 1) * (1.0 if kind is None else root(w, kind))
        return (ratio + self.beta).reciprocal_().mul_((largest > 0).to(r.dtype) * scale)

    def moments(self, ws: Sequence[Tensor]) -> list[Tensor]:
        """:meth:`magnitudes` of many tensors."""
        return list(torch._foreach_abs(list(ws))) if self.group is None else [self.magnitudes(w) for w in ws]

    def weightings(self, rs: Sequence[Tensor], ws: Sequence[Tensor]) -> list[Tensor]:
        """:meth:`weights` of many tensors: of single entries, two launches for each and the rest batched."""
        if self.group is not None:
            return [self.weights(r, w) for r, w in zip(rs, ws, strict=True)]
        largest = torch._foreach_norm(list(rs), math.inf)
        z = [r / most.clamp_min(torch.finfo(r.dtype).tiny) for r, most in zip(rs, largest, strict=True)]
        torch._foreach_add_(z, self.beta)
        torch._foreach_reciprocal_(z)
        torch._foreach_mul_(z, [(most > 0).to(most.dtype) * (self.beta + 1) for most in largest])
        return z

    def value(self, w: Tensor) -> Tensor:
        r = self.magnitudes(w)
        largest = r.max()
        logs = torch.log(self.beta + r / largest.clamp_min(torch.finfo(r.dtype).tiny)).sum()
        kind = self.cut(w)
        size = 1.0 if kind is None else root(w, kind) * (1.0 if self.shrinking else w.numel() / r.numel())
        return self.lam * (self.beta + 1) * largest * logs * size

    def majoriser(self, w: Tensor, tau: Tensor) -> Tensor:
        """lam sum tau |w|, or with ``shrinking`` lam sum_G tau_G |w_G|_2: what ``prox(u, tau)`` belongs to."""
        kind = self.cut(w)
        sizes = norms(w, kind) if self.shrinking and kind else w.abs()
        return self.lam * (sizes * (tau if sizes.shape == tau.shape else spread(tau, w))).sum()

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        kind, tau = self.cut(u), tau * self.lam
        if kind is None or not isinstance(tau, Tensor):
            return soft(u, tau)
        return shrink(u, tau, kind) if self.shrinking else soft(u, spread(tau, u))

    def proxes(self, us: Sequence[Tensor], taus: float | Sequence[Tensor]) -> list[Tensor]:
        if self.group is None and not isinstance(taus, float):
            return softs(us, times(taus, self.lam))
        return [self.prox(u, tau) for u, tau in _pairs(us, taus)]

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        kind, tau = self.cut(u), tau * self.lam
        if kind is None or not isinstance(tau, Tensor):
            return ratio(u.abs(), tau)
        return spread(ratio(norms(u, kind), tau), u).expand_as(u) if self.shrinking else ratio(u.abs(), spread(tau, u))

    def subgradient(self, w: Tensor) -> Tensor:
        r, kind = self.magnitudes(w), self.cut(w)
        weights = self.weights(r, w)
        if self.shrinking and kind:
            return self.lam * spread(weights / r.clamp_min(torch.finfo(r.dtype).tiny), w) * w
        return self.lam * (weights if weights.shape == w.shape else spread(weights, w)) * w.sign()

    def problems(self, shape: Sequence[int]) -> list[str]:
        return []


@dataclass(frozen=True)
class TopK:
    """At most ``n`` non-zero entries in each tensor: the n largest in magnitude stay; ties: the lower index.

    Args:
        n: entries kept in each tensor; or
        density: share of them kept, in (0, 1], at least one.
    """

    n: int | None = None
    density: float | None = None
    convex: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False

    def __post_init__(self):
        if (self.n is None) == (self.density is None):
            raise UsageError("TopK", "give either n or density", got=(self.n, self.density))
        if self.n is not None and (isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1):
            raise UsageError("TopK", "n counts the entries that are kept, a whole number of at least 1", got=self.n)
        if self.density is not None:
            check_density("TopK", self.density)

    def count(self, w: Tensor) -> int:
        """Entries kept of this tensor."""
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

    def proxes(self, us: Sequence[Tensor], taus: float | Sequence[Tensor]) -> list[Tensor]:
        return [self.prox(u, tau) for u, tau in _pairs(us, taus)]

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return torch.full_like(u, math.inf)

    def subgradient(self, w: Tensor) -> Tensor:
        return torch.zeros_like(w)

    def problems(self, shape: Sequence[int]) -> list[str]:
        numel = math.prod(shape)
        return [f"keeps {self.n} of {numel} entries"] if self.n is not None and self.n > numel else []


# -------------------------------------------------------------------- the maps


def soft(u: Tensor, tau: Tau) -> Tensor:
    """The soft threshold sign(u) max(|u| - tau, 0); ``tau`` broadcasts."""
    return (u - tau).clamp_min_(0.0).add_((u + tau).clamp_max_(0.0))


def softs(us: Sequence[Tensor], taus: float | Sequence[Tensor]) -> list[Tensor]:
    """:func:`soft` of many tensors, batched."""
    shifts: Any = taus if isinstance(taus, (int, float)) else list(taus)
    above, below = torch._foreach_sub(list(us), shifts), torch._foreach_add(list(us), shifts)
    torch._foreach_clamp_min_(above, 0.0)
    torch._foreach_clamp_max_(below, 0.0)
    torch._foreach_add_(above, below)
    return list(above)


def shrink(u: Tensor, tau: Tau, group: str) -> Tensor:
    """u_G max(0, 1 - tau / |u_G|_2) for every group; ``tau`` is one number or one for each group."""
    size = norms(u, group)
    return u * spread((1 - tau / size.clamp_min(torch.finfo(u.dtype).tiny)).clamp_min_(0.0), u)


def ratio(size: Tensor, tau: Tau) -> Tensor:
    """size / tau, 0 where size is 0."""
    if isinstance(tau, Tensor):
        return torch.where(size > 0, size / tau, 0.0)
    return size / tau if tau > 0.0 else torch.where(size > 0, math.inf, 0.0)


def norms(w: Tensor, group: str) -> Tensor:
    """The l2 norm of every group: (out,) of rows and channels, (out, in) of kernels."""
    return torch.linalg.vector_norm(w.flatten(2 if group == "kernel" else 1), dim=-1)


def root(w: Tensor, group: str) -> float:
    """The root of the size of a group."""
    return math.sqrt(math.prod(w.shape[2:] if group == "kernel" else w.shape[1:]))


def spread(per_group: Tensor, w: Tensor) -> Tensor:
    """One number per group, (out,) or (out, in), as a tensor that broadcasts against ``w``."""
    return per_group.view(*per_group.shape, *[1] * (w.dim() - per_group.dim()))


def times(taus: float | Sequence[Tensor], factor: float) -> Any:
    """``taus`` times a number."""
    return taus * factor if isinstance(taus, (int, float)) else torch._foreach_mul(list(taus), factor)


# -------------------------------------------------------------------- details


def _pairs(us: Sequence[Tensor], taus: float | Sequence[Tensor]) -> Any:
    return zip(us, [taus] * len(us) if isinstance(taus, (int, float)) else taus, strict=True)


def _check_lam(penalty: Any) -> None:
    lam = penalty.lam
    if not is_real(lam) or not 0.0 <= lam < math.inf:
        raise UsageError(type(penalty).__name__, "lam, the strength of the penalty, is a number of at least 0", got=lam)
    object.__setattr__(penalty, "lam", float(lam))


def _check_group(who: str, group: str) -> None:
    if group not in GROUPS:
        raise UsageError(who, f"unknown group {group!r}", remedy=f"one of {', '.join(GROUPS)}")


def _group_problems(group: str, shape: Sequence[int]) -> list[str]:
    dims = GROUPS[group]
    return (
        []
        if len(shape) == dims
        else [f"a {group} is part of a tensor of {dims} dimensions, and this one has {len(shape)}"]
    )
