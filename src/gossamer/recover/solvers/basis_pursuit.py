# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Basis pursuit, min ||W x||_1 subject to A x = y, by ADMM.
Chen, Donoho & Saunders 1998; Boyd et al. 2011, section 6.2

    x <- v - A^T (A A^T)^{-1} (A v - y),  v = z - u             projection onto {A x = y}; A A^T is factored once  (1)
    x <- 1.6 x + (1 - 1.6) z                                    over-relaxation
    z <- soft(x + u, w / rho)                                                                                      (2)
    u <- u + x - z                                                                                                 (3)

rho follows the residuals: it is doubled or halved when one is ten times the other. Every 25 iterations the non-zeros S
of z are tested for optimality. If A_S x_S = y can be solved with the signs of z_S, and a nu with A_S^T nu = w_S
sign(x_S) has |A^T nu| <= w everywhere, then x is proven to be a minimiser, to rounding. Memory m^2 + m d for the
projection: A is made explicitly, since each iteration needs it twice.
"""

import torch
from torch import Tensor

from ..._errors import UsageError
from ..arrays import Array, norm, vector
from ..operators.conversion import Matrix
from ..units import exponent, shifted, times
from .fista import soft
from .result import Log, Problem, Recovery, Watch, finished, problem, trivial
from .thresholding import least_squares, nonzeros

OVER, LOOK = 1.6, 25


def basis_pursuit(
    A: Matrix,
    y: Array,
    *,
    weights: Array | None = None,
    steps: int = 5000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """The solution of A x = y of smallest weighted l1 norm.

    Args:
        A: matrix (m, d) or operator, of full row rank.
        y: (m,), of the same precision.
        weights: w (d,), positive; a common factor does not matter. None is 1 everywhere.
        steps: largest number of iterations.
        tolerance: the iteration stops at this relative size of ||x - z|| and of the dual residual. Default 1e-7 in
            float64, 1e-4 in float32.
        on_step: called with (iteration, ||x - z||) after each iteration.

    Raises: UsageError as :func:`gossamer.recover.iht`, and if A has no full row rank (the constraints then contradict
    or repeat each other).
    """
    p = problem("basis_pursuit", A, y, steps=steps)
    w = _weights(p, weights)
    if (nothing := trivial(p)) is not None:
        return nothing
    enough = (1e-7 if p.y.dtype == torch.float64 else 1e-4) if tolerance is None else tolerance
    M = p.A.columns(torch.arange(p.A.shape[1], device=p.y.device))
    P = _pseudo_inverse(M)
    x = P @ p.y
    z, u, log = x, torch.zeros_like(x), Log(p, on_step)
    rho = float(w.mean()) / max(float(x.abs().mean()), 1e-300)
    for t in range(1, steps + 1):
        v = z - u
        x = v - P @ (M @ v - p.y)  # (1)
        x = OVER * x + (1 - OVER) * z
        before, z = z, soft(x + u, w / rho)  # (2)
        u = u + x - z  # (3)
        primal, dual, scale = norm(x - z), norm(z - before), max(norm(z), 1e-300)
        log(t, times(primal, -p.a))  # in units of x
        if primal <= enough * scale and dual <= enough * scale:
            return _result(p, M, z, log, t, True, f"iterates agree to {max(primal, dual) / scale:.1g}")
        if t % LOOK == 0:
            if (proven := _certified(M, p.y, z, w)) is not None:
                log.note(norm(p.y - M @ proven))
                return finished(p, *nonzeros(proven), log, t, True, "optimal: a dual certificate was found")
            if primal > 10 * dual or dual > 10 * primal:
                factor = 2.0 if primal > 10 * dual else 0.5
                rho, u = rho * factor, u / factor
    reason = f"all {steps} iterations were used and the iterates still differ by {log.residuals[-1]:.2g}"
    return _result(p, M, z, log, steps, False, reason)


def _pseudo_inverse(M: Tensor) -> Tensor:
    """A^T (A A^T)^{-1}, (d, m). Raises UsageError if the rows of A are linearly dependent."""
    factor, info = _cholesky(M @ M.T)
    diagonal: Tensor = factor.diagonal()
    least, most = float(diagonal.min()), float(diagonal.max())
    if info or least <= 10 * torch.finfo(M.dtype).eps ** 0.5 * most:
        remedy = "drop dependent rows; with more rows than columns use fista or niht"
        raise UsageError("basis_pursuit", "the rows of A are linearly dependent", remedy=remedy)
    return torch.cholesky_solve(M, factor).T.contiguous()


def _cholesky(gram: Tensor) -> tuple[Tensor, int]:
    """The Cholesky factor, and 0 where the matrix is positive definite."""
    factor, info = torch.linalg.cholesky_ex(gram)
    return factor, int(info)


def _weights(p: Problem, weights: Array | None) -> Tensor:
    """Weights (d,), divided by a power of two near the largest: a common factor does not change the solution."""
    d = p.A.shape[1]
    if weights is None:
        return torch.ones(d, dtype=p.y.dtype, device=p.y.device)
    w = vector("basis_pursuit", "weights", weights)
    if w.shape != (d,) or not w.is_floating_point() or not bool(((w > 0) & w.isfinite()).all()):
        raise UsageError("basis_pursuit", f"weights must be {d} positive numbers", got=(tuple(w.shape), w.dtype))
    return shifted(w.detach(), -exponent(w)).to(p.y)


def _certified(M: Tensor, y: Tensor, z: Tensor, w: Tensor) -> Tensor | None:
    """The minimiser with the support and signs of z, if it exists and can be proven; else None."""
    S = z.nonzero().flatten()
    if not 0 < S.numel() <= M.shape[0]:
        return None
    M_S, eps = M[:, S], torch.finfo(y.dtype).eps ** 0.5
    x = least_squares(M_S, y)
    if norm(M_S @ x - y) > eps * norm(y) or not torch.equal(x.sign(), z[S].sign()):
        return None
    target = w[S] * x.sign()
    nu = least_squares(M_S.T, target)
    if norm(M_S.T @ nu - target) > eps * norm(target) or not bool(((M.T @ nu).abs() <= w * (1 + eps)).all()):
        return None
    return z.new_zeros(M.shape[1]).index_put_((S,), x)


def _result(p: Problem, M: Tensor, z: Tensor, log: Log, steps: int, converged: bool, reason: str) -> Recovery:
    """z as the result. Its values are fitted again to its support if that makes the residual smaller."""
    S, x = nonzeros(z)
    if 0 < S.numel() <= M.shape[0]:
        fit = least_squares(M[:, S], p.y)
        if norm(M[:, S] @ fit - p.y) < norm(M[:, S] @ x - p.y):
            x = fit
    log.note(norm(p.y - M[:, S] @ x))
    return finished(p, S, x, log, steps, converged, reason)
