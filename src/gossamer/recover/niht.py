"""Normalised iterative hard thresholding: the step size follows from the support.   Blumensath & Davies 2010, IEEE JSTSP 4(2)

    g  = A^T (y - A x)
    mu = ||g_S||^2 / ||A_S g_S||^2                                      the exact line search on the support                  (1)
    x' = H_s(x + mu g)                                                                                                        (2)
    if the support changed: as long as mu > (1 - c) ||x' - x||^2 / ||A (x' - x)||^2:   mu <- mu / (kappa (1 - c)), again (2)  (3)

Start: S = supp H_s(A^T y), x = 0. c = 0.01, kappa = 2. The step sizes of (3) need no further look at A^T r (see recovery.py).
State and cost as IHT, and A on 2 s columns per trial.
"""

from typing import Any

import torch
from torch import Tensor

from .recovery import (
    USED_UP,
    Log,
    Problem,
    Recovery,
    Watch,
    finished,
    fitted,
    hard,
    problem,
    sense,
    spread,
    stands,
    trivial,
)

C, KAPPA, TRIES = 0.01, 2.0, 60
ORTHOGONAL = "no column of A has anything in common with y, and x = 0 is the answer"


def niht(
    A: Any,
    y: Any,
    s: int,
    *,
    s_tilde: int | None = None,
    steps: int = 1000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """Solves y = A x for x with at most s non-zeros; arguments, result and errors as in :func:`gossamer.recover.iht`."""
    p = problem("niht", A, y, s, s_tilde, tolerance, steps=steps)
    if (nothing := trivial(p)) is not None:
        return nothing
    S, x, r, log = start(p), p.y.new_zeros(p.inflated), p.y, Log(p, on_step)
    if not S.numel():
        log.note(float(p.y.norm()))
        return finished(p, S, x[:0], log, 0, True, ORTHOGONAL)
    x = x[: S.numel()]
    for t in range(1, steps + 1):
        ids, g = sense(p.A, r, S, p.inflated)
        before = spread(ids, S, x)
        columns = p.A.columns(ids)
        S, x, moved = _step(p, ids, g, before, columns, S)
        if moved:
            r = p.y - columns[:, torch.searchsorted(ids, S)] @ x
        residual = float(r.norm())
        log(t, residual)
        if reason := fitted(residual, p):
            return finished(p, S, x, log, t, True, reason)
        if not moved or float((spread(ids, S, x) - before).norm()) <= 4 * torch.finfo(x.dtype).eps * float(x.norm()):
            return finished(p, S, x, log, t, True, stands(residual, p))
    return finished(p, S, x, log, steps, False, USED_UP.format(steps))


def start(p: Problem) -> Tensor:
    """supp H_s(A^T y)."""
    none = torch.empty(0, dtype=torch.int64, device=p.y.device)
    return sense(p.A, p.y, none, p.inflated)[0]


def step_size(g_S: Tensor, A_S: Tensor) -> float:
    """||g_S||^2 / ||A_S g_S||^2; 0 where the gradient on the support vanishes."""
    below = float((A_S @ g_S).square().sum())
    return float(g_S.square().sum()) / below if below > 0.0 else 0.0


def _step(
    p: Problem, ids: Tensor, g: Tensor, before: Tensor, columns: Tensor, S: Tensor
) -> tuple[Tensor, Tensor, bool]:
    on = torch.searchsorted(ids, S)
    mu = step_size(g[on], columns[:, on])  # (1)
    if mu == 0.0:
        mu = 1 / max(
            float(columns.square().sum(0).max()), 1e-300
        )  # the gradient on the support is spent, elsewhere it is not
    for _ in range(TRIES):
        new, x = hard(ids, before + mu * g, p.inflated)  # (2)
        if torch.equal(new, S):
            return new, x, True
        change = spread(ids, new, x) - before
        bound = (1 - C) * float(change.square().sum()) / max(float((columns @ change).square().sum()), 1e-300)
        if mu <= bound:
            return new, x, True
        mu /= KAPPA * (1 - C)  # (3)
    return S, before[on], False
