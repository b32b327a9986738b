# pyright: strict
"""From a dense model to a sparse one. All checks are made, and all layers built, before the model is changed."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._budgets import Budget
from .._errors import UsageError, check_choice, check_density, nearest
from .._geometry import module_geometry
from .._modules import replaced
from .._plan import Plan, plan
from .._plan.workload import Input
from ..batch_last import fused, keep_batch_last
from ..layers import SparseConv2d, SparseLayer, SparseLinear
from ..layouts import LAYOUTS, MASKED, Layout, gather, layout_named
from ..products.sense.reference import top_k
from ..selection import Convertible, Pick, Selection, select
from ..support import Support, grid_of
from .report import Report, Row

AUTO = "auto"  # sparsify makes a plan, and takes the layouts of the plan


Init = Literal["kaiming", "keep", "magnitude"]


def sparsify(
    model: nn.Module,
    density: float,
    *,
    budget: str | Budget | Mapping[str, float] = "erk",
    layout: str | Layout | Plan = "csr",
    input_shape: Input | None = None,
    batch_last: bool | None = None,
    fuse: bool = False,
    block: tuple[int, int] = (1, 1),
    include: Pick | Iterable[Pick] | None = None,
    exclude: Pick | Iterable[Pick] | None = None,
    init: Init = "kaiming",
    min_fan_in: int = 0,
    rng: torch.Generator | None = None,
    verbose: bool = False,
) -> nn.Module:
    """Replaces every ``nn.Linear`` and ``nn.Conv2d`` of a model by its sparse counterpart, in place.

    Args:
        model: the dense model.
        density: fraction of the weights of the replaced layers that may be non-zero, in (0, 1].
        budget: how the layers share it: ``"erk"``, ``"er"``, ``"uniform"`` (first layer dense), ``"pooled"``, a
            function (shapes, density) -> densities, or a mapping layer name -> density. A layer that gets density 1
            stays dense, unless ``density`` itself is 1 (the start of a pruning run).
        layout: ``"csr"`` (compact storage, O(n)); ``"masked"`` (dense storage and kernels: a simulation);
            ``"shadow"`` (dense storage and weight gradient, other products sparse, for a ``SparseOptimizer``;
            ``density`` is the initial density); a plan; or ``"auto"``: :func:`~gossamer.plan` measures csr and masked
            on this machine, and each layer gets the faster one. Supports and values do not depend on the layout.
        input_shape: for ``"auto"``, the shape of a batch, or a batch.
        batch_last: store activations with the batch as the innermost dimension, from the first sparse layer on. This
            is fast for csr and shadow. It replaces the modules between the layers by counterparts with the same
            parameters and results. None: True on the CPU if a layer is csr or shadow.
        fuse: a batch normalisation also computes the ``nn.ReLU`` that follows it in an ``nn.Sequential``. This is
            faster, but changes single modules: the output of the normalisation, also in later hooks, has no negative
            numbers; a slice of the network that ends between the two includes the ReLU; replacing the ReLU does not
            remove it. The report and ``print(model)`` show the fused pairs. Pairs with hooks are not fused.
        include: layers to replace: names (a container's name includes all its layers), ``"re:PATTERN"`` or compiled
            patterns (searched in the qualified name), or module types. None: all.
        exclude: layers that stay dense, in the same form.
        init: ``"kaiming"`` draws new values; ``"keep"`` keeps the weights of the model on a random support;
            ``"magnitude"`` keeps the largest weights.
        min_fan_in: least number of incoming blocks of every output unit.
        rng: generator of supports and values. None: torch's default generator.
        verbose: print the report.

    Returns: the model (a new module if the model is a single layer). ``model.sparsity_report`` lists the replaced
    layers with their layouts, and the dense ones with the reasons.

    Raises: UsageError, before the model is changed.
    """
    who = "sparsify"
    check_density(who, density)
    _check_layout(layout, input_shape)
    check_choice(who, "init", init, get_args(Init))
    if fuse and batch_last is False:
        what = "fuse=True needs batch-last counterparts, and batch_last=False makes none"
        raise UsageError(who, what, remedy="omit one of the two")
    given = select(who, model, density, budget, block, include, exclude)
    if layout == AUTO and input_shape is not None and given.blocks:
        layout = plan(
            model,
            input_shape,
            density=density,
            budget=budget,
            block=block,
            blocks=(),
            include=include,
            exclude=exclude,
            batch_last=batch_last,
        )
    layouts, how = _layouts(given, layout, block), _Birth(block, init, min_fan_in, rng)
    counterparts = {name: _sparse(m, given.blocks[name], layouts[name], how) for name, m in given.layers.items()}
    planned = layout if isinstance(layout, Plan) else None
    rows = [_row(name, counterparts.get(name, m), given.reasons[name], planned) for name, m in given.owners.items()]
    if batch_last is None:
        here = planned.batch_last if planned else all(m.values.device.type == "cpu" for m in counterparts.values())
        batch_last = here and any(layout.name != MASKED.name for layout in layouts.values())
    model = replaced(model, {m: counterparts[name] for name, m in given.layers.items()})
    model = keep_batch_last(model, fuse=fuse) if batch_last else model
    report = Report(tuple(rows), density, planned, tuple(fused(model)))
    vars(model)["sparsity_report"] = report
    if verbose:
        print(report)
    return model


# -------------------------------------------------------------------- details


def _check_layout(layout: str | Layout | Plan, input_shape: Input | None) -> None:
    """Raises UsageError if the layout is unknown, or if the input shape is missing or not used."""
    who, names = "sparsify", (*LAYOUTS, AUTO)
    if not isinstance(layout, Layout | Plan) and layout not in names:
        what, remedy = (
            f"unknown layout {layout!r}{nearest(str(layout), names)}",
            f"one of {', '.join(names)}, or a Plan",
        )
        raise UsageError(who, what, remedy=remedy)
    if layout == AUTO and input_shape is None:
        remedy = "give the shape of a batch, as in input_shape=(128, 3, 32, 32), or a batch"
        raise UsageError(who, 'layout="auto" measures the layers, and needs input_shape', remedy=remedy)
    if layout != AUTO and input_shape is not None:
        remedy = 'omit it, or use layout="auto"'
        raise UsageError(who, 'only layout="auto" uses input_shape', got=input_shape, remedy=remedy)


def _layouts(given: Selection, layout: str | Layout | Plan, block: tuple[int, int]) -> dict[str, Layout]:
    """The layout of each replaced layer. Raises UsageError if a plan does not fit."""
    if isinstance(layout, Plan):
        shapes = {name: tuple(layer.weight.shape) for name, layer in given.layers.items()}
        problems = layout.problems(shapes, block)
        if problems:
            remedy = "make a plan of this model with the same block, include and exclude: plan(model, input_shape, ...)"
            raise UsageError("sparsify", "the plan does not fit these layers", reasons=problems, remedy=remedy)
        return {name: LAYOUTS[layout.choice(name)] for name in given.blocks}
    return {name: layout_named(layout, "sparsify") for name in given.blocks}


class _Birth(NamedTuple):
    """The arguments for making supports and values."""

    block: tuple[int, int]
    init: Init
    min_fan_in: int
    rng: torch.Generator | None


def _sparse(m: Convertible, n: int, layout: Layout, how: _Birth) -> SparseLayer:
    """The sparse counterpart of a layer, with n kept blocks.

    It has the same parameter as bias, so an optimizer with this parameter stays valid.
    """
    matrix = m.weight.detach().flatten(1)  # (rows, cols)
    if how.init == "magnitude":
        support = _largest(matrix, n, how.block, how.min_fan_in)
    else:
        support = Support.random(matrix.shape, n, how.block, how.rng, how.min_fan_in)
    bias = m.bias
    assert bias is None or isinstance(bias, nn.Parameter)
    sizes = m.weight.shape[1], m.weight.shape[0]
    like: _Like = {"bias": bias is not None, "dtype": m.weight.dtype, "device": m.weight.device}
    made: SparseLayer
    if isinstance(m, nn.Linear):
        made = SparseLinear(*sizes, support=support, layout=layout, rng=how.rng, **like)
    else:
        g = module_geometry(m)
        made = SparseConv2d(*sizes, *g, support=support, layout=layout, rng=how.rng, **like)
    if how.init != "kaiming":
        made.set_values_(gather(matrix, made.support))
    made.register_parameter("bias", bias)
    made.values.requires_grad_(m.weight.requires_grad)
    return made.train(m.training)


class _Like(TypedDict):
    bias: bool
    dtype: torch.dtype
    device: torch.device


def _largest(matrix: Tensor, n: int, block: tuple[int, int], min_fan_in: int) -> Support:
    """The n blocks of largest norm, with the ``min_fan_in`` largest of every block row. Ties go to the lower id."""
    (rows, cols), (h, w), grid = matrix.shape, block, grid_of(matrix.shape, block)
    tiles = nn.functional.pad(matrix, (0, grid[1] * w - cols, 0, grid[0] * h - rows))
    norm = tiles.view(grid[0], h, grid[1], w).double().square().sum((1, 3))
    if min_fan_in:
        if min_fan_in > grid[1] or min_fan_in * grid[0] > n:
            what = f"{n} blocks cannot give each of {grid[0]} output units {min_fan_in} of {grid[1]} incoming weights"
            raise UsageError("sparsify", what, remedy="a larger density or a smaller min_fan_in")
        best = torch.sort(norm, dim=1, descending=True, stable=True)[1][:, :min_fan_in]
        norm.scatter_(1, best, math.inf)
    return Support.from_ids(top_k(norm.flatten(), n), matrix.shape, block)


def _row(name: str, m: nn.Module, reason: str, planned: Plan | None) -> Row:
    """The row of one module in the report."""
    kind = type(m).__name__
    if isinstance(m, SparseLayer):
        row = Row(name, kind, tuple(m.dense_shape), not reason, m.density, m.support.weights, reason, m.layout.name)
        measured = planned.row(name) if planned and not reason else None
        return row._replace(break_even=measured.break_even, wins=measured.wins) if measured else row
    weight: object = getattr(m, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) and not is_lazy(weight) else ()
    count = sum(p.numel() for p in m.parameters(recurse=False) if not is_lazy(p))
    return Row(name, kind, shape, False, 1.0, math.prod(shape) if shape else count, reason)
