"""Whole training steps: forward, cross-entropy, backward, SGD with momentum 0.9; sparse networks against dense ones, the gate first.

    python benchmarks/training.py --json training.json          VGG-16-BN and ResNet-18 at CIFAR's shapes, MLP 784-1024-1024-10; batch 128
    python benchmarks/training.py --models mlp --densities 0.05 --budget-rule uniform
    python benchmarks/training.py --sensing                     what CSST's sensing and its events cost
    python benchmarks/training.py --profile vgg16-bn            where the time of a sparse step goes
    python benchmarks/training.py --from training.json --markdown docs/speed.md

The gate: loss and gradients of the compact network must be those of its counterpart in the masked layout, which dense torch multiplies, and so
must the loss after one step. A mismatch ends the run with code 1 and no time. All variants see the same random images, the dense network in
NCHW and in channels-last (model and images), the sparse one in NCHW, as a loader gives them. Where sparseprop is installed, the same sparse
network is timed with the layers that it replaces itself (those it finds to be faster than dense ones); of it, the first loss is compared.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
import timing
from gossamer.cli.models import MLP, VGG16, Model, ResNet18, ResNet20
from timing import Mismatch, Result, Table, Timing, error, interleaved, millis, times

CLASSES = 10
SENSED = 0.05  # the density at which sensing is measured
LOSS, LOSS_AFTER, GRADIENT = (
    1e-4,
    1e-3,
    5e-2,
)  # allowed in float32: where rounding flips a ReLU, gradients differ by more than rounding
NETWORKS: dict[str, tuple[Model, tuple[int, ...]]] = {
    "vgg16-bn": (VGG16(), (3, 32, 32)),
    "resnet18": (ResNet18(), (3, 32, 32)),
    "mlp": (MLP((1024, 1024)), (784,)),
}
TINY: dict[str, tuple[Model, tuple[int, ...]]] = {"resnet20": (ResNet20(), (3, 8, 8)), "mlp": (MLP((16, 16)), (20,))}


class Trainee:
    """A network, its optimizer, a batch: ``step`` is one training step."""

    def __init__(self, net: nn.Module, batch: tuple[Tensor, Tensor], fused: bool = False):
        self.net, (self.x, self.y) = net.train(), batch
        self.optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, fused=fused or None)

    def loss(self) -> Tensor:
        """Cross-entropy of the batch."""
        return F.cross_entropy(self.net(self.x), self.y)

    def step(self) -> float:
        """Forward, backward, optimizer; the loss."""
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what was asked for, gate first."""
    args = arguments(argv)
    timing.ready(args)
    try:
        if args.profile:
            print(profile(args))
            return 0
        result = timing.read(args.source) if args.source else measured(args)
    except (Mismatch, gs.UsageError) as refusal:
        print(refusal, file=sys.stderr)
        return 1 if isinstance(refusal, Mismatch) else 2
    return timing.finish(args, result, TABLES)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; the table of networks, unless --sensing is asked for without --models."""
    p = timing.parser(__doc__)
    p.add_argument("--models", nargs="+", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    p.add_argument(
        "--densities",
        nargs="+",
        type=float,
        default=[0.1, 0.05, 0.02],
        help="of all weights of the layers that are replaced",
    )
    p.add_argument("--budget-rule", default="erk", choices=sorted(gs.BUDGETS), help="how layers share the density")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--fused", action="store_true", help="torch's fused SGD, for everybody")
    p.add_argument("--sensing", action="store_true", help=f"the cost of CSST's windows and events, at density {SENSED}")
    p.add_argument(
        "--profile",
        metavar="NAME",
        help="the 25 operators that take most of a sparse step at the first density; nothing else",
    )
    args = p.parse_args(argv)
    args.budget = (0.0 if args.quick else 10.0) if args.budget is None else args.budget
    args.batch = 8 if args.quick else args.batch
    args.networks = TINY if args.quick else NETWORKS
    unknown = [
        name for name in [*(args.models or ()), *([args.profile] if args.profile else ())] if name not in args.networks
    ]
    if unknown:
        p.error(f"there is no network {unknown[0]!r}; there is {', '.join(args.networks)}")
    return args


def measured(args: argparse.Namespace) -> Result:
    """All sections that were asked for."""
    names = args.models or list(args.networks)
    result: Result = {
        "machine": {},
        "quick": args.quick,
        "batch": args.batch,
        "rule": args.budget_rule,
        "fused": args.fused,
    }
    for name in names:
        for density in [SENSED] if args.sensing else args.densities:
            gate(name, density, args)
    if args.sensing:
        result["sensing"] = [sensing(name, args) for name in names]
    else:
        result["training"] = [cell for name in names for cell in cells(name, args)]
    result["machine"] = timing.machine()  # last: by now everything is loaded
    return result


# -------------------------------------------------------------------- networks


def batch_of(name: str, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    rng = torch.Generator().manual_seed(args.seed)
    x = torch.randn(args.batch, *args.networks[name][1], generator=rng)
    return x, torch.randint(CLASSES, (args.batch,), generator=rng)


def dense_network(name: str, args: argparse.Namespace) -> nn.Module:
    """The dense network, the same for the same seed."""
    model, shape = args.networks[name]
    return model.build(shape, CLASSES, torch.Generator().manual_seed(args.seed))


def sparse_network(name: str, density: float, args: argparse.Namespace, layout: str = "csr") -> nn.Module:
    """The sparse network, of the same supports and values in every layout."""
    rng = torch.Generator().manual_seed(args.seed + 1)
    return gs.sparsify(dense_network(name, args), density, budget=args.budget_rule, layout=layout, fuse=True, rng=rng)


def gate(name: str, density: float, args: argparse.Namespace) -> None:
    """One step of the compact network against one of its masked counterpart; raises Mismatch."""
    batch = batch_of(name, args)
    ours, counterpart = (
        Trainee(sparse_network(name, density, args, layout), batch, args.fused) for layout in ("csr", "masked")
    )
    errors = {"loss": abs(_ratio(ours, counterpart, backward=True) - 1) / LOSS}
    mine, theirs = (gs.sparse_layers(t.net) for t in (ours, counterpart))
    for layer_name, layer in mine.items():
        s, other = layer.support, theirs[layer_name]
        assert layer.values.grad is not None and other.values.grad is not None and s.same(other.support)
        errors[f"gradient of {layer_name}"] = (
            error(layer.values.grad, other.layout.compact(other.values.grad, s)) / GRADIENT
        )
    for t in (ours, counterpart):
        t.optimizer.step()
    errors["loss after a step"] = abs(_ratio(ours, counterpart) - 1) / LOSS_AFTER
    worst = max(errors, key=lambda key: (math.isnan(errors[key]), errors[key]))
    if not errors[worst] <= 1:  # NaN is not <= anything
        what = f"{name}, density {density:g}: {worst} differs from the masked counterpart's by {errors[worst]:.1e} times what is allowed"
        raise Mismatch(f"{what}. No time is reported.")


def _ratio(ours: Trainee, counterpart: Trainee, backward: bool = False) -> float:
    """Quotient of the losses, with their gradients if asked for."""
    losses = [t.loss() for t in (ours, counterpart)]
    for loss in losses if backward else ():
        loss.backward()
    return float(losses[0].detach() / losses[1].detach())


# -------------------------------------------------------------------- whole steps


def cells(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One interleaved run: dense variants and all densities."""
    print(f"timing {name}", file=sys.stderr)
    batch = batch_of(name, args)
    trainees = {
        f"dense {form}": Trainee(net, data, args.fused)
        for form, (net, data) in _dense_variants(name, batch, args).items()
    }
    sparse = {density: Trainee(sparse_network(name, density, args), batch, args.fused) for density in args.densities}
    trainees |= {f"gossamer {density:g}": t for density, t in sparse.items()}
    peers = _sparseprop(name, batch, args) if find_spec("sparseprop") else {}
    calls = {key: t.step for key, t in trainees.items()} | {
        f"sparseprop {density:g}": t.step for density, t in peers.items()
    }
    taken = interleaved(calls, args.budget * len(calls), least=2 if args.quick else 5)
    dense = {key.removeprefix("dense "): taken[key] for key in trainees if key.startswith("dense")}
    best = min(dense, key=lambda form: dense[form].seconds)
    return [
        {
            "model": name,
            "rule": args.budget_rule,
            "density": density,
            **_account(t, args.batch),
            "dense": {form: t._asdict() for form, t in dense.items()},
            "best dense": best,
            "gossamer": taken[f"gossamer {density:g}"]._asdict(),
            "ratio": dense[best].seconds / taken[f"gossamer {density:g}"].seconds,
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
    """The same networks with sparseprop's layers, where its own measurement prefers them; none whose loss is another one."""
    swap, found = import_module("sparseprop.utils").swap_modules_with_sparse, {}
    for density in args.densities:
        masked = gs.densify(sparse_network(name, density, args, "masked"))
        with redirect_stdout(StringIO()):  # it says what it replaces
            peer = Trainee(swap(masked, tuple(batch[0].shape)), batch, args.fused)
        if abs(_ratio(peer, Trainee(masked, batch)) - 1) <= LOSS:
            found[density] = peer
    return found


def _account(t: Trainee, batch: int) -> dict[str, Any]:
    """What is kept, and the share of the dense step's FLOPs, by the ledger."""
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
        "kernels": sorted({k for layer in layers.values() for k in layer.kernels.values()}),
    }


def training_table(result: Result) -> Table:
    """Networks by densities."""
    columns, rows = (
        ["network", "budget", "density", "kept", "FLOPs", "best dense", "ms", "gossamer ms", "ratio", "spread"],
        [],
    )
    with_peer = any(cell["sparseprop"] for cell in result["training"])
    columns += ["sparseprop"] * with_peer
    for cell in result["training"]:
        own, best = Timing(**cell["gossamer"]), Timing(**cell["dense"][cell["best dense"]])
        kept = f"{cell['kept'] / cell['weights']:.1%} of {cell['weights']:,}"
        rows.append(
            [cell["model"], cell["rule"], f"{cell['density']:g}", kept, f"{cell['flops over dense']:.1%}"]
            + [
                cell["best dense"],
                millis(best.seconds),
                millis(own.seconds),
                times(cell["ratio"]),
                f"±{own.spread + best.spread:.0%}",
            ]
            + [_peer(cell["sparseprop"], own)] * with_peer
        )
    names = sorted({name for cell in result["training"] for name in cell["kernels"]})
    sgd = "fused SGD" if result["fused"] else "SGD"
    notes = [
        f"A whole step: forward, cross-entropy, backward, {sgd} with momentum; batch {result['batch']}, float32. Medians; spread: half the "
        "distance of the quartiles, dense and sparse added. Sparseprop: ms (so many times gossamer's).",
        "Kept: non-zeros, and the weights of layers that the budget leaves dense, of all weights of linear layers "
        f"and convolutions. FLOPs: of the dense step's, by the ledger. Kernels: {', '.join(names)}.",
    ]
    return Table("Whole training steps", columns, rows, notes)


def _peer(found: dict[str, Any] | None, own: Timing) -> str:
    return f"{millis(found['seconds'])} ({times(found['seconds'] / own.seconds)})" if found else "-"


# -------------------------------------------------------------------- sensing and events


def sensing(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Steps of every kind under a short cycle of CSST's, and what its default schedule makes of them.

    The cycle: plain steps; one at whose end the coordinates are drawn; sensing steps, the last of them with the event; one after it, which
    pays for whatever the event leaves to be done. Fraction and decay are the defaults; the amount exchanged is that of the first event, the
    largest.
    """
    print(f"timing the sensing of {name}", file=sys.stderr)
    every, window, stop = (5, 2, 10**6) if args.quick else (8, 3, 10**6)
    default = gs.CSST(30_000)
    trainee = Trainee(sparse_network(name, SENSED, args), batch_of(name, args), args.fused)
    topology = gs.CSST(stop, every, every, window)
    rewirer = gs.Rewirer(trainee.net, trainee.optimizer, topology, rng=torch.Generator().manual_seed(args.seed))
    samples: dict[str, list[float]] = {"plain": [], "draw": [], "sensing": [], "event": [], "after": []}
    exchanged, begin, cycles = 0, time.perf_counter(), 0
    while cycles < (2 if args.quick else 6) or time.perf_counter() - begin < args.budget:
        for _ in range(every):
            kind = _kind(topology, rewirer.t + 1)
            start = time.perf_counter()
            trainee.loss().backward()
            rewirer.step()
            trainee.optimizer.zero_grad(set_to_none=True)
            if cycles:  # the first cycle warms up
                samples[kind].append(time.perf_counter() - start)
            exchanged = sum(rewirer.last.grown.values()) if rewirer.last else exchanged
        cycles += 1
    if not exchanged:
        raise Mismatch(f"{name}: the event exchanged nothing, so its time would mean nothing")
    taken = {kind: Timing.of(values) for kind, values in samples.items()}
    plain, draw, one, event, after = (t.seconds for t in taken.values())
    rewiring, steps = event - one + after - plain, default.stop
    windows = sum(1 for t in range(1, steps + 1) if (asked := default.sense(t)) is not None and asked.fresh)
    sensed = sum(1 for t in range(1, steps + 1) if default.sense(t) is not None)
    events = sum(1 for t in range(1, steps + 1) if default.when(t) is not None)
    return {
        "model": name,
        "density": SENSED,
        "rule": args.budget_rule,
        **{kind: t._asdict() for kind, t in taken.items()},
        "schedule": {"stop": steps, "windows": windows, "sensing steps": sensed, "events": events},
        "blocks exchanged": exchanged,
        "sensing step over plain": one / plain,
        "event in plain steps": rewiring / plain,
        "sensing, amortised": (windows * (draw - plain) + sensed * (one - plain)) / (steps * plain),
        "events, amortised": events * rewiring / (steps * plain),
        "kernels": sorted({k for layer in rewirer.layers.values() for k in layer.kernels.values()}),
    }


def _kind(topology: gs.Topology, t: int) -> str:
    """What happens at step t: an event, sensing, the draw of the coordinates for the next step, what comes after an event, or nothing."""
    if topology.when(t) is not None:
        return "event"
    if topology.sense(t) is not None:
        return "sensing"
    if topology.sense(t + 1) is not None:
        return "draw"
    return "plain" if topology.when(t - 1) is None else "after"


def sensing_table(result: Result) -> Table:
    """What sensing and events add."""
    columns = [
        "network",
        "plain step, ms",
        "with sensing",
        "spread",
        "sensing, amortised",
        "an event, plain steps",
        "events, amortised",
    ]
    rows = []
    for found in result["sensing"]:
        plain, one = Timing(**found["plain"]), Timing(**found["sensing"])
        rows.append(
            [found["model"], millis(plain.seconds), millis(one.seconds), f"±{plain.spread + one.spread:.0%}"]
            + [
                f"{found['sensing, amortised']:.2%}",
                f"{found['event in plain steps']:.1f}",
                f"{found['events, amortised']:.2%}",
            ]
        )
    first, plan = result["sensing"][0], result["sensing"][0]["schedule"]
    names = sorted({name for found in result["sensing"] for name in found["kernels"]})
    notes = [
        f"CSST at density {first['density']:g}, budget {first['rule']}, batch {result['batch']}. Its default schedule to step "
        f"{plan['stop']:,}: {plan['windows']} windows, {plan['sensing steps']:,} sensing steps, {plan['events']} events.",
        "Sensing, amortised: the draws of coordinates and what sensing steps take beyond plain ones, over so many plain steps.",
        "An event: what a sensing step with the event takes beyond one without, and the step after it beyond a plain one, at the largest "
        f"amount (that of the first event). Kernels: {', '.join(names)}.",
    ]
    return Table("CSST: sensing and events", columns, rows, notes)


# -------------------------------------------------------------------- profile


def profile(args: argparse.Namespace) -> str:
    """torch's table of one sparse step by operator, after the gate and two steps that warm up."""
    gate(args.profile, args.densities[0], args)
    trainee = Trainee(sparse_network(args.profile, args.densities[0], args), batch_of(args.profile, args), args.fused)
    for _ in range(2):
        trainee.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
        trainee.step()
    table = watched.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60)
    return f"{args.profile}, density {args.densities[0]:g}, batch {args.batch}\n{table}"


TABLES: dict[str, Callable[[Result], Table]] = {"training": training_table, "sensing": sensing_table}

if __name__ == "__main__":
    sys.exit(main())
