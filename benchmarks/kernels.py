"""Sparse products against dense ones, forward and backward: the gate first, then times, GFLOP/s, bytes and the machine's roofline.

    python benchmarks/kernels.py --json kernels.json            the table: linear layers and convolutions at 90, 95, 98 % zeros
    python benchmarks/kernels.py --rows conv-64 --densities 0.1
    python benchmarks/kernels.py --picture docs/speed.svg       speed-up over density, and where it breaks even
    python benchmarks/kernels.py --tiles                        what tiles of weights gain over single ones
    python benchmarks/kernels.py --overhead                     what a call costs beyond its kernels
    python benchmarks/kernels.py --growth --wide                time against non-zeros; the layer of 2**20 x 2**20
    python benchmarks/kernels.py --from kernels.json --markdown docs/speed.md

The gate: output and both gradients must be those of the dense product with the same weight, to a tolerance relative to their norm. A
mismatch ends the run with code 1 and no time; a peer's mismatch is said in place of its time. Times are of one interleaved run per row,
dense and all densities together. FLOPs are 6 B P n for n weights at P output positions. Bytes are the least that could move: input, output
and their gradients, the values, their gradient and the index, once each.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import gossamer as gs
import timing
from gossamer._backend.dispatch import choose
from gossamer.products.conv2d import op as conv2d_op
from gossamer.products.linear import op as linear_op
from timing import Mismatch, Result, Table, Timing, batch_last, error, interleaved, millis, times
from variants import Variant, dense, gossamer, peers

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
SWEEP = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FAMILIES = ("torch.sparse", "sparseprop", "sparselab")


class Work(NamedTuple):
    """One row: a linear layer (side 0), or a 3 x 3 convolution of an image with that side."""

    name: str
    inputs: int
    outputs: int
    side: int = 0

    @property
    def positions(self) -> int:
        """Output positions per example."""
        return self.side**2 or 1

    def layer(self, density: float, args: argparse.Namespace) -> gs.SparseLayer:
        """The sparse layer, the same for the same seed."""
        rng = torch.Generator().manual_seed(args.seed)
        common: dict[str, Any] = {
            "density": density,
            "bias": False,
            "block": tuple(args.block),
            "rng": rng,
            "dtype": args.dtype,
        }
        if self.side:
            made: gs.SparseLayer = gs.SparseConv2d(self.inputs, self.outputs, 3, padding=1, **common)
        else:
            made = gs.SparseLinear(self.inputs, self.outputs, **common)
        if made.block == (1, 1):
            with torch.no_grad():
                made.values[made.values == 0] = (
                    1.0  # a kept weight that is 0 by chance is none to those who look for non-zeros
                )
        return made

    def operands(self, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
        """Input and output gradient."""
        rng = torch.Generator().manual_seed(args.seed + 1)
        image = (self.side, self.side) if self.side else ()
        x, dy = (torch.randn(args.batch, c, *image, generator=rng).to(args.dtype) for c in (self.inputs, self.outputs))
        return x, dy


ROWS = (
    Work("linear-1024", 1024, 1024),
    Work("linear-4096", 4096, 4096),
    Work("conv-64@32", 64, 64, 32),
    Work("conv-128@16", 128, 128, 16),
    Work("conv-256@8", 256, 256, 8),
    Work("conv-512@4", 512, 512, 4),
)
TILED = ("linear-1024", "conv-256@8")
TILES = ((1, 1), (4, 1), (16, 1), (4, 4), (16, 16))
TINY = (Work("linear-48", 48, 48), Work("conv-4@5", 4, 4, 5), Work("conv-8@3", 8, 8, 3))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what was asked for, gate first."""
    args = arguments(argv)
    timing.ready(args)
    try:
        result = timing.read(args.source) if args.source else measured(args)
        if args.picture:
            picture(result, args.picture)
    except (Mismatch, gs.UsageError) as refusal:
        print(refusal, file=sys.stderr)
        return 1 if isinstance(refusal, Mismatch) else 2
    return timing.finish(args, result, TABLES, _pictures(args))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; without a measurement that is asked for by name, it is the table of rows."""
    p = timing.parser(__doc__)
    p.add_argument(
        "--rows",
        nargs="+",
        metavar="NAME",
        help="beginnings of names: linear, conv, " + ", ".join(w.name for w in ROWS),
    )
    p.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.05, 0.02])
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    p.add_argument(
        "--block", nargs=2, type=int, default=[1, 1], metavar=("H", "W"), help="tiles instead of single weights"
    )
    p.add_argument(
        "--tiles",
        action="store_true",
        help="speed-up of several tiles beside single weights, on the rows of 1024 and 256@8",
    )
    p.add_argument("--sweep", action="store_true", help="speed-up at densities from 0.005 to 1")
    p.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the sweep, and the growth if it was measured (matplotlib)"
    )
    p.add_argument("--overhead", action="store_true", help="time of a call beyond its kernels")
    p.add_argument("--growth", action="store_true", help="time of a step from 1e5 to 1e8 non-zeros (needs about 10 GB)")
    p.add_argument(
        "--wide",
        action="store_true",
        help="training steps of a layer of 2**20 x 2**20 with 10 million non-zeros, batch 16",
    )
    args = p.parse_args(argv)
    args.dtype = getattr(torch, args.dtype)
    args.budget = (0.0 if args.quick else 3.0) if args.budget is None else args.budget
    args.sweep |= args.picture is not None and not args.growth
    if args.rows is None:
        args.rows = [] if args.overhead or args.growth or args.wide or args.sweep or args.tiles else [""]
    return args


def measured(args: argparse.Namespace) -> Result:
    """All sections that were asked for."""
    rows, all_rows = (
        [w for w in (TINY if args.quick else ROWS) if w.name.startswith(tuple(args.rows))],
        TINY if args.quick else ROWS,
    )
    if args.rows and not rows:
        raise gs.UsageError(
            "--rows", "no row's name begins so", got=args.rows, remedy=", ".join(w.name for w in all_rows)
        )
    swept = (rows or all_rows) if args.sweep else []
    wrong = {w.name: gate(w, args.densities, args) for w in rows}
    for work in swept:
        gate(work, SWEEP, args, with_peers=False)
    result: Result = {
        "machine": {},
        "quick": args.quick,
        "batch": args.batch,
        "dtype": str(args.dtype).removeprefix("torch."),
    }
    result["block"], result["roofline"] = args.block, timing.roofline(0.0 if args.quick else 2.0, args.quick)
    if rows:
        result["kernels"] = [cell for w in rows for cell in cells(w, args.densities, args, wrong[w.name])]
    if swept:
        result["sweep"] = [cell for w in swept for cell in cells(w, SWEEP, args, None)]
    if args.tiles:
        result["tiles"] = tiles(args)
    if args.overhead:
        result["overhead"] = overhead(args)
    if args.growth:
        result["growth"] = growth(args)
    if args.wide:
        result["wide"] = wide(args)
    result["machine"] = timing.machine()  # last: by now everything is loaded
    return result


# -------------------------------------------------------------------- rows: gate, then time


def gate(work: Work, densities: Sequence[float], args: argparse.Namespace, with_peers: bool = True) -> set[str]:
    """Everybody's output and gradients against dense torch; raises Mismatch, but of peers that are wrong returns the names."""
    tolerance, wrong = TOLERANCE[args.dtype], set()
    for density in densities:
        layer, operands = work.layer(density, args), work.operands(args)
        reference, *others = dense(layer, *operands)
        expected = reference()
        for v in [*others, gossamer(layer, *operands), *(peers(layer, *operands) if with_peers else ())]:
            y, dx, dw = v()
            pairs = {"output": (y, expected[0]), "input gradient": (dx, expected[1])}
            pairs["weight gradient"] = (v.flat(dw), reference.flat(expected[2]))
            errors = {what: error(*pair) for what, pair in pairs.items()}
            bad = [f"{what} by {e:.1e}" for what, e in errors.items() if not e <= tolerance]  # NaN is not <= anything
            what = f"{work.name}, density {density:g}: {v.name} differs from the dense product in {', '.join(bad)} of its norm"
            if bad and v.family not in FAMILIES:
                raise Mismatch(f"{what} ({tolerance:.0e} is allowed). No time is reported.")
            if bad:
                print(what, file=sys.stderr)
                wrong.add(f"{v.name} {density:g}")
    return wrong


