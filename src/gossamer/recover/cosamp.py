"""Compressive sampling matching pursuit: identify, merge, estimate, prune.   Needell & Tropp 2009, arXiv 0803.2392

    O <- the 2 s strongest of A^T r             identify        (s of them, ``merge=1``: subspace pursuit, Dai & Milenkovic 2009)
    T <- O u S                                  merge
    b <- argmin ||y - A_T b||                   estimate, of least norm where 3 s > m
    S <- supp H_s(b),  x <- b_S                 prune
    r <- y - A_S x

At the end, and in subspace pursuit at every step, x is fitted to S once more. Stops when S and r repeat: those of the last step, or of an
earlier one, after which the iterates would run in a circle.
Cost per step: one stream of A^T r and a least-squares problem of m x 3 s: useful where 3 s <= m.
"""

from typing import Any

import torch

from .._errors import check_count
from ..products.sense.op import top_k
from .recovery import USED_UP, WHY, Log, Recovery, Watch, finished, fitted, hard, least_squares, problem, sense, trivial


def cosamp(
    A: Any,
    y: Any,
    s: int,
    *,
    s_tilde: int | None = None,
    merge: int = 2,
    steps: int = 200,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """Solves y = A x for x with at most s non-zeros; arguments, result and errors as in :func:`gossamer.recover.iht`.

    ``merge``: how many times s columns are merged at each step; 2 is CoSaMP, 1 subspace pursuit.
    """
    p = problem("cosamp", A, y, s, s_tilde, tolerance, steps=steps)
    check_count("cosamp", "merge", merge, 1)
    if (nothing := trivial(p)) is not None:
        return nothing
    S, r, log = torch.empty(0, dtype=torch.int64, device=p.y.device), p.y, Log(p, on_step)
    seen: dict[tuple[bytes, str], int]
    best, seen = (S, p.y.new_empty(0), float(p.y.norm())), {}
    for t in range(1, steps + 1):
        ids, g = sense(p.A, r, S, min(merge * p.inflated, p.A.shape[1]))
        T = torch.cat(
            [hard(ids, g, merge * p.inflated)[0], S]
        ).unique()  # some of the strongest lie on S: 2 s + |S| at most, often fewer
        A_T = p.A.columns(T)
        b = least_squares(A_T, p.y)
        unit = torch.finfo(b.dtype).eps ** 0.6 * float(b.norm())
        keep = top_k(
            (b.abs() / max(unit, 1e-300)).round(), p.inflated
        )  # equal columns share a value but for rounding: a tie
        new, x = T[keep], b[keep]
        A_S = A_T[:, torch.searchsorted(T, new)]
        if merge == 1:
            x = least_squares(A_S, p.y)
        r = p.y - A_S @ x
        fit = least_squares(A_S, p.y) if merge > 1 else x
        residual = float((p.y - A_S @ fit).norm())
        log(t, residual)
        if residual <= best[2]:
            best = new, fit, residual
        if reason := fitted(residual, p):
            return finished(p, new, fit, log, t, True, reason)
        state = new.cpu().numpy().tobytes(), f"{float(r.norm()):.9e}"
        if state in seen:
            why = "the support repeats" if seen[state] == t - 1 else f"the iterates of step {seen[state]} return"
            log.note(best[2])
            return finished(
                p,
                best[0],
                best[1],
                log,
                t,
                seen[state] == t - 1,
                f"{why}; the residual of {p.told(best[2]):.3g} stays: {WHY}",
            )
        seen[state], S = t, new
    log.note(best[2])
    return finished(p, best[0], best[1], log, steps, False, USED_UP.format(steps))
