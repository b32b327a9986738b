"""Basis pursuit, min ||W x||_1 subject to A x = y, by ADMM.   Chen, Donoho & Saunders 1998; Boyd et al. 2011, section 6.2

    x <- v - A^T (A A^T)^{-1} (A v - y),  v = z - u             projection onto {A x = y}; A A^T is factored once             (1)
    x <- 1.6 x + (1 - 1.6) z                                    over-relaxation
    z <- soft(x + u, w / rho)                                                                                                 (2)
    u <- u + x - z                                                                                                            (3)

rho follows the residuals (doubled or halved when one is ten times the other). Every ``look`` iterations the non-zeros S of z are tried for
optimality: if A_S x_S = y can be solved with the signs of z_S, and a nu with A_S^T nu = w_S sign(x_S) has |A^T nu| <= w everywhere, x is a
minimiser, proven, to rounding. Memory m^2 + m d for the projection: A is made explicitly, since it is needed twice an iteration.
"""

from typing import Any

import torch
from torch import Tensor

from ..errors import Unfit
from .fista import soft
from .recovery import Recovery, Watch, least_squares, problem, trivial

OVER, LOOK = 1.6, 25


def basis_pursuit(
    A: Any,
    y: Tensor,
    *,
    weights: Tensor | None = None,
    steps: int = 5000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """The solution of A x = y of least weighted l1 norm.

    Args:
        A: matrix (m, d) or operator, of full row rank; y: (m,), of the same precision.
        weights: (d,), positive; None is 1 everywhere.
        steps: iterations at most.
        tolerance: ||x - z|| and the dual residual, relative; default 1e-7 in float64, 1e-4 in float32.
        on_step: called with (iteration, ||x - z||) after each.

    Raises: Unfit as :func:`gossamer.recover.iht`, and if A lacks full row rank (the constraints then contradict or repeat each other).
    """
    p = problem("basis_pursuit", A, y, steps=steps)
    if (nothing := trivial(p)) is not None:
        return nothing
    tolerance = (1e-7 if y.dtype == torch.float64 else 1e-4) if tolerance is None else tolerance
    M = p.A.columns(torch.arange(p.A.shape[1], device=y.device))
    factor, info = torch.linalg.cholesky_ex(M @ M.T)
    if int(info) or float(factor.diagonal().min()) <= 10 * torch.finfo(y.dtype).eps ** 0.5 * float(factor.diagonal().max()):
        remedy = "drop rows that depend on others; with more rows than columns use fista or niht"
        raise Unfit("basis_pursuit", "the rows of A depend on each other", remedy=remedy)
    P = torch.cholesky_solve(M, factor).T.contiguous()  # A^T (A A^T)^{-1}, (d, m)
    w = torch.ones(M.shape[1], dtype=y.dtype, device=y.device) if weights is None else weights.to(y)
    if w.shape != (M.shape[1],) or not bool((w > 0).all()):
        raise Unfit("basis_pursuit", f"weights must be {M.shape[1]} positive numbers")
    x = P @ p.y
    z, u = x, torch.zeros_like(x)
    rho = float(w.mean()) / max(float(x.abs().mean()), 1e-300)
    residuals: list[float] = []
    for t in range(1, steps + 1):
        v = z - u
        x = v - P @ (M @ v - p.y)  # (1)
        x = OVER * x + (1 - OVER) * z
        before, z = z, soft(x + u, w / rho)  # (2)
        u = u + x - z  # (3)
        primal, dual, scale = float((x - z).norm()), float((z - before).norm()), max(float(z.norm()), 1e-300)
        residuals.append(primal)
        if on_step is not None:
            on_step(t, primal)
        if primal <= tolerance * scale and dual <= tolerance * scale:
            return _result(M, p.y, z, residuals, t, True, f"iterates agree to {max(primal, dual) / scale:.1g}")
        if t % LOOK == 0:
            if (proven := _certified(M, p.y, z, w)) is not None:
                residuals.append(float((p.y - M @ proven).norm()))
                S = proven.nonzero().flatten()
                return Recovery(S, proven[S], M.shape[1], residuals, t, True, "optimal: a dual certificate was found")
            if primal > 10 * dual or dual > 10 * primal:
                factor_ = 2.0 if primal > 10 * dual else 0.5
                rho, u = rho * factor_, u / factor_
    return _result(M, p.y, z, residuals, steps, False, f"all {steps} iterations were used and the iterates still differ by {primal:.2g}")


def _certified(M: Tensor, y: Tensor, z: Tensor, w: Tensor) -> Tensor | None:
    """The minimiser with the support and signs of z, if there is one and it can be proven; else None."""
    S = z.nonzero().flatten()
    if not 0 < S.numel() <= M.shape[0]:
        return None
    M_S, eps = M[:, S], torch.finfo(y.dtype).eps ** 0.5
    x = least_squares(M_S, y)
    if float((M_S @ x - y).norm()) > eps * float(y.norm()) or not torch.equal(x.sign(), z[S].sign()):
        return None
    target = w[S] * x.sign()
    nu = least_squares(M_S.T, target)
    if float((M_S.T @ nu - target).norm()) > eps * float(target.norm()) or not bool(((M.T @ nu).abs() <= w * (1 + eps)).all()):
        return None
    return z.new_zeros(M.shape[1]).index_put_((S,), x)


def _result(M: Tensor, y: Tensor, z: Tensor, residuals: list[float], steps: int, converged: bool, reason: str) -> Recovery:
    """z, its values fitted once more to its own support where that makes the equations hold better."""
    S = z.nonzero().flatten()
    x = z[S]
    if 0 < S.numel() <= M.shape[0]:
        fit = least_squares(M[:, S], y)
        if float((M[:, S] @ fit - y).norm()) < float((M[:, S] @ x - y).norm()):
            x = fit
    return Recovery(S, x, M.shape[1], [*residuals, float((y - M[:, S] @ x).norm())], steps, converged, reason)
