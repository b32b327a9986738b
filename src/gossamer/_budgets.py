"""Budgets: how many of each layer's weights may be non-zero, from the layers' shapes and one global density.

    uniform   the same density everywhere, the first layer dense                 (RigL, section 3)
    er        density_l  proportional to (out + in) / (out in)                   (SET, Mocanu et al. 2018)
    erk       density_l  proportional to (sum of dims) / (product of dims)       (RigL, section 3: Erdos-Renyi-Kernel)
    pooled    the same density everywhere, no exception: one pool of weights     (starting point of topologies that move the budget)

er and erk solve for the factor epsilon with  sum_l density_l N_l = density N;  a layer that would exceed 1 is set to 1
and epsilon is solved again for the others, until none does.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from ._errors import UsageError, check_density, nearest

Shapes = Sequence[Sequence[int]]
Budget = Callable[[Shapes, float], list[float]]


def pooled(shapes: Shapes, density: float) -> list[float]:
    """The same density for every layer."""
    return [check_density("pooled", density)] * len(shapes)


def uniform(shapes: Shapes, density: float, dense_first: bool = True) -> list[float]:
    """The same density for every layer but the first, which stays dense: the total is above ``density`` by that."""
    check_density("uniform", density)
    return [1.0 if dense_first and i == 0 and len(shapes) > 1 else density for i in range(len(shapes))]


def er(shapes: Shapes, density: float) -> list[float]:
    """Erdos-Renyi: larger layers get lower densities; kernel sizes do not count."""
    return _proportional([(s[0] + s[1]) / (s[0] * s[1]) for s in shapes], shapes, check_density("er", density))


def erk(shapes: Shapes, density: float) -> list[float]:
    """Erdos-Renyi-Kernel: as :func:`er`, kernel height and width counted as dimensions."""
    return _proportional([sum(s) / math.prod(s) for s in shapes], shapes, check_density("erk", density))


BUDGETS: dict[str, Budget] = {"uniform": uniform, "er": er, "erk": erk, "pooled": pooled}


def _proportional(raw: Sequence[float], shapes: Shapes, density: float) -> list[float]:
    sizes = [math.prod(s) for s in shapes]
    dense: set[int] = set()
    while True:
        left = density * sum(sizes) - sum(sizes[i] for i in dense)  # blocks for the layers that are not dense
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
    """Densities of the named layers by a budget's name, a function (shapes, density) -> densities, or a mapping layer name -> density."""
    if isinstance(budget, Mapping):
        for name in budget:
            if name not in names:
                raise UsageError(
                    who,
                    f"budget names a layer that is not among the sparse ones: {name!r}{nearest(name, names)}",
                    reasons=names,
                )
        return [check_density(who, budget.get(name, density)) for name in names]
    if isinstance(budget, str):
        if budget not in BUDGETS:
            raise UsageError(
                who, f"unknown budget {budget!r}{nearest(budget, BUDGETS)}", remedy=f"one of {', '.join(BUDGETS)}"
            )
        budget = BUDGETS[budget]
    if not shapes:
        return []
    densities = list(budget(shapes, density))
    if len(densities) != len(shapes):
        raise UsageError(who, f"the budget gave {len(densities)} densities for {len(shapes)} layers")
    return [check_density(who, d) for d in densities]


def blocks(densities: Sequence[float], totals: Sequence[int]) -> list[int]:
    """Whole blocks per layer, at least 1 each, at most the layer's total, in sum the rounded total (largest remainder, lower index)."""
    exact = [d * n for d, n in zip(densities, totals, strict=True)]
    whole = [min(max(1, math.floor(e + 1e-9)), n) for e, n in zip(exact, totals, strict=True)]
    spare = round(sum(exact)) - sum(whole)
    for i in sorted(range(len(exact)), key=lambda i: (-(exact[i] - whole[i]), i)):
        if spare <= 0:
            break
        if whole[i] < totals[i]:
            whole[i] += 1
            spare -= 1
    while (
        spare < 0 and max(whole) > 1
    ):  # layers that were lifted to 1 block took more than there was: the most generous give it back
        i = max((i for i in range(len(whole)) if whole[i] > 1), key=lambda i: (whole[i] - exact[i], whole[i]))
        whole[i] -= 1
        spare += 1
    return whole


Counts = Mapping[str, int]


def frozen_ends(asked: float, totals: Counts, start: Counts, final: Counts, frozen: Iterable[str]) -> str | None:
    """Where the density ends if the frozen among these layers keep the blocks they have, in a sentence; None where nothing changes by it."""
    kept = [name for name in frozen if start[name] != final[name]]
    if not kept:
        return None
    ends = sum(start[name] if name in kept else final[name] for name in totals) / sum(totals.values())
    held = ", ".join(
        f"{name} keeps {start[name]:,} of {totals[name]:,}, where {final[name]:,} are asked for" for name in kept
    )
    return f"the sparse layers will end at density {ends:.4g}, not {asked:.4g}: frozen layers (requires_grad=False) do not change; {held}"
