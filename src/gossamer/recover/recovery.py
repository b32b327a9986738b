"""What all solvers share: the result, the exact hard threshold, and one streamed look at the gradient that serves every step size.

    H_s(z)       keeps the s largest |z|; exactly s of them where there are so many non-zeros; among equals the lowest index
    sense        g = A^T r on the support and at its s strongest places elsewhere, from one stream over the columns

Off the support of x, x + mu g is mu g: whatever the step size mu, what H_s keeps of it lies among the support and the s strongest entries
of g off it. So one pass over A^T r, of which O(s + block) numbers are ever held, is enough for all step sizes that a solver may try.

    problem      A = 2^a A', y = 2^b y'         A' and y' are of the order of one, and solvers see nothing else
    finished     x = 2^(b - a) x'               exactly, or the result says that its precision cannot hold x
    Log          ||y - A x|| = 2^b ||y' - A' x'||

So a solver does the same, bit for bit, whatever powers of two A and y are multiplied by.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._errors import UsageError, check_count
from ..products.sense.op import top_k
from .arrays import vector
from .operators import PRECISIONS, Operator
from .scaled import normalised
from .units import beyond, exponent, put_back, shifted, times


class Recovery(NamedTuple):
    """What a solver found.

    ``support`` (k,) int64, sorted, and ``values`` (k,): the non-zeros of x; ``size``: entries of x; ``residuals``: ||y - A x|| after each
    iteration (the last one is that of what is returned); ``iterations``; ``converged`` and ``reason``, a sentence on why it ended.
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
        return torch.zeros(self.size, dtype=self.values.dtype, device=self.values.device).index_put_(
            (self.support,), self.values
        )

    def __repr__(self) -> str:
        left = f"{self.residuals[-1]:.3g}" if self.residuals else "none"
        return f"Recovery({self.support.numel()} of {self.size} non-zero, residual {left}, {self.iterations} iterations: {self.reason})"


class Problem(NamedTuple):
    """A checked problem in units of its own: 2^-b y = (2^-a A) x with at most s non-zeros; ``inflated`` of them while iterating."""

    A: Operator
    y: Tensor
    s: int
    inflated: int
    tolerance: float  # of the residual's norm, absolute
    a: int = 0
    b: int = 0

    def told(self, residual: float) -> float:
        """A residual in the units in which y came."""
        return times(residual, self.b)


def problem(
    who: str,
    A: Any,
    y: Any,
    s: int | None = None,
    s_tilde: int | None = None,
    tolerance: float | None = None,
    *,
    steps: int = 1,
) -> Problem:
    """Checks what a solver is given, and takes the units out. Raises UsageError."""
    check_count(who, "steps", steps, 1)
    A, a = normalised(who, A)
    rows, cols = A.shape
    y = vector(who, "y", y)
    if y.shape != (rows,):
        remedy = "Stacked(A, k) solves for several at once"
        raise UsageError(who, f"y must be a vector with the {rows} rows of A", got=tuple(y.shape), remedy=remedy)
    if y.dtype not in PRECISIONS or y.dtype != A.dtype:
        raise UsageError(who, f"y must have the precision of A, {A.dtype}", got=y.dtype)
    if not bool(y.isfinite().all()):
        raise UsageError(
            who,
            f"y holds {int((~y.isfinite()).sum())} entries that are NaN or infinite",
            remedy="drop these measurements",
        )
    count = cols if s is None else check_count(who, "s", s, 0)
    if count > cols:
        raise UsageError(
            who, f"x has {cols} coefficients, fewer than the {count} non-zeros asked for", remedy=f"s of at most {cols}"
        )
    inflated = count if s_tilde is None else check_count(who, "s_tilde, which inflates the support,", s_tilde, count)
    default = 1e-9 if y.dtype == torch.float64 else 2e-5
    b = exponent(y)
    y = shifted(y.detach(), -b)
    return Problem(
        A, y, count, min(inflated, cols), (default if tolerance is None else tolerance) * float(y.norm()), a, b
    )


