# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""The beginning and the end of every solver: the checked problem, the log of residuals, the result.

    problem      A = 2^a A', y = 2^b y'         A' and y' are of the order of one; solvers use only these
    finished     x = 2^(b - a) x'               exact, or ``reason`` reports that the dtype cannot hold x
    Log          ||y - A x|| = 2^b ||y' - A' x'||

A solver therefore computes the same bits for A and y as for 2^i A and 2^j y, for all i and j.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..._errors import UsageError, check_count
from ..arrays import norm, vector
from ..operators.protocol import PRECISIONS, Operator
from ..operators.scaled import normalised
from ..units import beyond, exponent, put_back, shifted, times
from .thresholding import hard, least_squares

Watch = Callable[[int, float], object]  # the type of ``on_step``: called with the iteration and the residual's norm

WHY = "noise, too small an s, or a wrong support"
USED_UP = "all {} iterations were used and it still moved; more steps, a larger s_tilde or more measurements may help"


class Recovery(NamedTuple):
    """The result of a solver.

    Attributes:
        support: positions of the non-zeros of x, (k,) int64, sorted.
        values: the non-zeros, (k,).
        size: number of entries of x.
        residuals: ||y - A x|| after each iteration. The last one is that of the returned x.
        iterations: number of iterations.
        converged: whether a stopping rule held; False if all iterations were used.
        reason: why the solver stopped, one sentence.
    """

    support: Tensor
    values: Tensor
    size: int
    residuals: list[float]
    iterations: int
    converged: bool
    reason: str

    def dense(self) -> Tensor:
        """x, (size,)."""
        zeros = torch.zeros(self.size, dtype=self.values.dtype, device=self.values.device)
        return zeros.index_put_((self.support,), self.values)

    def __repr__(self) -> str:
        left = f"{self.residuals[-1]:.3g}" if self.residuals else "none"
        head = f"{self.support.numel()} of {self.size} non-zero, residual {left}, {self.iterations} iterations"
        return f"Recovery({head}: {self.reason})"


class Problem(NamedTuple):
    """A checked and scaled problem: 2^-b y = (2^-a A) x with at most s non-zeros.

    During the iteration a solver may keep ``inflated`` non-zeros.
    """

    A: Operator
    y: Tensor
    s: int
    inflated: int
    tolerance: float  # of the residual's norm, absolute
    a: int = 0
    b: int = 0

    def told(self, residual: float) -> float:
        """A residual in the units of the given y."""
        return times(residual, self.b)


def problem(
    who: str,
    A: object,
    y: object,
    s: int | None = None,
    s_tilde: int | None = None,
    tolerance: float | None = None,
    *,
    steps: int = 1,
) -> Problem:
    """Checks the arguments of a solver and scales A and y. Raises UsageError with the name ``who``."""
    check_count(who, "steps", steps, 1)
    A, a = normalised(who, A)
    y = _right_hand_side(who, A, y)
    cols = A.shape[1]
    count = cols if s is None else check_count(who, "s", s, 0)
    if count > cols:
        what = f"x has {cols} coefficients, and cannot have {count} non-zeros"
        raise UsageError(who, what, remedy=f"s of at most {cols}")
    inflated = count if s_tilde is None else check_count(who, "s_tilde, which inflates the support,", s_tilde, count)
    relative = (1e-9 if y.dtype == torch.float64 else 2e-5) if tolerance is None else tolerance
    b = exponent(y)
    y = shifted(y.detach(), -b)
    return Problem(A, y, count, min(inflated, cols), relative * norm(y), a, b)


def _right_hand_side(who: str, A: Operator, y: object) -> Tensor:
    """y as a finite vector (rows,) of the precision of A. Raises UsageError."""
    rows, y = A.shape[0], vector(who, "y", y)
    if y.shape != (rows,):
        remedy = "use Stacked(A, k) for several right-hand sides"
        raise UsageError(who, f"y must be a vector with the {rows} rows of A", got=tuple(y.shape), remedy=remedy)
    if y.dtype not in PRECISIONS or y.dtype != A.dtype:
        raise UsageError(who, f"y must have the precision of A, {A.dtype}", got=y.dtype)
    if bad := int((~y.isfinite()).sum()):
        raise UsageError(who, f"y holds {bad} entries that are NaN or infinite", remedy="drop these measurements")
    return y


class Log:
    """The residuals of a run, in the units of the given y. They are stored, and passed to ``on_step``."""

    def __init__(self, p: Problem, on_step: Watch | None):
        self.p, self.on_step = p, on_step
        self.residuals: list[float] = []

    def __call__(self, t: int, residual: float) -> None:
        """Notes the residual of iteration t and passes it on."""
        self.note(residual)
        self.tell(t)

    def note(self, residual: float) -> None:
        """Notes a residual without passing it on."""
        self.residuals.append(self.p.told(residual))

    def tell(self, t: int) -> None:
        """Passes the last residual on."""
        if self.on_step is not None:
            self.on_step(t, self.residuals[-1])


def finished(p: Problem, support: Tensor, x: Tensor, log: Log, steps: int, converged: bool, reason: str) -> Recovery:
    """The result in the units of the given A and y.

    If an inflated run found more than s non-zeros, the s largest are kept and their values are fitted again.
    """
    if support.numel() > p.s:
        support, x = hard(support, x, p.s)
        A_S = p.A.columns(support)
        x = least_squares(A_S, p.y)
        log.note(norm(p.y - A_S @ x))
        reason = f"{reason}; cut to {p.s} non-zeros and fitted again"
    values = put_back(x, p.b - p.a)
    if values is None:
        log.note(norm(p.y))
        return Recovery(support[:0], x[:0], p.A.shape[1], log.residuals, steps, False, beyond("x", x, p.b - p.a))
    kept = values != 0
    return Recovery(support[kept], values[kept], p.A.shape[1], log.residuals, steps, converged, reason)


def trivial(p: Problem) -> Recovery | None:
    """The result for s = 0 or y = 0, which need no solver. None for other problems."""
    if p.s and bool(p.y.any()):
        return None
    none, log = torch.empty(0, dtype=torch.int64, device=p.y.device), Log(p, None)
    log.note(norm(p.y))
    return finished(p, none, p.y.new_empty(0), log, 0, True, "nothing may be non-zero" if p.s == 0 else "y is zero")


def fitted(residual: float, p: Problem) -> str | None:
    """The reason to stop at a residual that is small enough; None for a larger one."""
    return f"the residual is down to {p.told(residual):.2g}" if residual <= p.tolerance else None


def stands(residual: float, p: Problem) -> str:
    """The reason to stop when the iterates do not change any more."""
    return f"support and values repeat; the residual of {p.told(residual):.3g} stays: {WHY}"
