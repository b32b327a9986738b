"""RigL, "rigging the lottery" (Evci, Gale, Menick, Castro, Elsen, ICML 2020, arXiv 1911.11134).

    f_t = drop / 2 (1 + cos(pi t / stop));  every `every` steps, per layer, k = trunc(f_t n):
    drop the k smallest |w|; grow the k largest |dL/dw| outside the units that stay (the just dropped are eligible); no optimizer step then

State: none besides the support. Cost (3 f_S (every - 1) + 2 f_S + f_D) / every per step: the dense gradient once per event. Here it is made
a block of rows at a time and only the k best survive, so memory stays O(n + block). A unit dropped and grown at once keeps its value, as in
the authors' code; theirs breaks drop ties by noise of 1e-5, and grows from the lowest id on where the gradient is exactly 0. Ours breaks
all ties at random, and exchanges nothing for a gradient of 0.
"""

from dataclasses import dataclass

from .._errors import check_count, check_density, check_share
from .._schedules import Events, cosine, regular
from .topology import Annealed, Sense, Topology, refuse_no_event


def rigl(
    stop: int,
    every: int = 100,
    drop: float = 0.3,
    *,
    move: bool = False,
    final: float | None = None,
    merge: bool = False,
    min_fan_in: int = 0,
) -> Topology:
    """RigL.

    Args:
        stop: no event at or after this step (about 75 % of training).
        every: steps between events.
        drop: share of each layer's units exchanged at the first event; cosine-annealed to 0 at ``stop``.
        move: the optimizer steps on event iterations too (the paper: not).
        final: density that the support's size moves to by ``stop`` (None: constant; GraNet's schedule from a sparse start).
        merge: grow first, prune back at the next event.
        min_fan_in: incoming units that every output unit keeps.
    """
    check_share("rigl", "drop", drop)
    check_count("rigl", "min_fan_in", min_fan_in, 0)
    if final is not None:
        check_density("rigl", final)
    events = regular(every, stop)
    refuse_no_event("rigl", events, stop, every)
    when = Annealed(events, cosine(drop, stop), move, reborn=True, last=stop if merge or final is not None else None)
    return Topology("rigl", when, Everything(events), stop=stop, final=final, merge=merge, min_fan_in=min_fan_in)


@dataclass(frozen=True)
class Everything:
    """At event steps sense all units, keeping the strongest only."""

    events: Events

    def __call__(self, t: int) -> Sense | None:
        return Sense(active=True, stream=True) if t in self.events else None
