"""Plan: the layout in which each layer runs fastest on this machine, by measurement, and the density below which sparse kernels win.

Every layer that is sparse, or would be, is timed alone at its sizes and density, forward and backward:

    dense               nn.Conv2d (NCHW or channels-last) or nn.Linear (batch first or last in memory): the yardstick, never a choice
    masked              dense storage and kernels under a mask, in torch's own formats
    masked converted    the same in a network that is kept batch-last for its csr layers: with the conversions on both sides
    csr                 sparse kernels on single weights
    csr HxW             the same with tiles of H x W, at the same density

A layer is masked or csr in the block that was asked for, whichever is faster; csr, which holds less, if they are within MARGIN. If the
network is faster all masked, without conversions, than as the best mixture, it is all masked. Other tiles are only shown: they change what
can be learned. What would be too large as a dense matrix is csr, and nothing of that size is made.

Break-even. csr costs about a + b density and dense the same at any density, so their ratio r is a line, and r = 1 is found by secants from
the layer's own density d: first d / r(d), which lies between d and the root, then the line through two measured points.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._budgets import Budget
from ._errors import UsageError, check_at_least, check_count, nearest
from ._timing import DENSE, Candidate, Timer, Work, layer_of, timed
from .layers import SparseLayer, sparse_layers
from .layouts import CSR, LAYOUTS, MASKED
from .products.conv2d.reference import Geometry
from .selection import Pick, select
from .support import checked

MARGIN = 0.05  # masked must be faster by this share to be preferred
CLOSE = 0.05  # densities nearer than this share are not told apart
SECANTS = 4  # measurements at most in search of a break-even density
FORMAT, VERSION = "gossamer-plan", 1
CONVERTED = f"{MASKED.name} converted"

Shape = tuple[int, ...]
Block = tuple[int, int]
Curve = Mapping[float, float]  # density -> seconds of csr over those of dense


# -------------------------------------------------------------------- the plan


class Planned(NamedTuple):
    """One layer of a plan. Seconds are of a forward and backward pass; bytes of values, gradient and index; both by candidate."""

    name: str
    shape: Shape
    inputs: tuple[Shape, ...]  # one per use in a forward pass
    block: Block
    density: float  # of blocks
    layout: str
    reason: str  # why this layout
    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    break_even: float | None  # density below which csr is faster than dense; None if that is outside the range measured
    curve: tuple[tuple[float, float], ...]  # (density, seconds of csr over those of dense), by density

    @property
    def wins(self) -> str:
        """Where sparse wins, in words; "" if it was not measured."""
        if not self.curve:
            return ""
        if self.break_even is not None:
            return f"sparse wins below density {self.break_even:.2g}"
        if self.curve[-1][1] < 1:
            return f"sparse wins up to density {self.curve[-1][0]:.2g} at least"
        return f"dense wins down to density {self.curve[0][0]:.2g} at least"

    @property
    def memory(self) -> str:
        """Bytes in the layout chosen over those of dense, in digits."""
        here = self.bytes.get(self.layout if self.layout == MASKED.name else _label(self.layout, self.block))
        return "-" if here is None else f"{here / self.bytes[DENSE]:.2g}"

    @property
    def sparse(self) -> float | None:
        """Seconds under csr; None if the layer was not measured."""
        return self.seconds.get(_label(CSR.name, self.block))

    @property
    def converted(self) -> float | None:
        """Seconds under masked beside csr layers; None if that was not measured."""
        return self.seconds.get(CONVERTED, self.seconds.get(MASKED.name))


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` measured and chose; ``str(plan)`` is a table. ``sparsify(..., layout=plan)`` follows it."""

    rows: tuple[Planned, ...]
    inputs: tuple[Shape, ...]  # of the network
    batch_last: bool  # whether the network is kept batch-last where it has csr layers
    threads: int
    device: str
    kernels: Mapping[str, str]  # of each csr column
    torch: str

    @property
    def layouts(self) -> dict[str, str]:
        """The layout chosen for each layer."""
        return {row.name: row.layout for row in self.rows}

    def row(self, name: str) -> Planned:
        """What was measured of one layer. Raises UsageError, with the nearest name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UsageError(
            "Plan", f"it has no layer {name!r}{nearest(name, self.layouts)}", remedy=f"one of {', '.join(self.layouts)}"
        )

    def choice(self, name: str) -> str:
        """The name of the layout chosen for one layer."""
        return self.row(name).layout

    @property
    def totals(self) -> tuple[float, float | None]:
        """Seconds of all layers together: as planned, and dense (None if some layer was too large to measure)."""
        rows, mixed = [row for row in self.rows if row.seconds], CSR.name in self.layouts.values()
        times = [
            row.sparse if row.layout == CSR.name else row.converted if mixed else row.seconds[MASKED.name]
            for row in rows
        ]
        return math.fsum(t for t in times if t is not None), _total([row.seconds.get(DENSE) for row in rows])

    def __str__(self) -> str:
        labels = list(dict.fromkeys(label for row in self.rows for label in row.seconds))
        lines = [("layer", "weight", "input", "density", *labels, "memory", "break-even", "layout", "")]
        for row in self.rows:
            times = [f"{1e3 * row.seconds[label]:.3g}" if label in row.seconds else "-" for label in labels]
            meets = "-" if row.break_even is None else f"{row.break_even:.2g}"
            inputs = ", ".join(" x ".join(map(str, size)) for size in row.inputs) or "-"
            sizes = (row.name or "(root)", " x ".join(map(str, row.shape)), inputs)
            lines.append((*sizes, f"{row.density:.4g}", *times, row.memory, meets, row.layout, row.reason))
        last = len(lines[0]) - 2  # from here on words again
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
            f"All layers: {1e3 * planned:.3g} ms as planned{beside}. Memory: values, gradient and index, over those of dense.",
        ]
        asked = {DENSE, MASKED.name, CONVERTED, *(_label(CSR.name, row.block) for row in self.rows)}
        if any(label not in asked for row in self.rows for label in row.seconds):
            notes.append(
                "Other blocks change what can be learned: they are shown, and chosen only where they are asked for."
            )
        return notes

    def to_json(self) -> str:
        """The plan as text, for :meth:`from_json`."""
        tree = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = [row._asdict() for row in self.rows]
        return json.dumps({"format": FORMAT, "version": VERSION, **tree, "rows": rows}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Plan":
        """The plan that :meth:`to_json` wrote. Raises UsageError on anything else."""
        try:
            tree = json.loads(text)
            said = tree.pop("format"), tree.pop("version")
            if said != (FORMAT, VERSION):
                raise ValueError(f"format {said[0]!r}, version {said[1]!r}")
            rows = tuple(Planned(**{key: _tuples(value) for key, value in row.items()}) for row in tree.pop("rows"))
            made = Plan(rows, **{key: _tuples(value) for key, value in tree.items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                "Plan.from_json", f"this is not a plan: {error!r}", remedy="text that Plan.to_json wrote"
            ) from error
        strange = [f"{row.name}: {row.layout!r}" for row in rows if row.layout not in LAYOUTS]
        if strange:
            raise UsageError(
                "Plan.from_json",
                "it names layouts that are not known here",
                reasons=strange,
                remedy=f"{', '.join(LAYOUTS)}",
            )
        return made

    def problems(self, shapes: Mapping[str, Shape], block: Block) -> list[str]:
        """Why layers of these shapes in this block cannot follow the plan, in sentences; [] if they can."""
        found, rows = [], {row.name: row for row in self.rows}
        for name, shape in shapes.items():
            if name not in rows:
                found.append(f"{name or '(root)'} is not in the plan{nearest(name, rows)}")
            elif rows[name].shape != shape:
                found.append(
                    f"{name or '(root)'} is {' x '.join(map(str, shape))}, in the plan {' x '.join(map(str, rows[name].shape))}"
                )
            elif rows[name].block != block:
                found.append(f"{name or '(root)'} has blocks of {block}, in the plan {rows[name].block}")
        return found


def plan(
    model: nn.Module,
    input_shape: Sequence[int] | Tensor | tuple[Tensor, ...],
    *,
    density: float | None = None,
    budget: str | Budget | Mapping[str, float] = "erk",
    block: Block = (1, 1),
    blocks: Iterable[Block] = ((1, 1), (4, 1), (16, 16)),
    include: Pick | Iterable[Pick] | None = None,
    exclude: Pick | Iterable[Pick] | None = None,
    densities: tuple[float, float] = (0.002, 0.9),
    batch_last: bool | None = None,
    dense_bytes: int = 2**30,
    threads: int | None = None,
    seconds: float = 0.1,
    rng: torch.Generator | None = None,
    timer: Timer | None = None,
) -> Plan:
    """Measures every layer of a model dense, masked and csr on this machine, and chooses its layout. The model is left as it was.

    Args:
        model: a dense model, of which ``density``, ``budget``, ``block``, ``include`` and ``exclude`` say what
            :func:`~gossamer.sparsify` would make sparse; or, without ``density``, a sparse one, measured as it is.
        input_shape: of a whole batch, the batch first: (128, 3, 32, 32). Or a batch itself, a tensor or a tuple of them.
        blocks: also measured under csr, where they fit into the layer.
        densities: where the break-even density is looked for.
        batch_last: whether the network will be kept batch-last if it has csr layers (None: on the CPU).
        dense_bytes: a layer whose dense weight is larger is csr, without ever being made or measured dense.
        threads: of torch, while measuring; None: as they are.
        seconds: for each comparison, but three rounds at least. Layers of equal sizes, input and density are measured once.
        rng: of the supports and inputs measured, by default a generator of its own: torch's random state is not touched.
        timer: in place of the clock: (work, candidates) -> seconds of each.

    Raises: UsageError, before anything is measured.
    """
    who = "plan"
    block, tiles = checked(who, (1, 1), block)[1], [checked(who, (1, 1), u)[1] for u in blocks]
    least, most = densities
    if not 0.0 < least < most <= 1.0:
        raise UsageError(who, "densities is the range to look in, (least, most) in (0, 1]", got=densities)
    check_count(who, "dense_bytes", dense_bytes, 1)
    check_at_least(who, "seconds", seconds, 0.0)
    if threads is not None:
        check_count(who, "threads", threads, 1)
    modules, shares = _layers(who, model, density, budget, block, include, exclude)
    device = next(p.device for m in modules.values() for p in m.parameters())
    batch_last = device.type == "cpu" if batch_last is None else batch_last
    rng = rng or torch.Generator().manual_seed(0)
    timer = timer or partial(timed, seconds=seconds, rng=rng)
    example = _example(who, model, input_shape, device)
    measured: dict[Place, Planned] = {}  # by place without its name
    with _threads(threads), torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        places = _sites(who, model, modules, shares, block, example)
        for alike in dict.fromkeys(place._replace(name="") for place in places):
            measured[alike] = _measured(alike, tiles, batch_last, dense_bytes, (least, most), timer)
        kernels = _kernels(places, tiles, rng)
        threads = torch.get_num_threads()
    rows = _chosen([measured[place._replace(name="")]._replace(name=place.name) for place in places])
    sizes = tuple(tuple(t.shape) for t in example)
    return Plan(tuple(rows), sizes, batch_last, threads, str(device), kernels, torch.__version__)


# -------------------------------------------------------------------- the choice


def _chosen(rows: Sequence[Planned]) -> list[Planned]:
    """The rows with layout and reason: the best mixture, or all masked."""
    mixture = [_faster(row) for row in rows]
    mixed = _total(
        [row.sparse if best.layout == CSR.name else row.converted for row, best in zip(rows, mixture, strict=True)]
    )
    masked = _total([row.seconds.get(MASKED.name) for row in rows])
    if mixed is not None and masked is not None and masked < (1 - MARGIN) * mixed:
        return [_masked(row, mixed / masked) for row in rows]
    return mixture


def _masked(row: Planned, gain: float) -> Planned:
    """A row of a network that is all masked, and ``gain`` times as fast as the best mixture."""
    ratio = (row.sparse or 0.0) / row.seconds[MASKED.name]
    alone = f"{ratio:.2g} times as fast as csr"
    return row._replace(
        layout=MASKED.name,
        reason=alone if ratio > 1 + MARGIN else f"all masked, the network is {gain:.2g} times as fast",
    )


def _faster(row: Planned) -> Planned:
    """The row with the faster of csr and masked beside csr."""
    if row.sparse is None:
        return row._replace(layout=CSR.name, reason="not measured: a pass of the model did not use it")
    if row.converted is None:
        return row._replace(layout=CSR.name, reason="too large to exist densely")
    ratio = row.converted / row.sparse
    if ratio < 1 - MARGIN:
        also = ", conversions included" if CONVERTED in row.seconds else ""
        return row._replace(layout=MASKED.name, reason=f"{1 / ratio:.2g} times as fast as csr{also}")
    if ratio <= 1 + MARGIN:
        return row._replace(layout=CSR.name, reason=f"as fast as masked within {MARGIN:.0%}, and holds less")
    return row._replace(layout=CSR.name, reason=f"{ratio:.2g} times as fast as masked")


def _total(seconds: Sequence[float | None]) -> float | None:
    """The sum, None if one is missing."""
    known = [t for t in seconds if t is not None]
    return math.fsum(known) if len(known) == len(seconds) else None


# -------------------------------------------------------------------- the measurement


class Place(NamedTuple):
    """One layer of the model, and its uses in a forward pass."""

    name: str
    shape: Shape
    works: tuple[Work, ...]
    block: Block
    density: float


def _measured(
    place: Place,
    tiles: Sequence[Block],
    batch_last: bool,
    dense_bytes: int,
    densities: tuple[float, float],
    timer: Timer,
) -> Planned:
    """Seconds and bytes of all candidates, summed over the uses, and the break-even density."""
    seconds: dict[str, float] = {}
    held: dict[str, int] = {}
    dense: list[Candidate] = []  # the better one for each use
    for work in place.works:
        candidates = _candidates(place, work, tiles, batch_last, work.dense_bytes <= dense_bytes)
        times = dict(zip(candidates, timer(work, candidates), strict=True))
        best = {label: min(group, key=times.__getitem__) for label, group in _labelled(candidates).items()}
        for label, c in best.items():
            seconds[label] = seconds.get(label, 0.0) + times[c]
            held[label] = c.bytes(work)
        held[DENSE] = Candidate(DENSE).bytes(work)
        dense += [best[DENSE]] if DENSE in best else []

    def ratio(density: float) -> float:
        """Seconds of csr over those of dense, measured side by side."""
        pairs = [
            timer(work, [c, Candidate(CSR.name, "batch_last" if batch_last else "plain", place.block, density)])
            for work, c in zip(place.works, dense, strict=True)
        ]
        return math.fsum(pair[1] for pair in pairs) / math.fsum(pair[0] for pair in pairs)

    meets, curve = None, {}
    if dense:
        curve = {place.density: seconds[_label(CSR.name, place.block)] / seconds[DENSE]}
        meets = break_even(ratio, curve, *densities)
    inputs = tuple(work.input for work in place.works)
    return Planned(
        "", place.shape, inputs, place.block, place.density, "", "", seconds, held, meets, tuple(sorted(curve.items()))
    )


def _candidates(place: Place, work: Work, tiles: Sequence[Block], batch_last: bool, densely: bool) -> list[Candidate]:
    """All that is compared for one use of a layer."""
    orders = ["plain"] if work.geometry is None else ["plain", "channels_last"]
    found = []
    if densely:
        found += [Candidate(DENSE, order) for order in orders + ["batch_last"] * (len(work.input) == 2)]
        found += [
            Candidate(MASKED.name, order, place.block, place.density) for order in orders + ["batch_last"] * batch_last
        ]
    return found + [
        Candidate(CSR.name, "batch_last" if batch_last else "plain", block, place.density)
        for block in _fit(place, tiles)
    ]


def _fit(place: Place, tiles: Sequence[Block]) -> list[Block]:
    """The block asked for, and those that are no larger than the matrix."""
    rows, cols = place.shape[0], math.prod(place.shape[1:])
    return list(dict.fromkeys((place.block, *(tile for tile in tiles if tile[0] <= rows and tile[1] <= cols))))


def _kernels(places: Sequence[Place], tiles: Sequence[Block], rng: torch.Generator) -> dict[str, str]:
    """The kernels that run each csr column, asked of layers with a single block."""
    found: dict[str, set[str]] = {}
    works = {(place.works[0], block) for place in places for block in _fit(place, tiles) if place.works}
    for work, block in works:
        layer = layer_of(work, Candidate(CSR.name, block=block, density=0.0), rng)
        assert isinstance(layer, SparseLayer)
        found.setdefault(_label(CSR.name, block), set()).update(layer.kernels.values())
    return {label: ", ".join(sorted(names)) for label, names in sorted(found.items())}


def _labelled(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates by column of the table."""
    found: dict[str, list[Candidate]] = {}
    for c in candidates:
        converted = c.layout == MASKED.name and c.order == "batch_last"
        found.setdefault(
            CONVERTED if converted else _label(c.layout, c.block if c.layout == CSR.name else (1, 1)), []
        ).append(c)
    return found


