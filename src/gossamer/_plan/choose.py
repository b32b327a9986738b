# pyright: strict
"""Choice: csr or masked for each layer, from the measured seconds.

A layer gets the faster of masked and csr, in the given block. If they differ by less than MARGIN it is csr, which needs
less memory. If the network with only masked layers, without conversions, is faster than the best mixture, all layers
are masked. Other blocks are never chosen, because they change what the network can learn.
"""

from collections.abc import Sequence

from ..layouts import CSR, MASKED
from .record import CONVERTED, LayerPlan, total

MARGIN = 0.05  # masked is preferred only if it is faster by this fraction


def choose_layouts(rows: Sequence[LayerPlan]) -> list[LayerPlan]:
    """The rows with layout and reason: the best mixture, or all masked."""
    mixture = [_faster(row) for row in rows]
    mixed = total(
        [row.sparse if best.layout == CSR.name else row.converted for row, best in zip(rows, mixture, strict=True)]
    )
    masked = total([row.seconds.get(MASKED.name) for row in rows])
    if mixed is not None and masked is not None and masked < (1 - MARGIN) * mixed:
        return [_masked(row, mixed / masked) for row in rows]
    return mixture


def _masked(row: LayerPlan, gain: float) -> LayerPlan:
    """A row of a network with only masked layers.

    ``gain``: seconds of the best mixture over seconds of this network.
    """
    ratio = (row.sparse or 0.0) / row.seconds[MASKED.name]
    alone, together = f"{ratio:.2g} times as fast as csr", f"all masked, the network is {gain:.2g} times as fast"
    return row._replace(layout=MASKED.name, reason=alone if ratio > 1 + MARGIN else together)


def _faster(row: LayerPlan) -> LayerPlan:
    """The row with the faster of csr and masked, in a network with other csr layers."""
    if row.sparse is None:
        return row._replace(layout=CSR.name, reason="not measured: a pass of the model did not use it")
    if row.converted is None:
        return row._replace(layout=CSR.name, reason="its dense weight is too large")
    ratio = row.converted / row.sparse
    if ratio < 1 - MARGIN:
        also = ", conversions included" if CONVERTED in row.seconds else ""
        return row._replace(layout=MASKED.name, reason=f"{1 / ratio:.2g} times as fast as csr{also}")
    if ratio <= 1 + MARGIN:
        return row._replace(layout=CSR.name, reason=f"as fast as masked within {MARGIN:.0%}, and holds less")
    return row._replace(layout=CSR.name, reason=f"{ratio:.2g} times as fast as masked")
