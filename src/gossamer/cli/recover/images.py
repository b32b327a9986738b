"""``gossamer recover inr``: an image as a sparse network."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import recover as solvers
from ..._errors import UsageError, check_count, is_real
from ...recover.gates import generator
from ..console import show
from ..grid import Row, compute, numbers, pyplot, save


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

    Args: image: "digit", an 8 x 8 digit of scikit-learn; "mnist", image 1000 of MNIST's test set (in GOSSAMER_DATA); or
        a PNG file. nonzeros: to try. neurons: hidden neurons. frequencies: rows of B; twice as many features. sigma:
        scale of B. rounds: of fit_scalar. seed: of B and the fit. out: folder. jobs: processes. picture: write inr.png
        (needs matplotlib).
    """
    who = "gossamer recover inr"
    nonzeros = numbers(who, "nonzeros", nonzeros or [25, 50, 100, 200, 400], 1)
    least = {"neurons": (neurons, 1), "frequencies": (frequencies, 1), "rounds": (rounds, 1), "seed": (seed, 0)}
    for name, (value, lowest) in {**least, "jobs": (jobs, 1)}.items():
        check_count(who, name, value, lowest)
    if not is_real(sigma) or not 0 < sigma < math.inf:
        raise UsageError(who, "sigma must be a positive number", got=sigma)
    features = 2 * frequencies
    if max(nonzeros) > neurons * features:
        has = f"{neurons} neurons on {features} features have {neurons * features} weights"
        what = f"{has}, fewer than the {max(nonzeros)} non-zeros asked for"
        raise UsageError(who, what, remedy="more neurons or frequencies, or fewer nonzeros")
    plt = pyplot(who) if picture or image not in ("digit", "mnist") else None
    pixels = load_image(image)
    settings = {"image": image, "neurons": neurons, "frequencies": frequencies}
    settings |= {"sigma": sigma, "rounds": rounds, "seed": seed}
    rows, folder = compute(who, out, settings, [{"s": s} for s in nonzeros], inr_cell, jobs)
    table = [[str(r["s"]), str(r["nonzeros"]), f"{r['psnr']:.2f}", f"{r['seconds']:.1f}"] for r in rows]
    title = f"{image}, {pixels.shape[0]} x {pixels.shape[1]} pixels"
    show(title, ["asked", "non-zeros", "PSNR (dB)", "seconds"], table)
    if plt is not None and picture:
        _draw(plt, pixels, rows, f"{image}: {neurons} neurons, {features} features", folder)


def _draw(plt: Any, pixels: Tensor, rows: list[Row], title: str, folder: Path) -> None:
    """The images side by side, and PSNR over non-zeros."""
    figure, axes = plt.subplots(1, len(rows) + 1, figsize=(2 * (len(rows) + 1), 2.5))
    shown = [("original", pixels.tolist())]
    shown += [(f"{r['nonzeros']} weights\n{r['psnr']:.1f} dB", r["pixels"]) for r in rows]
    for ax, (label, values) in zip(axes, shown, strict=True):
        ax.imshow(values, cmap="gray", vmin=0, vmax=1)
        ax.set_title(label, fontsize=9)
        ax.axis("off")
    save(plt, figure, folder / "inr.png")
    figure, axes = plt.subplots(figsize=(5, 4))
    axes.plot([r["nonzeros"] for r in rows], [r["psnr"] for r in rows], marker="o")
    axes.set(xlabel="non-zeros", ylabel="PSNR (dB)", title=title)
    save(plt, figure, folder / "psnr.png")


def load_image(image: str) -> Tensor:
    """Grey values in [0, 1], (height, width) float64."""
    if image == "digit":
        from sklearn.datasets import load_digits

        return torch.as_tensor(load_digits().images[0] / 16)  # type: ignore[union-attr]
    if image == "mnist":
        from ..tasks import MNIST

        return MNIST().load().test_x[1000, 0].double() / 255
    if not Path(image).is_file():
        raise UsageError(
            "gossamer recover inr", "there is no such image", got=image, remedy='"digit", "mnist", or a PNG file'
        )
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
    fit = solvers.fit_scalar(
        X, pixels.flatten(), cell["s"], neurons=cell["neurons"], rounds=cell["rounds"], seed=cell["seed"]
    )
    made = fit.network.predict(X)[:, 0]
    psnr = solvers.psnr(made, pixels.flatten())
    return {
        "psnr": psnr,
        "nonzeros": fit.network.nonzeros,
        "seconds": time.perf_counter() - begin,
        "pixels": made.view(h, w).tolist(),
    }