def _label(layout: str, block: Block) -> str:
    return layout if block == (1, 1) else f"{layout} {block[0]}x{block[1]}"


def break_even(ratio: Callable[[float], float], curve: dict[float, float], least: float, most: float) -> float | None:
    """The density at which ``ratio(density)``, that of csr to dense, is 1; None if it is not in [least, most].

    ``curve``: density -> ratio, at least one, is what is known and grows by what is measured: SECANTS times at most.
    """
    for _ in range(SECANTS):
        guess = min(max(_crossing(curve), least), most)
        if any(abs(guess - density) <= CLOSE * density for density in curve):
            break
        curve[guess] = ratio(guess)
    if (
        max(curve.values()) < 1
        and max(curve) >= (1 - CLOSE) * most
        or min(curve.values()) > 1
        and min(curve) <= (1 + CLOSE) * least
    ):
        return None
    return min(max(_crossing(curve), least), most)


def _crossing(curve: Mapping[float, float]) -> float:
    """Where the ratio is 1: on the line between the points on both sides of it, or through the two that are nearest."""
    points = sorted(curve.items())
    if len(points) == 1:
        return points[0][0] / points[0][1]
    pairs = list(pairwise(points))
    across = [((d0, r0), (d1, r1)) for (d0, r0), (d1, r1) in pairs if (r0 - 1) * (r1 - 1) <= 0]
    below = points[-1][1] < 1
    (d0, r0), (d1, r1) = across[0] if across else pairs[-1] if below else pairs[0]
    if not across and r1 <= r0:  # the clock's noise: no line that rises
        return math.inf if below else 0.0
    return d0 if r1 == r0 else d0 + (1 - r0) * (d1 - d0) / (r1 - r0)


