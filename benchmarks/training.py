"""How fast is a whole training step of a sparse network, compared with the dense network?

    python benchmarks/training.py --json training.json --markdown docs/speed.md --mark training
    python benchmarks/training.py --models mlp --densities 0.05 --budget-rule uniform

Times VGG-16-BN and ResNet-18 at CIFAR's shapes and an MLP 784-1024-1024-10, batch 128: forward, cross-entropy,
backward, SGD with momentum 0.9. The gate compares loss, gradients and the loss after one step with those of the same
network in the masked layout, which uses torch's dense products. A mismatch ends the script with code 1 and without
times.

All variants get the same random images: the dense network in NCHW and in channels-last (model and images), the sparse
one in NCHW, as a loader returns them. If sparseprop is installed, the same sparse network is also timed with those
sparseprop layers that sparseprop measures as faster than dense ones; here only the first loss is compared.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
import networks
import report
from networks import LOSS, Trainee, batch_of, dense_network, sparse_network
from report import Result, Table
from timing import Timing, interleaved, millis, times


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    p = networks.parser(__doc__)
    of = "of all weights of the layers that are replaced"
    p.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.05, 0.02], help=of)
    return report.run(networks.parsed(p, argv), measured, {"training": table})


def measured(args: argparse.Namespace) -> Result:
    """Measures all networks: first all gates, then the times."""
    for name in args.models:
        for density in args.densities:
            networks.gate(name, density, args)
    rows = [cell for name in args.models for cell in cells(name, args)]
    return {"batch": args.batch, "fused": args.fused, "training": rows}


def cells(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One interleaved run: dense variants and all densities."""
    print(f"timing {name}", file=sys.stderr)
    batch = batch_of(name, args)
    dense = {form: Trainee(*pair, args.fused) for form, pair in _dense_variants(name, batch, args).items()}
    sparse = {density: Trainee(sparse_network(name, density, args), batch, args.fused) for density in args.densities}
    peers = _sparseprop(name, batch, args) if find_spec("sparseprop") else {}
    calls = {f"dense {form}": t.step for form, t in dense.items()}
    calls |= {f"gossamer {density:g}": t.step for density, t in sparse.items()}
    calls |= {f"sparseprop {density:g}": t.step for density, t in peers.items()}
    taken = interleaved(calls, args.budget * len(calls), least=2 if args.quick else 5)
    best = min(dense, key=lambda form: taken[f"dense {form}"].seconds)
    return [
        {
            "model": name,
            "rule": args.budget_rule,
            "density": density,
            **_account(t, args.batch),
            "dense": {form: taken[f"dense {form}"]._asdict() for form in dense},
            "best dense": best,
            "gossamer": taken[f"gossamer {density:g}"]._asdict(),
            "ratio": taken[f"dense {best}"].seconds / taken[f"gossamer {density:g}"].seconds,
            "sparseprop": taken[f"sparseprop {density:g}"]._asdict() if density in peers else None,
        }
        for density, t in sparse.items()
    ]


def _dense_variants(
    name: str, batch: tuple[Tensor, Tensor], args: argparse.Namespace
) -> dict[str, tuple[nn.Module, tuple[Tensor, Tensor]]]:
    """The dense network and its batch, in every memory order."""
    net, (x, y) = dense_network(name, args), batch
    if x.dim() < 4:
        return {"batch first": (net, batch)}
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return {"NCHW": (net, batch), "channels last": (last, (x.to(memory_format=torch.channels_last), y))}


def _sparseprop(name: str, batch: tuple[Tensor, Tensor], args: argparse.Namespace) -> dict[float, Trainee]:
    """The same networks with the sparseprop layers that its measurement prefers, if their losses are correct."""
    swap, found = import_module("sparseprop.utils").swap_modules_with_sparse, {}
    for density in args.densities:
        masked = gs.densify(sparse_network(name, density, args, "masked"))
        with redirect_stdout(StringIO()):  # it prints what it replaces
            peer = Trainee(swap(masked, tuple(batch[0].shape)), batch, args.fused)
        if abs(networks.ratio(peer, Trainee(masked, batch)) - 1) <= LOSS:
            found[density] = peer
    return found


def _account(t: Trainee, batch: int) -> dict[str, Any]:
    """The numbers of kept weights, and the FLOPs over those of the dense step, by the ledger."""
    layers = gs.sparse_layers(t.net)
    weights = [m for m in t.net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    kept = sum(layer.support.weights for layer in layers.values())
    total = sum(layer.dense_shape.numel() for layer in layers.values())
    left = sum(m.weight.numel() for m in weights)
    ledger = gs.Ledger(t.net, t.x[:2])
    ledger.step(batch)
    return {
        "sparse layers": len(layers),
        "dense layers": len(weights),
        "kept": kept + left,
        "weights": total + left,
        "density of the sparse layers": kept / total,
        "density of all layers": (kept + left) / (total + left),
        "flops": ledger.flops.total,
        "flops over dense": ledger.ratio,
        "kernels": networks.kernels_of(t.net),
    }


def table(result: Result) -> Table:
    """Networks by densities."""
    columns = ["network", "budget", "density", "kept", "FLOPs", "best dense", "ms", "gossamer ms", "ratio", "spread"]
    with_peer, rows = any(cell["sparseprop"] for cell in result["training"]), []
    columns += ["sparseprop"] * with_peer
    for cell in result["training"]:
        own, best = Timing(**cell["gossamer"]), Timing(**cell["dense"][cell["best dense"]])
        kept = f"{cell['kept'] / cell['weights']:.1%} of {cell['weights']:,}"
        rows.append(
            [cell["model"], cell["rule"], f"{cell['density']:g}", kept, f"{cell['flops over dense']:.1%}"]
            + [cell["best dense"], millis(best.seconds), millis(own.seconds), times(cell["ratio"])]
            + [f"±{own.spread + best.spread:.0%}"]
            + [_peer(cell["sparseprop"], own)] * with_peer
        )
    names = sorted({name for cell in result["training"] for name in cell["kernels"]})
    sgd = "fused SGD" if result["fused"] else "SGD"
    notes = [
        f"A whole step: forward, cross-entropy, backward, {sgd} with momentum; batch {result['batch']}, float32. "
        "Medians; spread: half the distance of the quartiles, dense and sparse added. "
        "Sparseprop: ms (so many times gossamer's).",
        "Kept: non-zeros, and the weights of layers that the budget leaves dense, of all weights of linear layers "
        f"and convolutions. FLOPs: of the dense step's, by the ledger. Kernels: {', '.join(names)}.",
    ]
    return Table("Whole training steps", columns, rows, notes)


def _peer(found: dict[str, Any] | None, own: Timing) -> str:
    return f"{millis(found['seconds'])} ({times(found['seconds'] / own.seconds)})" if found else "-"


if __name__ == "__main__":
    sys.exit(main())
