"""RigL, "rigging the lottery" (Evci, Gale, Menick, Castro, Elsen, ICML 2020, arXiv 1911.11134).

    f_t = drop_fraction / 2 (1 + cos(pi t / stop))
    every `every` steps, in each layer, with k = trunc(f_t n) and without an optimizer step:
    drop the k smallest |w|; grow the k largest |dL/dw| off the blocks that stay (what was just dropped may grow)

State: only the support. Cost (3 f_S (every - 1) + 2 f_S + f_D) / every per step: one dense gradient per event. It is
computed a few rows at a time and only the k best are kept: memory O(n + rows at a time). A block that is dropped and
grown in one event keeps its value, as in the authors' code. Their code breaks ties among dropped blocks by noise of
1e-5, and grows by id where the gradient is 0. Here ties are random, and a block of gradient 0 does not grow.
"""

from dataclasses import KW_ONLY, dataclass

from .._errors import check_fraction
from .._schedules import Events, cosine, is_count, regular, step_of
from .checks import check_common, refuse_no_event
from .records import Sensing
from .slots import Annealed
from .topology import Topology


@dataclass(frozen=True)
class RigL:
    """RigL: drops the smallest weights, grows the weights of largest gradient, measured everywhere at each event.

    Args:
        stop: events take place before this step: a number of optimizer steps, or a fraction of the run.
        every: optimizer steps between events.
        drop_fraction: fraction of each layer's blocks that the first event exchanges; cosine-annealed to 0 at ``stop``.
        step_optimizer: whether the optimizer steps on the iteration of an event too. In the paper it does not.
        final_density: the density at ``stop``, reached gradually (GraNet's schedule, from a sparse start); None keeps
            the density.
        merge: grow first, and prune back at the next event.
        min_fan_in: the least number of incoming blocks of every output unit.
    """

    stop: int | float = 0.75
    every: int = 100
    drop_fraction: float = 0.3
    _: KW_ONLY
    step_optimizer: bool = False
    final_density: float | None = None
    merge: bool = False
    min_fan_in: int = 0

    def __post_init__(self) -> None:
        check_fraction("RigL", "drop_fraction", self.drop_fraction)
        check_common("RigL", self.stop, self.every, self.final_density, self.min_fan_in)
        if is_count(self.stop):
            self.resolve()

    def resolve(self, steps: int | None = None) -> Topology:
        """The topology for a run of ``steps`` optimizer steps. Raises UsageError where a setting does not fit them."""
        stop = step_of("RigL", "stop", self.stop, steps)
        events = regular(self.every, stop)
        refuse_no_event("RigL", events, stop, self.every)
        last = stop if self.merge or self.final_density is not None else None
        when = Annealed(events, cosine(self.drop_fraction, stop), self.step_optimizer, allow_regrow=True, last=last)
        return Topology(
            "rigl",
            when,
            Everything(events),
            stop=stop,
            final_density=self.final_density,
            merge=self.merge,
            min_fan_in=self.min_fan_in,
        )


@dataclass(frozen=True)
class Everything:
    """At event steps, senses all blocks and keeps only the strongest."""

    events: Events

    def __call__(self, t: int) -> Sensing | None:
        return Sensing(active=True, stream=True) if t in self.events else None
