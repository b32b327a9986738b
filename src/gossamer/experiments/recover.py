"""``gossamer recover phase | planted | inr | mnist``: what compressed sensing recovers, as tables and pictures. Resumable, in processes."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import recover as solvers
from ..errors import Unfit, check_count, nearest
from ..recover import theory
from ..recover.operators import generator
from .cells import Row, compute, numbers, pyplot
from .console import show

AMPLITUDES = ("gaussian", "signs")

# -------------------------------------------------------------------- phase


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
        _save(plt, figure, folder / "phase.png")


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


# -------------------------------------------------------------------- planted networks

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

    Args:
        d: inputs, N(0, 1).
        samples: training samples.
        neurons: hidden neurons of the planted networks.
        nonzeros: weights of the first layer, uniformly placed, N(0, 1).
        methods: iht (fit_scalar), authors (fit_scalar without signs, revival, inflation and Newton steps), gated (niht with the true gates
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
        if method not in METHODS:
            raise Unfit(who, f"unknown method {method!r}{nearest(method, METHODS)}", remedy=f"one of {', '.join(METHODS)}")
    samples = numbers(who, "samples", samples or [100, 200, 400, 1000, 2000], 2)
    neurons, nonzeros = numbers(who, "neurons", neurons or [5], 1), numbers(who, "nonzeros", nonzeros or [10], 1)
    plt = pyplot(who) if picture else None
    settings = {"d": d, "mixed": mixed, "distractors": distractors, "rounds": rounds}
    cells = [
        {"method": method, "n": n, "neurons": p, "s": s, "seed": seed}
        for method in methods
        for p in neurons
        for s in nonzeros
        for n in samples
        for seed in range(seeds)
    ]
    rows, folder = compute(who, out, settings, cells, planted_cell, jobs)
    table = []
    for method in methods:
        for p in neurons:
            for s in nonzeros:
                for n in samples:
                    mine = [r for r in rows if (r["method"], r["neurons"], r["s"], r["n"]) == (method, p, s, n)]
                    dbs = sorted(r["psnr"] for r in mine)
                    exact = sum(r["exact"] for r in mine)
                    median = (dbs[(len(dbs) - 1) // 2] + dbs[len(dbs) // 2]) / 2
                    table.append([method, str(p), str(s), str(n), f"{median:.1f}", f"{dbs[0]:.1f}", f"{exact}/{len(mine)}"])
    columns = ["method", "neurons", "non-zeros", "samples", "median dB", "least dB", "exact"]
    show(f"planted ReLU networks, d = {d}: PSNR on fresh samples over {seeds} seeds", columns, table)
    if plt is not None:
        figure, axes = plt.subplots(figsize=(6, 4.5))
        for method in methods:
            mine = [(int(r[3]), float(r[4])) for r in table if (r[0], r[1], r[2]) == (method, str(neurons[0]), str(nonzeros[0]))]
            axes.semilogx(*zip(*mine, strict=True), marker="o", label=method)
        signs = "mixed output signs" if mixed else "output signs +1"
        axes.set(xlabel="samples", ylabel="median PSNR (dB)", title=f"d = {d}, {neurons[0]} neurons, {nonzeros[0]} non-zeros, {signs}")
        axes.legend()
        _save(plt, figure, folder / "planted.png")


def planted_network(d: int, neurons: int, s: int, n: int, mixed: bool, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X (n, d), first layer (neurons, d) with s non-zeros placed uniformly, output signs (neurons,), y (n,); float64."""
    rng = generator(seed, d, neurons, s, 1 << 10)
    W = torch.zeros(neurons * d, dtype=torch.float64)
    W[torch.randperm(neurons * d, generator=rng)[:s]] = torch.randn(min(s, neurons * d), generator=rng, dtype=torch.float64)
    signs = torch.randint(2, (neurons,), generator=rng).double() * 2 - 1 if mixed else torch.ones(neurons, dtype=torch.float64)
    X = torch.randn(n, d, generator=rng, dtype=torch.float64)
    W = W.view(neurons, d)
    return X, W, signs, (X @ W.T).clamp_min(0) @ signs


