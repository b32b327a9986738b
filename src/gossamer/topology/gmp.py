"""GMP, gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878).

    n_t = n_end + (n_start - n_end) (1 - t / stop)^3;   every `every` steps drop the smallest |w| of each layer down to n_t

Start from density 1 (``sparsify(model, 1.0)``) or from any other; the end is ``final``, split among layers by ``budget``. Cost
E_t[3 f_S(t)] per step. In the compact layout memory falls with the support. No growth: kept sets are nested.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .._budgets import Budget
from .._errors import check_density
from .._schedules import Events, regular
from .topology import Change, Topology


def gmp(stop: int, final: float, every: int = 100, *, budget: str | Budget | Mapping[str, float] = "erk", min_fan_in: int = 0) -> Topology:
    """Gradual magnitude pruning.

    Args:
        stop: the step at which the final size is reached.
        final: density at the end over the sparse layers, in (0, 1].
        every: steps between events.
        budget: how layers share the final density, as in ``sparsify``.
        min_fan_in: incoming units that every output unit keeps.
    """
    check_density("gmp", final)
    return Topology("gmp", Pruning(regular(every, stop), stop), stop=stop, final=final, budget=budget, min_fan_in=min_fan_in)


@dataclass(frozen=True)
class Pruning:
    """Events that only bring the size to its schedule, the last one at ``stop``."""

    events: Events
    stop: int

    def __call__(self, t: int) -> Change | None:
        return Change(0.0, interval=self.events.gap(t)) if t == self.stop or t in self.events else None
