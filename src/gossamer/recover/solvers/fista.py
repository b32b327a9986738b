# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""The Lasso by proximal gradient: ISTA, and FISTA with Nesterov's extrapolation.
Beck & Teboulle 2009, SIAM J. Imaging Sci. 2(1)

    min_x 1/2 ||A x - y||^2 + lam ||x||_1

    x' <- soft(v + A^T (y - A v) / L, lam / L),  L = ||A||^2                                                       (1)
    ISTA    v <- x'
    FISTA   t' = (1 + sqrt(1 + 4 t^2)) / 2,  v <- x' + (t - 1) / t' (x' - x)                                       (2)

The error of the objective falls as O(1/k) and O(1/k^2). FISTA restarts its momentum when it points uphill (O'Donoghue &
Candes 2015). lam controls the number of non-zeros. The iteration stops when the duality gap, a bound on the error of
the objective, is at most ``tolerance`` times 1/2 ||y||^2. scikit-learn's Lasso with ``alpha`` on m samples is
lam = m alpha. State: two dense vectors. Cost per step: 4 m d.
"""

import math

import torch
from torch import Tensor

from ..._errors import UsageError
from ..arrays import Array, norm
from ..operators.conversion import Matrix
from ..operators.protocol import Operator
from ..units import times
from .iht import spectral_norm
from .result import Log, Recovery, Watch, finished, problem
from .thresholding import nonzeros


def fista(
    A: Matrix,
    y: Array,
    lam: float | None = None,
    *,
    momentum: bool = True,
    steps: int = 5000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """The solution of the Lasso, min 1/2 ||A x - y||^2 + lam ||x||_1.

    Args:
        A: matrix (m, d) or operator.
        y: (m,), of the same precision.
        lam: strength. None is a hundredth of ||A^T y||_inf, the smallest lam at which x = 0.
        momentum: True is FISTA, False is ISTA.
        steps: largest number of iterations.
        tolerance: the iteration stops at this duality gap over 1/2 ||y||^2. Default 1e-8 in float64, 1e-5 in float32.
        on_step: called with (iteration, residual) after each iteration.

    Raises: UsageError if shapes or precisions do not fit, y or A hold NaN or infinities, or lam is not positive.
    """
    p = problem("fista" if momentum else "ista", A, y, steps=steps)
    relative = (1e-8 if p.y.dtype == torch.float64 else 1e-5) if tolerance is None else tolerance
    enough = relative * 0.5 * float(p.y.square().sum())
    top = float(p.A.rmatvec(p.y).abs().max())
    if lam is not None and not lam > 0 and top > 0:
        raise UsageError("fista", "lam must be positive", got=lam)
    strength = 0.01 * top if lam is None else times(lam, -p.a - p.b)
    L = 1.02 * spectral_norm(p.A) ** 2
    x = v = p.y.new_zeros(p.A.shape[1])
    t, gap, log = 1.0, math.inf, Log(p, on_step)
    for k in range(1, steps + 1):
        new = soft(v + p.A.rmatvec(p.y - p.A.matvec(v)) / L, strength / L)  # (1)
        if momentum:
            if float((v - new) @ (new - x)) > 0:
                t = 1.0
            following = (1 + (1 + 4 * t * t) ** 0.5) / 2
            v = new + (t - 1) / following * (new - x)  # (2)
            t = following
        else:
            v = new
        x = new
        looked = k % 10 == 0 or k == steps or k == 1
        if looked:
            r = p.y - p.A.matvec(x)
            log.note(norm(r))
            gap = duality_gap(p.A, p.y, x, r, strength)
        log.tell(k)
        if looked and gap <= enough:
            reason = f"the objective is proven within {times(gap, 2 * p.b):.2g} of its minimum"
            return finished(p, *nonzeros(x), log, k, True, reason)
    reason = f"all {steps} iterations were used; the duality gap is still {times(gap, 2 * p.b):.2g}"
    return finished(p, *nonzeros(x), log, steps, False, reason)


def ista(
    A: Matrix,
    y: Array,
    lam: float | None = None,
    *,
    steps: int = 5000,
    tolerance: float | None = None,
    on_step: Watch | None = None,
) -> Recovery:
    """:func:`fista` without momentum. Arguments, result and errors are those of :func:`fista`."""
    return fista(A, y, lam, momentum=False, steps=steps, tolerance=tolerance, on_step=on_step)


def soft(z: Tensor, tau: float | Tensor) -> Tensor:
    """sign(z) max(|z| - tau, 0)."""
    return z.sign() * (z.abs() - tau).clamp_min(0)


def duality_gap(A: Operator, y: Tensor, x: Tensor, r: Tensor, lam: float) -> float:
    """Objective at x minus the dual objective at r, scaled into the feasible set.

    It bounds the distance of the objective to its minimum.
    """
    largest = max((float(g.abs().max()) for _, g in A.adjoint(r)), default=0.0)
    u = r * min(1.0, lam / largest) if largest > 0 else r
    primal = 0.5 * float(r.square().sum()) + lam * float(x.abs().sum())
    return primal - (0.5 * float(y.square().sum()) - 0.5 * float((y - u).square().sum()))
