"""Orthogonal matching pursuit: one column at a time, least squares after each.   Pati, Rezaiifar & Krishnaprasad 1993; Tropp 2004

    j  = argmax |a_j^T r| / ||a_j||                     lowest index among equals; a zero column never
    Q <- [Q, q],  q = (I - Q Q^T) a_j normalised        (orthogonalised twice: once loses digits)
    r <- r - q q^T r
    at the end  x = R^{-1} Q^T y,  A_S = Q R

Exact if the coherence is below 1 / (2 s - 1). Columns are compared at unit norm, which needs one more pass over A at the beginning; among
columns of equal norms that is the classical rule. Cost per step: one stream of A^T r and 4 m |S|. State: Q and R, O(m s).
"""

from typing import Any

import torch
from torch import Tensor

from .recovery import Log, Recovery, Watch, finished, fitted, problem, trivial


def omp(A: Any, y: Any, s: int, *, tolerance: float | None = None, on_step: Watch | None = None) -> Recovery:
    """Solves y = A x for x with at most s non-zeros, s columns chosen one by one; arguments, result and errors as in
    :func:`gossamer.recover.iht`, but for ``steps``: there are at most s."""
    p = problem("omp", A, y, s, None, tolerance)
    if (nothing := trivial(p)) is not None:
        return nothing
    norms = p.A.norms()
    most = min(p.s, p.A.shape[0])
    Q, R = p.y.new_zeros(p.A.shape[0], most), p.y.new_zeros(most, most)
    chosen: list[int] = []
    r, log, converged, reason = p.y, Log(p, on_step), True, f"all {p.s} non-zeros are placed"
    if most < p.s:
        converged, reason = False, f"there are only {most} measurements for {p.s} non-zeros"
    for k in range(most):
        j, strength = _strongest(p.A, r, norms, chosen)
        if j < 0:
            reason = "no column is left that correlates with the residual"
            break
        a = p.A.columns(torch.tensor([j], device=p.y.device))[:, 0]
        q, R[:k, k] = a, 0.0
        for _ in range(2):
            part = Q[:, :k].T @ q
            q, R[:k, k] = q - Q[:, :k] @ part, R[:k, k] + part
        length = q.norm()
        if float(length) <= 1e3 * torch.finfo(p.y.dtype).eps * float(norms[j]):
            converged, reason = False, "the best column left depends on those chosen: A is rank deficient on them"
            break
        Q[:, k], R[k, k] = q / length, length
        chosen.append(j)
        r = r - Q[:, k] * (Q[:, k] @ r)
        residual = float(r.norm())
        log(k + 1, residual)
        if small := fitted(residual, p):
            converged, reason = True, small
            break
    k = len(chosen)
    x = torch.linalg.solve_triangular(R[:k, :k], (Q[:, :k].T @ p.y)[:, None], upper=True)[:, 0]
    S, order = torch.sort(torch.tensor(chosen, dtype=torch.int64, device=p.y.device))
    if not k:
        log.note(float(p.y.norm()))
    return finished(p, S, x[order], log, k, converged, reason)


def _strongest(A: Any, r: Tensor, norms: Tensor, chosen: list[int]) -> tuple[int, float]:
    """The column that correlates most with r, -1 if none does."""
    best, where = 0.0, -1
    taken = torch.tensor(chosen, dtype=torch.int64, device=r.device)
    for first, g in A.adjoint(r):
        score = (g / norms[first : first + g.numel()]).abs().nan_to_num_(0.0, 0.0, 0.0)
        score[taken[(taken >= first) & (taken < first + g.numel())] - first] = 0.0
        top = score.max()
        if float(top) > best:
            best, where = (
                float(top),
                first + int((score == top).nonzero()[0, 0]),
            )  # argmax promises no index among equals
    return where, best
