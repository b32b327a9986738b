"""Operators and solvers of recovery broken on purpose."""

from collections.abc import Callable
from typing import Any

import torch

from cases import OPERATORS
from gossamer import laws, recover


def _operator(**methods: Callable) -> Callable[[], None]:
    """The law on a gated-ReLU operator with some of its methods exchanged."""
    real = OPERATORS["gated"]()
    kind = type("Twisted", (recover.GatedReLU,), methods)
    twisted = kind.__new__(kind)
    vars(twisted).update(vars(real))
    return lambda: laws.check_operator(twisted)


_G = recover.GatedReLU


def _whole(A: recover.GatedReLU, r: torch.Tensor) -> torch.Tensor:
    return torch.cat([block for _, block in _G.adjoint(A, r)])


OPERATOR = {
    "gates forgotten": _operator(matvec=lambda A, x: A.X @ x.view(A.neurons, -1).sum(0)),
    "a sparse vector takes another path": _operator(
        matvec=lambda A, x: _G.matvec(A, x) * (1 if int(x.count_nonzero()) > 1 else 2)
    ),
    "the last block is missing": _operator(adjoint=lambda A, r: iter([(0, _whole(A, r)[:-5])])),
    "blocks out of order": _operator(adjoint=lambda A, r: iter([(5, _whole(A, r)[5:]), (0, _whole(A, r)[:5])])),
    "the adjoint ignores r's sign": _operator(adjoint=lambda A, r: _G.adjoint(A, r.abs())),
    "columns come sorted": _operator(columns=lambda A, ids: _G.columns(A, ids.sort()[0])),
    "squared norms": _operator(norms=lambda A: _G.norms(A).square()),
    "another matrix at every call": _operator(columns=lambda A, ids: _G.columns(A, ids) + 1e-12 * torch.randn(())),
    "the wrong precision": _operator(columns=lambda A, ids: _G.columns(A, ids).float()),
}


def _solver(change: Callable[..., Any]) -> Callable[[], None]:
    """The law on NIHT, whose result, or whose problem, is bent."""
    return lambda: laws.check_solver(change)


def _bent_result(**fields: Callable) -> Callable[[], None]:
    def solve(A, y, s):
        found = recover.niht(A, y, s)
        return found._replace(**{name: make(found) for name, make in fields.items()}) if s else found

    return _solver(solve)


def _mirrored(A, y, s):
    """Solves with the columns turned round: ties go to the highest index."""
    M = A.matrix if isinstance(A, recover.Dense) else A
    found = recover.niht(M.flip(1), y, s)
    order = torch.argsort(M.shape[1] - 1 - found.support)
    return found._replace(support=(M.shape[1] - 1 - found.support)[order], values=found.values[order])


def _takes_the_zero_column(A, y, s):
    found = recover.niht(A, y, s)
    if s < 3 or found.size < 8:
        return found
    x = found.dense()
    x[found.support[found.values.abs().argmin()]], x[7] = 0.0, 1e-300
    S = x.nonzero().flatten()
    return found._replace(support=S, values=x[S])


def _says_nothing_of_nan(A, y, s):
    return recover.niht(A, y.nan_to_num(0.0), s)


def _clips_the_count(A, y, s):
    return recover.niht(A, y, min(s, A.shape[1]))


def _noisy_bits(A, y, s):
    found = recover.niht(A, y, s)
    return found._replace(values=found.values * (1 + 1e-12 * torch.rand((), dtype=torch.float64)))


SOLVER = {
    "one too many": _solver(lambda A, y, s: recover.niht(A, y, s + 1 if 0 < s < A.shape[1] else s)),
    "one too few": _solver(lambda A, y, s: recover.niht(A, y, s - 1 if s > 1 else s)),
    "the highest index among equals": _solver(_mirrored),
    "a zero column is taken": _solver(_takes_the_zero_column),
    "not sorted": _bent_result(support=lambda f: f.support.flip(0), values=lambda f: f.values.flip(0)),
    "the residual of the start": _bent_result(residuals=lambda f: [f.residuals[0] + 1.0]),
    "shrunk values": _bent_result(values=lambda f: 0.9 * f.values),
    "never converged": _bent_result(converged=lambda f: False),
    "x of the wrong size": _bent_result(size=lambda f: f.size + 1),
    "NaN is taken for zero": _solver(_says_nothing_of_nan),
    "too large a count is clipped": _solver(_clips_the_count),
    "other bits every time": _solver(_noisy_bits),
    "s = 0 gives something": _solver(lambda A, y, s: recover.niht(A, y, max(s, 1))),
}


def _units(change: Callable[..., Any], dtype: torch.dtype = torch.float64) -> Callable[[], None]:
    """The law on NIHT, whose result is bent."""
    return lambda: laws.check_units(lambda A, y: change(recover.niht(A, y, 3), A, y), dtype=dtype)


def _squares_vanish(found, A, y):
    """As at 0.1.0: a y whose squares vanish in its precision is taken for zero."""
    return found if bool(y.square().any()) else found._replace(support=found.support[:0], values=found.values[:0])


UNITS = {
    "a y whose squares vanish is zero": _units(_squares_vanish, torch.float32),
    "squares that are infinite": _units(
        lambda f, A, y: f._replace(converged=bool(A.square().sum().isfinite())), torch.float32
    ),
    "x in the solver's own blocks": _units(lambda f, A, y: f._replace(values=f.values / y.norm())),
    "a residual relative to y": _units(
        lambda f, A, y: f._replace(residuals=[r / float(y.norm()) + 1e-3 for r in f.residuals])
    ),
    "an absolute tolerance": _units(lambda f, A, y: f._replace(values=f.values.where(f.values.abs() > 1e-9, 0.0))),
    "an absolute residual": _units(lambda f, A, y: f._replace(converged=f.residuals[-1] < 1e-6)),
    "an x that vanished is called converged": _units(lambda f, A, y: f._replace(converged=True), torch.float32),
    "infinite values": _units(
        lambda f, A, y: f if f.converged else f._replace(values=y[:1] / 0, support=torch.tensor([0])), torch.float32
    ),
}
