"""``gossamer recover mnist``: MNIST classified by sparse networks."""

import itertools
import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from ... import recover as solvers
from ..._errors import UsageError, check_count, is_real
from ..console import show
from ..grid import Row, compute, numbers, pyplot, save
from .planted_networks import imp

WHO = "gossamer recover mnist"
PIXELS = 28 * 28


def mnist(
    digits: str = "all",
    widths: list[int] | None = None,
    nonzeros: list[int] | None = None,
    methods: list[str] | None = None,
    seeds: int = 3,
    steps: int = 3000,
    batch: int = 256,
    lr: float = 0.02,
    imp_steps: int = 600,
    data: str | None = None,
    out: str | None = None,
    jobs: int = 1,
    picture: bool = True,
) -> None:
    """MNIST classified by sparse two-layer networks without biases: accuracy over width and non-zeros.

    The baseline is iterative magnitude pruning.

    Args:
        digits: "all", or "01" for the digits 0 and 1 only.
        widths: numbers of hidden neurons; by default [100].
        nonzeros: numbers of non-zero weights of both layers together; by default [1000], for digits "01" [200].
        methods: iht (the function fit_vector) and imp (iterative magnitude pruning); by default both.
        seeds: runs per cell.
        steps: optimizer steps of iht.
        batch: examples per batch.
        lr: step size of iht.
        imp_steps: Adam steps of each pruning round of imp, with step size 1e-3.
        data: folder of the files; by default the variable GOSSAMER_DATA, else data.
        out: folder of the results; by default runs/recover/mnist-DIGITS.
        jobs: processes.
        picture: write heat.png (needs matplotlib).
    """
    methods = methods or ["iht", "imp"]
    widths = numbers(WHO, "widths", widths or [100], 1)
    nonzeros = numbers(WHO, "nonzeros", nonzeros or ([200] if digits == "01" else [1000]), 2)
    counts = {"seeds": seeds, "steps": steps, "batch": batch, "imp_steps": imp_steps, "jobs": jobs}
    _check(digits, methods, widths, nonzeros, lr, counts)
    plt = pyplot(WHO) if picture else None
    _mnist(data, digits)  # refuses missing files before the processes begin
    settings = {"digits": digits, "steps": steps, "batch": batch, "lr": lr, "imp_steps": imp_steps, "data": data}
    grid = list(itertools.product(methods, widths, nonzeros))
    cells = [{"method": m, "width": p, "s": s, "seed": seed} for m, p, s in grid for seed in range(seeds)]
    rows, folder = compute(WHO, out or f"runs/recover/mnist-{digits}", settings, cells, mnist_cell, jobs)
    table, means = [], {}
    for m, p, s in grid:
        mine = [r["accuracy"] for r in rows if (r["method"], r["width"], r["s"]) == (m, p, s)]
        sd = statistics.stdev(mine) if len(mine) > 1 else math.nan
        means[m, p, s] = statistics.fmean(mine)
        table.append([m, str(p), str(s), *(f"{100 * v:.2f}" for v in (means[m, p, s], sd, min(mine)))])
    columns = ["method", "width", "non-zeros", "mean %", "sd", "least"]
    show(f"MNIST, digits {digits}: test accuracy over {seeds} seeds", columns, table)
    if plt is not None:
        save(plt, _heat(plt, means, methods, widths, nonzeros), folder / "heat.png")


def _check(
    digits: str, methods: list[str], widths: list[int], nonzeros: list[int], lr: float, counts: dict[str, int]
) -> None:
    """Raises UsageError if a setting is out of range."""
    for method in methods:
        if method not in ("iht", "imp"):
            raise UsageError(WHO, f"unknown method {method!r}", remedy="iht or imp")
    if digits not in ("all", "01"):
        raise UsageError(WHO, f"unknown digits {digits!r}", remedy='"all" or "01"')
    for name, value in counts.items():
        check_count(WHO, name, value, 1)
    if not is_real(lr) or not 0 < lr < math.inf:
        raise UsageError(WHO, "lr must be a positive number", got=lr)
    if max(nonzeros) > (weights := min(widths) * (PIXELS + (2 if digits == "01" else 10))):
        what = f"a network of {min(widths)} neurons has {weights} weights"
        what = f"{what}, and cannot have {max(nonzeros)} non-zeros"
        raise UsageError(WHO, what, remedy="use larger widths or fewer nonzeros")


def _heat(plt: Any, means: dict[Any, float], methods: list[str], widths: list[int], nonzeros: list[int]) -> Any:
    """Mean accuracy over width and non-zeros, one panel per method."""
    figure, axes = plt.subplots(1, len(methods), figsize=(5 * len(methods), 4), squeeze=False)
    low = min(means.values())
    for ax, m in zip(axes[0], methods, strict=True):
        grid = [[means[m, p, s] for s in nonzeros] for p in widths]
        shown = ax.imshow(grid, cmap="viridis", vmin=low, vmax=1, aspect="auto", origin="lower")
        ax.set_xticks(range(len(nonzeros)), [str(s) for s in nonzeros])
        ax.set_yticks(range(len(widths)), [str(p) for p in widths])
        for (i, line), j in itertools.product(enumerate(grid), range(len(nonzeros))):
            color = "white" if line[j] < (low + 1) / 2 else "black"
            ax.text(j, i, f"{100 * line[j]:.1f}", ha="center", va="center", color=color, fontsize=8)
        ax.set(xlabel="non-zeros", ylabel="hidden neurons", title=m)
        figure.colorbar(shown)
    return figure


def mnist_cell(cell: Row) -> Row:
    """Trains one network; returns its test accuracy and its number of non-zero weights."""
    torch.set_num_threads(1)
    x, y, test_x, test_y = _mnist(cell["data"], cell["digits"])
    begin = time.perf_counter()
    if cell["method"] == "imp":
        model = imp(x, y, [cell["width"]], cell["s"], "cross_entropy", cell["seed"], cell["imp_steps"], cell["batch"])
        with torch.no_grad():
            scores = model(test_x)
        nonzeros = sum(int(p.count_nonzero()) for p in model.parameters())
    else:
        fit = solvers.fit_vector(
            x,
            y,
            cell["s"],
            neurons=cell["width"],
            loss="cross_entropy",
            steps=cell["steps"],
            batch=cell["batch"],
            lr=cell["lr"],
            seed=cell["seed"],
        )
        scores, nonzeros = fit.network.predict(test_x), fit.network.nonzeros
    accuracy = float((scores.argmax(1) == test_y).double().mean())
    return {"accuracy": accuracy, "nonzeros": nonzeros, "seconds": time.perf_counter() - begin}


def _mnist(data: str | None, digits: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from ..tasks import MNIST

    all_of = MNIST(data).load()
    parts: list[Tensor] = []
    for x, y in ((all_of.train_x, all_of.train_y), (all_of.test_x, all_of.test_y)):
        keep = y < (2 if digits == "01" else 10)
        parts += [x[keep].flatten(1).float() / 255, y[keep]]
    return parts[0], parts[1], parts[2], parts[3]
