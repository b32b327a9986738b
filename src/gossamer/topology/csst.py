"""CSST, sparse training with gradient sensing, after "Sparse Training Algorithms based on Compressed Sensing for Accelerating
Large-Scale Neural Networks" (Miller & Jenkins 2026), its gaps filled as docs/methods/csst.md argues point by point.

    events   t_1 = every, t_{j+1} = t_j + round(every (last_every / every)^(t_j / stop)), none from `stop` on
    window   the W = `window` steps that end at an event: draw Omega, `fraction` of the zero units (or `count`), once, uniformly or by
             "flow", with probability proportional to E[dy_i^2] E[x_j^2], the expected squared gradient of independent factors, measured
             on the step before, as randomised matrix products sample (Drineas, Kannan & Mahoney 2006); then
             m <- decay m + (1 - decay) g_Omega at each of them, scored as |m| / (1 - decay^W)
    amount   k = trunc(min(a_t n, selectivity |Omega|)), a_t = drop / 2 (1 + cos(pi t / stop)): growers must be few among the sensed, or
             growth is random
    event    prune_grow   drop the k smallest |w|, grow the k best of Omega
             iht          z = w on the support, eta m on Omega (eta = lr / (1 - momentum) * interval, the look-ahead step):
                          keep the n largest |z|, at most k swaps
             merge        grow k first, prune back to n at the next event (identify, merge, estimate, prune: CoSaMP's order)
    share    fixed: each layer grows what it dropped; pooled: candidates of all layers ranked by |m| / rms(g on support), floors and caps

State: the support; in a window Omega and m, O(|Omega|), freed after. Cost 3 f_S per step, in windows + fraction (f_D - f_S).
Nothing of the dense size exists at any time; the draw takes O(|Omega| log n), the mean squares O(B (rows + cols)).
"""

from dataclasses import dataclass

from .._errors import Unfit, check_count, check_density, check_share, nearest
from .._schedules import Events, cosine, growing
from .topology import Annealed, Sense, Topology, exchanged, fixed, pooled, projected, refuse_no_event

MODES = ("prune_grow", "iht", "merge")
CANDIDATES = ("uniform", "flow")
SHARES = {"fixed": fixed, "pooled": pooled}


def csst(
    stop: int,
    every: int = 100,
    last_every: int = 1000,
    window: int = 10,
    fraction: float = 0.1,
    count: int | None = None,
    drop: float = 0.5,
    mode: str = "prune_grow",
    share: str = "fixed",
    *,
    candidates: str = "uniform",
    decay: float = 0.9,
    selectivity: float = 0.25,
    move: bool = True,
    reborn: bool = False,
    final: float | None = None,
    min_fan_in: int = 0,
) -> Topology:
    """CSST.

    Args:
        stop: no event at or after this step (about 75 % of training).
        every, last_every: steps between events at the beginning and at ``stop``; exponential in between.
        window: steps over which the sensed gradient is smoothed before an event; 1 is the instantaneous gradient.
        fraction: share of each layer's zero units that is sensed, in (0, 1].
        count: sense this many units per layer instead (layers whose zeros are too many for a share of them).
        drop: share of units exchanged at the first event, cosine-annealed to 0; ``selectivity`` bounds it.
        mode: ``"prune_grow"``, ``"iht"`` or ``"merge"``.
        share: ``"fixed"`` or ``"pooled"``.
        candidates: how the sensed units are drawn: ``"uniform"``; or ``"flow"``, with probability proportional to the mean square of the
            output gradient of their row times that of the input of their column, measured on the step before the window.
        decay: of the moving average over the window.
        selectivity: at every event growers are at most this share of the layer's sensed units; 1 sets no bound.
        move: the optimizer steps on event iterations too.
        reborn: a unit just dropped may grow again if its own gradient is among the best.
        final: density that the support's size moves to by ``stop`` (None: constant).
        min_fan_in: incoming units that every output unit keeps.
    """
    who = "csst"
    check_count(who, "window", window, 1)
    check_count(who, "min_fan_in", min_fan_in, 0)
    if final is not None:
        check_density(who, final)
    if window > (least := min(every, last_every)):
        what = f"the window of {window} steps does not fit between events {least} steps apart"
        raise Unfit(who, what, remedy="a window no longer than every and last_every")
    if not 0.0 < fraction <= 1.0:
        raise Unfit(who, "fraction is the share of the zero units that is sensed, in (0, 1]", got=fraction)
    if count is not None:
        check_count(who, "count", count, 1)
    check_share(who, "drop", drop)
    check_share(who, "selectivity", selectivity)
    if not 0.0 <= decay < 1.0:
        raise Unfit(who, "decay of a moving average lies in [0, 1)", got=decay)
    for name, value, choices in (("mode", mode, MODES), ("share", share, SHARES), ("candidates", candidates, CANDIDATES)):
        if value not in choices:
            raise Unfit(who, f"unknown {name} {value!r}{nearest(value, choices)}", remedy=f"one of {', '.join(choices)}")
    if share == "pooled" and (final is not None or mode == "merge"):
        raise Unfit(who, "share='pooled' moves units between layers, so it takes neither a size schedule nor mode='merge'")
    events = growing(every, last_every, stop)
    refuse_no_event(who, events, stop, every)
    ends = stop if final is not None or mode == "merge" else None
    return Topology(
        "csst",
        when=Annealed(events, cosine(drop, stop), move, reborn, last=ends, cap=selectivity),
        sense=Window(events, window, fraction, count, decay, active=reborn or share == "pooled", flow=candidates == "flow"),
        amount=projected if mode == "iht" else exchanged,
        share=SHARES[share],
        keeps_layer_sizes=share == "fixed",
        stop=stop,
        final=final,
        merge=mode == "merge",
        min_fan_in=min_fan_in,
    )


@dataclass(frozen=True)
class Window:
    """Sense on the ``length`` steps that end at an event, the same coordinates throughout."""

    events: Events
    length: int
    fraction: float
    count: int | None
    decay: float
    active: bool
    flow: bool = False

    def __call__(self, t: int) -> Sense | None:
        event = self.events.next(t)
        if event is None or event - t > self.length - (not self.flow):
            return None
        if event - t == self.length:  # before the window: find out where gradients flow
            return Sense(0.0, flow=True)
        return Sense(self.fraction, self.count, event - t == self.length - 1, self.decay, self.active, self.flow)
