# pyright: strict
"""The record of a plan: measurements, layout and reason for each layer, as a table and as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

from .._errors import UsageError, nearest
from ..layouts import CSR, LAYOUTS, MASKED
from .timing import DENSE

FORMAT, VERSION = "gossamer-plan", 2
CONVERTED = f"{MASKED.name} converted"  # masked between csr layers, which keep the network batch-last

Shape = tuple[int, ...]
Block = tuple[int, int]


class LayerPlan(NamedTuple):
    """One layer of a plan.

    ``seconds`` of a forward and backward pass, and ``bytes`` of values, gradient and index, are given by candidate.
    """

    name: str
    shape: Shape
    inputs: tuple[Shape, ...]  # one per use in a forward pass
    block: Block
    density: float  # of blocks
    layout: str
    reason: str  # why it has this layout
    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    break_even: float | None  # density below which csr is faster than dense; None if it is outside the measured range
    curve: tuple[tuple[float, float], ...]  # (density, seconds of csr over seconds of dense), by density

    @property
    def wins(self) -> str:
        """A sentence on the densities at which sparse is faster than dense; "" if the layer was not measured."""
        if not self.curve:
            return ""
        if self.break_even is not None:
            return f"sparse wins below density {self.break_even:.2g}"
        if self.curve[-1][1] < 1:
            return f"sparse wins at least up to density {self.curve[-1][0]:.2g}"
        return f"dense wins at least down to density {self.curve[0][0]:.2g}"

    @property
    def memory(self) -> str:
        """Bytes in the chosen layout over bytes of dense, as text; "-" if the layer was not measured."""
        here = self.bytes.get(self.layout if self.layout == MASKED.name else column(self.layout, self.block))
        return "-" if here is None else f"{here / self.bytes[DENSE]:.2g}"

    @property
    def sparse(self) -> float | None:
        """Seconds in csr; None if the layer was not measured."""
        return self.seconds.get(column(CSR.name, self.block))

    @property
    def converted(self) -> float | None:
        """Seconds in masked between csr layers; None if this was not measured."""
        return self.seconds.get(CONVERTED, self.seconds.get(MASKED.name))


@dataclass(frozen=True)
class Plan:
    """The result of :func:`plan`; ``str(plan)`` is a table. ``sparsify(..., layout=plan)`` uses its layouts."""

    rows: tuple[LayerPlan, ...]
    inputs: tuple[Shape, ...]  # of the network
    batch_last: bool  # whether the network is batch-last if it has csr layers
    threads: int
    device: str
    kernels: Mapping[str, str]  # of each csr column
    torch: str

    @property
    def layouts(self) -> dict[str, str]:
        """The chosen layout of each layer."""
        return {row.name: row.layout for row in self.rows}

    def row(self, name: str) -> LayerPlan:
        """The row of one layer. Raises UsageError, with the most similar name, if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        known = self.layouts
        raise UsageError("Plan", f"it has no layer {name!r}{nearest(name, known)}", remedy=f"one of {', '.join(known)}")

    def choice(self, name: str) -> str:
        """The name of the chosen layout of one layer."""
        return self.row(name).layout

    @property
    def totals(self) -> tuple[float, float | None]:
        """Seconds of all layers together: as planned, and dense (None if a layer was too large to measure)."""
        rows, mixed = [row for row in self.rows if row.seconds], CSR.name in self.layouts.values()
        times = [
            row.sparse if row.layout == CSR.name else row.converted if mixed else row.seconds[MASKED.name]
            for row in rows
        ]
        return math.fsum(t for t in times if t is not None), total([row.seconds.get(DENSE) for row in rows])

    def __str__(self) -> str:
        columns = list(dict.fromkeys(label for row in self.rows for label in row.seconds))
        lines = [("layer", "weight", "input", "density", *columns, "memory", "break-even", "layout", "")]
        lines += [_line(row, columns) for row in self.rows]
        last = len(lines[0]) - 2  # the last columns are text: aligned to the left
        widths = [max(len(line[i]) for line in lines) for i in range(last + 2)]
        texts = [
            [c.rjust(w) if 3 <= i < last else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            for line in lines
        ]
        return "\n".join([*("  ".join(text).rstrip() for text in texts), *self._notes()])

    def _notes(self) -> list[str]:
        kernels = "; ".join(f"{label} by the {kernel} kernel" for label, kernel in self.kernels.items())
        where = f"{self.threads} thread(s), {self.device}, torch {self.torch}; {kernels}"
        planned, dense = self.totals
        beside = f", {1e3 * dense:.3g} ms dense, {dense / planned:.2f} times as long" if dense and planned else ""
        notes = [
            f"Milliseconds of a forward and backward pass of each layer alone: {where}.",
            f"All layers: {1e3 * planned:.3g} ms as planned{beside}. "
            "Memory: bytes of values, gradient and index over those of dense.",
        ]
        asked = {DENSE, MASKED.name, CONVERTED, *(column(CSR.name, row.block) for row in self.rows)}
        if any(label not in asked for row in self.rows for label in row.seconds):
            notes.append("Other blocks are shown but not chosen, because they change what the network can learn.")
        return notes

    def to_json(self) -> str:
        """The plan as text, for :meth:`from_json`."""
        tree = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = [row._asdict() for row in self.rows]
        return json.dumps({"format": FORMAT, "version": VERSION, **tree, "rows": rows}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Plan":
        """The plan in a text of :meth:`to_json`. Raises UsageError on any other text."""
        who = "Plan.from_json"
        try:
            tree = json.loads(text)
            written = tree.pop("format"), tree.pop("version")
            if written != (FORMAT, VERSION):
                raise ValueError(f"format {written[0]!r}, version {written[1]!r}")
            rows = tuple(LayerPlan(**{key: _tuples(value) for key, value in row.items()}) for row in tree.pop("rows"))
            made = Plan(rows, **{key: _tuples(value) for key, value in tree.items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(who, f"this is not a plan: {error!r}", remedy="give a text of Plan.to_json") from error
        unknown = [f"{row.name}: {row.layout!r}" for row in rows if row.layout not in LAYOUTS]
        if unknown:
            what = "the plan has unknown layouts"
            raise UsageError(who, what, reasons=unknown, remedy=f"{', '.join(LAYOUTS)}")
        return made

    def problems(self, shapes: Mapping[str, Shape], block: Block) -> list[str]:
        """Why the plan does not fit layers of these shapes in this block, in sentences; [] if it fits."""
        found: list[str] = []
        rows = {row.name: row for row in self.rows}
        for name, shape in shapes.items():
            label = name or "(root)"
            if name not in rows:
                found.append(f"{label} is not in the plan{nearest(name, rows)}")
            elif rows[name].shape != shape:
                found.append(f"{label} is {_sizes(shape)}, in the plan {_sizes(rows[name].shape)}")
            elif rows[name].block != block:
                found.append(f"{label} has blocks of {block}, in the plan {rows[name].block}")
        return found


def column(layout: str, block: Block) -> str:
    """The name of a candidate in the table."""
    return layout if block == (1, 1) else f"{layout} {block[0]}x{block[1]}"


def total(seconds: Sequence[float | None]) -> float | None:
    """The sum; None if one is missing."""
    known = [t for t in seconds if t is not None]
    return math.fsum(known) if len(known) == len(seconds) else None


def _line(row: LayerPlan, columns: Sequence[str]) -> tuple[str, ...]:
    """The cells of one layer in the table."""
    times = [f"{1e3 * row.seconds[label]:.3g}" if label in row.seconds else "-" for label in columns]
    meets = "-" if row.break_even is None else f"{row.break_even:.2g}"
    sizes = (row.name or "(root)", _sizes(row.shape), ", ".join(map(_sizes, row.inputs)) or "-")
    return (*sizes, f"{row.density:.4g}", *times, row.memory, meets, row.layout, row.reason)


def _sizes(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _tuples(value: Any) -> Any:  # Any: a value of a JSON tree
    """Lists of a JSON tree as tuples, at any depth."""
    return tuple(_tuples(v) for v in cast("list[Any]", value)) if isinstance(value, list) else value