def hard(ids: Tensor, z: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """H_s of a sparse vector, ids sorted: the s largest |z| that are not zero, ties to the lowest id."""
    keep = top_k(z.abs(), s)
    keep = keep[z[keep] != 0]
    return ids[keep], z[keep]


class Largest:
    """The k largest |values| of a stream of blocks in order of their ids; zeros never enter; ties to the lowest id. O(k + block)."""

    def __init__(self, k: int, like: Tensor):
        self.k = k
        self.ids = torch.empty(0, dtype=torch.int64, device=like.device)
        self.values = torch.empty(0, dtype=like.dtype, device=like.device)

    def offer(self, first: int, values: Tensor) -> None:
        """Values of ids first, first + 1, ..."""
        best = top_k(values.abs(), min(self.k, values.numel()))
        ids, values = torch.cat([self.ids, best + first]), torch.cat([self.values, values[best]])
        self.ids, self.values = hard(ids, values, self.k)


def sense(A: Operator, r: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A^T r on the support and at its k strongest entries off it: ids, sorted, and values."""
    best, on = Largest(k, r), []
    for first, g in A.adjoint(r):
        inside = support[torch.searchsorted(support, first) : torch.searchsorted(support, first + g.numel())] - first
        on.append(g[inside])
        best.offer(first, g.index_fill(0, inside, 0.0))
    ids, order = torch.sort(torch.cat([support, best.ids]))
    return ids, torch.cat([*on, best.values])[order]


def spread(ids: Tensor, support: Tensor, values: Tensor) -> Tensor:
    """A sparse vector's values at sorted ids that contain its support."""
    return values.new_zeros(ids.numel()).index_put_((torch.searchsorted(ids, support),), values)


def nonzeros(x: Tensor) -> tuple[Tensor, Tensor]:
    """Support and values of a dense vector."""
    S = x.nonzero().flatten()
    return S, x[S]


def least_squares(A_S: Tensor, y: Tensor) -> Tensor:
    """argmin ||A_S x - y||, the one of least norm where the columns depend on each other."""
    if A_S.shape[1] == 0:
        return y.new_empty(0)
    if A_S.is_cuda:
        return torch.linalg.pinv(A_S) @ y
    return torch.linalg.lstsq(A_S, y[:, None], driver="gelsd").solution[:, 0]


class Log:
    """What a run says on its way: residuals, in the units in which y came, to ``residuals`` and to ``on_step``."""

    def __init__(self, p: Problem, on_step: "Watch | None"):
        self.p, self.on_step = p, on_step
        self.residuals: list[float] = []

    def __call__(self, t: int, residual: float) -> None:
        """Notes the residual of iteration t and tells it."""
        self.note(residual)
        self.tell(t)

    def note(self, residual: float) -> None:
        """Notes a residual that nobody is told."""
        self.residuals.append(self.p.told(residual))

    def tell(self, t: int) -> None:
        """Tells the last residual noted."""
        if self.on_step is not None:
            self.on_step(t, self.residuals[-1])


def finished(p: Problem, support: Tensor, x: Tensor, log: Log, steps: int, converged: bool, reason: str) -> Recovery:
    """The result, units put back; what an inflated run found beyond s is cut, and the values are fitted once more to what stays."""
    if support.numel() > p.s:
        support, x = hard(support, x, p.s)
        A_S = p.A.columns(support)
        x = least_squares(A_S, p.y)
        log.note(float((p.y - A_S @ x).norm()))
        reason = f"{reason}; cut to {p.s} non-zeros and fitted again"
    values = put_back(x, p.b - p.a)
    if values is None:
        log.note(float(p.y.norm()))
        return Recovery(support[:0], x[:0], p.A.shape[1], log.residuals, steps, False, beyond("x", x, p.b - p.a))
    kept = values != 0
    return Recovery(support[kept], values[kept], p.A.shape[1], log.residuals, steps, converged, reason)


def trivial(p: Problem) -> Recovery | None:
    """The result where nothing is to be solved: s = 0, or y = 0."""
    if p.s and bool(p.y.any()):
        return None
    none, log = torch.empty(0, dtype=torch.int64, device=p.y.device), Log(p, None)
    log.note(float(p.y.norm()))
    return finished(p, none, p.y.new_empty(0), log, 0, True, "nothing may be non-zero" if p.s == 0 else "y is zero")


Watch = Callable[[int, float], object]  # what ``on_step`` is: called with the iteration and the residual's norm


def fitted(residual: float, p: Problem) -> str | None:
    """The sentence on a residual that is small enough, or None."""
    return f"the residual is down to {p.told(residual):.2g}" if residual <= p.tolerance else None


def stands(residual: float, p: Problem) -> str:
    """The sentence on a run that moves no more."""
    return f"support and values repeat; the residual of {p.told(residual):.3g} stays: {WHY}"


WHY = "noise, too small an s, or a wrong support"
USED_UP = "all {} iterations were used and it still moved; more steps, a larger s_tilde or more measurements may help"
