"""``gossamer recover planted``: planted ReLU networks, and iterative magnitude pruning."""

import itertools
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import recover as solvers
from ..._errors import UsageError, check_choice, check_count
from ...recover.gates import generator
from ..console import show
from ..grid import Row, compute, numbers, pyplot, save

WHO = "gossamer recover planted"
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
    """Planted sparse two-layer ReLU networks: how well they are recovered, and from how many samples.

    Args:
        d: number of inputs, N(0, 1).
        samples: numbers of training samples; by default [100, 200, 400, 1000, 2000].
        neurons: numbers of hidden neurons of the planted networks; by default [5].
        nonzeros: numbers of non-zero weights of the first layer, at random places, N(0, 1); by default [10].
        methods: iht (fit_scalar), authors (fit_scalar without signs, revival, inflation and Newton steps), gated (niht
            with the true gates and random distractors), imp (iterative magnitude pruning); by default all but gated.
        mixed: output weights of both signs; false sets all to +1.
        distractors: number of neurons with random gates that gated gets in addition to the true ones.
        rounds: rounds of iht and authors.
        seeds: networks per cell.
        out: folder of the results.
        jobs: processes.
        picture: write planted.png (needs matplotlib).
    """
    methods = methods or ["iht", "authors", "imp"]
    samples = numbers(WHO, "samples", samples or [100, 200, 400, 1000, 2000], 2)
    neurons, nonzeros = numbers(WHO, "neurons", neurons or [5], 1), numbers(WHO, "nonzeros", nonzeros or [10], 1)
    counts = {"d": d, "distractors": distractors, "rounds": rounds, "seeds": seeds, "jobs": jobs}
    _check(methods, neurons, nonzeros, counts)
    plt = pyplot(WHO) if picture else None
    settings = {"d": d, "mixed": mixed, "distractors": distractors, "rounds": rounds}
    grid = list(itertools.product(methods, neurons, nonzeros, samples))
    cells = [
        {"method": method, "n": n, "neurons": p, "s": s, "seed": seed}
        for method, p, s, n in grid
        for seed in range(seeds)
    ]
    rows, folder = compute(WHO, out, settings, cells, planted_cell, jobs)
    table = []
    for method, p, s, n in grid:
        mine = [r for r in rows if (r["method"], r["neurons"], r["s"], r["n"]) == (method, p, s, n)]
        decibels, exact = [r["psnr"] for r in mine], sum(r["exact"] for r in mine)
        median = f"{statistics.median(decibels):.1f}"
        table.append([method, str(p), str(s), str(n), median, f"{min(decibels):.1f}", f"{exact}/{len(mine)}"])
    columns = ["method", "neurons", "non-zeros", "samples", "median dB", "least dB", "exact"]
    show(f"planted ReLU networks, d = {d}: PSNR on fresh samples over {seeds} seeds", columns, table)
    if plt is not None:
        signs = "mixed output signs" if mixed else "output signs +1"
        title = f"d = {d}, {neurons[0]} neurons, {nonzeros[0]} non-zeros, {signs}"
        kept = [r for r in table if r[1:3] == [str(neurons[0]), str(nonzeros[0])]]
        save(plt, _curves(plt, kept, methods, title), folder / "planted.png")


def _check(methods: list[str], neurons: list[int], nonzeros: list[int], counts: dict[str, int]) -> None:
    """Raises UsageError if a setting is out of range."""
    for method in methods:
        check_choice(WHO, "method", method, METHODS)
    for name, value in counts.items():
        check_count(WHO, name, value, 0 if name == "distractors" else 1)
    if max(nonzeros) > (places := min(neurons) * counts["d"]):
        what = f"{min(neurons)} neurons on {counts['d']} inputs have {places} weights"
        what = f"{what}, and cannot have {max(nonzeros)} non-zeros"
        raise UsageError(WHO, what, remedy="use more neurons, a larger d, or fewer nonzeros")


def _curves(plt: Any, table: list[list[str]], methods: list[str], title: str) -> Any:
    """Median PSNR over samples, one curve per method."""
    figure, axes = plt.subplots(figsize=(6, 4.5))
    for method in methods:
        points = [(int(r[3]), float(r[4])) for r in table if r[0] == method]
        axes.semilogx(*zip(*points, strict=True), marker="o", label=method)
    axes.set(xlabel="samples", ylabel="median PSNR (dB)", title=title)
    axes.legend()
    return figure


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
    """One network by one method: PSNR on fresh samples, and whether it is exact (relative error below 1e-3)."""
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
    """Iterative magnitude pruning, the baseline.

    Each round trains (Adam, no biases), prunes a tenth of the remaining weights by magnitude over all layers, and
    resets the others to their initial values, until s weights are left. The result has the trained values of the last
    round, after pruning, as in the code of arXiv 2509.20323. A network of at most s weights is trained once and not
    pruned.
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
        # pruned weights are 0 here, all others at least 1
        flat = torch.cat([(w.abs() * m + m).detach().flatten() for w, m in zip(final, masks, strict=True)])
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
