"""Sparse products and dense ones, forward and backward, for layers.py, tiles.py and break_even.py.

gate    output and both gradients of every variant must equal those of the dense product with the same weight
cells   one interleaved run over a row: dense once, the sparse variants at every density

FLOPs are 6 B P n for n weights at P output positions. Bytes are the least possible traffic: input, output and their
gradients, the values, their gradient and the index, once each.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gossamer as gs
import report
from gate import TOLERANCE, Mismatch, problems
from timing import Timing, interleaved
from variants import Variant, dense, gossamer, peers

FAMILIES = ("torch.sparse", "sparseprop", "sparselab")  # other libraries


class Work(NamedTuple):
    """One row: a linear layer (side 0), or a 3 x 3 convolution of an image with that side."""

    name: str
    inputs: int
    outputs: int
    side: int = 0

    @property
    def positions(self) -> int:
        """Output positions per example."""
        return self.side**2 or 1

    def layer(self, density: float, args: argparse.Namespace) -> gs.SparseLayer:
        """The sparse layer, the same for the same seed."""
        rng = torch.Generator().manual_seed(args.seed)
        common: dict[str, Any] = {"density": density, "bias": False, "block": tuple(args.block), "rng": rng}
        if self.side:
            made: gs.SparseLayer = gs.SparseConv2d(self.inputs, self.outputs, 3, padding=1, dtype=args.dtype, **common)
        else:
            made = gs.SparseLinear(self.inputs, self.outputs, dtype=args.dtype, **common)
        if made.block == (1, 1):
            with torch.no_grad():  # libraries that search for non-zeros would miss a kept weight that is 0 by chance
                made.values[made.values == 0] = 1.0
        return made

    def operands(self, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
        """Input and output gradient."""
        rng = torch.Generator().manual_seed(args.seed + 1)
        image = (self.side, self.side) if self.side else ()
        x, dy = (torch.randn(args.batch, c, *image, generator=rng).to(args.dtype) for c in (self.inputs, self.outputs))
        return x, dy


ROWS = (
    Work("linear-1024", 1024, 1024),
    Work("linear-4096", 4096, 4096),
    Work("conv-64@32", 64, 64, 32),
    Work("conv-128@16", 128, 128, 16),
    Work("conv-256@8", 256, 256, 8),
    Work("conv-512@4", 512, 512, 4),
)
TINY = (Work("linear-48", 48, 48), Work("conv-4@5", 4, 4, 5), Work("conv-8@3", 8, 8, 3))

# -------------------------------------------------------------------- arguments


def parser(description: str | None, rows: Sequence[Work]) -> argparse.ArgumentParser:
    """The arguments of a benchmark over rows."""
    p = report.parser(description)
    p.add_argument(
        "--rows", nargs="+", metavar="NAME", default=[""], help=f"beginnings of {', '.join(w.name for w in rows)}"
    )
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return p


def parsed(
    p: argparse.ArgumentParser, argv: Sequence[str] | None, block: tuple[int, int] = (1, 1)
) -> argparse.Namespace:
    """The arguments, with the defaults that depend on other arguments."""
    args = p.parse_args(argv)
    args.dtype = getattr(torch, args.dtype)
    args.block = list(getattr(args, "block", block))
    args.budget = (0.0 if args.quick else 3.0) if args.budget is None else args.budget
    return args


def rows_of(args: argparse.Namespace, rows: Sequence[Work]) -> list[Work]:
    """The requested rows. Raises UsageError if there is none."""
    rows = TINY if args.quick else rows
    found = [w for w in rows if w.name.startswith(tuple(args.rows))]
    if not found:
        names = ", ".join(w.name for w in rows)
        raise gs.UsageError("--rows", "no row has a name that begins with it", got=args.rows, remedy=names)
    return found


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that all cells of a run share."""
    return {"batch": args.batch, "dtype": str(args.dtype).removeprefix("torch."), "block": args.block}


# -------------------------------------------------------------------- gate, then time


