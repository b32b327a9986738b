"""RigL, "rigging the lottery" (Evci, Gale, Menick, Castro, Elsen, ICML 2020, arXiv 1911.11134).

    f_t = drop_fraction / 2 (1 + cos(pi t / stop))
    every `every` steps, in each layer, with k = trunc(f_t n) and without an optimizer step:
    drop the k smallest |w|; grow the k largest |dL/dw| off the blocks that stay (what was just dropped may grow)

State: none besides the support. Cost (3 f_S (every - 1) + 2 f_S + f_D) / every per step: the dense gradient once per
event. It is made a few rows at a time and only the k best are kept, so memory stays O(n + rows in work). A block that
is dropped and grown at once keeps its value, as in the authors' code. Their code breaks ties among dropped blocks by
noise of 1e-5, and grows by id where the gradient is 0. Here ties are random, and a gradient of 0 grows nothing.
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
    """RigL: drop the smallest weights, grow those of largest gradient, measured everywhere at each event.

    Args:
        stop: no event at or after this step: a number of optimizer steps, or a fraction of the run.
        every: optimizer steps between events.
        drop_fraction: of each layer's blocks, exchanged at the first event; cosine-annealed to 0 at ``stop``.
        step_optimizer: the optimizer steps on event iterations too (the paper: not).
        final_density: density that the support's size moves to by ``stop``; None: constant. (GraNet's schedule, from
            a sparse start.)
        merge: grow first, prune back at the next event.
        min_fan_in: incoming blocks that every output unit keeps.
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
        """The topology of a run of so many steps. Raises UsageError."""
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
    """At event steps sense all blocks; keep the strongest only."""

    events: Events

    def __call__(self, t: int) -> Sensing | None:
        return Sensing(active=True, stream=True) if t in self.events else None
