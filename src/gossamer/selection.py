"""Selection: which layers of a model are made sparse, and how many blocks each may keep. What stays dense stays so for a reason.

``sparsify`` converts what is allotted here, and ``plan`` measures it: they agree because they ask the same question.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from . import _budgets as budgets
from ._errors import UsageError, check_density, nearest
from .batch_last import PLAIN
from .layers import SparseLayer
from .support import checked, grid_of

Pick = str | re.Pattern | type


class Selection(NamedTuple):
    """All modules that own parameters, by name in order of definition, and what each is given."""

    owners: dict[str, nn.Module]
    reasons: dict[str, str]  # why a module stays as it is; "" = it is made sparse
    blocks: dict[str, int]  # kept blocks of those that are made sparse
    totals: dict[str, int]  # all blocks of the same

    def density(self, name: str) -> float:
        """Share of its blocks that a layer keeps."""
        return self.blocks[name] / self.totals[name]


def select(
    who: str,
    model: nn.Module,
    density: float,
    budget: str | budgets.Budget | Mapping[str, float],
    block: tuple[int, int],
    include: Pick | Iterable[Pick] | None,
    exclude: Pick | Iterable[Pick] | None,
) -> Selection:
    """What the arguments of :func:`~gossamer.sparsify` mean for this model. Changes nothing; raises UsageError in the name of ``who``."""
    check_density(who, density)
    owners = {name: m for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    chosen = None if include is None else _picked(who, include, model, "include")
    excluded = _picked(who, () if exclude is None else exclude, model, "exclude")
    shared = _shared(owners)
    reasons = {name: _dense_reason(name, m, chosen, excluded, shared) for name, m in owners.items()}
    names = [name for name, why in reasons.items() if not why]
    if not names:
        detail = [f"{name or '(root)'}: {why}" for name, why in reasons.items()] or ["the model has no parameters"]
        raise UsageError(who, "no layer of this model can be made sparse", reasons=detail)
    shapes = [tuple(owners[name].weight.shape) for name in names]  # type: ignore[union-attr]
    densities = budgets.resolve(budget, names, shapes, density, who)
    totals = [math.prod(grid_of(*checked(who, (s[0], math.prod(s[1:])), block))) for s in shapes]
    counts = budgets.counts(densities, totals)
    for name, count, total in zip(names, counts, totals, strict=True):
        if count == total and density < 1.0:
            reasons[name] = "its budget is density 1"
    kept = [i for i, name in enumerate(names) if not reasons[name]]
    return Selection(owners, reasons, {names[i]: counts[i] for i in kept}, {names[i]: totals[i] for i in kept})


# -------------------------------------------------------------------- details


def _picked(who: str, picks: Pick | Iterable[Pick], model: nn.Module, argument: str) -> set[str]:
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
                raise UsageError(who, f"{argument}={pick!r} is not a regular expression: {error}") from error
            hits = {name for name in modules if pattern.search(name)}
        else:
            hits = {name for name in modules if name == pick or name.startswith(pick + ".")}
        if not hits:
            label = pick.__name__ if isinstance(pick, type) else pick
            names = [name for name in modules if name]
            raise UsageError(
                who,
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


def _dense_reason(
    name: str, m: nn.Module, chosen: set[str] | None, excluded: set[str], shared: Mapping[str, str]
) -> str:
    """Why a module that owns parameters stays as it is, or ""."""
    if isinstance(m, SparseLayer):
        return "it is sparse already"
    if PLAIN.get(type(m), type(m)) not in (nn.Linear, nn.Conv2d):
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
