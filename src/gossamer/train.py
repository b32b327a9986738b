"""Training: the Rewirer, which moves and rewires, and ``fit``, the plain loop. Reads top to bottom.

One step t = 1, 2, ...:

    before    the step's sensing was armed when step t - 1 ended: the layers know what to measure in their backward pass
    forward, backward                                      yours; micro-batches add up, off the support as on it
    step()    smooth what was sensed -> optimizer.step(), unless the event forbids it -> the event, if t has one -> arm step t + 1
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import budgets
from .errors import Unfit
from .layers import sparse_layers
from .sensing import Probe
from .support import Support
from .surgery import set_support_
from .topology.topology import Change, Sense, Topology, event


class Event(NamedTuple):
    """What one event did, per layer name."""

    t: int
    dropped: dict[str, int]
    grown: dict[str, int]
    n: dict[str, int]
    sensed: dict[str, int]  # units off the support that were measured


class Rewirer:
    """Moves and rewires: call :meth:`step` where you would call ``optimizer.step()``.

    Args:
        model: a model with sparse layers.
        optimizer: any torch optimizer over its parameters; schedulers, clipping and accumulation work as ever.
        topology: ``csst(...)``, ``rigl(...)``, ...
        rng: generator of every random choice of the topology; None seeds one from torch's initial seed, so ``torch.manual_seed``
            decides and torch's own generator is never advanced. In a distributed run all ranks must give the same seed.

    Works with gradient accumulation (events see the sum of all backward passes since the last step), autocast (values stay float32),
    a ``GradScaler`` (pass it to :meth:`step`; a step that overflows measures nothing), and ``torch.distributed`` (what is sensed is
    averaged over the ranks).
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology, *, rng: torch.Generator | None = None):
        self.layers = sparse_layers(model)
        self.optimizer, self.topology = optimizer, topology
        if not isinstance(topology, Topology):
            raise Unfit("Rewirer", "topology must be a Topology", got=topology, remedy="what gs.csst(stop=...), gs.rigl(stop=...) return")
        if not self.layers:
            raise Unfit("Rewirer", "the model has no sparse layer", remedy="gs.sparsify(model, density=...) first")
        following = [name for name, layer in self.layers.items() if layer.layout.follows]
        if following:
            what = "the support of these layers is where their values are not zero; no topology changes it"
            raise Unfit(
                "Rewirer", what, reasons=following, remedy='sparsify(layout="csr") for a topology; or no Rewirer, and a SparseOptimizer'
            )
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        strangers = [name for name, layer in self.layers.items() if layer.values.requires_grad and id(layer.values) not in known]
        if strangers:
            reasons = [f"{name}.values" for name in strangers]
            raise Unfit(
                "Rewirer", "the optimizer does not hold all sparse values", reasons=reasons, remedy="make the optimizer after sparsify"
            )
        if topology.final is not None or topology.merge or not topology.keeps_layer_sizes:
            self._check_not_bucketed(model)
        if rng is None:
            rng = torch.Generator().manual_seed(torch.initial_seed())
        self.rng = rng
        self.t = 0
        self.last: Event | None = None
        self.start = {name: layer.support.n for name, layer in self.layers.items()}
        self.final = self._final()
        self._check_fan_in()
        self._check_growth()
        self._warn_of_frozen()
        self._probes: dict[str, Probe] = {}
        self._arm()

    @property
    def sensing(self) -> dict[str, int]:
        """Units off the support that the step in progress measures, per layer; empty on plain steps."""
        return {name: probe.units for name, probe in self._probes.items() if probe.units}

    @property
    def sensing_bytes(self) -> int:
        """Bytes held for sensing: coordinates and moving averages; when streaming, the operands kept and one block of the gradient."""
        return sum(probe.bytes for probe in self._probes.values())

    def step(self, closure: Callable[[], Any] | None = None, *, scaler: "torch.amp.GradScaler | None" = None) -> Any:
        """One step: the optimizer's, then the event's, if this step has one. Returns what ``optimizer.step(closure)`` returns."""
        t = self.t + 1
        change = self.topology.when(t)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        if closure is not None and (change is not None or self._probes):
            raise Unfit(
                "Rewirer.step", "an optimizer that evaluates a closure has no single gradient to rewire by", remedy="SGD, Adam, ..."
            )
        if scaler is not None and (self._probes or (change is not None and not change.move)):
            _unscale(scaler, self.optimizer)
        if self._probes:
            finite = all(_finite(layer.values.grad) for layer in self.layers.values())
            with torch.no_grad():
                for probe in self._probes.values():
                    probe.finish(scale, finite)
        result = None
        if change is None or change.move:
            result = self.optimizer.step(closure) if scaler is None else scaler.step(self.optimizer)
        self.last = self._rewire(t, change, scale) if change is not None else None
        self.t = t
        self._arm()
        return result

    def discard(self) -> None:
        """Forgets what the backward passes since the last step have sensed: call it where you drop their gradients and go on."""
        for probe in self._probes.values():
            probe.discard()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume bit for bit, beside the model's and the optimizer's own states."""
        probes = {
            name: {"ids": p.ids, "steps": p.steps, "mean": p.mean, "active_mean": p.active_mean, "flow": p.flow}
            for name, p in self._probes.items()
        }
        state = {
            "t": self.t,
            "topology": self.topology.name,
            "settings": self.topology.settings(),
            "start": dict(self.start),
            "final": dict(self.final),
        }
        return {**state, "rng": self.rng.get_state(), "probes": probes}

    def problems(self, state: dict[str, Any]) -> list[str]:
        """In which settings the topology of a saved state differs from this one, in sentences; [] if it may go on."""
        here, there = self.topology.settings(), state["settings"]
        return [f"{key} was {there.get(key)}, is {here[key]}" for key in here if here[key] != there.get(key)]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state; refuses one of another topology or other layers."""
        if state["topology"] != self.topology.name or set(state["start"]) != set(self.layers):
            got = (state["topology"], list(state["start"]))
            raise Unfit("Rewirer", f"this state does not belong to topology {self.topology.name!r} on layers {list(self.layers)}", got=got)
        problems = self.problems(state)
        if problems:
            raise Unfit(
                "Rewirer", "this state was saved under other rules", reasons=problems, remedy="the same topology as when it was saved"
            )
        self.t = int(state["t"])
        self.start, self.final = dict(state["start"]), dict(state["final"])
        self.rng.set_state(state["rng"].cpu())
        self._disarm()
        asked = self.topology.sense(self.t + 1)
        for name, saved in state["probes"].items():
            assert asked is not None  # a state with probes was saved in a sensing window of the same topology
            probe = Probe(
                self.layers[name], asked, saved["ids"], int(saved["steps"]), saved["mean"], saved["active_mean"], flow=saved["flow"]
            )
            self._probes[name] = probe.attach()

    # ---------------------------------------------------------------- details

    def _arm(self) -> None:
        """Tells the layers what the backward pass of step t + 1 measures."""
        asked = self.topology.sense(self.t + 1)
        if asked is None:
            self._disarm()
        elif asked.fresh or not self._probes:
            before = self._probes
            self._disarm()
            for name, layer in self.layers.items():
                if (s := layer.support).n < s.total and layer.values.requires_grad:  # nothing to sense in a full layer
                    self._probes[name] = Probe(layer, asked, self._drawn(s, asked, before.get(name))).attach()
        else:
            for probe in self._probes.values():
                probe.sense = asked

    def _disarm(self) -> None:
        for layer in self.layers.values():  # what an earlier Rewirer left attached goes too
            if isinstance(layer.sense, Probe):
                layer.sense.release()
        self._probes = {}

    def _drawn(self, s: Support, asked: Sense, before: Probe | None) -> Tensor:
        zeros = s.total - s.n
        if asked.stream:
            return s.col.new_empty(0, dtype=torch.int64)
        m = round(asked.fraction * zeros) if asked.count is None else min(asked.count, zeros)
        if asked.flow and before is not None and before.flow is not None:
            return s.sample_outside_by(m, *before.flow, self.rng)
        return s.sample_outside(m, self.rng)

    @torch.no_grad()
    def _rewire(self, t: int, change: Change, scale: float) -> Event:
        layers = {name: layer for name, layer in self.layers.items() if layer.values.requires_grad}
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        sites = []
        for name, layer in layers.items():
            group = groups[id(layer.values)]
            lookahead = float(group["lr"]) / (1 - float(group.get("momentum", 0.0))) * change.interval
            probe = self._probes.get(name) or Probe(layer, Sense(), torch.empty(0, dtype=torch.int64, device=layer.values.device), steps=1)
            sites.append(probe.site(self.topology.size(t, self.start[name], self.final[name]), self.start[name], lookahead, scale))
        outcomes = event(self.topology, change, sites, self.rng)
        for layer, outcome in zip(layers.values(), outcomes, strict=True):
            if outcome.dropped or outcome.grown:
                set_support_(layer, outcome.support, self.optimizer)
        done = dict(zip(layers, outcomes, strict=True))
        return Event(
            t,
            {name: outcome.dropped for name, outcome in done.items()},
            {name: outcome.grown for name, outcome in done.items()},
            {name: outcome.support.n for name, outcome in done.items()},
            {name: outcome.sensed for name, outcome in done.items()},
        )

    def _final(self) -> dict[str, int]:
        """Units of each layer at the end."""
        if self.topology.final is None:
            return dict(self.start)
        names, layers = list(self.layers), list(self.layers.values())
        shapes = [tuple(layer.dense_shape) for layer in layers]
        densities = budgets.resolve(self.topology.budget, names, shapes, self.topology.final, self.topology.name)
        return dict(zip(names, budgets.units(densities, [layer.support.total for layer in layers]), strict=True))

    def _check_fan_in(self) -> None:
        least = self.topology.min_fan_in
        bad = [
            f"{name}: {int((fan_in < least).sum())} of {fan_in.numel()} output units have fewer"
            for name, layer in self.layers.items()
            for fan_in in [layer.support.crow.diff()]
            if bool((fan_in < least).any()) or self.final[name] < least * layer.support.grid[0]
        ]
        if bad:
            what = f"min_fan_in={least} asks that every output unit keeps {least} incoming units, and they must have them"
            raise Unfit("Rewirer", what, reasons=bad, remedy=f"sparsify(..., min_fan_in={least}), or a larger density")

    def _warn_of_frozen(self) -> None:
        """Says at which density a size schedule ends where it cannot reach its own."""
        frozen = [name for name, layer in self.layers.items() if not layer.values.requires_grad]
        totals = {name: layer.support.total for name, layer in self.layers.items()}
        if self.topology.final is not None and (said := budgets.frozen_ends(self.topology.final, totals, self.start, self.final, frozen)):
            warnings.warn(f"{self.topology.name}: {said}", stacklevel=3)

    def _check_not_bucketed(self, model: nn.Module) -> None:
        wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
        if wrapped and any(layer.layout.storage == "compact" for layer in self.layers.values()):
            what = f"{self.topology.name} as set changes the number of values, and DistributedDataParallel holds them in fixed buckets"
            remedy = "a topology of constant size; or leave the wrapper out and all_reduce the gradients before step()"
            raise Unfit("Rewirer", what, remedy=remedy)

    def _check_growth(self) -> None:
        bad = [f"{name}: {self.start[name]} units now, {n} at the end" for name, n in self.final.items() if n > self.start[name]]
        if bad and not self.topology.can_grow:
            what = f"{self.topology.name} only prunes, and its final budget gives layers more than they hold"
            raise Unfit("Rewirer", what, reasons=bad, remedy="a larger density to start from, or budgets that agree")


