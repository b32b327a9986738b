# pyright: strict
"""Measurement: the seconds and bytes of one layer, alone, for each candidate."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..layers import SparseLayer
from ..layouts import CSR, MASKED
from .break_even import break_even
from .record import CONVERTED, Block, LayerPlan, column
from .timing import DENSE, Candidate, Timer, Work, layer_of
from .workload import Workload


class Comparison(NamedTuple):
    """The candidates of every layer, and the clock."""

    blocks: Sequence[Block]  # also measured in csr, if they fit into the layer
    batch_last: bool  # whether csr layers get activations with the batch innermost
    dense_bytes: int  # a layer with a larger dense weight is measured only in csr
    densities: tuple[float, float]  # (least, most): range of the search for the break-even density
    timer: Timer

    @property
    def order(self) -> str:
        """The memory format of activations of csr layers."""
        return "batch_last" if self.batch_last else "plain"


def measure(layer: Workload, how: Comparison) -> LayerPlan:
    """Measures a layer: seconds (summed over its uses) and bytes of all candidates, and the break-even density.

    Name, layout and reason of the result are empty.
    """
    seconds: dict[str, float] = {}
    held: dict[str, int] = {}
    dense: list[Candidate] = []  # the faster dense candidate for each use
    for work in layer.works:
        candidates = _candidates(layer, work, how)
        times = dict(zip(candidates, how.timer(work, candidates), strict=True))
        best = {label: min(group, key=times.__getitem__) for label, group in _by_column(candidates).items()}
        for label, c in best.items():
            seconds[label] = seconds.get(label, 0.0) + times[c]
            held[label] = c.bytes(work)
        held[DENSE] = Candidate(DENSE).bytes(work)
        dense += [best[DENSE]] if DENSE in best else []

    def ratio(density: float) -> float:
        """Seconds of csr over seconds of dense, measured together."""
        csr = Candidate(CSR.name, how.order, layer.block, density)
        pairs = [how.timer(work, [c, csr]) for work, c in zip(layer.works, dense, strict=True)]
        return math.fsum(pair[1] for pair in pairs) / math.fsum(pair[0] for pair in pairs)

    meets: float | None = None
    curve: dict[float, float] = {}
    if dense:
        curve[layer.density] = seconds[column(CSR.name, layer.block)] / seconds[DENSE]
        meets = break_even(ratio, curve, *how.densities)
    inputs, points = tuple(work.input for work in layer.works), tuple(sorted(curve.items()))
    return LayerPlan("", layer.shape, inputs, layer.block, layer.density, "", "", seconds, held, meets, points)


def kernels_of(layers: Sequence[Workload], blocks: Sequence[Block], rng: torch.Generator) -> dict[str, str]:
    """The kernels of each csr column, read from layers with a single block."""
    found: dict[str, set[str]] = {}
    works = {(layer.works[0], block) for layer in layers for block in _fitting(layer, blocks) if layer.works}
    for work, block in works:
        one = layer_of(work, Candidate(CSR.name, block=block, density=0.0), rng)
        assert isinstance(one, SparseLayer)
        found.setdefault(column(CSR.name, block), set()).update(one.kernels.values())
    return {label: ", ".join(sorted(names)) for label, names in sorted(found.items())}


def _candidates(layer: Workload, work: Work, how: Comparison) -> list[Candidate]:
    """All candidates for one use of a layer."""
    orders = ["plain"] if work.geometry is None else ["plain", "channels_last"]
    found: list[Candidate] = []
    if work.dense_bytes <= how.dense_bytes:
        found += [Candidate(DENSE, order) for order in orders + ["batch_last"] * (len(work.input) == 2)]
        masked = orders + ["batch_last"] * how.batch_last
        found += [Candidate(MASKED.name, order, layer.block, layer.density) for order in masked]
    return found + [Candidate(CSR.name, how.order, block, layer.density) for block in _fitting(layer, how.blocks)]


def _fitting(layer: Workload, blocks: Sequence[Block]) -> list[Block]:
    """The given block, and all other blocks that fit into the matrix."""
    rows, cols = layer.shape[0], math.prod(layer.shape[1:])
    return list(dict.fromkeys((layer.block, *(block for block in blocks if block[0] <= rows and block[1] <= cols))))


def _by_column(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates by column of the table."""
    found: dict[str, list[Candidate]] = {}
    for c in candidates:
        if c.layout == MASKED.name and c.order == "batch_last":
            label = CONVERTED
        else:
            label = column(c.layout, c.block if c.layout == CSR.name else (1, 1))
        found.setdefault(label, []).append(c)
    return found
