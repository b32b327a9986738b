"""Penalties broken on purpose."""

from collections.abc import Callable
from typing import Any

import torch

import gossamer as gs
from gossamer import laws, penalties


def _penalty(base: Any, *, shapes=((7,), (5, 7), (3, 4, 3, 2)), **methods: Callable) -> Callable[[], None]:
    """The law on a penalty with some of its methods exchanged."""
    twisted = type("Twisted", (type(base),), methods)
    return lambda: laws.check_penalty(twisted(**vars(base)), shapes=shapes)


def _divides_by_zero(p, u, tau):
    norm = penalties.norms(u, p.group)
    return u * penalties.spread((1 - tau * p.lam * penalties.root(u, p.group) / norm).clamp_min(0.0), u)


def _in_place(p, u, tau):
    return u.copy_(penalties.soft(u, tau * p.lam))


PENALTY = {
    "thresholds twice": _penalty(gs.L1(0.5), prox=lambda p, u, tau: penalties.soft(u, 2 * tau * p.lam)),
    "thresholds without tau": _penalty(gs.L1(0.5), prox=lambda p, u, tau: penalties.soft(u, p.lam)),
    "hard for soft": _penalty(
        gs.L1(0.5), prox=lambda p, u, tau: torch.where(u.abs() > tau * p.lam, u, torch.zeros_like(u))
    ),
    "a value of nothing": _penalty(gs.L1(0.5), value=lambda p, w: w.new_zeros(())),
    "0 / 0 in a group that is zero": _penalty(gs.GroupL1(0.5), prox=_divides_by_zero),
    "groups without the root of their size": _penalty(
        gs.GroupL1(0.5), prox=lambda p, u, tau: penalties.shrink(u, tau * p.lam, p.group)
    ),
    "changes what it is given": _penalty(gs.L1(0.5), prox=_in_place),
    "gives back what it is given": _penalty(gs.L1(0.0), prox=lambda p, u, tau: u),
    "negative weights stay": _penalty(gs.NonNegativeL1(0.5), prox=lambda p, u, tau: penalties.soft(u, tau * p.lam)),
    "keeps the smallest": _penalty(
        gs.TopK(3), prox=lambda p, u, tau: torch.where(u.abs() <= u.abs().flatten().kthvalue(3)[0], u, 0.0)
    ),
    "keeps one too few": _penalty(gs.TopK(3), prox=lambda p, u, tau: gs.TopK(2).prox(u, tau)),
    "no subgradient at all": _penalty(gs.L1(0.5), subgradient=lambda p, w: -p.lam * w.sign()),
    "a subgradient where the weight is zero": _penalty(
        gs.L1(0.5), subgradient=lambda p, w: p.lam * torch.where(w >= 0, 1.0, -1.0).to(w)
    ),
    "batched another way": _penalty(gs.L1(0.5), proxes=lambda p, us, taus: penalties.softs(us, 1.01 * taus * p.lam)),
    "weights of the logarithm ignored": _penalty(gs.LogL1(0.5, 0.1), prox=lambda p, u, tau: penalties.soft(u, p.lam)),
    "calls itself convex": _penalty(gs.TopK(density=0.3), convex=True),
}
