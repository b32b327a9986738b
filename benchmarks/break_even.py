"""At which density does a sparse layer take as much time as the dense layer?

    python benchmarks/break_even.py --json sweep.json --markdown docs/speed.md --mark sweep
    python benchmarks/break_even.py --from sweep.json growth.json --picture docs/speed.svg --markdown docs/speed.md

Measures the speed-up over the best dense variant, forward and backward, at densities from 0.005 to 1, and the density
where it is 1. First the gate compares output and both gradients. ``--picture`` draws the speed-up over the density
(matplotlib), and the time over the non-zeros if ``--from`` also names a file of ``growth.py``.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gossamer as gs
import products
import report
from products import ROWS
from report import Result, Table
from timing import times

DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    p = products.parser(__doc__, ROWS)
    p.add_argument("--picture", type=Path, metavar="FILE", help="draw it; the mark of the page is `picture`")
    args = products.parsed(p, argv)
    return report.run(args, measured, {"sweep": table}, lambda result: pictured(result, args))


def measured(args: argparse.Namespace) -> Result:
    """Measures all rows at all densities: first all gates, then the times."""
    rows = products.rows_of(args, ROWS)
    for work in rows:
        products.gate(work, DENSITIES, args)
    return {**products.settings(args), "sweep": [cell for w in rows for cell in products.cells(w, DENSITIES, args)]}


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """The density at which (density, ratio) points, joined by lines in both logarithms, fall through 1; else None."""
    points = sorted(points)
    for (d0, r0), (d1, r1) in zip(points, points[1:], strict=False):
        if r0 >= 1 > r1:
            return d0 * (d1 / d0) ** (math.log(r0) / math.log(r0 / r1))
    return None


def curves(found: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(density, ratio) points of each row."""
    made: dict[str, list[tuple[float, float]]] = {}
    for cell in found:
        made.setdefault(cell["work"], []).append((cell["density"], cell["ratio"]))
    return made


def table(result: Result) -> Table:
    """Ratio by density, and the break-even point."""
    densities = sorted({cell["density"] for cell in result["sweep"]})
    rows = []
    for work, points in curves(result["sweep"]).items():
        even, never = break_even(points), min(r for _, r in points) >= 1
        said = f"{even:.2g}" if even else "above 1" if never else f"below {densities[0]:g}"
        rows.append([work, *(times(dict(points)[d]) for d in densities), said])
    names = products.kernel_names(result["sweep"])
    notes = [f"Speed-up over the best dense variant, batch {result['batch']}, {result['dtype']}. Kernels: {names}."]
    return Table("Speed-up by density", ["work", *(f"{d:g}" for d in densities), "breaks even at"], rows, notes)


# -------------------------------------------------------------------- the picture


def pictured(result: Result, args: argparse.Namespace) -> Mapping[str, str]:
    """Draws the picture if ``--picture`` is given. Returns the Markdown that shows it."""
    if args.picture is None:
        return {}
    picture(result, args.picture)
    if args.markdown is None:
        return {}
    place = Path(os.path.relpath(args.picture, args.markdown.parent)).as_posix()
    return {"picture": f"![Speed-up over density, with the break-even points]({place})"}


def picture(result: Result, path: Path) -> None:
    """Draws speed-up over density with the break-even points, and time over non-zeros, if they were measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [draw for name, draw in (("sweep", _draw_sweep), ("growth", _draw_growth)) if name in result]
    if not panels:
        raise gs.UsageError("--picture", "there are no measurements to draw", remedy="--from sweep.json")
    style = {"svg.hashsalt": "gossamer", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        size = (5.6 * len(panels), 4.0)
        figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
        for draw, ax in zip(panels, axes[0], strict=True):
            draw(ax, result)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
        plt.close(figure)


def _draw_sweep(ax: Any, result: Result) -> None:
    ax.axhline(1.0, color="0.3", linewidth=0.8)
    for i, (work, points) in enumerate(curves(result["sweep"]).items()):
        even, style = break_even(points), "--" if work.startswith("conv") else "-"
        label = work + (f", even at {even:.2g}" if even else "")
        [line] = ax.loglog(*zip(*sorted(points), strict=True), style, color=f"C{i}", linewidth=1.4, label=label)
        if even:
            ax.plot(even, 1.0, "o", color=line.get_color(), markersize=5)
    ax.set(xlabel="density", ylabel="times faster than the best dense variant")
    ax.set(title="Forward and backward, by density")
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


if __name__ == "__main__":
    sys.exit(main())
