"""``gossamer recover phase``: phase diagrams."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from ... import recover as solvers
from ..._errors import UsageError, check_at_least, check_count, nearest
from ...recover import theory
from ...recover.gates import generator
from ...recover.solvers.thresholding import least_squares
from ..console import show
from ..grid import Row, compute, numbers, pyplot, save

AMPLITUDES = ("gaussian", "signs")
LASSO = {"fista": solvers.fista, "ista": solvers.ista}
LAM = 1e-3  # strength of the Lasso's penalty over ||A^T y||_inf, at which the solution becomes 0


def phase(
    solver: str = "niht",
    d: int = 200,
    deltas: list[float] | None = None,
    rhos: list[float] | None = None,
    trials: int = 10,
    amplitudes: str = "gaussian",
    error: float = 1e-3,
    seed: int = 0,
    out: str | None = None,
    jobs: int = 1,
    picture: bool = True,
) -> None:
    """Phase diagram of a solver: how often it recovers s-sparse vectors of length d from m Gaussian measurements.

    The axes are delta = m / d and rho = s / m. The Donoho-Tanner curve of l1 is shown for comparison.

    Args:
        solver: omp, iht, niht, htp, cosamp, aiht, amp, basis_pursuit, reweighted_l1, fista or ista. The last two solve
            the Lasso, with a thousandth of the penalty at which x becomes 0, and then fit the values to the support by
            least squares.
        d: length of the vectors.
        deltas: values of delta, as in --deltas '[0.2, 0.5]'; by default 0.1, 0.2, ..., 0.9.
        rhos: values of rho; by default 0.05, 0.1, ..., 0.95.
        trials: number of random problems per cell.
        amplitudes: distribution of the non-zeros: gaussian or signs.
        error: largest relative error of a vector that counts as recovered.
        seed: seed of all problems.
        out: folder of the results; by default runs/recover/phase-SOLVER.
        jobs: processes.
        picture: write phase.png (needs matplotlib).
    """
    who = "gossamer recover phase"
    known = {**solvers.GREEDY, **solvers.CONVEX, **LASSO}
    if solver not in known:
        raise UsageError(who, f"unknown solver {solver!r}{nearest(solver, known)}", remedy=f"one of {', '.join(known)}")
    if amplitudes not in AMPLITUDES:
        raise UsageError(who, f"unknown amplitudes {amplitudes!r}", remedy=f"one of {', '.join(AMPLITUDES)}")
    for name, value, least in (("d", d, 1), ("trials", trials, 1), ("seed", seed, 0), ("jobs", jobs, 1)):
        check_count(who, name, value, least)
    check_at_least(who, "error", error, 0.0)
    deltas = numbers(who, "deltas", deltas or [round(0.1 * i, 2) for i in range(1, 10)], 1e-6)
    rhos = numbers(who, "rhos", rhos or [round(0.05 * i, 2) for i in range(1, 20)], 1e-6)
    _check_grid(who, solver, d, deltas, rhos)
    plt = pyplot(who) if picture else None
    settings = {"solver": solver, "d": d, "trials": trials, "amplitudes": amplitudes, "error": error, "seed": seed}
    cells = [{"delta": delta, "rho": rho} for delta in deltas for rho in rhos]
    rows, folder = compute(who, out or f"runs/recover/phase-{solver}", settings, cells, phase_cell, jobs)
    table = []
    for delta in deltas:
        half = crossing([(row["rho"], row["success"]) for row in rows if row["delta"] == delta])
        curve = f"{theory.donoho_tanner(delta):.4f}" if delta < 1 else ""
        table.append([f"{delta:.2f}", "outside the grid" if half is None else f"{half:.3f}", curve])
    title = f"{solver}, d = {d}, {amplitudes} amplitudes"
    show(f"{title}: s / m recovered half of the time", ["m / d", solver, "Donoho-Tanner (l1)"], table)
    if plt is not None:
        save(plt, _diagram(plt, rows, deltas, rhos, title, trials), folder / "phase.png")


def _diagram(plt: Any, rows: list[Row], deltas: list[float], rhos: list[float], title: str, trials: int) -> Any:
    """A picture of the success over m / d and s / m, with the curve of l1."""
    figure, axes = plt.subplots(figsize=(6, 4.5))
    success = {(r["delta"], r["rho"]): r["success"] for r in rows}
    grid = [[success[x, y] for x in deltas] for y in rhos]
    mesh = axes.pcolormesh(deltas, rhos, grid, shading="nearest", cmap="gray", vmin=0, vmax=1)
    xs = [i / 200 for i in range(2, 199)]
    axes.plot(xs, [theory.donoho_tanner(x) for x in xs], color="tab:red", label="Donoho-Tanner, l1")
    axes.set(xlabel="m / d", ylabel="s / m", title=title, ylim=(0, max(rhos)))
    axes.set_xlim(min(min(deltas), 0.05), max(max(deltas), 0.95))
    axes.legend(loc="upper left")
    figure.colorbar(mesh, label=f"recovered (of {trials})")
    return figure


def phase_cell(cell: Row) -> Row:
    """One cell of the diagram: the fraction of problems that the solver recovers."""
    torch.set_num_threads(1)
    d, (m, s) = cell["d"], sizes(cell["d"], cell["delta"], cell["rho"])
    begin, hits = time.perf_counter(), 0
    for trial in range(cell["trials"]):
        A, x, y = gaussian_problem(d, m, s, cell["amplitudes"], (cell["seed"], m, s, trial))
        found = recovered(cell["solver"], A, y, s)
        hits += float((found - x).norm()) <= cell["error"] * float(x.norm())
    return {"m": m, "s": s, "success": hits / cell["trials"], "seconds": (time.perf_counter() - begin) / cell["trials"]}


def sizes(d: int, delta: float, rho: float) -> tuple[int, int]:
    """m and s of a cell."""
    m = max(1, round(delta * d))
    return m, round(rho * m)


def _check_grid(who: str, solver: str, d: int, deltas: list[float], rhos: list[float]) -> None:
    if not all(map(math.isfinite, [*deltas, *rhos])):
        raise UsageError(who, "deltas and rhos must be finite", got=[*deltas, *rhos])
    if max(rhos) > 1:
        what = "rho = s / m must be at most 1: no solver recovers more non-zeros than it has measurements"
        raise UsageError(who, what, got=max(rhos))
    for delta in deltas:
        m, s = sizes(d, delta, max(rhos))
        if solver in solvers.CONVEX and m >= d:
            what = f"{solver} needs fewer measurements than unknowns, and delta = {delta:g} gives {m} for {d} unknowns"
            raise UsageError(who, what, remedy="use deltas below 1, or another solver")
        if s > d:
            what = f"delta = {delta:g} and rho = {max(rhos):g} give {s} non-zeros in vectors of length {d}"
            raise UsageError(who, what, remedy="use smaller rhos")


def recovered(solver: str, A: Tensor, y: Tensor, s: int) -> Tensor:
    """The solution (d,) that the solver with this name finds."""
    if solver in solvers.GREEDY:
        return solvers.GREEDY[solver](A, y, s).dense()
    if solver in LASSO:
        top = float((A.T @ y).abs().max())
        return _debiased(A, y, LASSO[solver](A, y, LAM * top).dense()) if top > 0 else A.new_zeros(A.shape[1])
    return solvers.CONVEX[solver](A, y).dense()


def _debiased(A: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """x with new values on its support (at most its m largest entries), fitted to y by least squares."""
    S = x.abs().topk(min(int(x.count_nonzero()), len(y))).indices
    return torch.zeros_like(x).index_put_((S,), least_squares(A[:, S], y))


def gaussian_problem(d: int, m: int, s: int, amplitudes: str, seed: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """A (m, d) with unit columns, x with s non-zeros, y = A x; float64."""
    rng = generator(*seed)
    A = torch.randn(m, d, generator=rng, dtype=torch.float64)
    A /= A.norm(dim=0)
    x, where = torch.zeros(d, dtype=torch.float64), torch.randperm(d, generator=rng)[:s]
    values = torch.randn(len(where), generator=rng, dtype=torch.float64)
    x[where] = values.sign() if amplitudes == "signs" else values
    return A, x, A @ x


def crossing(points: list[tuple[float, float]]) -> float | None:
    """The rho at which success falls below one half; None if that is outside the grid.

    Logistic functions of rho are fitted to all points, over a grid of midpoints and widths. The result is the mean
    midpoint of the best fits. The widths range from far below the least distance of two points to the whole range.
    """
    if not points or max(p for _, p in points) < 0.5 or min(p for _, p in points) > 0.5:
        return None
    rho, p = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    steps = rho.unique().diff()
    if not steps.numel():
        return float(rho[0])
    low, high, finest = float(rho.min()), float(rho.max()), 0.02 * float(steps.min())
    middles = torch.linspace(low, high, 2001, dtype=torch.float64)
    widths = finest * 1.3 ** torch.arange(math.ceil(math.log((high - low) / finest, 1.3)) + 1, dtype=torch.float64)
    losses = []
    for width in widths:
        q = torch.sigmoid((middles[:, None] - rho) / width).clamp(1e-6, 1 - 1e-6)
        losses.append(-(p * q.log() + (1 - p) * (1 - q).log()).sum(1))
    loss = torch.stack(losses)
    best = loss <= loss.min() + 1e-9
    return float(middles.expand_as(loss)[best].mean())
