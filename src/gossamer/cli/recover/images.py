"""``gossamer recover inr``: an image as a sparse network (an implicit neural representation)."""

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

WHO = "gossamer recover inr"


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

    The features are [sin, cos](2 pi B c) of integer coordinates c, with B ~ N(0, sigma^2), as in arXiv 2509.20323.

    Args:
        image: "digit", an 8 x 8 digit of scikit-learn; "mnist", image 1000 of MNIST's test set (GOSSAMER_DATA); or the
            path of a PNG file (needs matplotlib).
        nonzeros: numbers of non-zero weights; by default [25, 50, 100, 200, 400].
        neurons: number of hidden neurons.
        frequencies: number of rows of B; the network has twice as many features.
        sigma: standard deviation of B.
        rounds: rounds of fit_scalar.
        seed: seed of B and of the fit.
        out: folder of the results.
        jobs: processes.
        picture: write inr.png (needs matplotlib).
    """
    nonzeros = numbers(WHO, "nonzeros", nonzeros or [25, 50, 100, 200, 400], 1)
    counts = {"neurons": neurons, "frequencies": frequencies, "rounds": rounds, "seed": seed, "jobs": jobs}
    for name, value in counts.items():
        check_count(WHO, name, value, 0 if name == "seed" else 1)
    if not is_real(sigma) or not 0 < sigma < math.inf:
        raise UsageError(WHO, "sigma must be a positive number", got=sigma)
    if max(nonzeros) > (places := neurons * 2 * frequencies):
        what = f"{neurons} neurons on {2 * frequencies} features have {places} weights"
        what = f"{what}, and cannot have {max(nonzeros)} non-zeros"
        raise UsageError(WHO, what, remedy="use more neurons or frequencies, or fewer nonzeros")
    plt = pyplot(WHO) if picture or image not in ("digit", "mnist") else None
    pixels = load_image(image)
    settings = {"image": image, "neurons": neurons, "frequencies": frequencies, "sigma": sigma}
    settings |= {"rounds": rounds, "seed": seed}
    rows, folder = compute(WHO, out, settings, [{"s": s} for s in nonzeros], inr_cell, jobs)
    table = [[str(r["s"]), str(r["nonzeros"]), f"{r['psnr']:.2f}", f"{r['seconds']:.1f}"] for r in rows]
    columns = ["allowed", "non-zeros", "PSNR (dB)", "seconds"]
    show(f"{image}, {pixels.shape[0]} x {pixels.shape[1]} pixels", columns, table)
    if plt is not None and picture:
        save(plt, _panels(plt, pixels, rows), folder / "inr.png")
        title = f"{image}: {neurons} neurons, {2 * frequencies} features"
        save(plt, _curve(plt, rows, title), folder / "psnr.png")


def _panels(plt: Any, pixels: Tensor, rows: list[Row]) -> Any:
    """The image, and its approximation by each network."""
    figure, axes = plt.subplots(1, len(rows) + 1, figsize=(2 * (len(rows) + 1), 2.5))
    shown = [("original", pixels.tolist())]
    shown += [(f"{r['nonzeros']} weights\n{r['psnr']:.1f} dB", r["pixels"]) for r in rows]
    for ax, (title, values) in zip(axes, shown, strict=True):
        ax.imshow(values, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    return figure


def _curve(plt: Any, rows: list[Row], title: str) -> Any:
    """PSNR over the number of non-zeros."""
    figure, axes = plt.subplots(figsize=(5, 4))
    axes.plot([r["nonzeros"] for r in rows], [r["psnr"] for r in rows], marker="o")
    axes.set(xlabel="non-zeros", ylabel="PSNR (dB)", title=title)
    return figure


def load_image(image: str) -> Tensor:
    """The image as grey values in [0, 1], (height, width) float64. Raises UsageError."""
    if image == "digit":
        from sklearn.datasets import load_digits

        return torch.as_tensor(load_digits().images[0] / 16)  # type: ignore[union-attr]
    if image == "mnist":
        from ..tasks import MNIST

        return MNIST().load().test_x[1000, 0].double() / 255
    if not Path(image).is_file():
        raise UsageError(WHO, "there is no such image", got=image, remedy='"digit", "mnist", or a PNG file')
    values = torch.as_tensor(pyplot(WHO).imread(image).copy()).double()
    return values[..., :3].mean(-1) if values.dim() == 3 else values


def inr_cell(cell: Row) -> Row:
    """Fits one network; returns its PSNR and its predicted pixels."""
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
