"""The laws of recovery: operators, solvers, and the units of a problem."""

# torch leaves Tensor.norm and Tensor.tolist without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._errors import UsageError
from ..recover.operators import Dense, Operator
from ..recover.solvers.result import Recovery
from .details import TOLERANCE, close, demand


def check_operator(A: Operator, *, tolerance: float | None = None) -> None:
    """An operator is one matrix: its products, its adjoint and its norms agree with its columns, at every call.

    The blocks of the adjoint are consecutive and cover all columns.

    Args:
        A: the operator.
        tolerance: relative tolerance of all comparisons; None chooses it by the dtype.

    Raises: AssertionError.
    """
    who, (m, d), rng = f"{A}", A.shape, torch.Generator().manual_seed(3)
    tolerance = TOLERANCE[A.dtype] if tolerance is None else tolerance
    before = torch.get_rng_state()
    M = A.columns(torch.arange(d, device=A.device))
    demand(
        M.shape == (m, d) and M.dtype == A.dtype,
        f"{who}: columns(all ids) must be the matrix, in the operator's precision",
    )
    x = torch.randn(d, generator=rng, dtype=torch.float64).to(A.device, A.dtype)
    r = torch.randn(m, generator=rng, dtype=torch.float64).to(A.device, A.dtype)
    sparse = torch.zeros_like(x)
    sparse[d // 2] = 2.0
    for what, vector in (("x", x), ("a sparse x", sparse), ("zero", torch.zeros_like(x))):
        y = A.matvec(vector)
        demand(y.shape == (m,) and y.dtype == A.dtype, f"{who}: matvec must give (rows,) in the operator's precision")
        close(y, M @ vector, f"{who}: matvec of {what} must be the columns' combination", tolerance)
    end = 0
    for first, block in A.adjoint(r):
        demand(first == end and block.dim() == 1, f"{who}: blocks of the adjoint must follow each other from column 0")
        close(
            block,
            M[:, first : first + block.numel()].T @ r,
            f"{who}: a block of the adjoint must be that of A^T r",
            tolerance,
        )
        end += block.numel()
    demand(end == d, f"{who}: blocks of the adjoint must cover all columns")
    close(A.rmatvec(r), M.T @ r, f"{who}: rmatvec must be A^T r", tolerance)
    some = torch.tensor([d - 1, 0, d // 2, 0], device=A.device)
    close(A.columns(some), M[:, some], f"{who}: columns must be those asked for, in any order and repeated", tolerance)
    demand(A.columns(some[:0]).shape == (m, 0), f"{who}: no ids must give no columns")
    close(A.norms(), M.norm(dim=0), f"{who}: norms must be the columns' norms", tolerance)
    demand(torch.equal(A.columns(some), A.columns(some)), f"{who}: two calls must see the same matrix")
    demand(torch.equal(torch.get_rng_state(), before), f"{who}: must not advance torch's random state")


def check_solver(solve: Callable[[Any, Tensor, int], Recovery], *, s: int = 3, name: str = "solver") -> None:
    """A solver finds easy signals exactly, and all fields of its result are correct.

    At most ``s`` entries are non-zero, in order of their index. Of equal columns the solver takes the lower index. It
    never takes a zero column. The same problem gives the same bits. Invalid problems are refused with UsageError.

    Args:
        solve: (A, y, s) -> Recovery.
        s: number of non-zeros of the easy signals.
        name: name of the solver in messages.

    Raises: AssertionError.
    """
    rng = torch.Generator().manual_seed(5)
    m, d = 60, 80
    A = torch.randn(m, d, generator=rng, dtype=torch.float64) / m**0.5
    A[:, 7] = 0.0
    x = torch.zeros(d, dtype=torch.float64)
    x[[3, 40, 79][:s]] = torch.tensor([1.0, -2.0, 1.5], dtype=torch.float64)[:s]
    noise = torch.randn(m, generator=rng, dtype=torch.float64)
    found = solve(A, A @ x, s)
    _recovery_makes_sense(found, A, A @ x, s, name)
    close(found.dense(), x, f"{name}: {s} of {d} must be found exactly from {m} measurements", 1e-5)
    demand(
        found.converged and bool(found.reason), f"{name}: converged must be True for a solved problem, with a reason"
    )
    noisy = solve(A, A @ x + 0.01 * noise, s)
    _recovery_makes_sense(noisy, A, A @ x + 0.01 * noise, s, name)
    demand(
        float((noisy.dense() - x).norm()) <= 0.05 * float(noise.norm()),
        f"{name}: the error must be of the order of the noise",
    )
    hopeless = solve(A, noise, s)
    _recovery_makes_sense(hopeless, A, noise, s, name)
    again, lazy = solve(A, noise, s), solve(Dense(A), noise, s)
    for other, why in ((again, "the same call twice"), (lazy, "a matrix and its operator")):
        demand(torch.equal(other.dense(), hopeless.dense()), f"{name}: {why} must give the same bits")
    none = solve(A, noise, 0)
    demand(none.support.numel() == 0 and not bool(none.dense().any()), f"{name}: s = 0 must give x = 0")
    twice = torch.eye(8, dtype=torch.float64).repeat(1, 2)
    tie = solve(twice, 3 * twice[:, 5], 1)
    demand(tie.support.tolist() == [5], f"{name}: of two equal columns the lower index must be taken")
    wrong: tuple[tuple[str, Any, Tensor, int], ...] = (
        ("NaN in y", A, noise.clone().index_fill_(0, torch.tensor([1]), math.nan), s),
        ("infinity in A", A.clone().index_fill_(0, torch.tensor([1]), math.inf), noise, s),
        ("more non-zeros than coefficients", A, noise, d + 1),
        ("a negative count", A, noise, -1),
        ("y of another length", A, noise[1:], s),
        ("y of another precision", A, noise.float(), s),
    )
    for what, matrix, y, count in wrong:
        try:
            solve(matrix, y, count)
        except UsageError:
            continue
        raise AssertionError(f"{name}: {what} must be refused with UsageError")


POWERS = (-100, -77, -26, 0, 40, 100)  # of two: about 1e-30, 1e-23, 1e-8, 1, 1e12 and 1e30


def check_units(
    solve: Callable[[Any, Tensor], Recovery], *, dtype: torch.dtype = torch.float64, name: str = "solver"
) -> None:
    """The same problem in other units has the same solution: 2^a A and 2^b y give 2^(b - a) x.

    ``converged`` does not change, and the residual is that of this x. If the precision cannot hold x, the result is
    finite and ``converged`` is False.

    Args:
        solve: (A, y) -> Recovery.
        dtype: precision of the problem.
        name: name of the solver in messages.

    Raises: AssertionError.
    """
    rng = torch.Generator().manual_seed(5)
    A = torch.randn(30, 40, generator=rng, dtype=torch.float64).to(dtype) / 8
    x = torch.zeros(40, dtype=dtype)
    x[[3, 20, 39]] = torch.tensor([1.1, -2.3, 1.7], dtype=dtype)
    y = A @ x
    plain = solve(A, y)
    demand(plain.converged, f"{name}: an easy problem must be solved")
    for a, b in itertools.product(POWERS, POWERS):
        _same_in_units(solve, A, y, plain, 2.0**a, 2.0**b, name)
    for a, b in ((0, -23), (0, 30), (-30, -30), (15, -15)):
        _same_in_units(solve, A, y, plain, 10.0**a, 10.0**b, name)


def _same_in_units(
    solve: Callable[[Any, Tensor], Recovery], A: Tensor, y: Tensor, plain: Recovery, a: float, b: float, name: str
) -> None:
    where, limits = f"{name}, A x {a:.3g}, y x {b:.3g}", torch.finfo(A.dtype)
    found, right = solve(a * A, b * y), plain.dense().double() * (b / a)
    demand(bool(found.values.isfinite().all()), f"{where}: x must be finite")
    if not limits.tiny / 1024 < float(right.abs().max()) < limits.max:
        demand(
            not found.converged and bool(found.reason),
            f"{where}: converged must be False for an x that the precision cannot hold",
        )
    elif limits.tiny * 1024 < float(right.abs().max()):
        demand(found.converged == plain.converged, f"{where}: units must not change converged ({found.reason})")
        error = float((found.dense().double() - right).abs().max() / right.abs().max())
        demand(
            error <= (1e-6 if A.dtype == torch.float64 else 2e-3),
            f"{where}: x must follow the units (off by {error:.3g})",
        )
        residual = (y.double() - A.double() @ (found.dense().double() * (a / b))).norm()
        wrong = abs(found.residuals[-1] / b - float(residual)) / float(y.double().norm())
        demand(
            wrong <= (1e-9 if A.dtype == torch.float64 else 1e-4),
            f"{where}: residuals must be in the units of y (off by {wrong:.3g})",
        )


def _recovery_makes_sense(found: Recovery, A: Tensor, y: Tensor, s: int, name: str) -> None:
    support = found.support
    demand(
        support.dtype == torch.int64 and support.shape == found.values.shape,
        f"{name}: support and values must have the same length",
    )
    demand(support.numel() <= s, f"{name}: at most {s} entries may be non-zero, not {support.numel()}")
    demand(bool((support.diff() > 0).all()), f"{name}: the support must be sorted")
    demand(7 not in support.tolist(), f"{name}: a zero column must never be chosen")
    demand(
        found.size == A.shape[1] and found.dense().shape == (A.shape[1],),
        f"{name}: x must have as many entries as A has columns",
    )
    last = torch.tensor(found.residuals[-1], dtype=y.dtype)
    close(last, (y - A @ found.dense()).norm(), f"{name}: the last residual must be that of the x returned", 1e-8)
