# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Normalised iterative hard thresholding: the step size follows from the support.
Blumensath & Davies 2010, IEEE JSTSP 4(2)

    g  = A^T (y - A x)
    mu = ||g_S||^2 / ||A_S g_S||^2                                      the exact line search on the support       (1)
    x' = H_s(x + mu g)                                                                                             (2)
    if the support changed, while mu > (1 - c) ||x' - x||^2 / ||A (x' - x)||^2:                                    (3)
        mu <- mu / (kappa (1 - c)), and (2) again

Start: S = supp H_s(A^T y), x = 0. c = 0.01, kappa = 2. The step sizes of (3) do not need A^T r again (see
thresholding.py). State and cost are those of IHT, and A on 2 s columns per trial.
"""

import torch
from torch import Tensor

from ..arrays import Array, norm
from ..operators.conversion import Matrix
from .loop import Iterate, iterate, strongest_start
from .result import Log, Recovery, Watch, finished, problem, trivial
from .thresholding import hard, spread

C, KAPPA, TRIES = 0.01, 2.0, 60
ORTHOGONAL = "y is orthogonal to every column of A, so x = 0 is the answer"


def niht(
    A: Matrix,
    y: Array,
    s: int,
    *,
    s_tilde: int | None = None,
    steps: int = 1000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """Solves y = A x for x with at most s non-zeros.

    Arguments, result and errors as in :func:`gossamer.recover.iht`.
    """
    p = problem("niht", A, y, s, s_tilde, tolerance, steps=steps)
    if (nothing := trivial(p)) is not None:
        return nothing
    first, log = strongest_start(p), Log(p, on_step)
    if not first.S.numel():
        log.note(norm(p.y))
        return finished(p, first.S, first.x, log, 0, True, ORTHOGONAL)

    def step(ids: Tensor, g: Tensor, before: Tensor, last: Iterate) -> Iterate:
        columns = p.A.columns(ids)
        S, x = thresholded(ids, g, before, columns, last.S, p.inflated)
        return Iterate(S, x, columns[:, torch.searchsorted(ids, S)])

    return iterate(p, first, step, steps=steps, still=4 * torch.finfo(p.y.dtype).eps, log=log)


def step_size(g_S: Tensor, A_S: Tensor) -> float:
    """||g_S||^2 / ||A_S g_S||^2; 0 where the gradient on the support vanishes."""
    below = float((A_S @ g_S).square().sum())
    return float(g_S.square().sum()) / below if below > 0.0 else 0.0


def thresholded(ids: Tensor, g: Tensor, before: Tensor, columns: Tensor, S: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """(1)-(3): the next support and its values. ``g``, ``before`` (x) and ``columns`` (of A) belong to the ``ids``."""
    on = torch.searchsorted(ids, S)
    mu = step_size(g[on], columns[:, on])  # (1)
    if mu == 0.0:  # the gradient vanishes on the support, but not elsewhere
        mu = 1 / max(float(columns.square().sum(0).max()), 1e-300)
    for _ in range(TRIES):
        new, x = hard(ids, before + mu * g, s)  # (2)
        if torch.equal(new, S):
            return new, x
        change = spread(ids, new, x) - before
        bound = (1 - C) * float(change.square().sum()) / max(float((columns @ change).square().sum()), 1e-300)
        if mu <= bound:
            return new, x
        mu /= KAPPA * (1 - C)  # (3)
    return S, before[on]
