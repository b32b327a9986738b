"""TargetDensity: steers the strength of the penalty while training, so that a run ends at the density asked for. No sweep over lam.

Every `every` steps the density of the penalised weights is compared with a target that glides from where the run starts to where it ends,

    d*(t) = d_0 (d / d_0)^min(1, t / (reach steps))          d_0: the density at the first measurement

and the logarithm of the strength moves, by at most `limit`. How far depends on the rule.

    LinBreg, AdaBreg, RDA    each weight has a level, the strength from which it is zero given the mirror or dual variable. The level q that
                             d*(t) of all weights exceed is the strength that would give d*(t) at once; a share of the way is gone:
                             log strength += pull log(q / strength)
    ProxSGD, XRDA            weights take steps to shrink: an integral law with damping, of the error e = log(d_measured / d*(t)),
                             log strength += gain e + damping (e - e_before); where a quarter too many are gone, at every step

In the last steps, `landing` of them, the strength is set to q itself, after every step: what is over or short is by then a few of the
weights nearest to zero. Logarithms make the laws the same for any scale of lam and any density. The strength lives in the optimizer's
groups and is saved with them; if somebody else sets it, or an older state is loaded, the controller goes on from what it finds.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._errors import UsageError, check_count, check_density, is_real
from ..penalties import TopK, Zero
from ..rules.rule import Rule, SparseOptimizer

SMALLEST, LARGEST = 1e-12, 1e12  # of the strength
ALARM = -0.3  # of the logarithm of density over target, from which on it is about survival


class Measured(NamedTuple):
    """One line of the controller's log."""

    t: int
    density: float  # measured
    target: float  # wanted at this step
    strength: float  # from this step on


