"""From a dense model to a sparse one and back: sparsify, densify, and parameter groups whose step follows the density.

Everything is checked and built before the model is touched; what stays dense stays so for a reason that the report states.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import _budgets as budgets
from .._errors import UsageError, check_density, nearest
from .._plan import Plan, plan
from ..batch_last import fused, keep_batch_last, plain_modules
from ..layers import SparseConv2d, SparseLayer, SparseLinear, sparse_layers
from ..layouts import LAYOUTS, MASKED, Layout, gather, layout_named
from ..products.sense.reference import top_k
from ..selection import Pick, Selection, select
from ..support import Support, grid_of

AUTO = "auto"  # the layouts of a plan made on the spot


class Row(NamedTuple):
    """One module of a model, as :func:`sparsify` left it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    sparse: bool
    density: float
    nonzeros: int
    reason: str  # why it was left dense, "" if it was replaced
    layout: str = ""  # of a sparse layer
    break_even: float | None = None  # density below which csr is faster than dense, if it was planned and found
    wins: str = ""  # the same in words, if it was planned

    @property
    def outcome(self) -> str:
        """What became of the module, in words."""
        return (
            f"sparse ({self.layout}{', ' if self.wins else ''}{self.wins})" if self.sparse else f"dense: {self.reason}"
        )


