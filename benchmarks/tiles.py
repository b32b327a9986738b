"""How fast are blocks of weights, compared with single weights?

    python benchmarks/tiles.py --json tiles.json --markdown docs/speed.md

Measures the speed-up over the best dense variant, forward and backward, of the same density in blocks of 1 x 1 to
16 x 16. First the gate compares output and both gradients. Each block has a separate interleaved run with dense.
"""

import argparse
import sys
from collections.abc import Sequence

import products
import report
from products import ROWS, TINY
from report import Result, Table
from timing import times

TILED = tuple(w for w in ROWS if w.name in ("linear-1024", "conv-256@8"))
TILES = ((1, 1), (4, 1), (16, 1), (4, 4), (16, 16))


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    p = products.parser(__doc__, TILED)
    p.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.05, 0.02])
    return report.run(products.parsed(p, argv), measured, {"tiles": table})


def measured(args: argparse.Namespace) -> Result:
    """Measures every row in every block: first all gates, then the times."""
    rows = [w for w in products.rows_of(args, TILED) if w not in TINY[:1]]
    cases = [(w, block, argparse.Namespace(**{**vars(args), "block": list(block)})) for w in rows for block in TILES]
    for work, _, tiled in cases:
        products.gate(work, args.densities, tiled)
    cells = []
    for work, block, tiled in cases:
        cells += [{**cell, "block": list(block)} for cell in products.cells(work, args.densities, tiled)]
    return {**products.settings(args), "tiles": cells}


def table(result: Result) -> Table:
    """Speed-ups, one column for each block."""
    found = result["tiles"]
    blocks = list(dict.fromkeys(tuple(cell["block"]) for cell in found))
    ratios = {(cell["work"], cell["density"], tuple(cell["block"])): times(cell["ratio"]) for cell in found}
    keys = dict.fromkeys((work, density) for work, density, _ in ratios)
    rows = [[work, f"{density:g}", *(ratios[work, density, block] for block in blocks)] for work, density in keys]
    notes = [
        f"Speed-up over the best dense variant, forward and backward, batch {result['batch']}, {result['dtype']}: the "
        f"same density in tiles of h x w. Kernels: {products.kernel_names(found)}."
    ]
    return Table("What tiles gain", ["work", "density", *(f"{h} x {w}" for h, w in blocks)], rows, notes)


if __name__ == "__main__":
    sys.exit(main())
