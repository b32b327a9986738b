# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Orthogonal matching pursuit: one column at a time, least squares after each.
Pati, Rezaiifar & Krishnaprasad 1993; Tropp 2004

    j  = argmax |a_j^T r| / ||a_j||                     ties go to the lowest index; zero columns are skipped
    Q <- [Q, q],  q = (I - Q Q^T) a_j normalised        (orthogonalised twice: once loses digits)
    r <- r - q q^T r
    at the end  x = R^{-1} Q^T y,  A_S = Q R

The result is exact if the coherence is below 1 / (2 s - 1). Columns are compared at unit norm, which needs one more
pass over A at the beginning; for columns of equal norms this is the classical rule. Cost per step: one stream of A^T r
and 4 m |S|. State: Q and R, O(m s).
"""

import torch
from torch import Tensor

from ..arrays import Array, norm
from ..operators.conversion import Matrix
from ..operators.protocol import Operator
from .result import Log, Recovery, Watch, finished, fitted, problem, trivial


def omp(A: Matrix, y: Array, s: int, *, tolerance: float | None = None, on_step: Watch | None = None) -> Recovery:
    """Solves y = A x for x with at most s non-zeros, chosen one by one.

    Arguments, result and errors as in :func:`gossamer.recover.iht`. There is no ``steps``: it makes at most s steps.
    """
    p = problem("omp", A, y, s, None, tolerance)
    if (nothing := trivial(p)) is not None:
        return nothing
    norms, log = p.A.norms(), Log(p, on_step)
    basis, r = _Basis(p.y, min(p.s, p.A.shape[0])), p.y
    converged, reason = True, f"all {p.s} non-zeros are placed"
    if basis.most < p.s:
        converged, reason = False, f"there are only {basis.most} measurements for {p.s} non-zeros"
    for k in range(basis.most):
        j = _strongest(p.A, r, norms, basis.chosen)
        if j < 0:
            reason = "no column is left that correlates with the residual"
            break
        q = basis.add(j, p.A.columns(torch.tensor([j], device=p.y.device))[:, 0], float(norms[j]))
        if q is None:
            converged, reason = False, "the best column left depends on those chosen: A is rank deficient on them"
            break
        r = r - q * (q @ r)
        residual = norm(r)
        log(k + 1, residual)
        if small := fitted(residual, p):
            converged, reason = True, small
            break
    S, x = basis.solution(p.y)
    if not S.numel():
        log.note(norm(p.y))
    return finished(p, S, x, log, S.numel(), converged, reason)


class _Basis:
    """A_S = Q R, one column after the other."""

    def __init__(self, like: Tensor, most: int):
        self.most, self.chosen = most, list[int]()
        self.Q, self.R = like.new_zeros(like.numel(), most), like.new_zeros(most, most)

    def add(self, j: int, a: Tensor, size: float) -> Tensor | None:
        """The next column of Q from column j of A; None where a depends on the columns chosen."""
        k, q = len(self.chosen), a
        self.R[:k, k] = 0.0
        for _ in range(2):
            part = self.Q[:, :k].T @ q
            q, self.R[:k, k] = q - self.Q[:, :k] @ part, self.R[:k, k] + part
        length = norm(q)
        if length <= 1e3 * torch.finfo(a.dtype).eps * size:
            return None
        self.Q[:, k], self.R[k, k] = q / length, length
        self.chosen.append(j)
        return self.Q[:, k]

    def solution(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The least-squares solution on the columns chosen: support, sorted, and values."""
        k = len(self.chosen)
        right = (self.Q[:, :k].T @ y)[:, None]
        x = torch.linalg.solve_triangular(self.R[:k, :k], right, upper=True)[:, 0]
        S, order = torch.sort(torch.tensor(self.chosen, dtype=torch.int64, device=y.device))
        return S, x[order]


def _strongest(A: Operator, r: Tensor, norms: Tensor, chosen: list[int]) -> int:
    """The column that correlates most with r; -1 if none does."""
    best, where = 0.0, -1
    taken = torch.tensor(chosen, dtype=torch.int64, device=r.device)
    for first, g in A.adjoint(r):
        score = (g / norms[first : first + g.numel()]).abs().nan_to_num_(0.0, 0.0, 0.0)
        score[taken[(taken >= first) & (taken < first + g.numel())] - first] = 0.0
        top = score.max()
        if float(top) > best:
            best, where = float(top), first + int((score == top).nonzero()[0, 0])  # argmax promises no index of a tie
    return where