def cells(
    work: Work, densities: Sequence[float], args: argparse.Namespace, wrong: set[str] | None
) -> list[dict[str, Any]]:
    """One interleaved run over a row: dense once, the others at every density; peers unless ``wrong`` is None."""
    print(f"timing {work.name}", file=sys.stderr)
    x, dy = work.operands(args)
    layers = {density: work.layer(density, args) for density in densities}
    calls: dict[str, Variant] = {v.name: v for v in dense(layers[densities[0]], x, dy)}
    for density, layer in layers.items():
        found = [gossamer(layer, x, dy), *(peers(layer, x, dy) if wrong is not None else ())]
        calls |= {f"{v.name} {density:g}": v for v in found}
    calls = {name: v for name, v in calls.items() if wrong is None or name not in wrong}
    taken = interleaved(calls, args.budget * len(densities), least=2 if args.quick else 5)
    by_form = {v.form: taken[name] for name, v in calls.items() if v.family == "dense"}
    best = min(by_form, key=lambda form: by_form[form].seconds)
    return [
        _cell(work, layer, density, (x, dy), best, by_form, calls, taken, wrong or set())
        for density, layer in layers.items()
    ]


def _cell(
    work: Work,
    layer: gs.SparseLayer,
    density: float,
    operands: tuple[Tensor, Tensor],
    best: str,
    by_form: dict[str, Timing],
    calls: dict[str, Variant],
    taken: dict[str, Timing],
    wrong: set[str],
) -> dict[str, Any]:
    s, own = layer.support, taken[f"gossamer {density:g}"]
    others: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        forms = {
            v.form: taken[name] for name, v in calls.items() if v.family == family and name.endswith(f" {density:g}")
        }
        if forms:
            form = min(forms, key=lambda form: forms[form].seconds)
            others[family] = {"form": form, **forms[form]._asdict(), "slower": forms[form].seconds / own.seconds}
        elif any(name.startswith(family) and name.endswith(f" {density:g}") for name in wrong):
            others[family] = {"wrong": True}
    return {
        "work": work.name,
        "density": density,
        "n": s.weights,
        "kernels": layer.kernels,
        "dense": {form: t._asdict() for form, t in by_form.items()},
        "best dense": best,
        "gossamer": own._asdict(),
        "ratio": by_form[best].seconds / own.seconds,
        "flops": 6 * operands[0].shape[0] * work.positions * s.weights,
        "bytes": 2 * sum(_size(t) for t in operands) + 2 * _size(layer.values) + s.bytes,
        "peers": others,
    }


