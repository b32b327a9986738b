# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""The loop that IHT, NIHT and AIHT share.

    g <- A^T (y - A_S x) on S and at its strongest places elsewhere       one stream, see thresholding.py
    S, x <- step(g)                                                       the step of the solver
    until the residual is small enough, or x moves by no more than ``still`` ||x||

Memory O(s + block + m s), as :class:`Iterate` holds the columns of A on its support.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..arrays import norm
from .result import USED_UP, Log, Problem, Recovery, finished, fitted, stands
from .thresholding import sense, spread


class Iterate(NamedTuple):
    """A sparse vector x with the columns of A on its support."""

    S: Tensor  # sorted, (k,) int64
    x: Tensor  # (k,)
    A_S: Tensor  # (m, k)


Step = Callable[[Tensor, Tensor, Tensor, Iterate], Iterate]  # (ids, gradient at ids, x at ids, last) -> next


def iterate(p: Problem, first: Iterate, step: Step, *, steps: int, still: float, log: Log) -> Recovery:
    """Repeats ``step`` from ``first``, whose x is zero, until a stopping rule holds or ``steps`` are used up."""
    now, r = first, p.y
    for t in range(1, steps + 1):
        ids, g = sense(p.A, r, now.S, p.inflated)
        before = spread(ids, now.S, now.x)
        now = step(ids, g, before, now)
        r = p.y - now.A_S @ now.x
        residual = norm(r)
        log(t, residual)
        if reason := fitted(residual, p):
            return finished(p, now.S, now.x, log, t, True, reason)
        if norm(spread(ids, now.S, now.x) - before) <= still * norm(now.x):
            return finished(p, now.S, now.x, log, t, True, stands(residual, p))
    return finished(p, now.S, now.x, log, steps, False, USED_UP.format(steps))


def nothing_yet(p: Problem) -> Iterate:
    """x = 0 with an empty support."""
    none = torch.empty(0, dtype=torch.int64, device=p.y.device)
    return Iterate(none, p.y.new_empty(0), p.y.new_empty(p.y.numel(), 0))


def strongest_start(p: Problem) -> Iterate:
    """x = 0 on the support of H_s(A^T y)."""
    S = sense(p.A, p.y, nothing_yet(p).S, p.inflated)[0]
    return Iterate(S, p.y.new_zeros(S.numel()), p.A.columns(S))
