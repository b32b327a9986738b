"""``gossamer recover planted``: planted ReLU networks, and iterative magnitude pruning."""

import itertools
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import recover as solvers
from ..._errors import UsageError, check_choice, check_count
from ...recover.gates import generator
from ..console import show
from ..grid import Row, compute, numbers, pyplot, save

METHODS = ("iht", "authors", "gated", "imp")


def planted(
    d: int = 50,
    samples: list[int] | None = None,
    neurons: list[int] | None = None,
    nonzeros: list[int] | None = None,
    methods: list[str] | None = None,
    mixed: bool = True,
    distractors: int = 16,
    rounds: int = 60,
    seeds: int = 5,
    out: str = "runs/recover/planted",
    jobs: int = 1,
    picture: bool = True,
) -> None:
    """Planted sparse two-layer ReLU networks: how well are they recovered, from how many samples?

    Args: d: inputs, N(0, 1). samples: training samples. neurons: hidden neurons of the planted networks. nonzeros:
        weights of the first layer, uniformly placed, N(0, 1). methods: iht (fit_scalar), authors (fit_scalar without
        signs, revival, inflation and Newton steps), gated (niht with the true gates
            among random distractors), imp (iterative magnitude pruning).
        mixed: output weights of both signs; false: all +1.
        distractors: neurons with random gates beside the true ones, for gated.
        rounds: of iht and authors.
        seeds: networks per cell.
        out: folder.
        jobs: processes.
        picture: write planted.png (needs matplotlib).
    """
    who = "gossamer recover planted"
    methods = methods or ["iht", "authors", "imp"]
    for method in methods:
        check_choice(who, "method", method, METHODS)
    samples = numbers(who, "samples", samples or [100, 200, 400, 1000, 2000], 2)
    neurons, nonzeros = numbers(who, "neurons", neurons or [5], 1), numbers(who, "nonzeros", nonzeros or [10], 1)
    counts = {
        "d": (d, 1),
        "distractors": (distractors, 0),
        "rounds": (rounds, 1),
        "seeds": (seeds, 1),
        "jobs": (jobs, 1),
    }
    for name, (value, least) in counts.items():
        check_count(who, name, value, least)
    if max(nonzeros) > (places := min(neurons) * d):
        has = f"{min(neurons)} neurons on {d} inputs have {places} weights"
        what = f"{has}, fewer than the {max(nonzeros)} non-zeros asked for"
        raise UsageError(who, what, remedy="more neurons, a larger d, or fewer nonzeros")
    plt = pyplot(who) if picture else None
    settings = {"d": d, "mixed": mixed, "distractors": distractors, "rounds": rounds}
    grid = list(itertools.product(methods, neurons, nonzeros, samples))
    cells = [
        {"method": method, "n": n, "neurons": p, "s": s, "seed": seed}
        for method, p, s, n in grid
        for seed in range(seeds)
    ]
    rows, folder = compute(who, out, settings, cells, planted_cell, jobs)
    table = []
    for method, p, s, n in grid:
        mine = [r for r in rows if (r["method"], r["neurons"], r["s"], r["n"]) == (method, p, s, n)]
        dbs, exact = [r["psnr"] for r in mine], sum(r["exact"] for r in mine)
        figures = [f"{median(dbs):.1f}", f"{min(dbs):.1f}", f"{exact}/{len(mine)}"]
        table.append([method, str(p), str(s), str(n), *figures])
    columns = ["method", "neurons", "non-zeros", "samples", "median dB", "least dB", "exact"]
    show(f"planted ReLU networks, d = {d}: PSNR on fresh samples over {seeds} seeds", columns, table)
    if plt is not None:
        signs = "mixed output signs" if mixed else "output signs +1"
        title = f"d = {d}, {neurons[0]} neurons, {nonzeros[0]} non-zeros, {signs}"
        first = [row for row in table if row[1:3] == [str(neurons[0]), str(nonzeros[0])]]
        _draw(plt, first, methods, title, folder / "planted.png")


def _draw(plt: Any, table: list[list[str]], methods: list[str], title: str, path: Path) -> None:
    """Median PSNR over samples, a line for each method."""
    figure, axes = plt.subplots(figsize=(6, 4.5))
    for method in methods:
        mine = [(int(row[3]), float(row[4])) for row in table if row[0] == method]
        axes.semilogx(*zip(*mine, strict=True), marker="o", label=method)
    axes.set(xlabel="samples", ylabel="median PSNR (dB)", title=title)
    axes.legend()
    save(plt, figure, path)


