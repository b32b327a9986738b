"""IHT with an adaptive step and refinement on the support: the solver of sparse ReLU networks (arXiv 2509.20323).

    eta = ||g_S||^2 / ||A_S g_S||^2,   g = A^T (y - A x)                                                                      (1)
    x <- H_s(x + eta g)                                                                                                       (2)
    then on the fixed support, ``refine`` times:   x <- x + eta g_S, eta halved until                                         (3)
        ||A_S (x + eta g_S) - y||^2 <= ||A_S x - y||^2 - 0.9 eta ||g_S||^2

(3) is Armijo's rule: g is half the gradient of ||.||^2, so its constant is 0.45; exact line search satisfies it. In the authors' code
eta never grows back and each trial starts from (1); here every inner step starts from the exact line search of its own g_S, which is
halved at most for rounding. Their first iteration has no support and moves nothing (eta = 1e-14); here it starts as NIHT does, from the
s strongest of A^T y. The objective never rises in (3). Cost per step: IHT's and 4 m s per inner step.
"""

from typing import Any

import torch
from torch import Tensor

from .niht import start, step_size
from .recovery import USED_UP, Log, Recovery, Watch, finished, fitted, hard, problem, sense, spread, stands, trivial

ARMIJO, TRIES = 0.9, 11


def aiht(
    A: Any,
    y: Any,
    s: int,
    *,
    s_tilde: int | None = None,
    refine: int = 10,
    steps: int = 500,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """Solves y = A x for x with at most s non-zeros; arguments, result and errors as in :func:`gossamer.recover.iht`.

    ``refine``: inner gradient steps on the fixed support after each threshold.
    """
    p = problem("aiht", A, y, s, s_tilde, tolerance, steps=steps)
    if (nothing := trivial(p)) is not None:
        return nothing
    S, r = start(p), p.y
    x, A_S, log = p.y.new_zeros(S.numel()), p.A.columns(S), Log(p, on_step)
    for t in range(1, steps + 1):
        ids, g = sense(p.A, r, S, p.inflated)
        eta = step_size(g[torch.searchsorted(ids, S)], A_S)  # (1)
        before = spread(ids, S, x)
        S, x = hard(ids, before + eta * g, p.inflated)  # (2)
        A_S = p.A.columns(S)
        x = refined(A_S, p.y, x, refine)  # (3)
        r = p.y - A_S @ x
        residual = float(r.norm())
        log(t, residual)
        if reason := fitted(residual, p):
            return finished(p, S, x, log, t, True, reason)
        if float((spread(ids, S, x) - before).norm()) <= 1e-10 * float(x.norm()):
            return finished(p, S, x, log, t, True, stands(residual, p))
    return finished(p, S, x, log, steps, False, USED_UP.format(steps))


def refined(A_S: Tensor, y: Tensor, x: Tensor, rounds: int) -> Tensor:
    """``rounds`` Armijo gradient steps of ||A_S x - y||^2 from x; the objective never rises."""
    r = y - A_S @ x
    for _ in range(rounds):
        g = A_S.T @ r
        if not bool(g.any()):
            break
        eta, value, slope = step_size(g, A_S), float(r.square().sum()), float(g.square().sum())
        for _ in range(TRIES):
            trial = y - A_S @ (x + eta * g)
            if float(trial.square().sum()) <= value - ARMIJO * eta * slope:
                x, r = x + eta * g, trial
                break
            eta /= 2
        else:
            break  # rounding: nothing more to gain
    return x
