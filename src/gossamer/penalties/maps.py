"""The maps that penalties share: thresholds of entries, shrinkage of groups.

Groups of a tensor: ``row`` of a matrix (out, in); ``kernel`` (out, in) and ``channel`` (out,) of a convolution
(out, in, kh, kw).
"""

# pyright: strict

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .._backend import foreach
from .protocol import Tau, Taus

GROUPS = {"row": 2, "kernel": 4, "channel": 4}  # number of dimensions of a tensor with this kind of group


def soft(u: Tensor, tau: Tau) -> Tensor:
    """The soft threshold sign(u) max(|u| - tau, 0); ``tau`` broadcasts."""
    return (u - tau).clamp_min_(0.0).add_((u + tau).clamp_max_(0.0))


def softs(us: Sequence[Tensor], taus: Taus) -> list[Tensor]:
    """:func:`soft` of many tensors, batched."""
    us = list(us)
    if isinstance(taus, (int, float)):
        above, below = foreach.sub(us, taus), foreach.add(us, taus)
    else:
        above, below = foreach.sub(us, list(taus)), foreach.add(us, list(taus))
    foreach.clamp_min_(above, 0.0)
    foreach.clamp_max_(below, 0.0)
    foreach.add_(above, below)
    return list(above)


def shrink(u: Tensor, tau: Tau, group: str) -> Tensor:
    """u_G max(0, 1 - tau / |u_G|_2) for every group; ``tau`` is one number, or one for each group."""
    size = norms(u, group)
    return u * spread((1 - tau / size.clamp_min(torch.finfo(u.dtype).tiny)).clamp_min_(0.0), u)


def ratio(size: Tensor, tau: Tau) -> Tensor:
    """size / tau, 0 where size is 0."""
    if isinstance(tau, Tensor):
        return torch.where(size > 0, size / tau, 0.0)
    return size / tau if tau > 0.0 else torch.where(size > 0, math.inf, 0.0)


def norms(w: Tensor, group: str) -> Tensor:
    """The l2 norm of every group: (out,) of rows and channels, (out, in) of kernels."""
    flat = w.flatten(2 if group == "kernel" else 1)
    return torch.linalg.vector_norm(flat, dim=-1)  # pyright: ignore  # torch gives it no types


def root(w: Tensor, group: str) -> float:
    """The square root of the number of entries of a group."""
    return math.sqrt(math.prod(w.shape[2:] if group == "kernel" else w.shape[1:]))


def spread(per_group: Tensor, w: Tensor) -> Tensor:
    """One number per group, (out,) or (out, in), as a tensor that broadcasts against ``w``."""
    return per_group.view(*per_group.shape, *[1] * (w.dim() - per_group.dim()))


def times(taus: Taus, factor: float) -> Taus:
    """``taus`` times a number."""
    return taus * factor if isinstance(taus, (int, float)) else foreach.mul(list(taus), factor)


def pairs(us: Sequence[Tensor], taus: Taus) -> Iterable[tuple[Tensor, Tau]]:
    """Pairs of a tensor and its ``tau``."""
    return zip(us, [taus] * len(us) if isinstance(taus, (int, float)) else taus, strict=True)