def planted_cell(cell: Row) -> Row:
    """One network recovered by one method: PSNR on fresh samples, and whether it is exact (relative error below 1e-3)."""
    torch.set_num_threads(1)
    n, s, p, begin = cell["n"], cell["s"], cell["neurons"], time.perf_counter()
    X, W, signs, y = planted_network(cell["d"], p, s, n + 2000, cell["mixed"], cell["seed"])
    (X, test_x), (y, test_y) = X.split([n, 2000]), y.split([n, 2000])
    if cell["method"] == "gated":
        h = torch.cat([W, torch.randn(cell["distractors"], cell["d"], generator=generator(cell["seed"], 7), dtype=X.dtype)])
        prediction = solvers.fit_gated(X, y, s, generators=h).predict(test_x)[:, 0]
    elif cell["method"] == "imp":
        prediction = imp(X, y[:, None], [p], s, "squared", seed=cell["seed"], lr=1e-2, steps=300, batch=min(n, 500))(test_x)[:, 0].detach()
    else:
        plain: dict[str, Any] = {"signs": False, "revive": False, "newton": 0, "inflate": 1.0} if cell["method"] == "authors" else {}
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
    """Iterative magnitude pruning, the baseline: train (Adam, no biases), prune a tenth of what is left by magnitude over all layers,
    rewind to the initial values, again, until s weights are left; evaluated right after the last pruning, as in arXiv 2509.20323's code."""
    outputs = int(Y.max()) + 1 if loss == "cross_entropy" else Y.shape[1]
    sizes = [X.shape[1], *widths, outputs]
    rng = generator(seed, 4)
    weights = [
        torch.empty(b, a, dtype=X.dtype).uniform_(-(a**-0.5), a**-0.5, generator=rng) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    ]
    masks = [torch.ones_like(w) for w in weights]
    loss_of = F.cross_entropy if loss == "cross_entropy" else F.mse_loss
    final = weights
    while (left := int(sum(float(m.sum()) for m in masks))) > s:
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
        keep = max(s, min(left - 1, round(left * (1 - prune))))
        flat = torch.cat([(w.abs() * m + m).detach().flatten() for w, m in zip(final, masks, strict=True)])  # what is pruned stays last
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


# -------------------------------------------------------------------- an image as a sparse network


def inr(
    image: str = "digit",
    nonzeros: list[int] | None = None,
    neurons: int = 20,
    frequencies: int = 750,
    sigma: float = 2.0,
    rounds: int = 60,
    seed: int = 0,
    out: str = "runs/recover/inr",
    jobs: int = 1,
    picture: bool = True,
) -> None:
    """An image as a sparse network of its pixel coordinates: PSNR over the number of non-zeros, and the pictures.

    Features [sin, cos](2 pi B c) of integer coordinates c, B ~ N(0, sigma^2), as in arXiv 2509.20323.

    Args:
        image: "digit", an 8 x 8 digit of scikit-learn; "mnist", image 1000 of MNIST's test set (GOSSAMER_DATA); or a PNG file (matplotlib).
        nonzeros: to try.
        neurons: hidden neurons.
        frequencies: rows of B; twice as many features.
        sigma: scale of B.
        rounds: of fit_scalar.
        seed: of B and the fit.
        out: folder.
        jobs: processes.
        picture: write inr.png (needs matplotlib).
    """
    who = "gossamer recover inr"
    nonzeros = numbers(who, "nonzeros", nonzeros or [25, 50, 100, 200, 400], 1)
    plt = pyplot(who) if picture or image not in ("digit", "mnist") else None
    pixels = load_image(image)
    settings = {"image": image, "neurons": neurons, "frequencies": frequencies, "sigma": sigma, "rounds": rounds, "seed": seed}
    rows, folder = compute(who, out, settings, [{"s": s} for s in nonzeros], inr_cell, jobs)
    table = [[str(r["s"]), str(r["nonzeros"]), f"{r['psnr']:.2f}", f"{r['seconds']:.1f}"] for r in rows]
    show(f"{image}, {pixels.shape[0]} x {pixels.shape[1]} pixels", ["asked", "non-zeros", "PSNR (dB)", "seconds"], table)
    if plt is not None and picture:
        figure, axes = plt.subplots(1, len(rows) + 1, figsize=(2 * (len(rows) + 1), 2.5))
        shown = [("original", pixels.tolist()), *((f"{r['nonzeros']} weights\n{r['psnr']:.1f} dB", r["pixels"]) for r in rows)]
        for ax, (title, values) in zip(axes, shown, strict=True):
            ax.imshow(values, cmap="gray", vmin=0, vmax=1)
            ax.set_title(title, fontsize=9)
            ax.axis("off")
        _save(plt, figure, folder / "inr.png")
        figure, axes = plt.subplots(figsize=(5, 4))
        axes.plot([r["nonzeros"] for r in rows], [r["psnr"] for r in rows], marker="o")
        axes.set(xlabel="non-zeros", ylabel="PSNR (dB)", title=f"{image}: {neurons} neurons, {2 * frequencies} features")
        _save(plt, figure, folder / "psnr.png")


def load_image(image: str) -> Tensor:
    """Grey values in [0, 1], (height, width) float64."""
    if image == "digit":
        from sklearn.datasets import load_digits

        return torch.as_tensor(load_digits().images[0] / 16)  # type: ignore[union-attr]
    if image == "mnist":
        from .tasks import MNIST

        return MNIST().load().test_x[1000, 0].double() / 255
    if not Path(image).is_file():
        raise Unfit("gossamer recover inr", "there is no such image", got=image, remedy='"digit", "mnist", or a PNG file')
    values = torch.as_tensor(pyplot("gossamer recover inr").imread(image).copy()).double()
    return values[..., :3].mean(-1) if values.dim() == 3 else values


