"""GMP, gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878).

    n_t = n_end + (n_start - n_end) (1 - t / stop)^3
    every `every` steps, drop the smallest |w| of each layer until n_t blocks are left

The start is density 1 (``sparsify(model, 1.0)``) or any other density. The end is ``final_density``, split among layers
by ``budget``. Cost E_t[3 f_S(t)] per step. In the compact layout memory falls with the support. Nothing grows: each
support contains the next.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from .._budgets import Budget
from .._errors import check_density
from .._schedules import Events, is_count, regular, step_of
from .checks import check_common
from .records import Update
from .topology import Topology


@dataclass(frozen=True)
class GMP:
    """Gradual magnitude pruning: drops the smallest weights, from one density down to another.

    Args:
        stop: the step at which the final size is reached: a number of optimizer steps, or a fraction of the run.
        every: optimizer steps between events.
        final_density: the density of all sparse layers together at the end, in (0, 1].
        budget: how layers share the final density, as in ``sparsify``.
        min_fan_in: the least number of incoming blocks of every output unit.
    """

    stop: int | float = 0.75
    every: int = 100
    _: KW_ONLY
    final_density: float
    budget: str | Budget | Mapping[str, float] = "erk"
    min_fan_in: int = 0

    def __post_init__(self) -> None:
        check_density("GMP", self.final_density)
        check_common("GMP", self.stop, self.every, self.final_density, self.min_fan_in)
        if is_count(self.stop):
            self.resolve()

    def resolve(self, steps: int | None = None) -> Topology:
        """The topology for a run of ``steps`` optimizer steps. Raises UsageError where a setting does not fit them."""
        stop = step_of("GMP", "stop", self.stop, steps)
        return Topology(
            "gmp",
            Pruning(regular(self.every, stop), stop),
            stop=stop,
            final_density=self.final_density,
            budget=self.budget,
            min_fan_in=self.min_fan_in,
        )


@dataclass(frozen=True)
class Pruning:
    """Events that only bring the sizes to their schedule. The last event is at ``stop``."""

    events: Events
    stop: int

    def __call__(self, t: int) -> Update | None:
        return Update(0.0, interval=self.events.gap(t)) if t == self.stop or t in self.events else None
