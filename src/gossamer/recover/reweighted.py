"""Reweighted l1: basis pursuit again and again, what is small weighted more.   Candes, Wakin & Boyd 2008, J. Fourier Anal. Appl. 14

    x <- argmin sum_i w_i |x_i| subject to A x = y                                                                            (1)
    w_i <- 1 / (|x_i| + eps)                                                                                                  (2)

eps: a tenth of the scale of x, the root mean square of its non-zeros, by default. Four to eight rounds; stops when x repeats.
"""

from typing import Any

import torch

from .._errors import UsageError, check_count
from .basis_pursuit import basis_pursuit
from .recovery import Log, Recovery, Watch, finished, problem
from .units import times


def reweighted_l1(
    A: Any,
    y: Any,
    *,
    rounds: int = 6,
    eps: float | None = None,
    steps: int = 5000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """A sparse solution of A x = y, sparser than that of basis pursuit as a rule.

    Args:
        rounds: problems (1) solved at most.
        eps: in (2), in the units of x.
        steps: iterations of each basis pursuit at most; other arguments and errors as in :func:`gossamer.recover.basis_pursuit`.
    """
    check_count("reweighted_l1", "rounds", rounds, 1)
    if eps is not None and not eps > 0:
        raise UsageError("reweighted_l1", "eps must be positive", got=eps)
    p = problem("reweighted_l1", A, y, steps=steps)
    eps = None if eps is None else times(eps, p.a - p.b)
    weights, before, log, total = None, None, Log(p, on_step), 0
    for k in range(1, rounds + 1):
        found = basis_pursuit(p.A, p.y, weights=weights, steps=steps, tolerance=tolerance)  # (1)
        log(k, found.residuals[-1])
        total += found.iterations
        x = found.dense()
        scale = float(found.values.square().mean().sqrt()) if found.values.numel() else 1.0
        if before is not None and float((x - before).norm()) <= 1e-6 * float(x.norm()):
            return finished(p, found.support, found.values, log, total, True, f"the solution repeats in round {k}")
        before = x
        weights = 1 / (x.abs() + (eps or 0.1 * scale)).clamp_min(torch.finfo(x.dtype).tiny)  # (2)
    reason = f"all {rounds} rounds were used; the last one: {found.reason}"
    return finished(p, found.support, found.values, log, total, found.converged, reason)
