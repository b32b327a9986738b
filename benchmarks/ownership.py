"""What do the checks cost, on plain steps, that keep supports, gradients and optimizer state consistent?

    python benchmarks/ownership.py --json ownership.json --markdown docs/guides/loops.md --mark ownership

    step     a plain training step of a Rewirer that neither senses nor rewires, over the same step of only the
             optimizer; batch 128, SGD with momentum 0.9, density 0.05, budget erk; two copies of a network, alternately
    call     the forward pass of a layer, over the same product without a check of the support; and the check of the
             support alone; inference and training mode, input (8, 1024), linear 1024 at density 0.02

The gate: both networks of a step must have the same bits at the end.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

import gossamer as gs
import report
from gate import Mismatch
from gossamer.cli.models import Model
from networks import NETWORKS, TINY
from report import Result, Table
from timing import Timing, interleaved, millis

FAR = 10**6  # the step of the first event
DENSITY, BATCH = 0.05, 128


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    args = report.parser(__doc__).parse_args(argv)
    args.budget = args.budget or (0.2 if args.quick else 60.0)
    return report.run(args, measured, {"ownership": table})


def measured(args: argparse.Namespace) -> Result:
    """All rows."""
    networks = TINY if args.quick else {name: NETWORKS[name] for name in ("vgg16-bn", "mlp")}
    return {"ownership": [step(name, *networks[name], args) for name in networks] + calls(args)}


def step(name: str, model: Model, shape: tuple[int, ...], args: argparse.Namespace) -> dict[str, Any]:
    """Times a plain step with and without a Rewirer."""
    rng = torch.Generator().manual_seed(args.seed)
    net = gs.sparsify(model.build(shape, 10, rng), DENSITY, rng=rng, fuse=True).train()
    x, y = torch.randn(BATCH, *shape, generator=rng), torch.randint(10, (BATCH,), generator=rng)
    runs: dict[str, Callable[[], None]] = {}
    nets = {"alone": net, "owned": copy.deepcopy(net)}
    for kind, mine in nets.items():
        optimizer = torch.optim.SGD(mine.parameters(), lr=1e-3, momentum=0.9)
        rewirer = gs.Rewirer(mine, optimizer, gs.CSST(10 * FAR, FAR, FAR)) if kind == "owned" else None

        def run(mine=mine, optimizer=optimizer, rewirer=rewirer) -> None:
            F.cross_entropy(mine(x), y).backward()
            (rewirer or optimizer).step()
            optimizer.zero_grad(set_to_none=True)

        runs[kind] = run
    taken = interleaved(runs, args.budget)
    if any(not torch.equal(p, q) for p, q in zip(*(mine.parameters() for mine in nets.values()), strict=True)):
        raise Mismatch(f"{name}: the step by a Rewirer differs from the optimizer's")
    return {"what": f"{name}, step", "seconds": {kind: t._asdict() for kind, t in taken.items()}}


def calls(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Times the call of a layer, its product, and the check of the support."""
    layer, x = gs.SparseLinear(1024, 1024, density=0.02), torch.randn(8, 1024)
    s, repeats, rounds = layer.support, 200 if args.quick else 2000, 3 if args.quick else 60
    product = layer.layout.linear

    def many(call: Callable[[], object]) -> float:
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - begin) / repeats

    def look() -> object:
        return layer.support

    found = []
    for what, grad in (("linear, call, inference", False), ("linear, call, training", True)):
        with torch.set_grad_enabled(grad):
            pairs: dict[str, Callable[[], object]] = {
                "alone": lambda: product(x, layer.values, s, layer.bias),
                "owned": lambda: product(x, layer.values, layer.support, layer.bias),
            }
            samples: dict[str, list[float]] = {kind: [] for kind in pairs}
            for _ in range(rounds):
                for kind, call in pairs.items():
                    samples[kind].append(many(call))
        found.append({"what": what, "seconds": {kind: Timing.of(taken)._asdict() for kind, taken in samples.items()}})
    found.append(
        {
            "what": "the check of a support",
            "seconds": {"owned": Timing.of([many(look) for _ in range(rounds)])._asdict()},
        }
    )
    return found


def table(result: Result) -> Table:
    """One row for each pair."""
    rows = []
    for found in result["ownership"]:
        taken = {kind: Timing(**t) for kind, t in found["seconds"].items()}
        alone, owned = taken.get("alone"), taken["owned"]
        small = owned.seconds < 1e-3
        shown = [
            f"{1e6 * t.seconds:.2f} us" if small else f"{millis(t.seconds)} ms" for t in (alone, owned) if t is not None
        ]
        more = (
            ""
            if alone is None
            else f"{1e6 * (owned.seconds - alone.seconds):+.2f} us ({owned.seconds / alone.seconds - 1:+.2%})"
        )
        spread = owned.spread + (alone.spread if alone else 0.0)
        rows.append([found["what"], shown[0] if alone else "-", shown[-1], more or "-", f"±{spread:.1%}"])
    notes = [
        "Step: by the optimizer alone, and by a Rewirer on a plain step. Call: the product with a support that is not "
        "checked, and with the layer's."
    ]
    return Table("What ownership costs", ["what", "alone", "owned", "more", "spread"], rows, notes)


if __name__ == "__main__":
    sys.exit(main())