class Report(NamedTuple):
    """What :func:`sparsify` did: ``str(report)`` is a table."""

    rows: tuple[Row, ...]
    asked: float
    plan: Plan | None = None  # the measurement that layouts follow, if there was one
    fused: tuple[str, ...] = ()  # normalisations that do the work of the ReLU behind them, if that was asked for

    @property
    def density(self) -> float:
        """Density over the replaced layers."""
        weights = sum(math.prod(r.shape) for r in self.rows if r.sparse)
        return sum(r.nonzeros for r in self.rows if r.sparse) / weights

    def __str__(self) -> str:
        lines = [("layer", "kind", "shape", "density", "non-zero", "")]
        for r in self.rows:
            shape = " x ".join(str(v) for v in r.shape) or "-"
            lines.append((r.name or "(root)", r.kind, shape, f"{r.density:.4f}", f"{r.nonzeros:,}", r.outcome))
        weights = sum(math.prod(r.shape) for r in self.rows if r.sparse)
        lines.append(
            (
                "sparse layers",
                "",
                f"{weights:,} weights",
                f"{self.density:.4f}",
                f"{round(self.density * weights):,}",
                f"asked {self.asked:g}",
            )
        )
        widths = [max(len(line[i]) for line in lines) for i in range(6)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        return "\n".join(table + ([f"fused with the ReLU that follows: {', '.join(self.fused)}"] if self.fused else []))


def sparsify(
    model: nn.Module,
    density: float,
    *,
    budget: str | budgets.Budget | Mapping[str, float] = "erk",
    layout: str | Layout | Plan = "csr",
    input_shape: Sequence[int] | Tensor | tuple[Tensor, ...] | None = None,
    batch_last: bool | None = None,
    fuse: bool = False,
    block: tuple[int, int] = (1, 1),
    include: Pick | Iterable[Pick] | None = None,
    exclude: Pick | Iterable[Pick] | None = None,
    init: str = "kaiming",
    min_fan_in: int = 0,
    rng: torch.Generator | None = None,
    verbose: bool = False,
) -> nn.Module:
    """Replaces every ``nn.Linear`` and ``nn.Conv2d`` of a model by its sparse counterpart, in place.

    Args:
        density: share of the weights of the replaced layers that may be non-zero, in (0, 1].
        budget: how layers share it: ``"erk"``, ``"er"``, ``"uniform"`` (first layer dense), ``"pooled"``, a function
            (shapes, density) -> densities, or a mapping layer name -> density. A layer that is given density 1 is left dense, unless
            ``density`` itself is 1 (the start of a pruning run).
        layout: ``"csr"`` (compact, O(n)); ``"masked"`` (dense storage and kernels: a simulation); ``"shadow"`` (dense storage and weight
            gradient, sparse products otherwise, for a ``SparseOptimizer``; ``density`` is then where it starts); ``"auto"``: for each
            layer the faster of csr and masked on this machine, measured now by :func:`~gossamer.plan`; or such a plan. Supports and
            values do not depend on it.
        input_shape: for ``"auto"``, the shape of a batch, or a batch itself.
        batch_last: keep activations with the batch innermost in memory, from the first sparse layer on, as csr and shadow want them:
            modules between the layers become counterparts with the same parameters and results, and with the same meaning each. None: on the
            CPU, if a layer is either.
        fuse: let a counterpart of a batch normalisation do the work of an ``nn.ReLU`` directly behind it in an ``nn.Sequential``: faster, but
            single modules then mean something else. The normalisation's output, and what a hook set later sees there, has no negative
            numbers; a slice of the network that ends between the two has the ReLU; replacing the ReLU does not take it away. The report
            names the pairs, ``print(model)`` shows them. Pairs with hooks, and models without counterparts, stay as they are.
        include, exclude: which layers: names (a container's name stands for all below it), ``"re:PATTERN"`` or compiled patterns
            (searched in the qualified name), or module types.
        init: ``"kaiming"`` draws new values; ``"keep"`` keeps the model's weights on a random support; ``"magnitude"`` keeps its
            largest weights.
        verbose: print the report.

    Returns: the model (a new module if the model is itself a single layer); ``model.sparsity_report`` says what was replaced, by which
    layout, what was left dense, and why.

    Raises: UsageError, before anything is changed.
    """
    who = "sparsify"
    check_density(who, density)
    _check_layout(layout, input_shape)
    if fuse and batch_last is False:
        raise UsageError(
            who,
            "fuse=True is the work of batch-last counterparts, and batch_last=False makes none",
            remedy="leave out one of the two",
        )
    if init not in ("kaiming", "keep", "magnitude"):
        raise UsageError(
            who,
            f"unknown init {init!r}{nearest(init, ('kaiming', 'keep', 'magnitude'))}",
            remedy="kaiming, keep or magnitude",
        )
    given = select(who, model, density, budget, block, include, exclude)
    if layout == AUTO and given.blocks:
        picked = {"budget": budget, "block": block, "include": include, "exclude": exclude}
        layout = plan(model, input_shape, density=density, blocks=(), batch_last=batch_last, **picked)  # type: ignore[arg-type]
    layouts = _layouts(given, layout, block)
    counterparts = {
        name: _sparse_counterpart(given.owners[name], n, layouts[name], block, init, min_fan_in, rng)
        for name, n in given.blocks.items()
    }
    planned = layout if isinstance(layout, Plan) else None
    rows = [_row(name, counterparts.get(name, m), given.reasons[name], planned) for name, m in given.owners.items()]
    if batch_last is None:
        here = planned.batch_last if planned else all(m.values.device.type == "cpu" for m in counterparts.values())
        batch_last = here and any(layout.name != MASKED.name for layout in layouts.values())
    model = _replaced(model, {given.owners[name]: counterpart for name, counterpart in counterparts.items()})
    model = keep_batch_last(model, fuse=fuse) if batch_last else model
    model.sparsity_report = Report(tuple(rows), density, planned, tuple(fused(model)))  # type: ignore[assignment]
    if verbose:
        print(model.sparsity_report)
    return model


def densify(model: nn.Module) -> nn.Module:
    """Replaces every sparse layer by its plain torch counterpart with the same weights, in place; returns the model."""
    counterparts: dict[nn.Module, nn.Module] = {}
    for layer in sparse_layers(model).values():
        place = {"device": layer.values.device, "dtype": layer.values.dtype}
        shape, g, bias = layer.dense_shape, layer.geometry, layer.bias is not None
        if g is None:
            counterpart: nn.Module = nn.utils.skip_init(nn.Linear, shape[1], shape[0], bias=bias, **place)
        else:
            counterpart = nn.utils.skip_init(
                nn.Conv2d, shape[1], shape[0], g.kernel, g.stride, g.padding, g.dilation, bias=bias, **place
            )
        with torch.no_grad():
            counterpart.weight.copy_(layer.to_dense())  # type: ignore[operator,union-attr]
        counterpart.weight.requires_grad_(layer.values.requires_grad)  # type: ignore[operator,union-attr]
        if bias:
            counterpart.register_parameter("bias", layer.bias)
        counterparts[layer] = counterpart.train(layer.training)
    model = plain_modules(_replaced(model, counterparts))
    if "sparsity_report" in vars(model):
        del model.sparsity_report
    return model


def parameter_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None, density_exponent: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: each sparse layer's step follows its density; biases and normalisation are not decayed.

    A sparse block's pre-activation moves by lr sum_{j in S} x_j^2 per unit of output gradient: it shrinks with the density. So layer l of
    density d_l gets the step lr d_l^-a and the weight decay wd d_l^a (their product, the decay per step, is unchanged), a =
    ``density_exponent``: 0 is one step size for all, 0.25 is a safe choice for SGD; Adam-type optimizers take up to 1 (after Dey,
    Bergsma, Hestness, arXiv 2405.15743). Dense weights keep (lr, wd); parameters of fewer than 2 dimensions get (lr, 0).

    For a :class:`~gossamer.SparseOptimizer` the groups also say what is ``penalised``: the values of sparse layers (or, in a model that has
    none, all weights of two or more dimensions), and which values are stored ``compact``.

    Args:
        lr: the step size; needed when ``density_exponent`` is not 0, otherwise optional.
        weight_decay: of weights; None leaves it to the optimizer's own. Biases and normalisation have none either way.
    """
    if density_exponent and lr is None:
        raise UsageError("parameter_groups", "density_exponent scales the step size, so it needs lr")
    base = {} if lr is None else {"lr": lr}
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for name, layer in sparse_layers(model).items():
        if layer.values in seen or not layer.values.requires_grad:
            continue
        seen.add(layer.values)
        scale = layer.density**density_exponent
        step = {} if lr is None else {"lr": lr / scale}
        marks = {"name": name, "penalised": True, "compact": layer.layout.storage == "compact"}
        decay = {} if weight_decay is None else {"weight_decay": weight_decay * scale}
        groups.append({"params": [layer.values], **decay, **marks, **step})
    rest = [p for p in model.parameters() if p.requires_grad and p not in seen]
    for label, members, decay in (
        ("dense weights", [p for p in rest if p.dim() >= 2], weight_decay),
        ("biases and normalisation", [p for p in rest if p.dim() < 2], 0.0),
    ):
        if members:
            marks = {"name": label, "penalised": not seen and label == "dense weights", "compact": False}
            groups.append({"params": members, **({} if decay is None else {"weight_decay": decay}), **marks, **base})
    return groups


def reinitialise_(
    model: nn.Module,
    *,
    distribution: str = "normal",
    gain: float = 1.0,
    positive_bias: float | None = None,
    rng: torch.Generator | None = None,
) -> nn.Module:
    """New values for the sparse layers of a model, of the variance that keeps that of activations: gain^2 2 / (density fan_in).

    Args:
        distribution: ``"normal"`` or ``"uniform"``.
        gain: factor on the values.
        positive_bias: draws the biases of sparse layers uniformly from 0 to positive_bias / sqrt(fan_in): blocks that begin alive although
            nearly all their weights are zero (Bungert et al. 2022); None leaves biases as they are.

    Returns: the model.
    """
    who = "reinitialise_"
    if distribution not in ("normal", "uniform"):
        raise UsageError(who, f"unknown distribution {distribution!r}{nearest(distribution, ('normal', 'uniform'))}")
    if not gain > 0.0 or (positive_bias is not None and not positive_bias >= 0.0):
        raise UsageError(who, "gain is positive and positive_bias at least 0", got=(gain, positive_bias))
    for layer in sparse_layers(model).values():
        s, fan_in = layer.support, math.prod(layer.dense_shape[1:])
        sd = gain * math.sqrt(2 / (max(layer.density, 1 / layer.dense_shape.numel()) * fan_in))
        compact = torch.empty(s.n, *(() if s.block == (1, 1) else s.block), dtype=layer.values.dtype)
        bound = sd * math.sqrt(3)
        compact = (
            compact.normal_(0.0, sd, generator=rng)
            if distribution == "normal"
            else compact.uniform_(-bound, bound, generator=rng)
        )
        layer.set_values_(compact.to(layer.values.device))
        if positive_bias is not None and layer.bias is not None:
            with torch.no_grad():
                drawn = torch.empty(layer.bias.shape, dtype=layer.bias.dtype).uniform_(
                    0.0, positive_bias / math.sqrt(fan_in), generator=rng
                )
                layer.bias.copy_(drawn)
    return model


# -------------------------------------------------------------------- details


def _check_layout(layout: str | Layout | Plan, input_shape: object) -> None:
    """Refuses an unknown layout, and an input shape without need or a need without input shape."""
    who, names = "sparsify", (*LAYOUTS, AUTO)
    if not isinstance(layout, (Layout, Plan)) and layout not in names:
        raise UsageError(
            who,
            f"unknown layout {layout!r}{nearest(str(layout), names)}",
            remedy=f"one of {', '.join(names)}, or a Plan",
        )
    if layout == AUTO and input_shape is None:
        remedy = "input_shape=(128, 3, 32, 32), say: the shape of a batch, or a batch itself"
        raise UsageError(
            who, 'layout="auto" measures the layers, and for that it must know their inputs', remedy=remedy
        )
    if layout != AUTO and input_shape is not None:
        raise UsageError(
            who, 'input_shape is for layout="auto" alone', got=input_shape, remedy='leave it out, or layout="auto"'
        )


def _layouts(given: Selection, layout: str | Layout | Plan, block: tuple[int, int]) -> dict[str, Layout]:
    """The layout of each layer that is made sparse."""
    if isinstance(layout, Plan):
        shapes = {name: tuple(given.owners[name].weight.shape) for name in given.blocks}  # type: ignore[union-attr, arg-type]
        problems = layout.problems(shapes, block)
        if problems:
            remedy = "a plan of this model: plan(model, input_shape, density=..., and block, include, exclude as for sparsify)"
            raise UsageError("sparsify", "the plan is not of these layers", reasons=problems, remedy=remedy)
        return {name: LAYOUTS[layout.choice(name)] for name in given.blocks}
    return {name: layout_named(layout, "sparsify") for name in given.blocks}


def _sparse_counterpart(
    m: nn.Module,
    n: int,
    layout: Layout,
    block: tuple[int, int],
    init: str,
    min_fan_in: int,
    rng: torch.Generator | None,
) -> SparseLayer:
    assert isinstance(m, (nn.Linear, nn.Conv2d))
    matrix = m.weight.detach().reshape(m.weight.shape[0], -1)
    shape = (matrix.shape[0], matrix.shape[1])
    if init == "magnitude":
        support = _largest(matrix, n, block, min_fan_in)
    else:
        support = Support.random(shape, n, block, rng, min_fan_in)
    common = {
        "support": support,
        "bias": m.bias is not None,
        "layout": layout,
        "rng": rng,
        "dtype": m.weight.dtype,
        "device": m.weight.device,
    }
    if isinstance(m, nn.Linear):
        counterpart: SparseLayer = SparseLinear(m.in_features, m.out_features, **common)
    else:
        counterpart = SparseConv2d(
            m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, **common
        )  # type: ignore[arg-type]
    if init != "kaiming":
        counterpart.set_values_(gather(matrix, counterpart.support))
    counterpart.register_parameter(
        "bias", m._parameters["bias"]
    )  # the same parameter: an optimizer that holds it stays valid
    counterpart.values.requires_grad_(m.weight.requires_grad)
    return counterpart.train(m.training)


def _largest(matrix: Tensor, n: int, block: tuple[int, int], min_fan_in: int) -> Support:
    """The n blocks of largest norm, first the ``min_fan_in`` largest of every block row; ties: the lower id."""
    shape = (matrix.shape[0], matrix.shape[1])
    (h, w), grid = block, grid_of(shape, block)
    tiles = nn.functional.pad(matrix, (0, grid[1] * w - shape[1], 0, grid[0] * h - shape[0]))
    norm = tiles.view(grid[0], h, grid[1], w).double().square().sum((1, 3))
    if min_fan_in:
        if min_fan_in > grid[1] or min_fan_in * grid[0] > n:
            what = f"{n} blocks cannot give each of {grid[0]} output units {min_fan_in} of {grid[1]} incoming weights"
            raise UsageError("sparsify", what, remedy="a larger density or a smaller min_fan_in")
        best = torch.sort(norm, dim=1, descending=True, stable=True)[1][:, :min_fan_in]
        norm.scatter_(1, best, math.inf)
    return Support.from_ids(top_k(norm.flatten(), n), shape, block)


def _row(name: str, m: nn.Module, reason: str, planned: Plan | None) -> Row:
    if isinstance(m, SparseLayer):
        row = Row(
            name,
            type(m).__name__,
            tuple(m.dense_shape),
            not reason,
            m.density,
            m.support.weights,
            reason,
            m.layout.name,
        )
        measured = planned.row(name) if planned and not reason else None
        return row._replace(break_even=measured.break_even, wins=measured.wins) if measured else row
    weight = getattr(m, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) and not is_lazy(weight) else ()
    count = sum(p.numel() for p in m.parameters(recurse=False) if not is_lazy(p))
    return Row(name, type(m).__name__, shape, False, 1.0, math.prod(shape) if shape else count, reason)


def _replaced(model: nn.Module, counterparts: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The model with modules exchanged wherever they stand."""
    if model in counterparts:
        return counterparts[model]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in counterparts:
                setattr(parent, name, counterparts[child])
    return model
