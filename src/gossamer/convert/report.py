# pyright: strict
"""The report of :func:`~gossamer.sparsify`: a table of all modules, sparse and dense, with reasons."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from .._plan.record import Plan


class Row(NamedTuple):
    """One module of a model after :func:`~gossamer.sparsify`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    sparse: bool
    density: float
    nonzeros: int
    reason: str  # why it is dense; "" if it was replaced
    layout: str = ""  # layout of a sparse layer
    break_even: float | None = None  # density below which csr is faster than dense, if a plan has found it
    wins: str = ""  # the same as a sentence, if there is a plan

    @property
    def outcome(self) -> str:
        """sparse or dense, with the layout or the reason."""
        if not self.sparse:
            return f"dense: {self.reason}"
        return f"sparse ({self.layout}{', ' if self.wins else ''}{self.wins})"


class Report(NamedTuple):
    """The result of :func:`~gossamer.sparsify`; ``str(report)`` is a table."""

    rows: tuple[Row, ...]
    asked: float
    plan: Plan | None = None  # the measurement that chose the layouts
    fused: tuple[str, ...] = ()  # normalisations that also compute the ReLU that follows them

    @property
    def density(self) -> float:
        """The density of all replaced layers together."""
        return self._kept / self._weights

    @property
    def _weights(self) -> int:
        return sum(math.prod(r.shape) for r in self.rows if r.sparse)

    @property
    def _kept(self) -> int:
        return sum(r.nonzeros for r in self.rows if r.sparse)

    def __str__(self) -> str:
        lines = [("layer", "kind", "shape", "density", "non-zero", "")]
        for r in self.rows:
            shape = " x ".join(str(v) for v in r.shape) or "-"
            lines.append((r.name or "(root)", r.kind, shape, f"{r.density:.4f}", f"{r.nonzeros:,}", r.outcome))
        sums = (f"{self._weights:,} weights", f"{self.density:.4f}", f"{self._kept:,}", f"asked {self.asked:g}")
        lines.append(("sparse layers", "", *sums))
        fused = [f"fused with the ReLU that follows: {', '.join(self.fused)}"] if self.fused else []
        return "\n".join(table(lines) + fused)


def table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text, in columns aligned to the left."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