# -------------------------------------------------------------------- what there is to measure


def _layers(
    who: str,
    model: nn.Module,
    density: float | None,
    budget: str | Budget | Mapping[str, float],
    block: Block,
    include: Pick | Iterable[Pick] | None,
    exclude: Pick | Iterable[Pick] | None,
) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The layers to plan, and the density of each."""
    if density is not None:
        given = select(who, model, density, budget, block, include, exclude)
        if not given.blocks:
            raise UsageError(who, "the budget gives every layer density 1", remedy="a smaller density")
        return {name: given.owners[name] for name in given.blocks}, {name: given.density(name) for name in given.blocks}
    layers = sparse_layers(model)
    if not layers:
        raise UsageError(
            who, "the model has no sparse layer, and no density was given", remedy="density=, as for sparsify"
        )
    if include is not None or exclude is not None:
        raise UsageError(
            who,
            "include and exclude pick what would be made sparse at a density",
            remedy="leave them out for a sparse model",
        )
    return {**layers}, {name: layer.support.density for name, layer in layers.items()}


def _example(
    who: str, model: nn.Module, given: Sequence[int] | Tensor | tuple[Tensor, ...], device: torch.device
) -> tuple[Tensor, ...]:
    """The inputs of one pass."""
    tensors = [t for t in ((given,) if isinstance(given, Tensor) else given) if isinstance(t, Tensor)]
    if tensors:
        return tuple(t.to(device) for t in tensors)
    sizes = [v for v in given if isinstance(v, int) and v >= 1]
    if len(sizes) < max(2, len(given)):
        raise UsageError(
            who, "input_shape is that of a whole batch, the batch first, such as (128, 3, 32, 32)", got=given
        )
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return (torch.zeros(sizes, dtype=dtype, device=device),)


def _sites(
    who: str,
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    shares: Mapping[str, float],
    block: Block,
    example: tuple[Tensor, ...],
) -> list[Place]:
    """A pass in eval mode shows what goes into every layer. The model is left as it was."""
    works: dict[nn.Module, list[Work]] = {m: [] for m in modules.values()}

    def look(m: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        works[m].append(_work(m, inputs[0]))

    handles = [m.register_forward_hook(look) for m in works]
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()(*example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in example)
        remedy = "the shape of a whole batch; or a batch itself, where the inputs are of other dtypes"
        raise UsageError(
            who, f"the model does not run on an input of shape {shapes}: {error}", remedy=remedy
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for m, mode in modes.items():
            m.training = mode
    blocks = {m: m.block if isinstance(m, SparseLayer) else block for m in works}
    rounded = {name: float(f"{share:.3g}") for name, share in shares.items()}  # layers that differ by a block are alike
    return [Place(name, _shape(m), tuple(works[m]), blocks[m], rounded[name]) for name, m in modules.items()]


def _work(m: nn.Module, x: Tensor) -> Work:
    """One use of a layer."""
    weight = m.values if isinstance(m, SparseLayer) else m.weight
    assert isinstance(weight, Tensor)
    geometry = m.geometry if isinstance(m, SparseLayer) else _geometry(m) if isinstance(m, nn.Conv2d) else None
    return Work(
        _shape(m),
        geometry,
        tuple(x.shape),
        m.bias is not None,
        x.requires_grad,
        weight.requires_grad,
        weight.dtype,
        weight.device,
    )


def _shape(m: nn.Module) -> Shape:
    weight_shape = m.dense_shape if isinstance(m, SparseLayer) else m.weight.shape
    assert isinstance(weight_shape, torch.Size)
    return tuple(weight_shape)


def _geometry(m: nn.Conv2d) -> Geometry:
    """Of a convolution that can be made sparse: ``padding="same"`` is symmetric then."""
    (kh, kw), (sh, sw), (dh, dw) = m.kernel_size, m.stride, m.dilation
    padding = (
        m.padding
        if not isinstance(m.padding, str)
        else (0, 0)
        if m.padding == "valid"
        else (dh * (kh - 1) // 2, dw * (kw - 1) // 2)
    )
    return Geometry((kh, kw), (sh, sw), (padding[0], padding[1]), (dh, dw))


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Torch on so many threads inside."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
