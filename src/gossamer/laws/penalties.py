"""The law of penalties."""

# torch leaves Tensor.norm without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..penalties import Penalty
from .details import demand

SHAPES = ((7,), (5, 7), (3, 4, 3, 2))


def check_penalty(penalty: Penalty, *, shapes: Sequence[tuple[int, ...]] = SHAPES) -> None:
    """``prox`` is the argmin of tau R(w) + |w - u|^2 / 2. With tau = 0 it is the identity, also at 0.

    The prox of a convex penalty does not expand distances, and its subgradient supports it from below. ``proxes``
    applies ``prox`` to each tensor. Arguments do not change. For an adaptive penalty R is its majoriser.

    Args:
        penalty: the penalty.
        shapes: shapes of the tested tensors; shapes that do not fit the penalty are skipped.

    Raises: AssertionError.
    """
    fitting = [shape for shape in shapes if not penalty.problems(shape)]
    demand(bool(fitting), f"{penalty} fits none of {shapes}")
    adaptive: Any = penalty  # what the protocol does not name: magnitudes and majoriser of an adaptive penalty
    rng = torch.Generator().manual_seed(0)
    us: list[Tensor] = []
    taus: list[Any] = []
    for shape in fitting:
        for scale in (1.0, 0.1):
            u = torch.randn(shape, generator=rng, dtype=torch.float64) * scale
            tau: Any = 0.3
            if penalty.adaptive:
                tau = torch.rand(adaptive.magnitudes(u).shape, generator=rng, dtype=torch.float64)
            where = f"{penalty} on {shape}"
            _check_prox(penalty, u, tau, rng, where)
            us.append(u)
            taus.append(tau)
            if penalty.convex:
                _check_convex(penalty, u, rng, where)
    together = penalty.proxes([u.clone() for u in us], taus if penalty.adaptive else 0.3)
    same = all(torch.equal(p, penalty.prox(u, tau)) for p, u, tau in zip(together, us, taus, strict=True))
    demand(same, f"{penalty}: proxes must be prox of each tensor")


def _check_prox(penalty: Penalty, u: Tensor, tau: Any, rng: torch.Generator, where: str) -> None:
    """Checks ``prox`` at one point: a new tensor, better than all other tried points, the identity where tau is 0."""
    adaptive: Any = penalty

    def objective(w: Tensor) -> float:
        value = adaptive.majoriser(w, tau) if penalty.adaptive else tau * penalty.value(w)
        return float(value + (w - u).square().sum() / 2)

    before = u.clone()
    p = penalty.prox(u, tau)
    demand(torch.equal(u, before), f"{where}: prox must not change its argument")
    fine = p.shape == u.shape and p.dtype == u.dtype and bool(p.isfinite().all())
    demand(fine, f"{where}: prox must be finite, with shape and dtype of u")
    demand(p.data_ptr() != u.data_ptr(), f"{where}: prox must be a new tensor")
    best, least = objective(p), min(objective(w) for w in _others(u, p, rng))
    what = "prox must be the argmin of tau R(w) + |w - u|^2 / 2"
    demand(best <= least + 1e-12, f"{where}: {what} (another w is lower by {best - least:.3g})")
    zero, none = torch.zeros_like(u), tau * 0.0
    demand(torch.equal(penalty.prox(zero, tau), zero), f"{where}: prox of 0 must be 0")
    demand(torch.equal(penalty.prox(zero, none), zero), f"{where}: prox with tau = 0 must be the identity, also at 0")
    inside = u if penalty.value(u).isfinite() else u.abs()
    if penalty.value(inside).isfinite():
        demand(torch.equal(penalty.prox(inside, none), inside), f"{where}: prox with tau = 0 must be the identity")


def _others(u: Tensor, p: Tensor, rng: torch.Generator) -> list[Tensor]:
    """Points that may be better than ``p``: near it, scaled, with entries of ``u`` kept or set to zero."""
    steps = [
        torch.zeros_like(u).view(-1).index_fill(0, torch.tensor(i), h).view(u.shape)
        for i in range(u.numel())
        for h in (1e-4, -1e-4, 0.05, -0.05)
    ]
    steps += [torch.randn(u.shape, generator=rng, dtype=u.dtype) * h for h in (1e-4, 1e-2, 1.0) for _ in range(20)]
    others = [p + step for step in steps] + [torch.zeros_like(u), u, *(p * f for f in (0.9, 1.1))]
    others += [torch.where(u.abs() >= v, u, 0.0) for v in u.abs().flatten()]
    return (
        others + [torch.where(u == v, v, p) for v in u.flatten()] + [torch.where(p == v, 0.0, p) for v in p.flatten()]
    )


def _check_convex(penalty: Penalty, u: Tensor, rng: torch.Generator, where: str) -> None:
    """Checks the distances and the subgradients of a convex penalty."""
    v = u + torch.randn(u.shape, generator=rng, dtype=u.dtype)
    moved = float((penalty.prox(u, 0.3) - penalty.prox(v, 0.3)).norm())
    demand(moved <= float((u - v).norm()) + 1e-12, f"{where}: the prox of a convex penalty must not expand distances")
    w = penalty.prox(u, 0.3)  # in the domain, with zeros
    p = penalty.subgradient(w)
    demand(bool((p[w == 0] == 0).all()), f"{where}: the subgradient must be 0 where w is")
    for scale in (0.01, 0.3, 3.0):
        z = penalty.prox(w + scale * torch.randn(u.shape, generator=rng, dtype=u.dtype), 0.0)
        below = float(penalty.value(w) + (p * (z - w)).sum())
        above = float(penalty.value(z)) >= below - 1e-12
        demand(above, f"{where}: the subgradient must support the penalty from below")
