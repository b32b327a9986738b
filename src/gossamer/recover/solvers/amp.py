# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Approximate message passing for i.i.d. matrices.   Donoho, Maleki & Montanari 2009, arXiv 0907.3574

    x <- soft(x + A^T z, alpha tau),  tau = ||z|| / sqrt(m)                                                        (1)
    z <- y - A x + z ||x||_0 / m                                Onsager's term                                     (2)

alpha: the minimax threshold at delta = m / d (:func:`gossamer.recover.theory.minimax_threshold`). A must have i.i.d.
entries of zero mean; columns are scaled to unit norm here. On other matrices AMP may diverge; ``reason`` then reports
it. State: two dense vectors. Cost per step: 4 m d.
"""

import math

import torch

from ..._errors import UsageError
from ..arrays import Array, norm
from ..operators.conversion import Matrix
from ..theory import minimax_threshold
from .fista import soft
from .result import Log, Recovery, Watch, finished, fitted, problem, trivial
from .thresholding import nonzeros

DIVERGED = "it diverged; x = 0 is returned: the entries of A are not like independent ones of zero mean"


def amp(
    A: Matrix,
    y: Array,
    *,
    alpha: float | None = None,
    steps: int = 1000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """A sparse solution of y = A x for Gaussian-like A with fewer rows than columns.

    Args:
        A: matrix (m, d) or operator, m < d.
        y: (m,), of the same precision.
        alpha: threshold in units of tau; None is the minimax threshold.

    The other arguments and the result are those of :func:`gossamer.recover.iht`.

    Raises: UsageError as :func:`gossamer.recover.iht`, and for m >= d without ``alpha``.
    """
    p = problem("amp", A, y, tolerance=tolerance, steps=steps)
    m, d = p.A.shape
    if alpha is None and not m < d:
        raise UsageError("amp", f"A must have fewer rows than columns, or alpha must be given (got {m} x {d})")
    if (nothing := trivial(p)) is not None:
        return nothing
    width = minimax_threshold(m / d) if alpha is None else alpha
    norms = p.A.norms()
    scale = torch.where(norms > 0, 1 / norms, 0.0)  # a zero column is never chosen
    x, z, log, t = p.y.new_zeros(d), p.y, Log(p, on_step), 0
    converged, reason = False, f"all {steps} iterations were used"
    for t in range(1, steps + 1):
        tau = norm(z) / math.sqrt(m)
        before, x = x, soft(x + scale * p.A.rmatvec(z), width * tau)  # (1)
        r = p.y - p.A.matvec(scale * x)
        z = r + z * (int(x.count_nonzero()) / m)  # (2)
        residual = norm(r)
        log(t, residual)
        if not math.isfinite(residual) or residual > 1e6 * norm(p.y):
            x, reason = torch.zeros_like(x), DIVERGED
            log.note(norm(p.y))
            break
        if small := fitted(residual, p):
            converged, reason = True, small
            break
        if norm(x - before) <= 1e-10 * norm(x):
            converged, reason = True, f"x repeats; the residual of {p.told(residual):.3g} stays"
            break
    x = scale * x
    return finished(p, *nonzeros(x), log, t, converged, reason)
