# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""Hard thresholding pursuit: IHT chooses the support, least squares the values.
Foucart 2011, SIAM J. Numer. Anal. 49(6)

    S <- supp H_s(x + mu A^T (y - A x))                                                                            (1)
    x <- argmin ||y - A_S x||                                                                                      (2)

until S repeats. The number of supports is finite, so this ends; a cycle of several supports is detected and reported.
By default mu is one over the mean square norm of the sensed columns; for columns of unit norm this is mu = 1, as in the
paper. NIHT's step size does not apply: after (2) the gradient on S is zero. Cost per step: one stream of A^T r, and
least squares of m x s.
"""

import torch
from torch import Tensor

from ..arrays import Array, norm
from ..operators.conversion import Matrix
from ..units import times
from .loop import strongest_start
from .result import USED_UP, WHY, Log, Problem, Recovery, Watch, finished, fitted, problem, trivial
from .thresholding import hard, least_squares, sense, spread


def htp(
    A: Matrix,
    y: Array,
    s: int,
    *,
    s_tilde: int | None = None,
    mu: float | None = None,
    steps: int = 200,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """Solves y = A x for x with at most s non-zeros.

    Args:
        mu: step size of (1).

    The other arguments, the result and the errors are those of :func:`gossamer.recover.iht`.
    """
    p = problem("htp", A, y, s, s_tilde, tolerance, steps=steps)
    if (nothing := trivial(p)) is not None:
        return nothing
    S = strongest_start(p).S
    seen, log, best = {_key(S)}, Log(p, on_step), (S[:0], p.y.new_empty(0), float("inf"))
    for t in range(1, steps + 1):
        A_S = p.A.columns(S)
        x = least_squares(A_S, p.y)  # (2)
        r = p.y - A_S @ x
        residual = norm(r)
        if residual < best[2]:
            best = S, x, residual
        log(t, residual)
        if reason := fitted(residual, p):
            return finished(p, S, x, log, t, True, reason)
        new = _support(p, S, x, r, mu)  # (1)
        if _key(new) in seen:
            return _stopped(p, best, log, t, torch.equal(new, S))
        seen.add(_key(new))
        S = new
    log.note(best[2])
    return finished(p, best[0], best[1], log, steps, False, USED_UP.format(steps))


def _support(p: Problem, S: Tensor, x: Tensor, r: Tensor, mu: float | None) -> Tensor:
    """The next support by (1)."""
    ids, g = sense(p.A, r, S, p.inflated)
    step = 1 / max(float(p.A.columns(ids).square().sum(0).mean()), 1e-300) if mu is None else times(mu, 2 * p.a)
    return hard(ids, spread(ids, S, x) + step * g, p.inflated)[0]


def _stopped(p: Problem, best: tuple[Tensor, Tensor, float], log: Log, t: int, repeats: bool) -> Recovery:
    """The best result after a support has repeated: the last support (``repeats``), or an earlier one."""
    why = "the support repeats" if repeats else "the supports repeat in a cycle, and the best of them is returned"
    log.note(best[2])
    reason = f"{why}; the residual of {p.told(best[2]):.3g} stays: {WHY}"
    return finished(p, best[0], best[1], log, t, repeats, reason)


def _key(S: Tensor) -> tuple[int, ...]:
    """A support as a key of a set."""
    ids: list[int] = S.tolist()
    return tuple(ids)
