"""Iterative hard thresholding: a gradient step, then the s largest.   Blumensath & Davies 2009, arXiv 0805.0510

    x <- H_s(x + mu A^T (y - A x))                                                                                            (1)

mu = 1 / ||A||^2 by default, which is safe and slow: it needs ||A|| < 1 / sqrt(mu), and is no test of exact recovery (:func:`niht` is).
State: s indices and values. Cost per step: one A_S x and one stream of A^T r, 2 m (s + d) multiply-adds. Memory O(s + block + m s).
"""

import math
from typing import Any

import torch

from .._errors import UsageError, is_real
from .operators import Operator
from .recovery import USED_UP, Log, Recovery, Watch, finished, fitted, hard, problem, sense, spread, stands, trivial
from .units import times


def iht(
    A: Any,
    y: Any,
    s: int,
    *,
    s_tilde: int | None = None,
    mu: float | None = None,
    steps: int = 1000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """Solves y = A x for x with at most s non-zeros.

    Args:
        A: matrix (m, d) or operator, float32 or float64.
        y: (m,), of the same precision.
        s: non-zeros of the result.
        s_tilde: non-zeros while iterating, at least s; the result is cut back to s and fitted once more.
        mu: step size; None is 1 / ||A||^2, estimated by power iteration.
        steps: iterations at most.
        tolerance: residual over ||y|| at which it stops; default 1e-9 in float64, 2e-5 in float32.
        on_step: called with (iteration, residual) after each.

    Raises: UsageError if shapes, precisions or counts do not fit, or y or A hold NaN or infinities.
    """
    p = problem("iht", A, y, s, s_tilde, tolerance, steps=steps)
    if (nothing := trivial(p)) is not None:
        return nothing
    if mu is not None and not (is_real(mu) and 0.0 < mu < math.inf):
        raise UsageError("iht", "mu, the step size, is a positive number", got=mu)
    mu = 0.99 / spectral_norm(p.A) ** 2 if mu is None else times(mu, 2 * p.a)
    S, x, r = torch.empty(0, dtype=torch.int64, device=p.y.device), p.y.new_empty(0), p.y
    log = Log(p, on_step)
    for t in range(1, steps + 1):
        ids, g = sense(p.A, r, S, p.inflated)
        before = spread(ids, S, x)
        z = before + mu * g  # (1)
        S, x = hard(ids, z, p.inflated)
        r = p.y - p.A.columns(S) @ x
        residual = float(r.norm())
        log(t, residual)
        if reason := fitted(residual, p):
            return finished(p, S, x, log, t, True, reason)
        if float((spread(ids, S, x) - before).norm()) <= 1e-12 * float(x.norm()):
            return finished(p, S, x, log, t, True, stands(residual, p))
    return finished(p, S, x, log, steps, False, USED_UP.format(steps))


def spectral_norm(A: Operator, rounds: int = 100, tolerance: float = 1e-4) -> float:
    """||A||, by power iteration from a fixed start; an estimate from below, good to about the tolerance."""
    v = torch.cos(torch.arange(1, A.shape[0] + 1, dtype=torch.float64) * 1.618).to(A.device, A.dtype)
    largest = 0.0
    for _ in range(rounds):
        u = A.rmatvec(v / v.norm())
        before, largest = largest, float(u.norm())
        if largest == 0.0:
            return 1.0  # A is zero (or v is orthogonal to its range): any step does nothing
        v = A.matvec(u / largest)
        if largest - before <= tolerance * largest:
            break
    return largest
