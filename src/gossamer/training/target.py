"""TargetDensity: changes the strength of the penalty during training, so that a run ends at a given density.

No sweep over lam is needed.

Every `every` steps it measures the density of the penalised weights. The target moves from the density at the first
measurement, d_0, to the given density d:

    d*(t) = d_0 (d / d_0)^min(1, t / (reach steps))

The logarithm of the strength then changes, by at most `limit`. The law depends on the rule:

    LinBreg, AdaBreg, RDA    log strength += pull log(q / strength)
    ProxSGD, XRDA            log strength += gain e + damping (e - e_before),    e = log(d_measured / d*(t))

q: under the first three rules each weight has a threshold, the smallest strength at which the mirror or dual variable
gives a zero weight. q is the threshold that the fraction d*(t) of all weights exceeds: with this strength the density
would be d*(t) at once. Under the other rules weights take several steps to shrink, so the law is integral with
damping. If the density is more than a quarter too low, it acts at every step.

In the last `landing` steps the strength is set to q after every step. The error is by then a few of the weights
nearest to zero. The laws use logarithms, so they are the same for any scale of lam and any density.

The strength is in the optimizer's groups and is saved with them. If other code sets it, or an older state is loaded,
the controller continues from the present strength.
"""

# pyright: strict

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._errors import UsageError, check_count, check_density, is_real
from ..penalties import ScaledPenalty
from ..rules import Rule, SparseOptimizer
from .multilevel import Multilevel
from .states import is_count, is_dict, is_sequence

WHO = "TargetDensity"
STATE = ("t", "start", "last_error", "log")  # keys of a saved state
SMALLEST, LARGEST = 1e-12, 1e12  # of the strength
ALARM = -0.3  # log(density / target): below this the controller acts at every step


class Measured(NamedTuple):
    """One line of the controller's log."""

    t: int
    density: float  # measured
    target: float  # d* at this step
    strength: float  # from this step on


