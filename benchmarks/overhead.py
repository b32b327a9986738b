"""What does a call of a sparse layer cost without its kernels?

    python benchmarks/overhead.py --json overhead.json --markdown docs/speed.md

Chains of 4 and of 68 layers are timed alternately, forward and backward. The layers are so small that the arithmetic
takes almost no time. The slope over the length of the chain is therefore the cost of one call, without the fixed cost
of a chain. The table also has the slope of torch's dense layers, and the time of the two kernels of the layer alone, on
the same operands.

The slope is an upper bound of the overhead. The slope minus the time of the kernel calls is a lower bound, because a
kernel call also has some overhead, such as the binding and the allocation of the output.

The gate: the output and the gradients of each sparse layer must equal those of the dense product with the same weight.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import gossamer as gs
import report
from gate import TOLERANCE, Mismatch, problems
from gossamer._backend.dispatch import choose
from gossamer.products.conv2d import op as conv2d_op
from gossamer.products.linear import op as linear_op
from report import Result, Table
from timing import batch_last, interleaved
from variants import dense, gossamer

FEW, MANY, MANY_QUICK = 4, 68, 12  # layers of the two chains


class Case(NamedTuple):
    """A sparse layer, the dense layer of the same shape, and the shape of their input."""

    name: str
    sparse: Callable[[], gs.SparseLayer]
    dense: Callable[[], nn.Module]
    shape: tuple[int, ...]


LINEAR: dict[str, Any] = {"density": 0.1, "min_fan_in": 1}
CASES = (
    Case(
        "linear",
        lambda: gs.SparseLinear(16, 16, bias=False, **LINEAR),
        lambda: nn.Linear(16, 16, bias=False),
        (8, 16),
    ),
    Case("linear with bias", lambda: gs.SparseLinear(16, 16, **LINEAR), lambda: nn.Linear(16, 16), (8, 16)),
    Case(
        "conv 3x3",
        lambda: gs.SparseConv2d(4, 4, 3, density=0.1, padding=1, bias=False),
        lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False),
        (8, 4, 4, 4),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    args = report.parser(__doc__).parse_args(argv)
    args.budget = (0.0 if args.quick else 3.0) if args.budget is None else args.budget
    return report.run(args, measured, {"overhead": table})


def measured(args: argparse.Namespace) -> Result:
    """Measures all cases: first all gates, then the times."""
    for case in CASES:
        gate(case)
    return {"overhead": [timed(case, args) for case in CASES]}


def gate(case: Case) -> None:
    """Compares a sparse layer without bias with the dense product. Raises Mismatch."""
    layer, x = case.sparse(), torch.randn(case.shape)
    layer.bias = None
    dy = torch.randn_like(layer(x))
    reference, ours = next(iter(dense(layer, x, dy))), gossamer(layer, x, dy)
    (y, dx, dw), expected = ours(), reference()
    pairs = {"output": (y, expected[0]), "input gradient": (dx, expected[1])}
    pairs["weight gradient"] = (ours.flat(dw), reference.flat(expected[2]))
    if wrong := problems(pairs, TOLERANCE[torch.float32]):
        raise Mismatch(f"{case.name} differs from the dense product in {', '.join(wrong)} of its norm")


def timed(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per layer: of the whole call, of its kernels, and of torch's dense layer."""
    many = MANY_QUICK if args.quick else MANY
    x = torch.randn(case.shape)
    calls: dict[str, Callable[[], object]] = {}
    for k in (FEW, many):
        calls[f"gossamer {k}"] = _chain(case.sparse, k, batch_last(x))
        calls[f"torch {k}"] = _chain(case.dense, k, x)
    calls["kernels"] = _kernels_alone(case.sparse(), batch_last(x), many - FEW)
    taken = interleaved(calls, args.budget * 3, least=2 if args.quick else 50)
    slopes = {
        who: (taken[f"{who} {many}"].seconds - taken[f"{who} {FEW}"].seconds) / (many - FEW)
        for who in ("gossamer", "torch")
    }
    noise = math.hypot(*(taken[f"gossamer {k}"].spread * taken[f"gossamer {k}"].seconds for k in (FEW, many)))
    return {
        "layer": case.name,
        "call": slopes["gossamer"],
        "spread": noise / (many - FEW),
        "kernels": taken["kernels"].seconds / (many - FEW),
        "torch": slopes["torch"],
    }


def _chain(make: Callable[[], nn.Module], k: int, x: Tensor) -> Callable[[], None]:
    """Forward and backward through k layers; gradients are None before and after."""
    net = nn.Sequential(*(make() for _ in range(k)))
    x = x.detach().requires_grad_()

    def call() -> None:
        net(x).sum().backward()
        x.grad = None
        net.zero_grad(set_to_none=True)

    return call


def _kernels_alone(layer: gs.SparseLayer, x: Tensor, k: int) -> Callable[[], None]:
    """The two kernels that the layer uses, called k times on its operands."""
    s, values = layer.support, layer.values.detach()
    with torch.no_grad():
        dy = batch_last(torch.randn_like(layer(x)))
    ops, g = (linear_op, ()) if layer.geometry is None else (conv2d_op, (layer.geometry,))
    operands = ((ops.FORWARD, (x, values, s, *g)), (ops.BACKWARD, (dy, x, values, s, *g)))
    bound = [(choose(kernels, *arguments).run, arguments) for kernels, arguments in operands]

    def call() -> None:
        for _ in range(k):
            for run, arguments in bound:
                run(*arguments)

    return call


def table(result: Result) -> Table:
    """Microseconds per layer call."""
    rows = [
        [p["layer"], f"{1e6 * p['call']:.1f} ± {1e6 * p['spread']:.1f}", f"{1e6 * p['kernels']:.1f}"]
        + [f"{1e6 * (p['call'] - p['kernels']):.1f}", f"{1e6 * p['torch']:.1f}"]
        for p in result["overhead"]
    ]
    notes = [
        "Microseconds per layer, forward and backward, by the slope over the length of a chain of layers so small that "
        "arithmetic is nothing (16 x 16, or 4 channels of 4 x 4 pixels; batch 8).",
        "The whole call bounds the overhead from above; the rest is surely not the kernels', whose own calls hold some "
        "glue too.",
    ]
    columns = ["layer", "whole call", "its two kernels, called alone", "the rest", "torch's dense layer"]
    return Table("Overhead of a call", columns, rows, notes)


if __name__ == "__main__":
    sys.exit(main())