def planted_network(
    d: int, neurons: int, s: int, n: int, mixed: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X (n, d), first layer (neurons, d) with s non-zeros, output signs (neurons,), y (n,); float64."""
    rng = generator(seed, d, neurons, s, 1 << 10)
    W = torch.zeros(neurons * d, dtype=torch.float64)
    W[torch.randperm(neurons * d, generator=rng)[:s]] = torch.randn(
        min(s, neurons * d), generator=rng, dtype=torch.float64
    )
    signs = (
        torch.randint(2, (neurons,), generator=rng).double() * 2 - 1
        if mixed
        else torch.ones(neurons, dtype=torch.float64)
    )
    X = torch.randn(n, d, generator=rng, dtype=torch.float64)
    W = W.view(neurons, d)
    return X, W, signs, (X @ W.T).clamp_min(0) @ signs


def planted_cell(cell: Row) -> Row:
    """One network by one method: PSNR on fresh samples, and whether the relative error is below 1e-3."""
    torch.set_num_threads(1)
    n, s, p, begin = cell["n"], cell["s"], cell["neurons"], time.perf_counter()
    X, W, signs, y = planted_network(cell["d"], p, s, n + 2000, cell["mixed"], cell["seed"])
    (X, test_x), (y, test_y) = X.split([n, 2000]), y.split([n, 2000])
    if cell["method"] == "gated":
        h = torch.cat(
            [W, torch.randn(cell["distractors"], cell["d"], generator=generator(cell["seed"], 7), dtype=X.dtype)]
        )
        prediction = solvers.fit_gated(X, y, s, generators=h).predict(test_x)[:, 0]
    elif cell["method"] == "imp":
        prediction = imp(X, y[:, None], [p], s, "squared", seed=cell["seed"], lr=1e-2, steps=300, batch=min(n, 500))(
            test_x
        )[:, 0].detach()
    else:
        plain: dict[str, Any] = (
            {"signs": False, "revive": False, "newton": 0, "inflate": 1.0} if cell["method"] == "authors" else {}
        )
        fit = solvers.fit_scalar(X, y, s, neurons=p, rounds=cell["rounds"], seed=cell["seed"], **plain)
        prediction = fit.network.predict(test_x)[:, 0]
    error = float((prediction - test_y).norm() / test_y.norm().clamp_min(1e-300))
    return {"psnr": solvers.psnr(prediction, test_y), "exact": error < 1e-3, "seconds": time.perf_counter() - begin}


def imp(
    X: Tensor,
    Y: Tensor,
    widths: list[int],
    s: int,
    loss: str,
    seed: int = 0,
    steps: int = 600,
    batch: int = 256,
    lr: float = 1e-3,
    prune: float = 0.1,
) -> nn.Sequential:
    """Iterative magnitude pruning, the baseline, as in the code of arXiv 2509.20323.

    Repeated until s weights are left: train (Adam, no biases), prune the smallest tenth of the weights of all layers
        together, rewind the
    others to their initial values. The network is evaluated right after the last pruning. Where there are no more than
    s weights it is trained once, and nothing is pruned.
    """
    outputs = int(Y.max()) + 1 if loss == "cross_entropy" else Y.shape[1]
    sizes = [X.shape[1], *widths, outputs]
    rng = generator(seed, 4)
    weights = [
        torch.empty(b, a, dtype=X.dtype).uniform_(-(a**-0.5), a**-0.5, generator=rng)
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    ]
    masks = [torch.ones_like(w) for w in weights]
    loss_of = F.cross_entropy if loss == "cross_entropy" else F.mse_loss
    final = weights
    while (left := int(sum(float(m.sum()) for m in masks))) > s or final is weights:
        final = [nn.Parameter(w * m) for w, m in zip(weights, masks, strict=True)]
        opt = torch.optim.Adam(final, lr=lr)
        for _ in range(steps):
            where = torch.randint(len(X), (min(batch, len(X)),), generator=rng)
            h = X[where]
            for i, (w, m) in enumerate(zip(final, masks, strict=True)):
                h = h @ (w * m).T
                h = h.relu() if i < len(final) - 1 else h
            opt.zero_grad()
            loss_of(h, Y[where]).backward()
            opt.step()
        keep = min(left, max(s, min(left - 1, round(left * (1 - prune)))))
        flat = torch.cat(
            [(w.abs() * m + m).detach().flatten() for w, m in zip(final, masks, strict=True)]
        )  # what is pruned stays last
        chosen = torch.zeros_like(flat)
        chosen[flat.topk(keep).indices] = 1.0
        masks = [c.view_as(m) for c, m in zip(chosen.split([m.numel() for m in masks]), masks, strict=True)]
        final = [(w * m).detach() for w, m in zip(final, masks, strict=True)]
    modules: list[nn.Module] = []
    for w in final:
        layer = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=X.dtype)
        with torch.no_grad():
            layer.weight.copy_(w)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])
