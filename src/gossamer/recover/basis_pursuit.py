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

from .._errors import UsageError
from .arrays import vector
from .fista import soft
from .recovery import Log, Problem, Recovery, Watch, finished, least_squares, nonzeros, problem, trivial
from .units import exponent, shifted, times

OVER, LOOK = 1.6, 25


def basis_pursuit(
    A: Any,
    y: Any,
    *,
    weights: Any = None,
    steps: int = 5000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """The solution of A x = y of least weighted l1 norm.

    Args:
        A: matrix (m, d) or operator, of full row rank; y: (m,), of the same precision.
        weights: (d,), positive, in any unit; None is 1 everywhere.
        steps: iterations at most.
        tolerance: ||x - z|| and the dual residual, relative; default 1e-7 in float64, 1e-4 in float32.
        on_step: called with (iteration, ||x - z||) after each.

    Raises: UsageError as :func:`gossamer.recover.iht`, and if A lacks full row rank (the constraints then contradict or repeat each other).
    """
    p = problem("basis_pursuit", A, y, steps=steps)
    w = _weights(p, weights)
    if (nothing := trivial(p)) is not None:
        return nothing
    tolerance = (1e-7 if p.y.dtype == torch.float64 else 1e-4) if tolerance is None else tolerance
    M = p.A.columns(torch.arange(p.A.shape[1], device=p.y.device))
    factor, info = torch.linalg.cholesky_ex(M @ M.T)
    if int(info) or float(factor.diagonal().min()) <= 10 * torch.finfo(p.y.dtype).eps ** 0.5 * float(
        factor.diagonal().max()
    ):
        remedy = "drop rows that depend on others; with more rows than columns use fista or niht"
        raise UsageError("basis_pursuit", "the rows of A depend on each other", remedy=remedy)
    P = torch.cholesky_solve(M, factor).T.contiguous()  # A^T (A A^T)^{-1}, (d, m)
    x = P @ p.y
    z, u, log = x, torch.zeros_like(x), Log(p, on_step)
    rho = float(w.mean()) / max(float(x.abs().mean()), 1e-300)
    for t in range(1, steps + 1):
        v = z - u
        x = v - P @ (M @ v - p.y)  # (1)
        x = OVER * x + (1 - OVER) * z
        before, z = z, soft(x + u, w / rho)  # (2)
        u = u + x - z  # (3)
        primal, dual, scale = float((x - z).norm()), float((z - before).norm()), max(float(z.norm()), 1e-300)
        log(t, times(primal, -p.a))  # in units of x
        if primal <= tolerance * scale and dual <= tolerance * scale:
            return _result(p, M, z, log, t, True, f"iterates agree to {max(primal, dual) / scale:.1g}")
        if t % LOOK == 0:
            if (proven := _certified(M, p.y, z, w)) is not None:
                log.note(float((p.y - M @ proven).norm()))
                return finished(p, *nonzeros(proven), log, t, True, "optimal: a dual certificate was found")
            if primal > 10 * dual or dual > 10 * primal:
                factor_ = 2.0 if primal > 10 * dual else 0.5
                rho, u = rho * factor_, u / factor_
    return _result(
        p,
        M,
        z,
        log,
        steps,
        False,
        f"all {steps} iterations were used and the iterates still differ by {log.residuals[-1]:.2g}",
    )


def _weights(p: Problem, weights: Any) -> Tensor:
    """Weights (d,) in units of their own, since no common factor changes the solution."""
    d = p.A.shape[1]
    if weights is None:
        return torch.ones(d, dtype=p.y.dtype, device=p.y.device)
    w = vector("basis_pursuit", "weights", weights)
    if w.shape != (d,) or not w.is_floating_point() or not bool(((w > 0) & w.isfinite()).all()):
        raise UsageError("basis_pursuit", f"weights must be {d} positive numbers", got=(tuple(w.shape), w.dtype))
    return shifted(w.detach(), -exponent(w)).to(p.y)


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
    if float((M_S.T @ nu - target).norm()) > eps * float(target.norm()) or not bool(
        ((M.T @ nu).abs() <= w * (1 + eps)).all()
    ):
        return None
    return z.new_zeros(M.shape[1]).index_put_((S,), x)


def _result(p: Problem, M: Tensor, z: Tensor, log: Log, steps: int, converged: bool, reason: str) -> Recovery:
    """z, its values fitted once more to its own support where that makes the equations hold better."""
    S, x = nonzeros(z)
    if 0 < S.numel() <= M.shape[0]:
        fit = least_squares(M[:, S], p.y)
        if float((M[:, S] @ fit - p.y).norm()) < float((M[:, S] @ x - p.y).norm()):
            x = fit
    log.note(float((p.y - M[:, S] @ x).norm()))
    return finished(p, S, x, log, steps, converged, reason)