class TargetDensity:
    """A controller of the penalty's strength. Call :meth:`step` after every ``optimizer.step()``.

    Args:
        optimizer: a ``SparseOptimizer`` whose penalty has a strength (``TopK`` has none).
        density: fraction of the penalised weights that are non-zero at the end, in (0, 1].
        steps: optimizer steps of the run.
        multilevel: the :class:`~gossamer.Multilevel` that trains compact values, if there is one. It holds the state of
            the weights off the support.
        every: steps between measurements. Each measurement reads numbers from the device. With ``multilevel``, m + 1
            is best.
        reach: fraction of the run after which the target is ``density``, in (0, 1].
        pull: fraction of the distance to q that one change covers, in (0, 1].
        gain: factor on the error, positive.
        damping: factor on the change of the error, at least 0.
        limit: largest change of the logarithm of the strength, positive.
        landing: steps at the end in which the strength is set to q.

    ``log`` holds all measurements.

    Raises: UsageError where a setting is out of range, or the penalty has no strength that can be changed.
    """

    def __init__(
        self,
        optimizer: SparseOptimizer,
        density: float,
        steps: int,
        *,
        multilevel: Multilevel | None = None,
        every: int = 10,
        reach: float = 0.5,
        pull: float = 0.3,
        gain: float = 0.05,
        damping: float = 0.5,
        limit: float = 0.2,
        landing: int = 10,
    ):
        self.optimizer, self.density, self.steps = _checked_optimizer(optimizer), check_density(WHO, density), steps
        for name, value, least in (("steps", steps, 1), ("every", every, 1), ("landing", landing, 0)):
            check_count(WHO, name, value, least)
        if every > steps / 10:
            what = f"a run of {steps} steps with a measurement every {every} steps has too few measurements"
            raise UsageError(WHO, what, remedy="every=1, or a longer run")
        if not 0.0 < reach <= 1.0 or not 0.0 < pull <= 1.0:
            raise UsageError(WHO, "reach and pull must lie in (0, 1]", got=(reach, pull))
        if not gain > 0.0 or not damping >= 0.0 or not limit > 0.0:
            what = "gain and limit must be positive, and damping at least 0"
            raise UsageError(WHO, what, got=(gain, damping, limit))
        self.every, self.reach, self.landing = every, reach, landing
        self.pull, self.gain, self.damping, self.limit = pull, gain, damping, limit
        self.t = 0
        self.start: float | None = None  # d_0
        self.last_error: float | None = None  # e of the last measurement
        self.log: list[Measured] = []
        self.multilevel = multilevel
        self._check_groups()
        optimizer.check_run(steps)
        self.zeros_follow_state = all(rule.zeros_follow_state for rule in self._rules())

    @property
    def total(self) -> int:
        """The number of penalised weights, zero or not."""
        dense = self._dense_sizes()
        return sum(dense.get(id(p), p.numel()) for p in self._parameters())

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups whose strength is changed: those that are penalised."""
        return [group for group in self.optimizer.param_groups if group["penalised"]]

    def measure(self) -> float:
        """The fraction of the penalised weights that are not zero now."""
        alive = [p.detach().count_nonzero() for p in self._parameters()]
        return float(sum(alive[1:], alive[0])) / self.total

    def target(self, t: int) -> float:
        """d* at step t."""
        start = self.density if self.start is None else self.start
        return start * (self.density / start) ** min(1.0, t / (self.reach * self.steps))

    def step(self) -> None:
        """Call this after each step of the optimizer. On some steps it measures, and changes the strength."""
        self.t += 1
        landing = self.steps - self.landing <= self.t < self.steps
        if self.t % self.every and not landing and not self._is_alarmed():
            return
        measured = max(self.measure(), 0.5 / self.total)  # zero weights count as half a weight: log 0 is infinite
        if self.start is None:
            self.start = measured
        wanted = self.target(self.t)
        error = math.log(measured / wanted)
        if landing or self.zeros_follow_state:
            change = self._pulled(wanted, landing)
        else:
            before = error if self.last_error is None else self.last_error
            change = self.gain * error + self.damping * (error - before)
            change = min(self.limit, max(-10 * self.limit if error < ALARM else -self.limit, change))
        self.last_error = error
        for group in self.groups:
            group["strength"] = min(LARGEST, max(SMALLEST, group["strength"] * math.exp(change)))
        self.log.append(Measured(self.t, measured, wanted, self.groups[0]["strength"]))

    def _pulled(self, wanted: float, landing: bool) -> float:
        """Change of the logarithm of the strength towards q, which gives the density ``wanted``."""
        source = self.optimizer if self.multilevel is None else self.multilevel
        thresholds = torch.cat([part.flatten() for part in source.zero_thresholds()] or [torch.zeros(1)])
        stay = min(thresholds.numel() - 1, max(1, round(wanted * self.total)))
        q = smallest(thresholds, thresholds.numel() - stay)
        if not 0.0 < q < math.inf:
            return 0.0 if q > 0.0 else -self.limit  # q = 0: more are needed, and no zero weight can enter
        way = math.log(q / self.groups[0]["strength"])
        return way if landing else min(self.limit, max(-self.limit, self.pull * way))

    def _is_alarmed(self) -> bool:
        """Whether so few weights are left that it acts at every step: if all weights are zero, all gradients are."""
        return not self.zeros_follow_state and self.last_error is not None and self.last_error < ALARM

    # ---------------------------------------------------------------- the penalised parameters

    def _rules(self) -> list[Rule]:
        pairs = zip(self.optimizer.rules, self.optimizer.param_groups, strict=True)
        return [rule for rule, group in pairs if group["penalised"]]

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.groups for p in group["params"] if p.requires_grad]

    def _dense_sizes(self) -> dict[int, int]:
        """The number of weights, zero or not, of each compact layer, by the id of its values."""
        layers = {} if self.multilevel is None else self.multilevel.layers
        return {id(layer.values): layer.dense_shape.numel() for layer in layers.values()}

    def _check_groups(self) -> None:
        fixed = [rule for rule in self._rules() if not is_steerable(rule)]
        if fixed:
            what = f"{fixed[0].penalty} has no strength that can be changed"
            raise UsageError(WHO, what, remedy="a penalty with a positive lam; TopK fixes the density without it")
        strengths = [group["strength"] for group in self.groups]
        if any(strength <= 0.0 for strength in strengths):
            remedy = "a positive strength, or 'penalised': False"
            raise UsageError(WHO, "a strength of 0 cannot be scaled", remedy=remedy)
        if len(set(strengths)) > 1:
            raise UsageError(WHO, "all penalised groups must begin with the same strength", got=strengths)
        dense = self._dense_sizes()
        if any(group["compact"] and id(p) not in dense for group in self.groups for p in group["params"]):
            what = "values are compact, and the weights off the support are not known"
            raise UsageError(WHO, what, remedy="multilevel=..., or layout shadow")

    # ---------------------------------------------------------------- saved states

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume bit for bit, together with the optimizer's state, which holds the strength."""
        log = [list(line) for line in self.log]
        return {"t": self.t, "start": self.start, "last_error": self.last_error, "log": log}

    def problems(self, state: Any) -> list[str]:
        """Sentences that say why a saved state cannot be loaded; [] if it can."""
        if not is_dict(state) or set(state) != set(STATE) or not is_sequence(state["log"]):
            return [f"a state of TargetDensity has {', '.join(STATE)}"]
        t, start, last_error = state["t"], state["start"], state["last_error"]
        if not is_count(t):
            return [f"t is a count of steps, not {t!r}"]
        problems: list[str] = []
        if len({start is None, last_error is None, not state["log"]}) > 1:
            problems.append("start, last_error and log must all be set, or none of them")
        if start is not None and not (_is_finite(start) and 0.0 < start <= 1.0):
            problems.append(f"start is a density, not {start!r}")
        if last_error is not None and not _is_finite(last_error):
            problems.append(f"last_error is a number, not {last_error!r}")
        return problems + _log_problems(state["log"], t)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a state. Raises UsageError where it is not one of a TargetDensity."""
        if problems := self.problems(state):
            what = "this state cannot be loaded"
            raise UsageError(WHO, what, reasons=problems, remedy="what state_dict() returned")
        self.t, self.start, self.last_error = int(state["t"]), state["start"], state["last_error"]
        self.log = [Measured(*line) for line in state["log"]]


def _log_problems(log: Iterable[Any], t: int) -> list[str]:
    for line in log:
        if not is_sequence(line) or len(line) != len(Measured._fields) or not all(map(_is_finite, line)):
            return [f"a line of the log has {', '.join(Measured._fields)}"]
        if not isinstance(line[0], int) or not 0 <= line[0] <= t:
            return [f"the log has a step {line[0]!r}, not a step from 0 to {t}"]
    return []


def _is_finite(value: Any) -> bool:
    return is_real(value) and math.isfinite(value)


def _checked_optimizer(optimizer: object) -> SparseOptimizer:
    if not isinstance(optimizer, SparseOptimizer):
        raise UsageError(WHO, "the optimizer must be a SparseOptimizer", got=type(optimizer).__name__)
    return optimizer


def smallest(x: Tensor, k: int) -> float:
    """The k-th smallest entry of a vector, k = 1, 2, ..."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return float(np.partition(x.numpy(), k - 1)[k - 1])  # several times faster than torch's kthvalue
    return float(x.kthvalue(k)[0])


def is_steerable(rule: Rule) -> bool:
    """Whether a rule's penalty grows with its strength."""
    penalty = rule.penalty
    return isinstance(penalty, ScaledPenalty) and penalty.lam > 0.0
