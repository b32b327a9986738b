"""Budgets: the density of each layer, from the layers' shapes and one global density.

    uniform   the same density everywhere, the first layer dense                 (RigL, section 3)
    er        density_l  proportional to (out + in) / (out in)                   (SET, Mocanu et al. 2018)
    erk       density_l  proportional to (sum of dims) / (product of dims)       (RigL, section 3: Erdos-Renyi-Kernel)
    pooled    the same density everywhere, the first layer included              (the start for allocate="pooled")

er and erk solve  sum_l density_l N_l = density N  for the factor of proportionality epsilon. A layer whose density
would exceed 1 is set to 1. Then epsilon is solved again for the other layers, until no density exceeds 1.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from ._errors import UsageError, check_density, nearest

Shapes = Sequence[Sequence[int]]  # of the weights: (out, in) or (out, in, height, width)
Budget = Callable[[Shapes, float], list[float]]  # (shapes, global density) -> density of each layer


def pooled(shapes: Shapes, density: float) -> list[float]:
    """The same density for every layer."""
    return [check_density("pooled", density)] * len(shapes)


def uniform(shapes: Shapes, density: float, dense_first: bool = True) -> list[float]:
    """The same density for every layer except the first, which stays dense. So the overall density is higher."""
    check_density("uniform", density)
    return [1.0 if dense_first and i == 0 and len(shapes) > 1 else density for i in range(len(shapes))]


def er(shapes: Shapes, density: float) -> list[float]:
    """Erdos-Renyi: larger layers get lower densities. The size of a convolution's kernel does not count."""
    return _proportional([(s[0] + s[1]) / (s[0] * s[1]) for s in shapes], shapes, check_density("er", density))


def erk(shapes: Shapes, density: float) -> list[float]:
    """Erdos-Renyi-Kernel: as :func:`er`, but height and width of a kernel count as dimensions."""
    return _proportional([sum(s) / math.prod(s) for s in shapes], shapes, check_density("erk", density))


BUDGETS: dict[str, Budget] = {"uniform": uniform, "er": er, "erk": erk, "pooled": pooled}


def _proportional(raw: Sequence[float], shapes: Shapes, density: float) -> list[float]:
    """Densities epsilon raw_l, at most 1 each, whose mean over all weights is ``density``."""
    sizes = [math.prod(s) for s in shapes]
    dense: set[int] = set()
    while True:
        left = density * sum(sizes) - sum(sizes[i] for i in dense)  # weights for the layers that are not dense
        weighted = sum(raw[i] * sizes[i] for i in range(len(sizes)) if i not in dense)
        if weighted == 0:
            return [1.0] * len(sizes)
        epsilon = left / weighted
        over = {i for i in range(len(sizes)) if i not in dense and epsilon * raw[i] > 1}
        if not over:
            return [1.0 if i in dense else epsilon * raw[i] for i in range(len(sizes))]
        dense |= over


def resolve(
    budget: str | Budget | Mapping[str, float], names: Sequence[str], shapes: Shapes, density: float, who: str
) -> list[float]:
    """The density of each named layer.

    Args:
        budget: a name of :data:`BUDGETS`; a function (shapes, density) -> densities; or a mapping from names of layers
            to densities. A layer that the mapping does not name gets ``density``.
        names: names of the layers, in the order of ``shapes``.
        shapes: of the weights.
        density: the global density.
        who: the function that raises the error, for messages.

    Raises: UsageError for an unknown budget or layer, and for densities outside (0, 1].
    """
    if isinstance(budget, str):
        if budget not in BUDGETS:
            what = f"unknown budget {budget!r}{nearest(budget, BUDGETS)}"
            raise UsageError(who, what, remedy=f"one of {', '.join(BUDGETS)}")
        budget = BUDGETS[budget]
    if not callable(budget):
        unknown = next((name for name in budget if name not in names), None)
        if unknown is not None:
            what = f"budget names a layer that is not among the sparse layers: {unknown!r}{nearest(unknown, names)}"
            raise UsageError(who, what, reasons=names)
        return [check_density(who, budget.get(name, density)) for name in names]
    if not shapes:
        return []
    densities = list(budget(shapes, density))
    if len(densities) != len(shapes):
        raise UsageError(who, f"the budget gave {len(densities)} densities for {len(shapes)} layers")
    return [check_density(who, d) for d in densities]


def counts(densities: Sequence[float], totals: Sequence[int]) -> list[int]:
    """The number of blocks of each layer, by the method of the largest remainder.

    Among equal remainders the layer of lower index comes first. Each layer gets at least 1 block and at most its
    total. Where these bounds allow it, the sum is the rounded sum of density * total.

    Args:
        densities: of each layer, in (0, 1].
        totals: blocks of each dense layer.
    """
    exact = [d * n for d, n in zip(densities, totals, strict=True)]
    whole = [min(max(1, math.floor(e + 1e-9)), n) for e, n in zip(exact, totals, strict=True)]
    spare = round(sum(exact)) - sum(whole)
    for i in sorted(range(len(exact)), key=lambda i: (-(exact[i] - whole[i]), i)):
        if spare <= 0:
            break
        if whole[i] < totals[i]:
            whole[i] += 1
            spare -= 1
    # If layers were raised to 1 block, the sum may be too large: the layer most above its exact number loses a block.
    while spare < 0 and max(whole) > 1:
        i = max((i for i in range(len(whole)) if whole[i] > 1), key=lambda i: (whole[i] - exact[i], whole[i]))
        whole[i] -= 1
        spare += 1
    return whole


Counts = Mapping[str, int]  # name of a layer -> blocks


def frozen_warning(asked: float, totals: Counts, start: Counts, final: Counts, frozen: Iterable[str]) -> str | None:
    """A warning that frozen layers keep their blocks, with the density at which the run ends.

    Args:
        asked: the requested density at the end.
        totals: blocks of each layer if it were dense.
        start: blocks of each layer at the start.
        final: requested blocks of each layer at the end.
        frozen: names of the layers that do not change.

    Returns: None if the frozen layers already have their final number of blocks.
    """
    kept = [name for name in frozen if start[name] != final[name]]
    if not kept:
        return None
    end = sum(start[name] if name in kept else final[name] for name in totals) / sum(totals.values())
    held = ", ".join(f"{name} keeps {start[name]:,} of {totals[name]:,} blocks, not {final[name]:,}" for name in kept)
    what = f"the sparse layers will end at density {end:.4g}, not {asked:.4g}"
    return f"{what}: frozen layers (requires_grad=False) do not change; {held}"
