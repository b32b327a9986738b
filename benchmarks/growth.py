"""How does the cost of a training step grow with the number of non-zeros?

    python benchmarks/growth.py --json growth.json --markdown docs/speed.md

Measures square layers at density 0.01, batch 16, from 1e5 to 1e8 non-zeros (about 10 GB), and fits the exponent of a
power law to the times. The gate checks output and both gradients in a few rows and columns by direct products.
``break_even.py --from sweep.json growth.json --picture FILE`` draws the result.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import gate
import gossamer as gs
import report
import timing
from report import Result, Table
from timing import Timing, batch_last, millis

DENSITY, BATCH = 0.01, 16
DECADES, DECADES_QUICK = (5, 8), (3, 4)  # powers of ten of the non-zeros


class Trained(NamedTuple):
    """A layer with optimizer and data for training steps."""

    layer: gs.SparseLinear
    optimizer: torch.optim.Optimizer
    x: Tensor
    target: Tensor

    @staticmethod
    def of(side: int, n: int, batch: int, seed: int) -> "Trained":
        """A square layer with ``n`` non-zeros. Raises Mismatch if the gate fails."""
        rng = torch.Generator().manual_seed(seed)
        layer = gs.SparseLinear(side, side, density=n / side**2, bias=False, rng=rng)
        x, target = (batch_last(torch.randn(batch, side, generator=rng)) for _ in range(2))
        gate.sampled(layer, x, target)
        return Trained(layer, torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9), x.requires_grad_(), target)

    def step(self) -> None:
        """Forward, loss, backward (the input's gradient too, if it has one), SGD with momentum."""
        loss = (self.layer(self.x) - self.target).square().sum() / self.x.shape[0] / 2
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    args = report.parser(__doc__).parse_args(argv)
    args.budget = (0.0 if args.quick else 3.0) if args.budget is None else args.budget
    return report.run(args, measured, {"growth": table})


def measured(args: argparse.Namespace) -> Result:
    """Times training steps of larger and larger layers. Only one is in memory, so each gate runs before its time."""
    first, last = DECADES_QUICK if args.quick else DECADES
    points, kernels = [], {}
    for half in range(2 * first, 2 * last + 1):
        n = round(10 ** (half / 2))
        side = round(math.sqrt(n / DENSITY))
        print(f"{n:,} non-zeros", file=sys.stderr)
        trained = Trained.of(side, n, BATCH, args.seed)
        taken, kernels = timing.repeated(trained.step, args.budget, least=3), trained.layer.kernels
        del trained
        points.append({"n": n, "side": side, **taken._asdict()})
    logs = torch.tensor([[math.log(p["n"]), math.log(p["seconds"])] for p in points], dtype=torch.float64)
    centred = logs - logs.mean(0)
    exponent = float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())
    return {"growth": {"density": DENSITY, "batch": BATCH, "points": points, "exponent": exponent, "kernels": kernels}}


def table(result: Result) -> Table:
    """Time per step and per non-zero."""
    found = result["growth"]
    rows = [
        [f"{p['n']:,}", f"{p['side']:,}", millis(p["seconds"])]
        + [f"±{Timing.read(p).spread:.0%}", f"{1e9 * p['seconds'] / p['n']:.2f}"]
        for p in found["points"]
    ]
    names = ", ".join(sorted(set(found["kernels"].values())))
    notes = [
        "Training steps (forward, loss, backward with the input's gradient, SGD with momentum) of one square layer at "
        f"density {found['density']:g}, batch {found['batch']}.",
        f"Time grows as the power {found['exponent']:.2f} of the non-zeros. Kernels: {names}.",
    ]
    return Table("Growth of cost", ["non-zeros", "side", "ms per step", "spread", "ns per non-zero"], rows, notes)


if __name__ == "__main__":
    sys.exit(main())
