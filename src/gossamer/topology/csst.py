"""CSST, sparse training with gradient sensing, after "Sparse Training Algorithms based on Compressed Sensing for
Accelerating Large-Scale Neural Networks" (Miller & Jenkins 2026). The paper leaves details open; docs/methods/csst.md
lists the choices made here, with reasons.

    events    t_1 = every, t_{j+1} = t_j + round(every (last_every / every)^(t_j / stop)), none from `stop` on
    window    the W = `window` steps that end at an event. Draw Omega once: `fraction` of the blocks off the support (or
              `count` blocks). The draw is uniform; or, by "flow", with probability proportional to E[dy_i^2] E[x_j^2],
              measured on the step before. That is the expected squared gradient if the factors are independent
              (Drineas, Kannan & Mahoney 2006 sample matrix products so). At each step of the window,
              m <- decay m + (1 - decay) g_Omega, scored as |m| / (1 - decay^W)
    exchange  k = trunc(min(a_t n, selectivity |Omega|)), a_t = drop_fraction / 2 (1 + cos(pi t / stop)): growth is
              selective only if the grown blocks are a small part of the sensed blocks
    event     prune_grow   drop the k smallest |w|, grow the k best of Omega
              iht          z = w on the support, eta m on Omega, eta = lr / (1 - momentum) * interval (the look-ahead
                           step): keep the n largest |z|, at most k swaps
              merge        grow k first, prune back to n at the next event (the order of CoSaMP: identify, merge,
                           estimate, prune)
    allocate  fixed        each layer grows as many blocks as it dropped
              pooled       candidates of all layers are ranked by |m| / rms(g on the support)

State: the support; within a window Omega and m, O(|Omega|). Cost 3 f_S per step; in windows, fraction (f_D - f_S) more.
Nothing has the dense size. The draw takes O(|Omega| log n), the mean squares O(B (rows + cols)).
"""

from dataclasses import KW_ONLY, dataclass

from .._errors import UsageError, check_choice, check_count, check_fraction
from .._schedules import Events, cosine, growing, is_count, step_of
from .checks import check_common, check_decay, refuse_no_event
from .records import Sensing
from .slots import Annealed, allocate_fixed, allocate_pooled, exchange_by_projection, exchange_fraction
from .topology import Topology

MODES = ("prune_grow", "iht", "merge")
CANDIDATES = ("uniform", "flow")
ALLOCATE = {"fixed": allocate_fixed, "pooled": allocate_pooled}


@dataclass(frozen=True)
class CSST:
    """CSST: drops the smallest weights. Grows the weights of largest gradient in a random sample of the zeros, measured
    over a short window.

    Args:
        stop: events take place before this step: a number of optimizer steps, or a fraction of the run.
        every: optimizer steps between the first events.
        last_every: optimizer steps between events at ``stop``. The interval changes exponentially from ``every``.
        window: optimizer steps before an event over which the sensed gradient is averaged; 1: the event's step alone.
        fraction: the fraction of each layer's zero blocks that is sensed, in (0, 1].
        count: number of blocks to sense in each layer, in place of ``fraction``.
        drop_fraction: the fraction of each layer's blocks that the first event exchanges; cosine-annealed to 0.
            ``selectivity`` bounds it.
        mode: prune_grow, iht or merge.
        allocate: fixed (each layer grows as many blocks as it dropped) or pooled (layers compete).
        candidates: how the sensed blocks are drawn: uniform; or flow, with probability proportional to the mean
            square of the output gradient in their row times the mean square of the input in their column, measured on
            the step before the window.
        decay: the decay of the moving average over the window, in [0, 1).
        selectivity: the largest fraction of a layer's sensed blocks that one event grows; 1 sets no bound.
        step_optimizer: whether the optimizer steps on the iteration of an event too.
        allow_regrow: whether a block that was just dropped may grow again, if its gradient is among the largest.
        final_density: the density at ``stop``, reached gradually; None keeps the density.
        min_fan_in: the least number of incoming blocks of every output unit.
    """

    stop: int | float = 0.75
    every: int = 100
    last_every: int = 1000
    window: int = 10
    fraction: float = 0.1
    count: int | None = None
    drop_fraction: float = 0.5
    mode: str = "prune_grow"
    allocate: str = "fixed"
    _: KW_ONLY
    candidates: str = "uniform"
    decay: float = 0.9
    selectivity: float = 0.25
    step_optimizer: bool = True
    allow_regrow: bool = False
    final_density: float | None = None
    min_fan_in: int = 0

    def __post_init__(self) -> None:
        check_common("CSST", self.stop, self.every, self.final_density, self.min_fan_in)
        check_count("CSST", "last_every", self.last_every, 1)
        check_count("CSST", "window", self.window, 1)
        if self.window > (least := min(self.every, self.last_every)):
            what = f"the window of {self.window} steps does not fit between events {least} steps apart"
            raise UsageError("CSST", what, remedy="a window no longer than every and last_every")
        if not 0.0 < self.fraction <= 1.0:
            what = "fraction is the fraction of the zero blocks that is sensed, in (0, 1]"
            raise UsageError("CSST", what, got=self.fraction)
        if self.count is not None:
            check_count("CSST", "count", self.count, 1)
        check_fraction("CSST", "drop_fraction", self.drop_fraction)
        check_fraction("CSST", "selectivity", self.selectivity)
        check_decay("CSST", self.decay)
        for name, choices in (("mode", MODES), ("allocate", ALLOCATE), ("candidates", CANDIDATES)):
            check_choice("CSST", name, getattr(self, name), choices)
        if self.allocate == "pooled" and (self.final_density is not None or self.mode == "merge"):
            what = "allocate='pooled' moves blocks between layers, so it takes neither final_density nor mode='merge'"
            raise UsageError("CSST", what, remedy="allocate='fixed'")
        if is_count(self.stop):
            self.resolve()

    def resolve(self, steps: int | None = None) -> Topology:
        """The topology for a run of ``steps`` optimizer steps. Raises UsageError where a setting does not fit them."""
        stop, merge, pooled = step_of("CSST", "stop", self.stop, steps), self.mode == "merge", self.allocate == "pooled"
        events = growing(self.every, self.last_every, stop)
        refuse_no_event("CSST", events, stop, self.every)
        last = stop if self.final_density is not None or merge else None
        rates = cosine(self.drop_fraction, stop)
        active, flow = self.allow_regrow or pooled, self.candidates == "flow"
        return Topology(
            "csst",
            when=Annealed(events, rates, self.step_optimizer, self.allow_regrow, last, self.selectivity),
            sense=Window(events, self.window, self.fraction, self.count, self.decay, active, flow),
            n_exchange=exchange_by_projection if self.mode == "iht" else exchange_fraction,
            allocate=ALLOCATE[self.allocate],
            keeps_layer_sizes=not pooled,
            stop=stop,
            final_density=self.final_density,
            merge=merge,
            min_fan_in=self.min_fan_in,
        )


@dataclass(frozen=True)
class Window:
    """Senses on the ``length`` steps that end at an event, at the same blocks in all of them."""

    events: Events
    length: int
    fraction: float
    count: int | None
    decay: float
    active: bool
    flow: bool = False

    def __call__(self, t: int) -> Sensing | None:
        event = self.events.next(t)
        if event is None or event - t > self.length - (not self.flow):
            return None
        if event - t == self.length:  # the step before the window: measure the flow
            return Sensing(0.0, flow=True)
        fresh = event - t == self.length - 1
        return Sensing(self.fraction, self.count, fresh, self.decay, self.active, self.flow)