def _size(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _conv_means(found: Sequence[dict[str, Any]]) -> dict[float, float]:
    """Geometric mean of the ratio over the convolutions, by density, where there are several."""
    ratios: dict[float, list[float]] = {}
    for cell in found:
        if cell["work"].startswith("conv"):
            ratios.setdefault(cell["density"], []).append(cell["ratio"])
    return {density: geometric_mean(r) for density, r in ratios.items() if len(r) > 1}


def kernels_table(result: Result) -> Table:
    """Rows by densities."""
    found, roof = result["kernels"], result["roofline"]
    families = [family for family in FAMILIES if any(family in cell["peers"] for cell in found)]
    own_columns = ["gossamer ms", "ratio", "spread", "GFLOP/s", "of peak", "MB", "of bandwidth"]
    columns, rows = ["work", "density", "best dense", "ms", *own_columns, *families], []
    for cell in found:
        own, best = Timing(**cell["gossamer"]), Timing(**cell["dense"][cell["best dense"]])
        speed, moved = cell["flops"] / own.seconds, cell["bytes"] / own.seconds
        rows.append(
            [
                cell["work"],
                f"{cell['density']:g}",
                cell["best dense"],
                millis(best.seconds),
                millis(own.seconds),
                times(cell["ratio"]),
            ]
            + [
                f"±{own.spread + best.spread:.0%}",
                f"{speed / 1e9:.1f}",
                f"{speed / roof['flops']:.0%}",
                f"{cell['bytes'] / 1e6:.1f}",
            ]
            + [f"{moved / roof['bytes']:.0%}", *(_peer(cell["peers"].get(family)) for family in families)]
        )
    for density, mean in _conv_means(found).items():
        rows.append(["conv, geometric mean", f"{density:g}", *[""] * 3, times(mean), *[""] * (5 + len(families))])
    tiles = "" if result["block"] == [1, 1] else f", tiles of {result['block'][0]} x {result['block'][1]}"
    notes = [
        f"Forward and backward, batch {result['batch']}, {result['dtype']}{tiles}. Medians; spread: half the distance of the quartiles, "
        "dense and sparse added. Peers: ms (so many times gossamer's).",
        f"Roofline: {roof['flops'] / 1e9:.0f} GFLOP/s, {roof['bytes'] / 1e9:.1f} GB/s. Kernels: {_kernel_names(found)}.",
    ]
    return Table("Sparse products against dense ones", columns, rows, notes)


def _peer(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return "wrong" if "wrong" in found else f"{millis(found['seconds'])} ({times(found['slower'])})"


def _kernel_names(found: Sequence[dict[str, Any]]) -> str:
    return ", ".join(sorted({name for cell in found for name in cell["kernels"].values()}))


# -------------------------------------------------------------------- the sweep over densities


def tiles(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The same density in tiles: each tile in an interleaved run of its own, with dense and without peers."""
    found = []
    for work in TINY[1:] if args.quick else (w for w in ROWS if w.name in TILED):
        for block in TILES:
            tiled = argparse.Namespace(**{**vars(args), "block": list(block)})
            gate(work, args.densities, tiled, with_peers=False)
            found += [{**cell, "block": list(block)} for cell in cells(work, args.densities, tiled, None)]
    return found


def tiles_table(result: Result) -> Table:
    """Speed-ups, a column for each tile."""
    found = result["tiles"]
    blocks = list(dict.fromkeys(tuple(cell["block"]) for cell in found))
    ratios = {(cell["work"], cell["density"], tuple(cell["block"])): times(cell["ratio"]) for cell in found}
    keys = dict.fromkeys((work, density) for work, density, _ in ratios)
    rows = [[work, f"{density:g}", *(ratios[work, density, block] for block in blocks)] for work, density in keys]
    notes = [
        f"Speed-up over the best dense variant, forward and backward, batch {result['batch']}, {result['dtype']}: the same density in "
        f"tiles of h x w. Kernels: {_kernel_names(found)}."
    ]
    return Table("What tiles gain", ["work", "density", *(f"{h} x {w}" for h, w in blocks)], rows, notes)


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """The density at which (density, ratio) points, joined by lines of both logarithms, fall through 1; None if they do not."""
    points = sorted(points)
    for (d0, r0), (d1, r1) in zip(points, points[1:], strict=False):
        if r0 >= 1 > r1:
            share = math.log(r0) / math.log(r0 / r1)
            return d0 * (d1 / d0) ** share
    return None


def _curves(found: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for cell in found:
        curves.setdefault(cell["work"], []).append((cell["density"], cell["ratio"]))
    return curves


def sweep_table(result: Result) -> Table:
    """Ratio by density, and the break-even point."""
    curves = _curves(result["sweep"])
    densities = sorted({cell["density"] for cell in result["sweep"]})
    rows = []
    for work, points in curves.items():
        even = break_even(points)
        said = (
            f"{even:.2g}" if even else "above 1" if min(r for _, r in points) >= 1 else "below " + f"{densities[0]:g}"
        )
        rows.append([work, *(times(dict(points)[d]) for d in densities), said])
    names = _kernel_names(result["sweep"])
    notes = [f"Speed-up over the best dense variant, batch {result['batch']}, {result['dtype']}. Kernels: {names}."]
    return Table("Speed-up by density", ["work", *(f"{d:g}" for d in densities), "breaks even at"], rows, notes)


def picture(result: Result, path: Path) -> None:
    """Speed-up over density with the break-even points, and time over non-zeros, as far as they were measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if not {"sweep", "growth"} & set(result):
        raise gs.UsageError("--picture", "neither the sweep nor the growth was measured", remedy="--sweep, --growth")
    panels = [draw for name, draw in (("sweep", _draw_sweep), ("growth", _draw_growth)) if name in result]
    with plt.rc_context(
        {"svg.hashsalt": "gossamer", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(5.6 * len(panels), 4.0), squeeze=False, layout="constrained"
        )
        for draw, ax in zip(panels, axes[0], strict=True):
            draw(ax, result)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
        plt.close(figure)


def _pictures(args: argparse.Namespace) -> dict[str, str]:
    """What shows the picture on the page, between the marks ``picture``."""
    if args.picture is None or args.markdown is None:
        return {}
    place = Path(os.path.relpath(args.picture, args.markdown.parent)).as_posix()
    return {"picture": f"![Speed-up over density, with the break-even points]({place})"}


def _draw_sweep(ax: Any, result: Result) -> None:
    curves = _curves(result["sweep"])
    ax.axhline(1.0, color="0.3", linewidth=0.8)
    for i, (work, points) in enumerate(curves.items()):
        even, style = break_even(points), "--" if work.startswith("conv") else "-"
        label = work + (f", even at {even:.2g}" if even else "")
        [line] = ax.loglog(*zip(*sorted(points), strict=True), style, color=f"C{i}", linewidth=1.4, label=label)
        if even:
            ax.plot(even, 1.0, "o", color=line.get_color(), markersize=5)
    ax.set(
        xlabel="density", ylabel="times faster than the best dense variant", title="Forward and backward, by density"
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    ax.grid(True, which="major", color="0.9")
    ax.legend(frameon=False, fontsize=8)


def _draw_growth(ax: Any, result: Result) -> None:
    found = result["growth"]
    n, seconds = [p["n"] for p in found["points"]], [p["seconds"] for p in found["points"]]
    ax.loglog(n, seconds, "o-", color="C0", linewidth=1.4, label=f"measured, exponent {found['exponent']:.2f}")
    ax.loglog(n, [seconds[-1] * k / n[-1] for k in n], ":", color="0.5", label="proportional")
    ax.set(xlabel="non-zeros", ylabel="seconds per training step", title="Growth of cost")
    ax.grid(True, which="major", color="0.9")
    ax.legend(frameon=False, fontsize=8)


# -------------------------------------------------------------------- overhead of a call


def overhead(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time of one layer call, forward and backward, so small that the arithmetic is nothing: what is left is what a call costs.

    A chain of ``few`` layers and one of ``many`` are timed in turn; the difference over the difference in layers is the cost of one layer,
    free of what the chain pays once. Beside it the same slope for torch's dense layers, and the three kernels alone, called on the same
    operands. The whole slope bounds the overhead from above; the slope less the kernels' calls is the part that is surely not theirs
    (their own calls hold some glue as well: the binding, the allocation of the output).
    """
    few, many, found = 4, 12 if args.quick else 68, []
    linear, conv = {"density": 0.1, "min_fan_in": 1}, {"density": 0.1, "padding": 1, "bias": False}
    pairs: list[tuple[str, Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = [
        (
            "linear",
            lambda: gs.SparseLinear(16, 16, bias=False, **linear),
            lambda: nn.Linear(16, 16, bias=False),
            (8, 16),
        ),
        ("linear with bias", lambda: gs.SparseLinear(16, 16, **linear), lambda: nn.Linear(16, 16), (8, 16)),
        (
            "conv 3x3",
            lambda: gs.SparseConv2d(4, 4, 3, **conv),
            lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False),
            (8, 4, 4, 4),
        ),
    ]
    for name, sparse, torch_layer, shape in pairs:
        x = torch.randn(shape)
        calls: dict[str, Callable[[], object]] = {}
        for k in (few, many):
            calls[f"gossamer {k}"] = _chain(sparse, k, batch_last(x))
            calls[f"torch {k}"] = _chain(torch_layer, k, x)
        layer = sparse()
        assert isinstance(layer, gs.SparseLayer)
        calls["kernels"] = _kernels_alone(layer, batch_last(x), many - few)
        taken = interleaved(calls, args.budget * 3, least=2 if args.quick else 50)
        slopes = {
            who: (taken[f"{who} {many}"].seconds - taken[f"{who} {few}"].seconds) / (many - few)
            for who in ("gossamer", "torch")
        }
        kernels = taken["kernels"].seconds / (many - few)
        noise = math.hypot(*(taken[f"gossamer {k}"].spread * taken[f"gossamer {k}"].seconds for k in (few, many))) / (
            many - few
        )
        found.append(
            {"layer": name, "call": slopes["gossamer"], "spread": noise, "kernels": kernels, "torch": slopes["torch"]}
        )
    return found


def _chain(make: Callable[[], nn.Module], k: int, x: Tensor) -> Callable[[], None]:
    """Forward and backward through k layers; gradients are None before and after."""
    net = nn.Sequential(*(make() for _ in range(k)))
    x = x.detach().requires_grad_()

    def call() -> None:
        net(x).sum().backward()
        x.grad = None
        net.zero_grad(set_to_none=True)

    return call


def _kernels_alone(layer: gs.SparseLayer, x: Tensor, k: int) -> Callable[[], None]:
    """The two kernels that the layer's calls choose, on its operands, k times."""
    s, values = layer.support, layer.values.detach()
    with torch.no_grad():
        dy = batch_last(torch.randn_like(layer(x)))
    ops, g = (linear_op, ()) if layer.geometry is None else (conv2d_op, (layer.geometry,))
    bound = [
        (choose(kernels, *arguments).run, arguments)
        for kernels, arguments in (
            (ops.FORWARD, (x, values, s, *g)),
            (ops.BACKWARD, (dy, x, values, s, *g)),
        )
    ]

    def call() -> None:
        for _ in range(k):
            for run, arguments in bound:
                run(*arguments)

    return call


def overhead_table(result: Result) -> Table:
    """Microseconds per layer call."""
    rows = [
        [p["layer"], f"{1e6 * p['call']:.1f} ± {1e6 * p['spread']:.1f}", f"{1e6 * p['kernels']:.1f}"]
        + [f"{1e6 * (p['call'] - p['kernels']):.1f}", f"{1e6 * p['torch']:.1f}"]
        for p in result["overhead"]
    ]
    notes = [
        "Microseconds per layer, forward and backward, by the slope over the length of a chain of layers so small that arithmetic is "
        "nothing (16 x 16, or 4 channels of 4 x 4 pixels; batch 8).",
        "The whole call bounds the overhead from above; the rest is what is surely not the kernels', whose own calls hold some glue too.",
    ]
    columns = ["layer", "whole call", "its two kernels, called alone", "the rest", "torch's dense layer"]
    return Table("Overhead of a call", columns, rows, notes)


# -------------------------------------------------------------------- growth, and the wide layer


class Trained(NamedTuple):
    """A layer with all that a training step of it needs."""

    layer: gs.SparseLinear
    optimizer: torch.optim.Optimizer
    x: Tensor
    target: Tensor

    @staticmethod
    def of(side: int, n: int, batch: int, seed: int) -> "Trained":
        """A square layer with ``n`` non-zeros, its gate passed."""
        rng = torch.Generator().manual_seed(seed)
        layer = gs.SparseLinear(side, side, density=n / side**2, bias=False, rng=rng)
        x, target = (batch_last(torch.randn(batch, side, generator=rng)) for _ in range(2))
        sampled_gate(layer, x, target)
        return Trained(layer, torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9), x.requires_grad_(), target)

    def step(self) -> None:
        """Forward, loss, backward (the input's gradient too), SGD with momentum."""
        loss = (self.layer(self.x) - self.target).square().sum() / self.x.shape[0] / 2
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None

    def timed(self, budget: float, least: int) -> Timing:
        """Steps for a while."""
        self.step()
        begin, taken = time.perf_counter(), []
        while len(taken) < least or time.perf_counter() - begin < budget:
            start = time.perf_counter()
            self.step()
            taken.append(time.perf_counter() - start)
        return Timing.of(taken)


def sampled_gate(layer: gs.SparseLinear, x: Tensor, dy: Tensor) -> None:
    """Output, weight gradient and input gradient in some rows and columns, by hand; raises Mismatch."""
    s, values = layer.support, layer.values.detach()
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    dx, dw = torch.autograd.grad(y, (leaf, layer.values), dy)
    for i in (0, 1, s.shape[0] // 2, s.shape[0] - 1):
        row, column = slice(int(s.crow[i]), int(s.crow[i + 1])), slice(int(s.ccol[i]), int(s.ccol[i + 1]))
        cols, rows, at = s.col[row].long(), s.row[column].long(), s.perm[column].long()
        pairs = {
            "output": (y[:, i], x[:, cols] @ values[row]),
            "weight gradient": (dw[row], dy[:, i] @ x[:, cols]),
            "input gradient": (dx[:, i], dy[:, rows] @ values[at]),
        }
        for what, pair in pairs.items():
            if not error(*pair) <= TOLERANCE[torch.float32]:
                raise Mismatch(
                    f"{s.shape[0]} x {s.shape[1]}, row {i}: {what} off by {error(*pair):.1e} of its norm. No time is reported."
                )


def growth(args: argparse.Namespace) -> dict[str, Any]:
    """Training steps at density 0.01, batch 16, from 1e5 to 1e8 non-zeros, and the exponent of the power law through the times."""
    decades = (3, 4) if args.quick else (5, 8)
    density, batch, points, kernels = 0.01, 16, [], {}
    for half in range(2 * decades[0], 2 * decades[1] + 1):
        n = round(10 ** (half / 2))
        side = round(math.sqrt(n / density))
        print(f"timing {n:,} non-zeros", file=sys.stderr)
        trained = Trained.of(side, n, batch, args.seed)
        taken, kernels = trained.timed(args.budget, least=3), trained.layer.kernels
        del trained
        points.append({"n": n, "side": side, **taken._asdict()})
    logs = torch.tensor([[math.log(p["n"]), math.log(p["seconds"])] for p in points], dtype=torch.float64)
    centred = logs - logs.mean(0)
    exponent = float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())
    return {"density": density, "batch": batch, "points": points, "exponent": exponent, "kernels": kernels}


def growth_table(result: Result) -> Table:
    """Time per step and per non-zero."""
    found = result["growth"]
    rows = [
        [
            f"{p['n']:,}",
            f"{p['side']:,}",
            millis(p["seconds"]),
            f"±{Timing(*_four(p)).spread:.0%}",
            f"{1e9 * p['seconds'] / p['n']:.2f}",
        ]
        for p in found["points"]
    ]
    notes = [
        "Training steps (forward, loss, backward with the input's gradient, SGD with momentum) of one square layer at density "
        f"{found['density']:g}, batch {found['batch']}.",
        f"Time grows as the power {found['exponent']:.2f} of the non-zeros. Kernels: {', '.join(sorted(set(found['kernels'].values())))}.",
    ]
    return Table("Growth of cost", ["non-zeros", "side", "ms per step", "spread", "ns per non-zero"], rows, notes)


def wide(args: argparse.Namespace) -> dict[str, Any]:
    """Steps per second and accounted bytes of a layer that could not exist densely."""
    power, n, batch = (10, 1000, 16) if args.quick else (20, 10_000_000, 16)
    print("timing the wide layer", file=sys.stderr)
    trained = Trained.of(2**power, n, batch, args.seed)
    with_dx = trained.timed(args.budget, least=3)
    without_dx = trained._replace(x=trained.x.detach()).timed(args.budget, least=3)
    held = gs.Ledger(trained.layer, trained.x.detach(), optimizer=trained.optimizer).bytes()
    return {
        "power": power,
        "n": trained.layer.support.n,
        "batch": batch,
        "with input gradient": with_dx._asdict(),
        "without": without_dx._asdict(),
        "bytes": held,
        "bytes per non-zero": held["total"] / trained.layer.support.n,
        "kernels": trained.layer.kernels,
    }


def wide_table(result: Result) -> Table:
    """Steps per second, bytes per non-zero."""
    found = result["wide"]
    rows = []
    for label, key in (
        ("with the input's gradient", "with input gradient"),
        ("as a first layer, without it", "without"),
    ):
        taken = Timing(*_four(found[key]))
        rows.append([label, f"{1 / taken.seconds:.2f}", f"±{taken.spread:.0%}", f"{found['bytes per non-zero']:.2f}"])
    parts = ", ".join(
        f"{name} {held / found['n']:.2f}" for name, held in found["bytes"].items() if name != "total" and held
    )
    notes = [
        f"A layer of 2**{found['power']} x 2**{found['power']} with {found['n']:,} non-zeros, batch {found['batch']}: forward, loss, "
        "backward, SGD with momentum.",
        f"Bytes as accounted, activations apart: {parts}. benchmarks/memory.py measures what is resident.",
        f"Kernels: {', '.join(sorted(set(found['kernels'].values())))}.",
    ]
    return Table(
        "A layer too wide to exist densely",
        ["training steps", "per second", "spread", "bytes per non-zero"],
        rows,
        notes,
    )


def _four(p: dict[str, Any]) -> Iterator[Any]:
    return (p[field] for field in Timing._fields)


TABLES: dict[str, Callable[[Result], Table]] = {
    "kernels": kernels_table,
    "tiles": tiles_table,
    "sweep": sweep_table,
    "overhead": overhead_table,
    "growth": growth_table,
    "wide": wide_table,
}

if __name__ == "__main__":
    sys.exit(main())
