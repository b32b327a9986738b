"""Hard thresholding pursuit: IHT chooses the support, least squares the values.   Foucart 2011, SIAM J. Numer. Anal. 49(6)

    S <- supp H_s(x + mu A^T (y - A x))                                                                                       (1)
    x <- argmin ||y - A_S x||                                                                                                 (2)

until S repeats: supports are finitely many, so this ends (in a cycle of several supports at worst, which is noticed).
mu = 1 on columns of unit norm, as in the paper; here one over the mean square norm of the columns looked at, which is the same there.
(NIHT's step size has no meaning here: after (2) the gradient on S is zero.) Cost per step: one stream of A^T r, least squares of m x s.
"""

from typing import Any

import torch

from .niht import start
from .recovery import (
    USED_UP,
    WHY,
    Log,
    Recovery,
    Watch,
    finished,
    fitted,
    hard,
    least_squares,
    problem,
    sense,
    spread,
    trivial,
)
from .units import times


def htp(
    A: Any,
    y: Any,
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
    seen, log, best = {tuple(S.tolist())}, Log(p, on_step), None
    for t in range(1, steps + 1):
        A_S = p.A.columns(S)
        x = least_squares(A_S, p.y)  # (2)
        r = p.y - A_S @ x
        residual = float(r.norm())
        if best is None or residual < best[2]:
            best = S, x, residual
        log(t, residual)
        if reason := fitted(residual, p):
            return finished(p, S, x, log, t, True, reason)
        ids, g = sense(p.A, r, S, p.inflated)
        step = 1 / max(float(p.A.columns(ids).square().sum(0).mean()), 1e-300) if mu is None else times(mu, 2 * p.a)
        z = spread(ids, S, x) + step * g
        new, _ = hard(ids, z, p.inflated)  # (1)
        if tuple(new.tolist()) in seen:
            why = (
                "the support repeats"
                if torch.equal(new, S)
                else "the supports go round in a cycle; the best of them is returned"
            )
            log.note(best[2])
            return finished(
                p,
                best[0],
                best[1],
                log,
                t,
                torch.equal(new, S),
                f"{why}; the residual of {p.told(best[2]):.3g} stays: {WHY}",
            )
        seen.add(tuple(new.tolist()))
        S = new
    assert best is not None
    log.note(best[2])
    return finished(p, best[0], best[1], log, steps, False, USED_UP.format(steps))
