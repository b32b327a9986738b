"""From a dense model to a sparse one and back: sparsify, densify, and parameter groups whose step follows the density.

Everything is checked and built before the model is touched; what stays dense stays so for a reason that the report states.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from . import budgets
from .errors import Unfit, check_density, nearest
from .layers import SparseConv2d, SparseLayer, SparseLinear, sparse_layers
from .layouts import Layout, gather, layout_named
from .ops.csr_sense.reference import top_k
from .support import Support, checked, grid_of


class Row(NamedTuple):
    """One module of a model, as :func:`sparsify` left it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    sparse: bool
    density: float
    nonzeros: int
    reason: str  # why it was left dense, "" if it was replaced


class Report(NamedTuple):
    """What :func:`sparsify` did: ``str(report)`` is a table."""

    rows: tuple[Row, ...]
    asked: float

    @property
    def density(self) -> float:
        """Density over the replaced layers."""
        weights = sum(math.prod(r.shape) for r in self.rows if r.sparse)
        return sum(r.nonzeros for r in self.rows if r.sparse) / weights

    def __str__(self) -> str:
        lines = [("layer", "kind", "shape", "density", "non-zero", "")]
        for r in self.rows:
            shape = " x ".join(str(v) for v in r.shape) or "-"
            lines.append(
                (r.name or "(root)", r.kind, shape, f"{r.density:.4f}", f"{r.nonzeros:,}", "sparse" if r.sparse else f"dense: {r.reason}")
            )
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
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


Pick = str | re.Pattern | type