class TargetDensity:
    """A controller of the penalty's strength: call :meth:`step` after every ``optimizer.step()``.

    Args:
        optimizer: a ``SparseOptimizer`` whose penalty has a strength (``TopK`` has none).
        density: share of the penalised weights that shall be non-zero at the end, in (0, 1].
        steps: length of the run.
        multilevel: the :class:`~gossamer.Multilevel` that trains compact values, if one does: it knows the weights off the support.
        every: steps between measurements; each reads numbers from the device. With ``multilevel`` best m + 1.
        reach: share of the run after which the target is the density asked for.
        pull, gain, damping, limit, landing: of the laws above.

    ``log`` holds what was measured.
    """

    def __init__(
        self,
        optimizer: SparseOptimizer,
        density: float,
        steps: int,
        *,
        multilevel: Any = None,
        every: int = 10,
        reach: float = 0.5,
        pull: float = 0.3,
        gain: float = 0.05,
        damping: float = 0.5,
        limit: float = 0.2,
        landing: int = 10,
    ):
        who = "TargetDensity"
        if not isinstance(optimizer, SparseOptimizer):
            raise UsageError(who, "the optimizer must be a SparseOptimizer", got=type(optimizer).__name__)
        self.optimizer, self.density, self.steps = optimizer, check_density(who, density), steps
        for name, value, least in (("steps", steps, 1), ("every", every, 1), ("landing", landing, 0)):
            check_count(who, name, value, least)
        if every > steps / 10:
            raise UsageError(
                who,
                f"a run of {steps} steps measured every {every} leaves too little to steer by",
                remedy="every=1, or a longer run",
            )
        if not 0.0 < reach <= 1.0 or not 0.0 < pull <= 1.0:
            raise UsageError(who, "reach and pull lie in (0, 1]", got=(reach, pull))
        if not gain > 0.0 or not damping >= 0.0 or not limit > 0.0:
            raise UsageError(who, "gain and limit are positive, damping at least 0", got=(gain, damping, limit))
        self.every, self.reach, self.landing = every, reach, landing
        self.pull, self.gain, self.damping, self.limit = pull, gain, damping, limit
        self.t = 0
        self.start: float | None = None  # d_0
        self.before: float | None = None  # e of the last measurement
        self.log: list[Measured] = []
        self.multilevel = multilevel
        _check(self, who)
        optimizer.check_run(steps)
        steered = [
            rule for rule, group in zip(optimizer.rules, optimizer.param_groups, strict=True) if group["penalised"]
        ]
        self.zeros_follow_state = all(rule.zeros_follow_state for rule in steered)

    @property
    def _dense(self) -> dict[int, int]:
        """Weights, zero or not, of the layers whose values are stored compactly."""
        layers = {} if self.multilevel is None else self.multilevel.layers
        return {id(layer.values): layer.dense_shape.numel() for layer in layers.values()}

    @property
    def total(self) -> int:
        """Weights that are steered, zero or not."""
        dense = self._dense
        return sum(dense.get(id(p), p.numel()) for p in self._parameters())

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups that are steered."""
        return [group for group in self.optimizer.param_groups if group["penalised"]]

    def measure(self) -> float:
        """Share of the penalised weights that are not zero now."""
        alive = [p.detach().count_nonzero() for p in self._parameters()]
        return float(sum(alive[1:], alive[0])) / self.total

    def target(self, t: int) -> float:
        """d* at step t."""
        start = self.density if self.start is None else self.start
        return start * (self.density / start) ** min(1.0, t / (self.reach * self.steps))

    def step(self) -> None:
        """After each step of the optimizer: measures and steers, if it is time."""
        self.t += 1
        landing = self.steps - self.landing <= self.t < self.steps
        if self.t % self.every and not landing and not self._alarmed():
            return
        measured = max(self.measure(), 0.5 / self.total)  # half a weight: none has no logarithm
        if self.start is None:
            self.start = measured
        wanted = self.target(self.t)
        error = math.log(measured / wanted)
        if landing or self.zeros_follow_state:
            change = self._pulled(wanted, landing)
        else:
            change = self.gain * error + self.damping * (error - (error if self.before is None else self.before))
            change = min(self.limit, max(-10 * self.limit if error < ALARM else -self.limit, change))
        self.before = error
        for group in self.groups:
            group["strength"] = min(LARGEST, max(SMALLEST, group["strength"] * math.exp(change)))
        self.log.append(Measured(self.t, measured, wanted, self.groups[0]["strength"]))

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume bit for bit, beside the optimizer's state, which holds the strength."""
        return {"t": self.t, "start": self.start, "before": self.before, "log": [list(line) for line in self.log]}

    def problems(self, state: Any) -> list[str]:
        """Why a saved state cannot be taken over, in sentences; [] if it may go on."""
        keys = ("t", "start", "before", "log")
        if not isinstance(state, dict) or set(state) != set(keys) or not isinstance(state["log"], (list, tuple)):
            return [f"a state of TargetDensity has {', '.join(keys)}"]
        t, start, before = state["t"], state["start"], state["before"]
        if not isinstance(t, int) or isinstance(t, bool) or t < 0:
            return [f"t is a count of steps, not {t!r}"]
        problems = []
        if (start is None) != (before is None) or (start is None) != (not state["log"]):
            problems.append("start, before and log begin together, at the first measurement")
        if start is not None and not (_is_finite(start) and 0.0 < start <= 1.0):
            problems.append(f"start is a density, not {start!r}")
        if before is not None and not _is_finite(before):
            problems.append(f"before is a number, not {before!r}")
        for line in state["log"]:
            if (
                not isinstance(line, (list, tuple))
                or len(line) != len(Measured._fields)
                or not all(map(_is_finite, line))
            ):
                return [*problems, f"a line of the log has {', '.join(Measured._fields)}"]
            if not isinstance(line[0], int) or not 0 <= line[0] <= t:
                return [*problems, f"the log tells of a step {line[0]!r} of {t}"]
        return problems

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state; refuses one that is none."""
        if problems := self.problems(state):
            raise UsageError(
                "TargetDensity",
                "this state cannot be taken over",
                reasons=problems,
                remedy="what state_dict() returned",
            )
        self.t, self.start, self.before = int(state["t"]), state["start"], state["before"]
        self.log = [Measured(*line) for line in state["log"]]

    # ---------------------------------------------------------------- details

    def _pulled(self, wanted: float, landing: bool) -> float:
        """Update of the logarithm of the strength towards the level that the wanted share of all weights exceeds."""
        source = self.optimizer if self.multilevel is None else self.multilevel
        levels = torch.cat([level.flatten() for level in source.zero_thresholds()] or [torch.zeros(1)])
        stay = min(levels.numel() - 1, max(1, round(wanted * self.total)))
        level = smallest(levels, levels.numel() - stay)
        if not 0.0 < level < math.inf:
            return 0.0 if level > 0.0 else -self.limit  # more weights are wanted, and none is known that would enter
        way = math.log(level / self.groups[0]["strength"])
        return way if landing else min(self.limit, max(-self.limit, self.pull * way))

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.groups for p in group["params"] if p.requires_grad]

    def _alarmed(self) -> bool:
        """Whether so many weights have died that every step counts: a network without weights has no gradients to bring them back."""
        return not self.zeros_follow_state and self.before is not None and self.before < ALARM


def _is_finite(value: object) -> bool:
    return is_real(value) and math.isfinite(value)  # type: ignore[arg-type]


def smallest(x: Tensor, k: int) -> float:
    """The k-th smallest entry of a vector, k = 1, 2, ..."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return float(np.partition(x.numpy(), k - 1)[k - 1])  # several times faster than torch's
    return float(x.kthvalue(k)[0])


def steerable(rule: Rule) -> bool:
    """Whether a rule's penalty grows with its strength."""
    penalty: Any = rule.penalty
    return not isinstance(penalty, (TopK, Zero)) and penalty.lam > 0.0


def _check(controller: TargetDensity, who: str) -> None:
    optimizer, groups = controller.optimizer, controller.groups
    mute = [
        rule
        for rule, group in zip(optimizer.rules, optimizer.param_groups, strict=True)
        if group["penalised"] and not steerable(rule)
    ]
    if mute:
        raise UsageError(
            who,
            f"{mute[0].penalty} has no strength to steer",
            remedy="a penalty with a positive lam; TopK fixes the number by itself",
        )
    if any(group["strength"] <= 0.0 for group in groups):
        raise UsageError(who, "a strength of 0 cannot be scaled", remedy="a positive strength, or 'penalised': False")
    if len({group["strength"] for group in groups}) > 1:
        raise UsageError(
            who, "all penalised groups must begin at one strength", got=[group["strength"] for group in groups]
        )
    if any(group["compact"] and id(p) not in controller._dense for group in groups for p in group["params"]):
        raise UsageError(
            who,
            "values are compact, and nothing knows the weights off the support",
            remedy="multilevel=..., or layout shadow",
        )
