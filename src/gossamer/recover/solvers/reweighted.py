# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Reweighted l1: basis pursuit in rounds, each with larger weights on the small entries.
Candes, Wakin & Boyd 2008, J. Fourier Anal. Appl. 14

    x <- argmin sum_i w_i |x_i| subject to A x = y                                                                 (1)
    w_i <- 1 / (|x_i| + eps)                                                                                       (2)

By default eps is a tenth of the root mean square of the non-zeros of x. Four to eight rounds are usual. The rounds stop
when x repeats.
"""

import torch
from torch import Tensor

from ..._errors import UsageError, check_count
from ..arrays import Array, norm
from ..operators.conversion import Matrix
from ..units import times
from .basis_pursuit import basis_pursuit
from .result import Log, Recovery, Watch, finished, problem


def reweighted_l1(
    A: Matrix,
    y: Array,
    *,
    rounds: int = 6,
    eps: float | None = None,
    steps: int = 5000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """A sparse solution of A x = y, usually sparser than that of basis pursuit.

    Args:
        rounds: largest number of problems (1).
        eps: the constant in (2), in the units of x.
        steps: largest number of iterations of each basis pursuit.

    The other arguments, the result and the errors are those of :func:`gossamer.recover.basis_pursuit`.
    """
    check_count("reweighted_l1", "rounds", rounds, 1)
    if eps is not None and not eps > 0:
        raise UsageError("reweighted_l1", "eps must be positive", got=eps)
    p = problem("reweighted_l1", A, y, steps=steps)
    least = None if eps is None else times(eps, p.a - p.b)
    found, weights = None, None
    before: Tensor | None = None
    log, total = Log(p, on_step), 0
    for k in range(1, rounds + 1):
        found = basis_pursuit(p.A, p.y, weights=weights, steps=steps, tolerance=tolerance)  # (1)
        log(k, found.residuals[-1])
        total += found.iterations
        x = found.dense()
        scale = float(found.values.square().mean().sqrt()) if found.values.numel() else 1.0
        if before is not None and norm(x - before) <= 1e-6 * norm(x):
            return finished(p, found.support, found.values, log, total, True, f"the solution repeats in round {k}")
        before = x
        weights = 1 / (x.abs() + (least or 0.1 * scale)).clamp_min(torch.finfo(x.dtype).tiny)  # (2)
    assert found is not None  # rounds is at least 1
    reason = f"all {rounds} rounds were used; the last one: {found.reason}"
    return finished(p, found.support, found.values, log, total, found.converged, reason)
