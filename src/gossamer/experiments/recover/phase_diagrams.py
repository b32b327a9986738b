"""``gossamer recover phase``: phase diagrams."""

import math
import time

import torch
from torch import Tensor

from ... import recover as solvers
from ...errors import Unfit, check_count, nearest
from ...recover import theory
from ...recover.operators import generator
from ..cells import Row, compute, numbers, pyplot, save
from ..console import show

AMPLITUDES = ("gaussian", "signs")


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
    """Phase diagram of a solver: how often it recovers s-sparse vectors from m measurements, beside the Donoho-Tanner curve.

    Gaussian measurements of d numbers, over delta = m / d and rho = s / m; the curve is that of l1.

    Args:
        solver: omp, iht, niht, htp, cosamp, aiht, amp, basis_pursuit or reweighted_l1.
        d: length of the vectors.
        deltas, rhos: of the grid, as in --deltas '[0.2, 0.5]'; by default 0.1 to 0.9 and 0.05 to 0.95.
        trials: problems per cell.
        amplitudes: of the non-zeros, gaussian or signs.
        error: relative error that counts as recovered.
        seed: of all problems.
        out: folder; by default runs/recover/phase-SOLVER.
        jobs: processes.
        picture: write phase.png (needs matplotlib).
    """
    who = "gossamer recover phase"
    known = {**solvers.GREEDY, **solvers.CONVEX}
    if solver not in known:
        raise Unfit(who, f"unknown solver {solver!r}{nearest(solver, known)}", remedy=f"one of {', '.join(known)}")
    if amplitudes not in AMPLITUDES:
        raise Unfit(who, f"unknown amplitudes {amplitudes!r}", remedy=f"one of {', '.join(AMPLITUDES)}")
    check_count(who, "trials", trials, 1)
    deltas = numbers(who, "deltas", deltas or [round(0.1 * i, 2) for i in range(1, 10)], 1e-6)
    rhos = numbers(who, "rhos", rhos or [round(0.05 * i, 2) for i in range(1, 20)], 1e-6)
    plt = pyplot(who) if picture else None
    settings = {"solver": solver, "d": d, "trials": trials, "amplitudes": amplitudes, "error": error, "seed": seed}
    cells = [{"delta": delta, "rho": rho} for delta in deltas for rho in rhos]
    rows, folder = compute(who, out or f"runs/recover/phase-{solver}", settings, cells, phase_cell, jobs)
    table = []
    for delta in deltas:
        mine = [(row["rho"], row["success"]) for row in rows if row["delta"] == delta]
        curve = f"{theory.donoho_tanner(delta):.4f}" if delta < 1 else ""
        half = crossing(mine)
        table.append([f"{delta:.2f}", "outside the grid" if half is None else f"{half:.3f}", curve])
    show(f"{solver}, d = {d}, {amplitudes} amplitudes: s / m recovered half of the time", ["m / d", solver, "Donoho-Tanner (l1)"], table)
    if plt is not None:
        figure, axes = plt.subplots(figsize=(6, 4.5))
        ordered = [[next(r["success"] for r in rows if (r["delta"], r["rho"]) == (x, y)) for x in deltas] for y in rhos]
        mesh = axes.pcolormesh(deltas, rhos, ordered, shading="nearest", cmap="gray", vmin=0, vmax=1)
        xs = [i / 200 for i in range(2, 199)]
        axes.plot(xs, [theory.donoho_tanner(x) for x in xs], color="tab:red", label="Donoho-Tanner, l1")
        axes.set(xlabel="m / d", ylabel="s / m", title=f"{solver}, d = {d}, {amplitudes} amplitudes", ylim=(0, max(rhos)))
        axes.set_xlim(min(min(deltas), 0.05), max(max(deltas), 0.95))
        axes.legend(loc="upper left")
        figure.colorbar(mesh, label=f"recovered (of {trials})")
        save(plt, figure, folder / "phase.png")


def phase_cell(cell: Row) -> Row:
    """One cell of the diagram: the share of problems recovered."""
    torch.set_num_threads(1)
    d, m = cell["d"], max(1, round(cell["delta"] * cell["d"]))
    s, begin, hits = round(cell["rho"] * m), time.perf_counter(), 0
    for trial in range(cell["trials"]):
        A, x, y = gaussian_problem(d, m, s, cell["amplitudes"], (cell["seed"], m, s, trial))
        found = recovered(cell["solver"], A, y, s)
        hits += float((found - x).norm()) <= cell["error"] * float(x.norm())
    return {"m": m, "s": s, "success": hits / cell["trials"], "seconds": (time.perf_counter() - begin) / cell["trials"]}


def recovered(solver: str, A: Tensor, y: Tensor, s: int) -> Tensor:
    """What a solver, by name, makes of a problem, (d,)."""
    if solver in solvers.GREEDY:
        return solvers.GREEDY[solver](A, y, s).dense()
    return solvers.CONVEX[solver](A, y).dense()


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
    """Where success falls below one half, by a logistic fit in rho to all points; None if it does not inside the grid."""
    if not points or max(p for _, p in points) < 0.5 or min(p for _, p in points) > 0.5:
        return None
    rho, p = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    best = (math.inf, 0.0)
    for middle in torch.linspace(float(rho.min()), float(rho.max()), 400, dtype=torch.float64).tolist():
        for width in (0.002, 0.004, 0.008, 0.016, 0.03, 0.06):
            q = torch.sigmoid((middle - rho) / width).clamp(1e-6, 1 - 1e-6)
            loss = -float((p * q.log() + (1 - p) * (1 - q).log()).sum())
            best = min(best, (loss, middle))
    return best[1]
