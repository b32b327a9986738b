"""How fast are sparse layers, compared with dense layers and with the sparse layers of other libraries?

    python benchmarks/layers.py --json layers.json --markdown docs/speed.md --mark kernels
    python benchmarks/layers.py --rows conv-64 --densities 0.1          a part of it
    python benchmarks/layers.py --block 4 4 --dtype bfloat16            tiles of weights; activations in bfloat16
    python benchmarks/layers.py --from layers.json                      the table of an earlier run

Measures linear layers and convolutions at 90, 95 and 98 % zeros, forward and backward. First it compares output and
both gradients. A mismatch of gossamer ends the script with code 1 and without times. A mismatch of another library is
shown instead of its time. Each row is one interleaved run of dense and of all densities. The table also has GFLOP/s,
bytes and the roofline of the machine.
"""

import argparse
import sys
from collections.abc import Sequence
from statistics import geometric_mean
from typing import Any

import products
import report
import timing
from products import FAMILIES, ROWS
from report import Result, Table
from timing import Timing, millis, times


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    p = products.parser(__doc__, ROWS)
    p.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.05, 0.02])
    p.add_argument("--block", nargs=2, type=int, default=[1, 1], metavar=("H", "W"), help="tiles of weights")
    return report.run(products.parsed(p, argv), measured, {"kernels": table})


def measured(args: argparse.Namespace) -> Result:
    """Measures all rows: first all gates, then the times."""
    rows = products.rows_of(args, ROWS)
    wrong = {w.name: products.gate(w, args.densities, args, with_peers=True) for w in rows}
    roofline = timing.roofline(0.0 if args.quick else 2.0, args.quick)
    cells = [cell for w in rows for cell in products.cells(w, args.densities, args, wrong[w.name])]
    return {**products.settings(args), "roofline": roofline, "kernels": cells}


def table(result: Result) -> Table:
    """Rows by densities."""
    found, roof = result["kernels"], result["roofline"]
    families = [family for family in FAMILIES if any(family in cell["peers"] for cell in found)]
    columns = ["work", "density", "best dense", "ms", "gossamer ms", "ratio", "spread"]
    columns += ["GFLOP/s", "of peak", "MB", "of bandwidth", *families]
    rows = [[*_row(cell, roof), *(_peer(cell["peers"].get(family)) for family in families)] for cell in found]
    for density, mean in _conv_means(found).items():
        rows.append(["conv, geometric mean", f"{density:g}", *[""] * 3, times(mean), *[""] * (5 + len(families))])
    h, w = result["block"]
    tiles = "" if (h, w) == (1, 1) else f", tiles of {h} x {w}"
    notes = [
        f"Forward and backward, batch {result['batch']}, {result['dtype']}{tiles}. Medians; spread: half the distance "
        "of the quartiles, dense and sparse added. Peers: ms (so many times gossamer's).",
        f"Roofline: {roof['flops'] / 1e9:.0f} GFLOP/s, {roof['bytes'] / 1e9:.1f} GB/s. "
        f"Kernels: {products.kernel_names(found)}.",
    ]
    return Table("Sparse products against dense ones", columns, rows, notes)


def _row(cell: dict[str, Any], roof: dict[str, float]) -> list[str]:
    """The columns of one cell, without those of other libraries."""
    own, best = Timing(**cell["gossamer"]), Timing(**cell["dense"][cell["best dense"]])
    speed, moved = cell["flops"] / own.seconds, cell["bytes"] / own.seconds
    return [
        cell["work"],
        f"{cell['density']:g}",
        cell["best dense"],
        millis(best.seconds),
        millis(own.seconds),
        times(cell["ratio"]),
        f"±{own.spread + best.spread:.0%}",
        f"{speed / 1e9:.1f}",
        f"{speed / roof['flops']:.0%}",
        f"{cell['bytes'] / 1e6:.1f}",
        f"{moved / roof['bytes']:.0%}",
    ]


def _peer(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return "wrong" if "wrong" in found else f"{millis(found['seconds'])} ({times(found['slower'])})"


def _conv_means(found: Sequence[dict[str, Any]]) -> dict[float, float]:
    """Geometric mean of the ratio over the convolutions, for each density with several of them."""
    ratios: dict[float, list[float]] = {}
    for cell in found:
        if cell["work"].startswith("conv"):
            ratios.setdefault(cell["density"], []).append(cell["ratio"])
    return {density: geometric_mean(r) for density, r in ratios.items() if len(r) > 1}


if __name__ == "__main__":
    sys.exit(main())
