# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Iterative hard thresholding: a gradient step, then the s largest.   Blumensath & Davies 2009, arXiv 0805.0510

    x <- H_s(x + mu A^T (y - A x))                                                                                 (1)

The default mu = 1 / ||A||^2 is safe and slow: the theory needs ||A|| < 1 / sqrt(mu). For exact recovery use
:func:`niht`. State: s indices and values. Cost per step: one A_S x and one stream of A^T r, 2 m (s + d) multiply-adds.
Memory O(s + block + m s).
"""

import math

import torch
from torch import Tensor

from ..._errors import UsageError, is_real
from ..arrays import Array, norm
from ..operators.conversion import Matrix
from ..operators.protocol import Operator
from ..units import times
from .loop import Iterate, iterate, nothing_yet
from .result import Log, Recovery, Watch, problem, trivial
from .thresholding import hard


def iht(
    A: Matrix,
    y: Array,
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
        s: largest number of non-zeros of the result.
        s_tilde: largest number of non-zeros during the iteration, at least s. The s largest of the result are kept and
            fitted again.
        mu: step size. None is 1 / ||A||^2, estimated by power iteration.
        steps: largest number of iterations.
        tolerance: the iteration stops at this residual over ||y||. Default 1e-9 in float64, 2e-5 in float32.
        on_step: called with (iteration, residual) after each iteration.

    Raises: UsageError if shapes, precisions or counts do not fit, or y or A hold NaN or infinities.
    """
    p = problem("iht", A, y, s, s_tilde, tolerance, steps=steps)
    if (nothing := trivial(p)) is not None:
        return nothing
    if mu is not None and not (is_real(mu) and 0.0 < mu < math.inf):
        raise UsageError("iht", "mu, the step size, must be a positive number", got=mu)
    size = 0.99 / spectral_norm(p.A) ** 2 if mu is None else times(mu, 2 * p.a)

    def step(ids: Tensor, g: Tensor, before: Tensor, _last: Iterate) -> Iterate:
        S, x = hard(ids, before + size * g, p.inflated)  # (1)
        return Iterate(S, x, p.A.columns(S))

    return iterate(p, nothing_yet(p), step, steps=steps, still=1e-12, log=Log(p, on_step))


def spectral_norm(A: Operator, rounds: int = 100, tolerance: float = 1e-4) -> float:
    """||A||, by power iteration from a fixed start: an estimate from below, accurate to about the tolerance."""
    v = torch.cos(torch.arange(1, A.shape[0] + 1, dtype=torch.float64) * 1.618).to(A.device, A.dtype)
    largest = 0.0
    for _ in range(rounds):
        u = A.rmatvec(v / norm(v))
        before, largest = largest, norm(u)
        if largest == 0.0:
            return 1.0  # A is zero, or v is orthogonal to its range: the step size does not matter
        v = A.matvec(u / largest)
        if largest - before <= tolerance * largest:
            break
    return largest