def _unscale(scaler: "torch.amp.GradScaler", optimizer: torch.optim.Optimizer) -> None:
    """Unscales the gradients, unless the caller has done so, to clip them: a scaler refuses a second time, and cannot be asked."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as refusal:
        if "already been called" not in str(refusal):
            raise


def _finite(grad: Tensor | None) -> bool:
    return grad is None or bool(grad.isfinite().all())


# -------------------------------------------------------------------- the plain loop


class Step(NamedTuple):
    """What :func:`fit` reports after each optimizer step."""

    t: int
    loss: float
    seconds: float
    event: Event | None


class Diverged(ArithmeticError):
    """The loss is not a number: raised before the optimizer moves, so weights and optimizer state are those of the last good step."""

    def __init__(self, step: int, loss: float):
        self.step, self.loss = step, loss
        super().__init__(
            f"the loss is {loss} at step {step}; nothing was changed by this step\n"
            "  To fix it: a smaller learning rate, some steps of warm-up, or gradient clipping"
        )

    def __reduce__(self):
        return Diverged, (self.step, self.loss)


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    rewirer: Any = None,
    scheduler: "torch.optim.lr_scheduler.LRScheduler | None" = None,
    target: Any = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    clip: float | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    ledger: Any = None,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """The plain loop, once over ``batches`` of (input, target).

    Args:
        rewirer: takes the place of ``optimizer.step()``: a :class:`Rewirer`, or a :class:`~gossamer.Multilevel`.
        scheduler: stepped after every optimizer step.
        target: a :class:`~gossamer.TargetDensity`, stepped after both.
        clip: largest norm of all gradients together.
        accumulate: batches per optimizer step, averaged; a last incomplete group counts as one step.
        autocast: dtype of the forward pass, e.g. ``torch.bfloat16``.
        ledger: a :class:`~gossamer.ledger.Ledger` that records every step.
        on_step: called with a :class:`Step` after every optimizer step.

    Raises: Diverged on a loss that is NaN or infinite, before the optimizer moves.
    """
    model.train()
    device = next(model.parameters()).device
    t = rewirer.t if rewirer is not None else 0
    for group in _grouped(batches, accumulate):
        begin, total, examples = time.perf_counter(), 0.0, 0
        optimizer.zero_grad(set_to_none=True)
        for x, y in group:
            x, y = x.to(device), y.to(device)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                value = loss(model(x), y) / len(group)
            total += float(value.detach())
            examples += x.shape[0]
            if not math.isfinite(total):
                optimizer.zero_grad(set_to_none=True)
                if rewirer is not None:
                    rewirer.discard()
                raise Diverged(t + 1, total)
            value.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if ledger is not None:
            ledger.step(examples, rewirer)
        if rewirer is not None:
            rewirer.step()
        else:
            optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if target is not None:
            target.step()
        t += 1
        if on_step is not None:
            on_step(Step(t, total, time.perf_counter() - begin, rewirer.last if rewirer is not None else None))


def _grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
