"""SET, sparse evolutionary training (Mocanu et al. 2018, Nature Communications 9, 2383).

    every `every` steps, in each layer: drop the trunc(f_t n) smallest |w|, grow as many at random off the support
    f_t = drop_fraction / 2 (1 + cos(pi t / stop))

State: only the support. Cost 3 f_S per step. Nothing is sensed. Two things differ from the original, as in the
comparison of Evci et al. 2020: the dropped fraction is cosine-annealed, and both signs have one threshold. With
``signed=True`` the smallest positive and the largest negative weights are dropped, as in the original. New weights
start at 0.
"""

from dataclasses import KW_ONLY, dataclass

from .._errors import check_fraction
from .._schedules import cosine, is_count, regular, step_of
from .checks import check_common, refuse_no_event
from .slots import Annealed, drop_by_magnitude, drop_by_sign, grow_random
from .topology import Topology


@dataclass(frozen=True)
class SET:
    """SET: drops the smallest weights, grows as many at random.

    Args:
        stop: events take place before this step: a number of optimizer steps, or a fraction of the run.
        every: optimizer steps between events.
        drop_fraction: fraction of each layer's blocks that the first event exchanges; cosine-annealed to 0 at ``stop``.
        signed: whether to drop by sign, as the original does.
        step_optimizer: whether the optimizer steps on the iteration of an event too.
        final_density: the density at ``stop``, reached gradually; None keeps the density.
        min_fan_in: the least number of incoming blocks of every output unit.
    """

    stop: int | float = 0.75
    every: int = 100
    drop_fraction: float = 0.3
    _: KW_ONLY
    signed: bool = False
    step_optimizer: bool = True
    final_density: float | None = None
    min_fan_in: int = 0

    def __post_init__(self) -> None:
        check_fraction("SET", "drop_fraction", self.drop_fraction)
        check_common("SET", self.stop, self.every, self.final_density, self.min_fan_in)
        if is_count(self.stop):
            self.resolve()

    def resolve(self, steps: int | None = None) -> Topology:
        """The topology for a run of ``steps`` optimizer steps. Raises UsageError where a setting does not fit them."""
        stop = step_of("SET", "stop", self.stop, steps)
        events = regular(self.every, stop)
        refuse_no_event("SET", events, stop, self.every)
        last = stop if self.final_density is not None else None
        return Topology(
            "set",
            Annealed(events, cosine(self.drop_fraction, stop), self.step_optimizer, allow_regrow=False, last=last),
            drop_score=drop_by_sign if self.signed else drop_by_magnitude,
            grow_score=grow_random,
            candidates="anywhere",
            stop=stop,
            final_density=self.final_density,
            min_fan_in=self.min_fan_in,
        )
