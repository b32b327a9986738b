"""SET, sparse evolutionary training (Mocanu et al. 2018, Nature Communications 9, 2383).

    every `every` steps: drop the trunc(drop_t n) smallest |w| of each layer, grow as many at random among all units not kept

State: none besides the support. Cost per step 3 f_S; nothing is sensed. Differs from the original as the RigL comparison does
(Evci et al. 2020): the dropped share is cosine-annealed, and one magnitude threshold serves both signs; ``signed=True`` drops the smallest
positive and the largest negative weights instead. New weights start at 0.
"""

from .._errors import check_count, check_density, check_share
from .._schedules import cosine, regular
from .topology import Annealed, Topology, by_sign, chance, magnitude, refuse_no_event


def set_(
    stop: int,
    every: int = 100,
    drop: float = 0.3,
    *,
    signed: bool = False,
    move: bool = True,
    final: float | None = None,
    min_fan_in: int = 0,
) -> Topology:
    """SET.

    Args:
        stop: no event at or after this step (about 75 % of training).
        every: steps between events.
        drop: share of each layer's units exchanged at the first event; cosine-annealed to 0 at ``stop``.
        signed: the original's drop rule.
        move: the optimizer steps on event iterations too.
        final: density that the support's size moves to by ``stop`` (None: constant).
        min_fan_in: incoming units that every output unit keeps.
    """
    check_share("set_", "drop", drop)
    check_count("set_", "min_fan_in", min_fan_in, 0)
    if final is not None:
        check_density("set_", final)
    events = regular(every, stop)
    refuse_no_event("set_", events, stop, every)
    when = Annealed(events, cosine(drop, stop), move=move, reborn=False, last=stop if final is not None else None)
    drops = by_sign if signed else magnitude
    return Topology("set", when, drop=drops, grow=chance, candidates="anywhere", stop=stop, final=final, min_fan_in=min_fan_in)