def inr_cell(cell: Row) -> Row:
    """One representation."""
    torch.set_num_threads(1)
    pixels, begin = load_image(cell["image"]), time.perf_counter()
    h, w = pixels.shape
    where = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double()
    B = cell["sigma"] * torch.randn(cell["frequencies"], 2, generator=generator(cell["seed"], 5), dtype=torch.float64)
    angle = 2 * math.pi * where @ B.T
    X = torch.cat([angle.sin(), angle.cos()], 1)
    fit = solvers.fit_scalar(X, pixels.flatten(), cell["s"], neurons=cell["neurons"], rounds=cell["rounds"], seed=cell["seed"])
    made = fit.network.predict(X)[:, 0]
    psnr = solvers.psnr(made, pixels.flatten())
    return {"psnr": psnr, "nonzeros": fit.network.nonzeros, "seconds": time.perf_counter() - begin, "pixels": made.view(h, w).tolist()}


# -------------------------------------------------------------------- MNIST


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
    """MNIST by sparse two-layer networks: accuracy over width and non-zeros, beside iterative magnitude pruning; no biases.

    Args:
        digits: "all" ten, or "01".
        widths: hidden neurons.
        nonzeros: weights of both layers together.
        methods: iht (fit_vector) and imp.
        seeds: runs per cell.
        steps, batch, lr: of iht.
        imp_steps: Adam steps of each pruning round, same batch size, lr 1e-3.
        data: folder of the files; default GOSSAMER_DATA, else data.
        out: folder; by default runs/recover/mnist-DIGITS.
        jobs: processes.
        picture: write heat.png (needs matplotlib).
    """
    who = "gossamer recover mnist"
    methods = methods or ["iht", "imp"]
    for method in methods:
        if method not in ("iht", "imp"):
            raise Unfit(who, f"unknown method {method!r}", remedy="iht or imp")
    if digits not in ("all", "01"):
        raise Unfit(who, f"unknown digits {digits!r}", remedy='"all" or "01"')
    widths = numbers(who, "widths", widths or [100], 1)
    nonzeros = numbers(who, "nonzeros", nonzeros or ([200] if digits == "01" else [1000]), 2)
    plt = pyplot(who) if picture else None
    _mnist(data, digits)  # before the processes begin: are the files there?
    settings = {"digits": digits, "steps": steps, "batch": batch, "lr": lr, "imp_steps": imp_steps, "data": data}
    cells = [{"method": m, "width": p, "s": s, "seed": seed} for m in methods for p in widths for s in nonzeros for seed in range(seeds)]
    rows, folder = compute(who, out or f"runs/recover/mnist-{digits}", settings, cells, mnist_cell, jobs)
    table, means = [], {}
    for m in methods:
        for p in widths:
            for s in nonzeros:
                mine = torch.tensor([r["accuracy"] for r in rows if (r["method"], r["width"], r["s"]) == (m, p, s)], dtype=torch.float64)
                sd = float(mine.std()) if len(mine) > 1 else math.nan
                means[m, p, s] = float(mine.mean())
                least = f"{100 * float(mine.min()):.2f}"
                table.append([m, str(p), str(s), f"{100 * means[m, p, s]:.2f}", f"{100 * sd:.2f}", least])
    show(f"MNIST, digits {digits}: test accuracy over {seeds} seeds", ["method", "width", "non-zeros", "mean %", "sd", "least"], table)
    if plt is not None:
        figure, axes = plt.subplots(1, len(methods), figsize=(5 * len(methods), 4), squeeze=False)
        low = min(means.values())
        for ax, m in zip(axes[0], methods, strict=True):
            grid = [[means[m, p, s] for s in nonzeros] for p in widths]
            shown = ax.imshow(grid, cmap="viridis", vmin=low, vmax=1, aspect="auto", origin="lower")
            ax.set_xticks(range(len(nonzeros)), [str(s) for s in nonzeros])
            ax.set_yticks(range(len(widths)), [str(p) for p in widths])
            for i, line in enumerate(grid):
                for j, value in enumerate(line):
                    ax.text(
                        j,
                        i,
                        f"{100 * value:.1f}",
                        ha="center",
                        va="center",
                        color="white" if value < (low + 1) / 2 else "black",
                        fontsize=8,
                    )
            ax.set(xlabel="non-zeros", ylabel="hidden neurons", title=m)
            figure.colorbar(shown)
        _save(plt, figure, folder / "heat.png")


def mnist_cell(cell: Row) -> Row:
    """One network: test accuracy, weights that are not zero."""
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
    from .tasks import MNIST

    all_of = MNIST(data).load()
    parts: list[Tensor] = []
    for x, y in ((all_of.train_x, all_of.train_y), (all_of.test_x, all_of.test_y)):
        keep = y < (2 if digits == "01" else 10)
        parts += [x[keep].flatten(1).float() / 255, y[keep]]
    return parts[0], parts[1], parts[2], parts[3]


# -------------------------------------------------------------------- details


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"wrote {path}", flush=True)


COMMANDS = {"phase": phase, "planted": planted, "inr": inr, "mnist": mnist}
