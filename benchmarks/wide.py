"""How fast does a layer train that is too wide for a dense weight?

    python benchmarks/wide.py --json wide.json --markdown docs/speed.md

Measures a layer of 2**20 x 2**20 with 10 million non-zeros, batch 16: training steps per second, and the bytes per
non-zero by the ledger. ``memory.py`` measures resident bytes. The gate checks output and both gradients in a few rows
and columns by direct products.
"""

import argparse
import sys
from collections.abc import Sequence

import gossamer as gs
import report
import timing
from growth import Trained
from report import Result, Table
from timing import Timing

BATCH = 16
SIZE, SIZE_QUICK = (20, 10_000_000), (10, 1000)  # power of two of the side, non-zeros


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    args = report.parser(__doc__).parse_args(argv)
    args.budget = (0.0 if args.quick else 3.0) if args.budget is None else args.budget
    return report.run(args, measured, {"wide": table})


def measured(args: argparse.Namespace) -> Result:
    """Times steps with the gradient of the input, and steps without it, as in a first layer."""
    power, n = SIZE_QUICK if args.quick else SIZE
    trained = Trained.of(2**power, n, BATCH, args.seed)
    first = trained._replace(x=trained.x.detach())
    print("timing the wide layer", file=sys.stderr)
    with_dx, without = (timing.repeated(t.step, args.budget, least=3) for t in (trained, first))
    held = gs.Ledger(trained.layer, first.x, optimizer=trained.optimizer).bytes()
    return {
        "wide": {
            "power": power,
            "n": trained.layer.support.n,
            "batch": BATCH,
            "with input gradient": with_dx._asdict(),
            "without": without._asdict(),
            "bytes": held,
            "bytes per non-zero": held["total"] / trained.layer.support.n,
            "kernels": trained.layer.kernels,
        }
    }


def table(result: Result) -> Table:
    """Steps per second, bytes per non-zero."""
    found = result["wide"]
    kinds = {"with the input's gradient": "with input gradient", "as a first layer, without it": "without"}
    rows = []
    for label, key in kinds.items():
        taken = Timing(**found[key])
        rows.append([label, f"{1 / taken.seconds:.2f}", f"±{taken.spread:.0%}", f"{found['bytes per non-zero']:.2f}"])
    parts = {name: held / found["n"] for name, held in found["bytes"].items() if name != "total" and held}
    notes = [
        f"A layer of 2**{found['power']} x 2**{found['power']} with {found['n']:,} non-zeros, batch {found['batch']}: "
        "forward, loss, backward, SGD with momentum.",
        f"Bytes as accounted, activations apart: {', '.join(f'{name} {each:.2f}' for name, each in parts.items())}. "
        "benchmarks/memory.py measures what is resident.",
        f"Kernels: {', '.join(sorted(set(found['kernels'].values())))}.",
    ]
    columns = ["training steps", "per second", "spread", "bytes per non-zero"]
    return Table("A layer too wide to exist densely", columns, rows, notes)


if __name__ == "__main__":
    sys.exit(main())
