"""Hard thresholding pursuit: IHT chooses the support, least squares the values.   Foucart 2011, SIAM J. Numer. Anal. 49(6)

    S <- supp H_s(x + mu A^T (y - A x))                                                                                       (1)
    x <- argmin ||y - A_S x||                                                                                                 (2)

until S repeats: supports are finitely many, so this ends (in a cycle of several supports at worst, which is noticed).
mu = 1 on columns of unit norm, as in the paper; here one over the mean square norm of the columns looked at, which is the same there.
(NIHT's step size has no meaning here: after (2) the gradient on S is zero.) Cost per step: one stream of A^T r, least squares of m x s.
"""

from typing import Any

import torch
from torch import Tensor

from .niht import start
from .recovery import USED_UP, Recovery, Watch, finished, fitted, hard, least_squares, problem, sense, spread, trivial


def htp(
    A: Any,
    y: Tensor,
    s: int,
    *,
    s_tilde: int | None = None,
    mu: float | None = None,
    steps: int = 200,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """Solves y = A x for x with at most s non-zeros; arguments, result and errors as in :func:`gossamer.recover.iht`.

    ``mu``: step size of (1).
    """
    p = problem("htp", A, y, s, s_tilde, tolerance, steps=steps)
    if (nothing := trivial(p)) is not None:
        return nothing
    S = start(p)
    seen, residuals, best = {tuple(S.tolist())}, [], None
    for t in range(1, steps + 1):
        A_S = p.A.columns(S)
        x = least_squares(A_S, p.y)  # (2)
        r = p.y - A_S @ x
        residuals.append(float(r.norm()))
        if best is None or residuals[-1] < best[2]:
            best = S, x, residuals[-1]
        if on_step is not None:
            on_step(t, residuals[-1])
        if reason := fitted(residuals[-1], p):
            return finished(p, S, x, residuals, t, True, reason)
        ids, g = sense(p.A, r, S, p.inflated)
        step = 1 / max(float(p.A.columns(ids).square().sum(0).mean()), 1e-300) if mu is None else mu
        z = spread(ids, S, x) + step * g
        new, _ = hard(ids, z, p.inflated)  # (1)
        if tuple(new.tolist()) in seen:
            why = "the support repeats" if torch.equal(new, S) else "the supports go round in a cycle; the best of them is returned"
            reason = f"{why}; the residual of {best[2]:.3g} stays: noise, too small an s, or a wrong support"
            return finished(p, best[0], best[1], [*residuals, best[2]], t, torch.equal(new, S), reason)
        seen.add(tuple(new.tolist()))
        S = new
    assert best is not None
    return finished(p, best[0], best[1], [*residuals, best[2]], steps, False, USED_UP.format(steps))
