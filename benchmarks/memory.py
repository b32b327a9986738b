"""How much memory does a layer need in training with CSST events, if it is too wide for a dense weight?

    python benchmarks/memory.py                       2**20 x 2**20, 10 million non-zeros (the dense matrix: 4 TiB)
    python benchmarks/memory.py --power 16 --nonzeros 100000 --steps 30

Prints peak resident memory and bytes per non-zero as Markdown, and writes them as JSON with ``--json FILE``. The gate
checks output and both gradients in a few rows and columns by direct products. The layer must also train: the loss must
fall, and events must exchange blocks.
"""

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import gate
import gossamer as gs


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    try:
        result = measured(args)
    except gate.Mismatch as mismatch:
        print(mismatch, file=sys.stderr)
        return 1
    print("| what | value |\n|---|---|")
    for key, value in result.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if isinstance(value, float) else value
        print(f"| {key} | {shown} |")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--power", type=int, default=20, help="the layer is 2**power x 2**power (default: 20)")
    p.add_argument("--nonzeros", type=int, default=10_000_000, help="weights that are kept (default: 10 million)")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--every", type=int, default=4, help="steps between events")
    p.add_argument("--window", type=int, default=2, help="steps sensed before an event")
    p.add_argument("--count", type=int, default=1_000_000, help="zero weights sensed")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    return p.parse_args(argv)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Builds the layer, passes the gate, trains, and measures."""
    rng = torch.Generator().manual_seed(args.seed)
    baseline, size = peak_bytes(), 2**args.power
    begin = time.perf_counter()
    layer = gs.SparseLinear(size, size, density=args.nonzeros / size**2, rng=rng)
    built = time.perf_counter() - begin
    gate.sampled(layer, torch.randn(4, size), torch.randn(4, size))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    topology = gs.CSST(args.steps + 1, args.every, args.every, args.window, count=args.count, drop_fraction=0.05)
    rewirer = gs.Rewirer(layer, optimizer, topology, rng=rng)
    n = layer.support.n
    trained, ledger = train(layer, rewirer, args, rng)
    losses = trained["first and last loss"]
    assert layer.support.n == n and trained["blocks exchanged"] > 0 and losses[1] < losses[0], "the layer must train"
    return {
        "layer": f"{size} x {size}",
        "non-zeros": n,
        "dense bytes (values only)": 4 * size**2,
        "batch": args.batch,
        "steps": args.steps,
        "peak resident bytes": peak_bytes(),
        "resident before the layer": baseline,
        "accounted peak bytes (no activations)": ledger.peak_bytes,
        "bytes per non-zero (values, gradient, momentum, indices)": (ledger.bytes(rewirer)["total"] - 3 * 4 * size) / n,
        "bytes per non-zero (peak resident less baseline)": (peak_bytes() - baseline) / n,
        "seconds to build": built,
        **trained,
        "kernel": layer.kernels["forward"],
        "threads": args.threads,
        "seed": args.seed,
        "machine": f"{platform.machine()}, torch {torch.__version__}, gossamer {gs.__version__}",
    }


def train(
    layer: gs.SparseLinear, rewirer: gs.Rewirer, args: argparse.Namespace, rng: torch.Generator
) -> tuple[Mapping[str, Any], gs.Ledger]:
    """Trains towards random targets. Returns the measurements, and the ledger of the steps."""
    x, target = (torch.randn(args.batch, layer.support.shape[1], generator=rng) for _ in range(2))
    ledger = gs.Ledger(layer, x, optimizer=rewirer.optimizer)
    seconds: dict[str, list[float]] = {"plain": [], "sensing": [], "event": []}
    exchanged, losses = 0, list[float]()
    for t in range(1, args.steps + 1):
        begin, sensing = time.perf_counter(), bool(rewirer.sensing)
        loss = (layer(x) - target).square().sum() / args.batch / 2
        loss.backward()
        ledger.step(args.batch, rewirer)
        losses.append(float(loss.detach()))
        del loss  # frees the activations, so that the peak does not count them twice
        rewirer.step()
        rewirer.optimizer.zero_grad(set_to_none=True)
        seconds["event" if rewirer.last else "sensing" if sensing else "plain"].append(time.perf_counter() - begin)
        exchanged += sum(rewirer.last.grown.values()) if rewirer.last else 0
        print(f"step {t}: loss {losses[-1]:.4f}, {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    medians = {f"median seconds of a {kind} step": sorted(v)[len(v) // 2] for kind, v in seconds.items() if v}
    return {"blocks exchanged": exchanged, "first and last loss": [losses[0], losses[-1]], **medians}, ledger


if __name__ == "__main__":
    sys.exit(main())
