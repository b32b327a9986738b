# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""Compressive sampling matching pursuit: identify, merge, estimate, prune.   Needell & Tropp 2009, arXiv 0803.2392

    O <- the 2 s strongest of A^T r             identify        (``merge=1``: s, subspace pursuit, Dai & Milenkovic)
    T <- O u S                                  merge
    b <- argmin ||y - A_T b||                   estimate, of least norm where 3 s > m
    S <- supp H_s(b),  x <- b_S                 prune
    r <- y - A_S x

x is fitted to S again at the end, and in subspace pursuit at every step. The iteration stops when S and r equal those
of the last step, or of an earlier one (the iterates would then repeat in a cycle).
Cost per step: one stream of A^T r and a least-squares problem of m x 3 s, so it is useful for 3 s <= m.
"""

import torch
from torch import Tensor

from ..._errors import check_count
from ...products.sense.op import top_k
from ..arrays import Array, norm, unique
from ..operators.conversion import Matrix
from .loop import nothing_yet
from .result import USED_UP, WHY, Log, Problem, Recovery, Watch, finished, fitted, problem, trivial
from .thresholding import hard, least_squares, sense


def cosamp(
    A: Matrix,
    y: Array,
    s: int,
    *,
    s_tilde: int | None = None,
    merge: int = 2,
    steps: int = 200,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """Solves y = A x for x with at most s non-zeros.

    Args:
        merge: each step merges ``merge`` times s columns. 2 is CoSaMP, 1 is subspace pursuit.

    The other arguments, the result and the errors are those of :func:`gossamer.recover.iht`.
    """
    p = problem("cosamp", A, y, s, s_tilde, tolerance, steps=steps)
    check_count("cosamp", "merge", merge, 1)
    if (nothing := trivial(p)) is not None:
        return nothing
    S, r, log = nothing_yet(p).S, p.y, Log(p, on_step)
    seen: dict[tuple[bytes, str], int] = {}
    best = S, p.y.new_empty(0), norm(p.y)
    for t in range(1, steps + 1):
        new, r, fit = _step(p, S, r, merge)
        residual = norm(p.y - p.A.columns(new) @ fit)
        log(t, residual)
        if residual <= best[2]:
            best = new, fit, residual
        if reason := fitted(residual, p):
            return finished(p, new, fit, log, t, True, reason)
        state = new.cpu().numpy().tobytes(), f"{norm(r):.9e}"
        if state in seen:
            repeats = seen[state] == t - 1
            why = "the support repeats" if repeats else f"the iterates of step {seen[state]} return"
            log.note(best[2])
            reason = f"{why}; the residual of {p.told(best[2]):.3g} stays: {WHY}"
            return finished(p, best[0], best[1], log, t, repeats, reason)
        seen[state], S = t, new
    log.note(best[2])
    return finished(p, best[0], best[1], log, steps, False, USED_UP.format(steps))


def _step(p: Problem, S: Tensor, r: Tensor, merge: int) -> tuple[Tensor, Tensor, Tensor]:
    """The next support, its residual, and the values fitted to it."""
    ids, g = sense(p.A, r, S, min(merge * p.inflated, p.A.shape[1]))
    # some of the strongest lie on S: T has 2 s + |S| columns at most, often fewer
    T = unique(torch.cat([hard(ids, g, merge * p.inflated)[0], S]))[0]
    A_T = p.A.columns(T)
    b = least_squares(A_T, p.y)
    unit = torch.finfo(b.dtype).eps ** 0.6 * norm(b)
    # equal columns share a value but for rounding: a tie
    keep = top_k((b.abs() / max(unit, 1e-300)).round(), p.inflated)
    new, x = T[keep], b[keep]
    A_S = A_T[:, torch.searchsorted(T, new)]
    fit = least_squares(A_S, p.y)
    return new, p.y - A_S @ (fit if merge == 1 else x), fit