def gate(work: Work, densities: Sequence[float], args: argparse.Namespace, with_peers: bool = False) -> set[str]:
    """Compares output and gradients of every variant with dense torch.

    Returns: the names of wrong variants of other libraries.
    Raises: Mismatch if another variant is wrong.
    """
    tolerance, wrong = TOLERANCE[args.dtype], set[str]()
    for density in densities:
        layer, operands = work.layer(density, args), work.operands(args)
        reference, *others = dense(layer, *operands)
        expected = reference()
        for v in [*others, gossamer(layer, *operands), *(peers(layer, *operands) if with_peers else ())]:
            y, dx, dw = v()
            pairs = {"output": (y, expected[0]), "input gradient": (dx, expected[1])}
            pairs["weight gradient"] = (v.flat(dw), reference.flat(expected[2]))
            bad = problems(pairs, tolerance)
            where = f"{work.name}, density {density:g}: {v.name}"
            what = f"{where} differs from the dense product in {', '.join(bad)} of its norm"
            if bad and v.family not in FAMILIES:
                raise Mismatch(f"{what} ({tolerance:.0e} is allowed)")
            if bad:
                print(what, file=sys.stderr)
                wrong.add(f"{v.name} {density:g}")
    return wrong


def cells(
    work: Work, densities: Sequence[float], args: argparse.Namespace, wrong: set[str] | None = None
) -> list[dict[str, Any]]:
    """One interleaved run over a row: dense once, the others at every density.

    Args:
        wrong: variants of other libraries that the gate rejected; None omits other libraries.
    """
    print(f"timing {work.name}", file=sys.stderr)
    x, dy = work.operands(args)
    layers = {density: work.layer(density, args) for density in densities}
    calls: dict[str, Variant] = {v.name: v for v in dense(layers[densities[0]], x, dy)}
    for density, layer in layers.items():
        found = [gossamer(layer, x, dy), *(peers(layer, x, dy) if wrong is not None else ())]
        calls |= {f"{v.name} {density:g}": v for v in found}
    calls = {name: v for name, v in calls.items() if wrong is None or name not in wrong}
    taken = interleaved(calls, args.budget * len(densities), least=2 if args.quick else 5)
    by_form = {v.form: taken[name] for name, v in calls.items() if v.family == "dense"}
    best = min(by_form, key=lambda form: by_form[form].seconds)
    found = []
    for density, layer in layers.items():
        own = taken[f"gossamer {density:g}"]
        found.append(
            {
                **_account(work, layer, density, (x, dy)),
                "dense": {form: t._asdict() for form, t in by_form.items()},
                "best dense": best,
                "gossamer": own._asdict(),
                "ratio": by_form[best].seconds / own.seconds,
                "peers": _peers(f" {density:g}", own, calls, taken, wrong or set()),
            }
        )
    return found


def _account(work: Work, layer: gs.SparseLayer, density: float, operands: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The name of the cell, with the FLOPs and bytes of its product."""
    s, values = layer.support, layer.values
    size = [t.numel() * t.element_size() for t in (*operands, values)]
    return {
        "work": work.name,
        "density": density,
        "n": s.weights,
        "kernels": layer.kernels,
        "flops": 6 * operands[0].shape[0] * work.positions * s.weights,
        "bytes": 2 * sum(size) + s.bytes,
    }


def _peers(
    ending: str, own: Timing, calls: dict[str, Variant], taken: dict[str, Timing], wrong: set[str]
) -> dict[str, dict[str, Any]]:
    """The fastest variant of each other library at one density; its names have this ``ending``."""
    found: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        names = [name for name, v in calls.items() if v.family == family and name.endswith(ending)]
        if names:
            best = min(names, key=lambda name: taken[name].seconds)
            slower = taken[best].seconds / own.seconds
            found[family] = {"form": calls[best].form, **taken[best]._asdict(), "slower": slower}
        elif any(name.startswith(family) and name.endswith(ending) for name in wrong):
            found[family] = {"wrong": True}
    return found


def kernel_names(found: Sequence[dict[str, Any]]) -> str:
    """The kernels that ran in these cells."""
    return ", ".join(sorted({name for cell in found for name in cell["kernels"].values()}))
