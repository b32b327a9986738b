"""Methods: frozen records of settings that become a topology once the length of the run is known.

``stop`` is the share of the training steps after which the support is fixed; all other counts are optimizer steps. ``start`` is the size
of each layer's support at the first step over its size at the end (capped by the layer): above 1 the support shrinks while training.
A setting that the library has too has the library's default. Where a run is too short for any event, it goes on without, and says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from .. import topology
from .._errors import UsageError, check_at_least, check_density, check_fraction
from ..topology import Topology


class Method:
    """What every method does."""

    sparse: ClassVar[bool] = True
    shrinks: ClassVar[bool] = False  # the optimizer makes the zeros
    initial: float | None = None  # density of all layers at the first step, if it is not the run's
    target: bool = False  # whether the run's density is steered to
    gain: float = 1.0  # of the initial values
    positive_bias: float | None = None
    start: float = 1.0

    def topology(self, steps: int, final: float | None, min_fan_in: int) -> Topology:
        """The topology of a run of so many steps; ``final`` is the density at the end if the support shrinks, else None. Raises UsageError."""
        raise NotImplementedError

    def too_short(self, steps: int) -> str | None:
        """Why a run of so many steps holds no exchange, in a sentence; None if it does, or if the method exchanges nothing anyway."""
        every, stop = getattr(self, "every", 0), getattr(self, "stop", 1.0)
        if not every or every < _stop(stop, steps) or self.start == math.inf:
            return None
        what = f"the first exchange would come at step {every}, and none comes after {_stop(stop, steps)} of the {steps} steps"
        return f"no weight will be exchanged: {what} (--method.every, --method.stop, --epochs)"


@dataclass(frozen=True)
class Dense(Method):
    """No sparsity: the null model from above."""

    sparse = False


@dataclass(frozen=True)
class Static(Method):
    """A random support that never changes: the null model at the same budget."""

    def topology(self, steps: int, final: float | None, min_fan_in: int) -> Topology:
        return topology.Static().resolve()


@dataclass(frozen=True)
class SET(Method):
    """SET: drop the smallest weights, grow as many at random.

    Args:
        every: optimizer steps between changes of the support.
        drop_fraction: share of each layer's weights exchanged at the first change; annealed to 0.
        stop: share of the training after which the support is fixed.
        start: size of the support at the first step over its size at the end; above 1 it shrinks while training.
    """

    every: int = 100
    drop_fraction: float = 0.3
    stop: float = 0.75
    start: float = 1.0

    def __post_init__(self):
        _check("set", self.stop, self.start, self.every, self.drop_fraction)

    def topology(self, steps: int, final: float | None, min_fan_in: int) -> Topology:
        more = {"final_density": final, "min_fan_in": min_fan_in}
        return _fitting(
            "set",
            self,
            steps,
            lambda stop: topology.SET(stop, self.every, self.drop_fraction, **more).resolve(),
            **more,
        )


@dataclass(frozen=True)
class RigL(Method):
    """RigL: drop the smallest weights, grow those of largest gradient, measured everywhere at each change.

    Args:
        every: optimizer steps between changes of the support.
        drop_fraction: share of each layer's weights exchanged at the first change; annealed to 0.
        stop: share of the training after which the support is fixed.
        start: size of the support at the first step over its size at the end; above 1 it shrinks while training.
    """

    every: int = 100
    drop_fraction: float = 0.3
    stop: float = 0.75
    start: float = 1.0

    def __post_init__(self):
        _check("rigl", self.stop, self.start, self.every, self.drop_fraction)

    def topology(self, steps: int, final: float | None, min_fan_in: int) -> Topology:
        more = {"final_density": final, "min_fan_in": min_fan_in}
        return _fitting(
            "rigl",
            self,
            steps,
            lambda stop: topology.RigL(stop, self.every, self.drop_fraction, **more).resolve(),
            **more,
        )


@dataclass(frozen=True)
class SNFS(Method):
    """SNFS, sparse momentum: as RigL, by a momentum of the whole gradient, which also splits growth among layers. Needs dense memory.

    Args:
        every: optimizer steps between changes of the support.
        drop_fraction: share of each layer's weights exchanged at the first change; annealed to nearly 0.
        stop: share of the training after which the support is fixed.
    """

    every: int = 100
    drop_fraction: float = 0.5
    stop: float = 0.75

    def __post_init__(self):
        _check("snfs", self.stop, self.start, self.every, self.drop_fraction)

    def topology(self, steps: int, final: float | None, min_fan_in: int) -> Topology:
        return _fitting(
            "snfs",
            self,
            steps,
            lambda stop: topology.SNFS(stop, self.every, self.drop_fraction, min_fan_in=min_fan_in).resolve(),
        )


@dataclass(frozen=True)
class GMP(Method):
    """GMP, gradual magnitude pruning: start dense, drop the smallest weights until the asked density. Faster with layout ``masked``.

    Args:
        every: optimizer steps between prunings.
        stop: share of the training after which the support is fixed.
    """

    every: int = 100
    stop: float = 0.75
    start: ClassVar[float] = math.inf

    def __post_init__(self):
        _check("gmp", self.stop, self.start, self.every)

    def topology(self, steps: int, final: float | None, min_fan_in: int) -> Topology:
        return topology.GMP(
            _stop(self.stop, steps), self.every, final_density=1.0 if final is None else final, min_fan_in=min_fan_in
        ).resolve()


@dataclass(frozen=True)
class CSST(Method):
    """CSST: drop the smallest weights, grow those of largest gradient in a random sample of the zeros, measured over a short window.

    Args:
        every: optimizer steps between the first changes of the support.
        last_every: optimizer steps between the last ones; exponential in between.
        window: optimizer steps over which the sampled gradient is smoothed before a change.
        fraction: share of the zero weights that is sampled.
        count: sample so many zero weights per layer instead.
        drop_fraction: share of each layer's weights exchanged at the first change, annealed to 0; selectivity bounds it.
        selectivity: what grows is at most this share of what was sampled; 1 sets no bound.
        mode: prune_grow, iht or merge.
        allocate: fixed (each layer grows what it dropped) or pooled (layers compete).
        candidates: uniform, or flow (sampled where gradients are expected to be large).
        stop: share of the training after which the support is fixed.
        start: size of the support at the first step over its size at the end; above 1 it shrinks while training.
    """

    every: int = 100
    last_every: int = 1000
    window: int = 10
    fraction: float = 0.1
    count: int | None = None
    drop_fraction: float = 0.5
    selectivity: float = 0.25
    mode: str = "prune_grow"
    allocate: str = "fixed"
    candidates: str = "uniform"
    stop: float = 0.75
    start: float = 1.0

    def __post_init__(self):
        _check("csst", self.stop, self.start, self.every)
        self._made(self.every + 1, None, 0)  # refuses what csst refuses, before any work

    def topology(self, steps: int, final: float | None, min_fan_in: int) -> Topology:
        return _fitting("csst", self, steps, lambda stop: self._made(stop, final, min_fan_in), final, min_fan_in)

    def _made(self, stop: int, final: float | None, min_fan_in: int) -> Topology:
        sensing = (
            self.every,
            self.last_every,
            self.window,
            self.fraction,
            self.count,
            self.drop_fraction,
            self.mode,
            self.allocate,
        )
        drawn = {"candidates": self.candidates, "selectivity": self.selectivity}
        return topology.CSST(stop, *sensing, **drawn, final_density=final, min_fan_in=min_fan_in).resolve()


@dataclass(frozen=True)
class Proximal(Method):
    """The optimizer (proxsgd, iht, rda, xrda, linbreg, adabreg) makes and needs_dense zeros; layout shadow.

    Args:
        initial: share of the weights that are not zero at the first step.
        target: steer the strength of the penalty so that the run ends at the asked density.
        reach: share of the training after which the asked density is to be reached, if it is steered to.
        gain: factor on the initial values; 0.41 gives those of torch's own layers.
        positive_bias: draw the biases from 0 to this over the root of the fan-in.
    """

    initial: float | None = 1.0
    target: bool = False
    reach: float = 0.5
    gain: float = 1.0
    positive_bias: float | None = None
    shrinks: ClassVar[bool] = True

    def __post_init__(self):
        _check_initial("proximal", self.initial, self.reach)


@dataclass(frozen=True)
class Coarse(Method):
    """Multilevel: sparse steps of the optimizer (linbreg, adabreg) on a frozen support, then one with the whole gradient; layout csr.

    Args:
        coarse: steps on the frozen support before each one that changes it.
        fine_lr_scale: factor on the step of the weights off the support in the latter.
        initial: share of the weights that are not zero at the first step; null: the asked density.
        target: steer the strength of the penalty to the asked density, from one fine step to the next.
        reach: share of the training after which the asked density is to be reached, if it is steered to.
        gain: factor on the initial values; 0.41 gives those of torch's own layers.
        positive_bias: draw the biases from 0 to this over the root of the fan-in.
    """

    coarse: int = 9
    fine_lr_scale: float = 1.0
    initial: float | None = None
    target: bool = False
    reach: float = 0.5
    gain: float = 1.0
    positive_bias: float | None = None
    shrinks: ClassVar[bool] = True

    def __post_init__(self):
        check_at_least("method multilevel", "coarse", self.coarse, 0)
        check_at_least("method multilevel", "fine_lr_scale", self.fine_lr_scale, 0.0)
        _check_initial("multilevel", self.initial, self.reach)


METHODS: dict[str, type[Method]] = {
    "dense": Dense,
    "static": Static,
    "set": SET,
    "rigl": RigL,
    "snfs": SNFS,
    "gmp": GMP,
    "csst": CSST,
    "proximal": Proximal,
    "multilevel": Coarse,
}


def _check(name: str, stop: float, start: float, every: int, drop: float = 0.0) -> None:
    who = f"method {name}"
    if not 0.0 < stop <= 1.0:
        raise UsageError(who, "stop is a share of the training, a number in (0, 1]", got=stop)
    check_at_least(who, "start", start, 1.0)
    check_at_least(who, "every", every, 1)
    check_fraction(who, "drop_fraction", drop)


def _check_initial(name: str, initial: float | None, reach: float) -> None:
    if initial is not None:
        check_density(f"method {name}", initial)
    if not 0.0 < reach <= 1.0:
        raise UsageError(f"method {name}", "reach is a share of the training, a number in (0, 1]", got=reach)


def _fitting(
    name: str,
    method: Method,
    steps: int,
    make: Callable[[int], Topology],
    final: float | None = None,
    min_fan_in: int = 0,
) -> Topology:
    """What ``make`` makes of the last step of a change; in a run too short for any, what is left: nothing, or pruning once to the end."""
    stop = _stop(method.stop, steps)  # type: ignore[attr-defined]
    if not method.too_short(steps):
        return make(stop)
    left = (
        topology.Static().resolve()
        if final is None
        else topology.GMP(stop, stop, final_density=final, min_fan_in=min_fan_in).resolve()
    )
    return replace(left, name=name)


def _stop(share: float, steps: int) -> int:
    return max(1, round(share * steps))
