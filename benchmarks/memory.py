"""A layer too wide to exist densely, trained through CSST events: peak resident memory and bytes per non-zero.

    python benchmarks/memory.py                       2**20 x 2**20, 10 million non-zeros (the dense matrix: 4 TiB)
    python benchmarks/memory.py --power 16 --nonzeros 100000 --steps 30

The gate comes first: outputs and gradients of a few rows against a plain dense computation of just those rows. Prints Markdown, and JSON
with ``--json FILE``.
"""

import argparse
import json
import platform
import resource
import sys
import time
from pathlib import Path

import torch

import gossamer as gs


def peak_bytes() -> int:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gate(layer: gs.SparseLinear, x: torch.Tensor) -> None:
    """Outputs and weight gradients of the first and last rows, dense and by hand; raises if they differ."""
    s = layer.support
    x = x.clone().requires_grad_()
    y = layer(x)
    dy = torch.randn(y.shape)
    y.backward(dy)
    assert layer.bias is not None and layer.values.grad is not None
    for row in (0, 1, s.shape[0] // 2, s.shape[0] - 1):
        first, last = int(s.crow[row]), int(s.crow[row + 1])
        columns, values = s.col[first:last].long(), layer.values.detach()[first:last]
        torch.testing.assert_close(
            y[:, row].detach(), x.detach()[:, columns] @ values + layer.bias[row].detach(), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            layer.values.grad[first:last], dy[:, row] @ x.detach()[:, columns], rtol=1e-4, atol=1e-4
        )
    layer.zero_grad(set_to_none=True)


def main() -> None:
    """Builds, gates, trains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--power", type=int, default=20, help="the layer is 2**power x 2**power")
    parser.add_argument("--nonzeros", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=4, help="steps between events")
    parser.add_argument("--window", type=int, default=2, help="steps sensed before an event")
    parser.add_argument("--count", type=int, default=1_000_000, help="zero weights sensed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)
    baseline = peak_bytes()

    size = 2**args.power
    begin = time.perf_counter()
    layer = gs.SparseLinear(size, size, density=args.nonzeros / size**2, rng=rng)
    built = time.perf_counter() - begin
    gate(layer, torch.randn(4, size))

    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    topology = gs.CSST(args.steps + 1, args.every, args.every, args.window, count=args.count, drop_fraction=0.05)
    rewirer = gs.Rewirer(layer, optimizer, topology, rng=rng)
    x, target = torch.randn(args.batch, size, generator=rng), torch.randn(args.batch, size, generator=rng)
    ledger = gs.Ledger(layer, x, optimizer=optimizer)
    seconds: dict[str, list[float]] = {"plain": [], "sensing": [], "event": []}
    exchanged, losses, n = 0, [], layer.support.n
    for t in range(1, args.steps + 1):
        begin, sensing = time.perf_counter(), bool(rewirer.sensing)
        loss = (layer(x) - target).square().sum() / args.batch / 2
        loss.backward()
        ledger.step(args.batch, rewirer)
        losses.append(float(loss.detach()))
        del loss
        rewirer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds["event" if rewirer.last else "sensing" if sensing else "plain"].append(time.perf_counter() - begin)
        exchanged += sum(rewirer.last.grown.values()) if rewirer.last else 0
        print(f"step {t}: loss {losses[-1]:.4f}, {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    assert layer.support.n == n and exchanged > 0 and losses[-1] < losses[0], "the layer must train, and through events"

    parts = ledger.bytes(rewirer)
    result = {
        "layer": f"{size} x {size}",
        "non-zeros": n,
        "dense bytes (values only)": 4 * size**2,
        "batch": args.batch,
        "steps": args.steps,
        "blocks exchanged": exchanged,
        "first and last loss": [losses[0], losses[-1]],
        "peak resident bytes": peak_bytes(),
        "resident before the layer": baseline,
        "accounted peak bytes (no activations)": ledger.peak_bytes,
        "bytes per non-zero (values, gradient, momentum, indices)": (parts["total"] - 3 * 4 * size) / n,
        "bytes per non-zero (peak resident less baseline)": (peak_bytes() - baseline) / n,
        "seconds to build": built,
        **{f"median seconds of a {kind} step": sorted(v)[len(v) // 2] for kind, v in seconds.items() if v},
        "kernel": layer.kernels["forward"],
        "threads": args.threads,
        "seed": args.seed,
        "machine": f"{platform.machine()}, torch {torch.__version__}, gossamer {gs.__version__}",
    }
    print("| what | value |\n|---|---|")
    for key, value in result.items():
        print(
            f"| {key} | {value:,} |"
            if isinstance(value, int)
            else f"| {key} | {value:,.2f} |"
            if isinstance(value, float)
            else f"| {key} | {value} |"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