def sparsify(
    model: nn.Module,
    density: float,
    *,
    budget: str | budgets.Budget | Mapping[str, float] = "erk",
    layout: str | Layout = "csr",
    unit: tuple[int, int] = (1, 1),
    include: Pick | Iterable[Pick] | None = None,
    exclude: Pick | Iterable[Pick] | None = None,
    init: str = "kaiming",
    min_fan_in: int = 0,
    rng: torch.Generator | None = None,
    verbose: bool = False,
) -> nn.Module:
    """Replaces every ``nn.Linear`` and ``nn.Conv2d`` of a model by its sparse twin, in place.

    Args:
        density: share of the weights of the replaced layers that may be non-zero, in (0, 1].
        budget: how layers share it: ``"erk"``, ``"er"``, ``"uniform"`` (first layer dense), ``"pooled"``, a function
            (shapes, density) -> densities, or a mapping layer name -> density. A layer that is given density 1 is left dense, unless
            ``density`` itself is 1 (the start of a pruning run).
        include, exclude: which layers: names (a container's name stands for all below it), ``"re:PATTERN"`` or compiled patterns
            (searched in the qualified name), or module types.
        init: ``"kaiming"`` draws new values; ``"keep"`` keeps the model's weights on a random support; ``"magnitude"`` keeps its
            largest weights.
        verbose: print the report.

    Returns: the model (a new module if the model is itself a single layer); ``model.sparsity_report`` says what was replaced, what was
    left dense, and why.

    Raises: Unfit, before anything is changed.
    """
    who = "sparsify"
    check_density(who, density)
    layout = layout_named(layout, who)
    if init not in ("kaiming", "keep", "magnitude"):
        raise Unfit(who, f"unknown init {init!r}{nearest(init, ('kaiming', 'keep', 'magnitude'))}", remedy="kaiming, keep or magnitude")
    owners = {name: m for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    chosen = None if include is None else _picked(include, model, "include")
    excluded = _picked(() if exclude is None else exclude, model, "exclude")
    shared = _shared(owners)
    reasons = {name: _dense_reason(name, m, chosen, excluded, shared) for name, m in owners.items()}
    names = [name for name, why in reasons.items() if not why]
    if not names:
        detail = [f"{name or '(root)'}: {why}" for name, why in reasons.items()] or ["the model has no parameters"]
        raise Unfit(who, "no layer of this model can be made sparse", reasons=detail)
    shapes = [tuple(owners[name].weight.shape) for name in names]  # type: ignore[union-attr]
    densities = budgets.resolve(budget, names, shapes, density, who)
    totals = [math.prod(grid_of(*checked(who, (s[0], math.prod(s[1:])), unit))) for s in shapes]
    counts = dict(zip(names, budgets.units(densities, totals), strict=True))
    for name, count, total in zip(names, counts.values(), totals, strict=True):
        if count == total and density < 1.0:
            reasons[name] = "its budget is density 1"
    twins = {name: _sparse_twin(owners[name], counts[name], layout, unit, init, min_fan_in, rng) for name in names if not reasons[name]}
    rows = [_row(name, twins.get(name, m), reasons.get(name, "")) for name, m in owners.items()]
    model = _replaced(model, {owners[name]: twin for name, twin in twins.items()})
    model.sparsity_report = Report(tuple(rows), density)  # type: ignore[assignment]
    if verbose:
        print(model.sparsity_report)
    return model


def densify(model: nn.Module) -> nn.Module:
    """Replaces every sparse layer by its plain torch twin with the same weights, in place; returns the model."""
    twins: dict[nn.Module, nn.Module] = {}
    for layer in sparse_layers(model).values():
        place = {"device": layer.values.device, "dtype": layer.values.dtype}
        shape, g, bias = layer.dense_shape, layer.geometry, layer.bias is not None
        if g is None:
            twin: nn.Module = nn.utils.skip_init(nn.Linear, shape[1], shape[0], bias=bias, **place)
        else:
            twin = nn.utils.skip_init(nn.Conv2d, shape[1], shape[0], g.kernel, g.stride, g.padding, g.dilation, bias=bias, **place)
        with torch.no_grad():
            twin.weight.copy_(layer.to_dense())  # type: ignore[operator,union-attr]
        twin.weight.requires_grad_(layer.values.requires_grad)  # type: ignore[operator,union-attr]
        if bias:
            twin.register_parameter("bias", layer.bias)
        twins[layer] = twin.train(layer.training)
    model = _replaced(model, twins)
    if "sparsity_report" in vars(model):
        del model.sparsity_report
    return model


def parameter_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float = 0.0, density_exponent: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: each sparse layer's step follows its density; biases and normalisation are not decayed.

    A sparse unit's pre-activation moves by lr sum_{j in S} x_j^2 per unit of output gradient: it shrinks with the density. So layer l of
    density d_l gets the step lr d_l^-a and the weight decay wd d_l^a (their product, the decay per step, is unchanged), a =
    ``density_exponent``: 0 is one step size for all, 0.25 is a safe choice for SGD; Adam-type optimizers take up to 1 (after Dey,
    Bergsma, Hestness, arXiv 2405.15743). Dense weights keep (lr, wd); parameters of fewer than 2 dimensions get (lr, 0).

    Args:
        lr: the step size; needed when ``density_exponent`` is not 0, otherwise optional.
    """
    if density_exponent and lr is None:
        raise Unfit("parameter_groups", "density_exponent scales the step size, so it needs lr")
    base = {} if lr is None else {"lr": lr}
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for name, layer in sparse_layers(model).items():
        if layer.values in seen or not layer.values.requires_grad:
            continue
        seen.add(layer.values)
        scale = layer.density**density_exponent
        step = {} if lr is None else {"lr": lr / scale}
        groups.append({"params": [layer.values], "weight_decay": weight_decay * scale, "name": name, **step})
    rest = [p for p in model.parameters() if p.requires_grad and p not in seen]
    for label, members, decay in (
        ("dense weights", [p for p in rest if p.dim() >= 2], weight_decay),
        ("biases and normalisation", [p for p in rest if p.dim() < 2], 0.0),
    ):
        if members:
            groups.append({"params": members, "weight_decay": decay, "name": label, **base})
    return groups


# -------------------------------------------------------------------- details


def _picked(picks: Pick | Iterable[Pick], model: nn.Module, argument: str) -> set[str]:
    """Names of the modules that an ``include`` or ``exclude`` argument stands for; a pick that matches nothing is refused."""
    modules = dict(model.named_modules())
    found: set[str] = set()
    for pick in [picks] if isinstance(picks, (str, re.Pattern, type)) else list(picks):
        if isinstance(pick, type):
            hits = {name for name, m in modules.items() if isinstance(m, pick)}
        elif isinstance(pick, re.Pattern) or pick.startswith("re:"):
            try:
                pattern = re.compile(pick[3:]) if isinstance(pick, str) else pick
            except re.error as error:
                raise Unfit("sparsify", f"{argument}={pick!r} is not a regular expression: {error}") from error
            hits = {name for name in modules if pattern.search(name)}
        else:
            hits = {name for name in modules if name == pick or name.startswith(pick + ".")}
        if not hits:
            label = pick.__name__ if isinstance(pick, type) else pick
            names = [name for name in modules if name]
            raise Unfit(
                "sparsify",
                f"{argument}={label!r} matches no module of the model{nearest(label, names) if isinstance(label, str) else ''}",
                remedy=f"names: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}; or 're:PATTERN'; or a module type",
            )
        found |= hits
    return found


def _shared(owners: Mapping[str, nn.Module]) -> dict[str, str]:
    """Modules whose weight is also a parameter of another module: name -> the other's name."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, m in owners.items():
        for p in m.parameters(recurse=False):
            other = first.setdefault(id(p), name)
            if other != name:
                shared[name], shared[other] = other, name
    return shared


def _dense_reason(name: str, m: nn.Module, chosen: set[str] | None, excluded: set[str], shared: Mapping[str, str]) -> str:
    """Why a module that owns parameters stays as it is, or ""."""
    if isinstance(m, SparseLayer):
        return "it is sparse already"
    if type(m) not in (nn.Linear, nn.Conv2d):
        if isinstance(m, LazyModuleMixin):
            return "it is lazy: run one batch through the model first"
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            return f"{type(m).__name__} is a subclass or a parametrisation of a layer, whose meaning is not known here"
        return f"{type(m).__name__} is neither Linear nor Conv2d"
    if name in excluded:
        return "excluded"
    if chosen is not None and name not in chosen:
        return "not included"
    if name in shared:
        return f"its weight is shared with {shared[name]}"
    if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
        return "it has hooks, which would be lost"
    if isinstance(m, nn.Conv2d):
        if m.groups > 1:
            return f"groups={m.groups}: a grouped kernel is already block-diagonal and small"
        if m.padding_mode != "zeros":
            return f"padding_mode={m.padding_mode!r}: only zero padding has sparse kernels"
        if m.padding == "same" and any(d * (k - 1) % 2 for k, d in zip(m.kernel_size, m.dilation, strict=True)):
            return "padding='same' with an odd total is not symmetric"
    return ""


def _sparse_twin(
    m: nn.Module, n: int, layout: Layout, unit: tuple[int, int], init: str, min_fan_in: int, rng: torch.Generator | None
) -> SparseLayer:
    assert isinstance(m, (nn.Linear, nn.Conv2d))
    matrix = m.weight.detach().reshape(m.weight.shape[0], -1)
    shape = (matrix.shape[0], matrix.shape[1])
    if init == "magnitude":
        support = _largest(matrix, n, unit, min_fan_in)
    else:
        support = Support.random(shape, n, unit, rng, min_fan_in)
    common = {
        "support": support,
        "bias": m.bias is not None,
        "layout": layout,
        "rng": rng,
        "dtype": m.weight.dtype,
        "device": m.weight.device,
    }
    if isinstance(m, nn.Linear):
        twin: SparseLayer = SparseLinear(m.in_features, m.out_features, **common)
    else:
        twin = SparseConv2d(m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, **common)  # type: ignore[arg-type]
    if init != "kaiming":
        twin.set_values_(gather(matrix, twin.support))
    twin.register_parameter("bias", m._parameters["bias"])  # the same parameter: an optimizer that holds it stays valid
    twin.values.requires_grad_(m.weight.requires_grad)
    return twin.train(m.training)


def _largest(matrix: Tensor, n: int, unit: tuple[int, int], min_fan_in: int) -> Support:
    """The n units of largest norm, first the ``min_fan_in`` largest of every unit row; ties: the lower id."""
    shape = (matrix.shape[0], matrix.shape[1])
    (h, w), grid = unit, grid_of(shape, unit)
    tiles = nn.functional.pad(matrix, (0, grid[1] * w - shape[1], 0, grid[0] * h - shape[0]))
    norm = tiles.view(grid[0], h, grid[1], w).double().square().sum((1, 3))
    if min_fan_in:
        if min_fan_in > grid[1] or min_fan_in * grid[0] > n:
            what = f"{n} units cannot give each of {grid[0]} output units {min_fan_in} of {grid[1]} incoming weights"
            raise Unfit("sparsify", what, remedy="a larger density or a smaller min_fan_in")
        best = torch.sort(norm, dim=1, descending=True, stable=True)[1][:, :min_fan_in]
        norm.scatter_(1, best, math.inf)
    return Support.from_ids(top_k(norm.flatten(), n), shape, unit)


def _row(name: str, m: nn.Module, reason: str) -> Row:
    if isinstance(m, SparseLayer):
        return Row(name, type(m).__name__, tuple(m.dense_shape), not reason, m.density, m.support.weights, reason)
    weight = getattr(m, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) and not is_lazy(weight) else ()
    count = sum(p.numel() for p in m.parameters(recurse=False) if not is_lazy(p))
    return Row(name, type(m).__name__, shape, False, 1.0, math.prod(shape) if shape else count, reason)


def _replaced(model: nn.Module, twins: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The model with modules exchanged wherever they stand."""
    if model in twins:
        return twins[model]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in twins:
                setattr(parent, name, twins[child])
    return model
