"""The Rewirer: moves and rewires. Reads top to bottom.

One step t = 1, 2, ...:

    before    the step's sensing was armed when step t - 1 ended: the layers know what to measure in their backward pass
    forward, backward                                      yours; micro-batches add up, off the support as on it
    step()    smooth what was sensed -> optimizer.step(), unless the event forbids it -> the event, if t has one -> arm step t + 1
"""

import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _budgets as budgets
from .._errors import UsageError
from ..layers import SparseLayer, sparse_layers
from ..observe import Observer
from ..support import Support
from ..surgery import keepers_of, nested, set_support_
from ..topology import LayerState, Sensing, Topology, TopologyLike, Update, event
from .newborn import Newborn
from .sensing import Probe, agreed, state_problems


class Diverged(ArithmeticError):
    """The loss, or a weight that an event met, is not a finite number.

    ``loss``: raised by :func:`fit` before the optimizer moves, so weights and optimizer state are those of the last good step.
    ``layer``: raised by an event before it changes anything.
    """

    def __init__(self, step: int, loss: float = math.nan, layer: str | None = None):
        self.step, self.loss, self.layer = step, loss, layer
        what = f"the loss is {loss} at step {step}; nothing was changed by this step"
        if layer is not None:
            what = f"weights of layer {layer!r} are NaN or infinite at step {step}; the event of this step has changed nothing"
        super().__init__(f"{what}\n  To fix it: a smaller learning rate, some steps of warm-up, or gradient clipping")

    def __reduce__(self):
        return Diverged, (self.step, self.loss, self.layer)


class Event(NamedTuple):
    """What one event did, per layer name."""

    t: int
    dropped: dict[str, int]
    grown: dict[str, int]
    n: dict[str, int]
    sensed: dict[str, int]  # blocks off the support that were measured


STATE = ("t", "topology", "settings", "start", "final", "rng", "supports", "fed", "newborn", "probes")


class Rewirer:
    """Moves and rewires: call :meth:`step` where you would call ``optimizer.step()``.

    Args:
        model: a model with sparse layers.
        optimizer: any torch optimizer over its parameters; schedulers, clipping and accumulation work as ever.
        topology: ``gs.CSST(...)``, ``gs.RigL(...)``, ..., or a :class:`~gossamer.Topology`.
        steps: optimizer steps of the whole run, for a topology whose ``stop`` is a fraction of it.
        rng: generator of every random choice of the topology; None seeds one from torch's initial seed, so ``torch.manual_seed``
            decides and torch's own generator is never advanced. In a distributed run all ranks must give the same seed.
        newborn: what the optimizer's state of a connection is at birth: ``"fresh"``, that of a parameter of its own age; ``"zero"``,
            zeros under the parameter's step count; ``"sensed"``, fresh, with the gradient sensed at birth as the first one; ``"auto"``,
            zero where the optimizer's step count matters, fresh elsewhere (docs/methods/newborn.md).

    Works with gradient accumulation (events see the sum of all backward passes since the gradients were last None or zero), autocast
    (values stay float32), a ``GradScaler`` (pass it to :meth:`step`; a step that overflows measures nothing), ``load_state_dict`` of the
    model at any time (the optimizer's state follows its connections, a window in progress begins anew), copies and pickles of (model,
    optimizer, rewirer) together, and ``torch.distributed`` (what is sensed is averaged over the ranks). A layer that got no gradient since
    the last event is left alone.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        topology: TopologyLike,
        *,
        steps: int | None = None,
        rng: torch.Generator | None = None,
        newborn: str = "auto",
    ):
        self.layers = sparse_layers(model)
        self.optimizer, self.topology = optimizer, resolved(topology, steps)
        topology = self.topology
        if not self.layers:
            raise UsageError("Rewirer", "the model has no sparse layer", remedy="gs.sparsify(model, density=...) first")
        following = [name for name, layer in self.layers.items() if layer.layout.follows]
        if following:
            what = "the support of these layers is where their values are not zero; no topology changes it"
            raise UsageError(
                "Rewirer",
                what,
                reasons=following,
                remedy='sparsify(layout="csr") for a topology; or no Rewirer, and a SparseOptimizer',
            )
        self._check_held()
        self._looked = False  # a step has looked at the layers before it calls the optimizer's
        if topology.final_density is not None or topology.merge or not topology.keeps_layer_sizes:
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
        self.newborn = Newborn(self._inner, self.layers, newborn)
        self._fed: set[str] = set()  # layers whose values got a gradient since the last event
        self._probes: dict[str, Probe] = {}
        self._loaded: dict[
            str, Any
        ] = {}  # supports' tags and probes' states that load_state_dict brought, until the layers are used
        self._attach()
        self._arm()

    @property
    def sensing(self) -> dict[str, int]:
        """Units off the support that the step in progress measures, per layer; empty on plain steps."""
        blocks = {name: probe.blocks for name, probe in self._probes.items()}
        blocks.update(
            {
                name: saved["ids"].numel()
                for name, (_, saved) in self._loaded.items()
                if saved is not None and not blocks[name]
            }
        )
        return {name: n for name, n in blocks.items() if n}

    @property
    def sensing_bytes(self) -> int:
        """Bytes held for sensing: coordinates and moving averages; when streaming, the operands kept and one block of the gradient."""
        return sum(probe.bytes for probe in self._probes.values())

    def is_event(self, t: int) -> bool:
        """Whether the support changes at step t = 1, 2, ..."""
        return self.topology.when(t) is not None

    def sense(self, t: int) -> Sensing | None:
        """What the backward pass of step t measures besides the gradient on the support."""
        return self.topology.sense(t)

    def step(self, closure: Callable[[], Any] | None = None, *, scaler: "torch.amp.GradScaler | None" = None) -> Any:
        """One step: the optimizer's, then the event's, if this step has one. Returns what ``optimizer.step(closure)`` returns.

        Raises: Diverged where an event meets weights that are NaN or infinite; the support is as it was then.
        """
        self._check_charge()
        self._look_at_all()
        t = self.t + 1
        update = self.topology.when(t)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        if closure is not None and (update is not None or self._probes):
            raise UsageError(
                "Rewirer.step",
                "an optimizer that evaluates a closure has no single gradient to rewire by",
                remedy="SGD, Adam, ...",
            )
        if update is not None:
            self._check_finite(t)
        if scaler is not None and (self._probes or (update is not None and not update.step_optimizer)):
            _unscale(scaler, self.optimizer)
        self._fed.update(
            [name for name, observer in self._observers.items() if name not in self._fed and observer.has_gradient()]
        )
        if self._probes:
            self._finish(scale)
        result = None
        if update is None or update.step_optimizer:
            self._looked = True
            try:
                result = self.optimizer.step(closure) if scaler is None else scaler.step(self.optimizer)
            finally:
                self._looked = False
        if update is not None:
            self._check_finite(t)
        self.last = self._rewire(t, update, scale) if update is not None else None
        self.t = t
        self._arm()
        return result

    def discard(self) -> None:
        """Forgets what the backward passes since the last step have sensed. Dropping their gradients (``zero_grad``) is enough."""
        for observer in self._observers.values():
            observer.forget()

    def release(self) -> None:
        """Lets go of the layers: nothing is observed any more. What takes charge of the layers next calls this."""
        for observer in self._observers.values():
            observer.stop()
        for handle in self._handles:
            handle.remove()
        self._observers, self._handles, self._probes = {}, [], {}

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume bit for bit, beside the model's and the optimizer's own states."""
        self._look_at_all()
        return {
            "t": self.t,
            "topology": self.topology.name,
            "settings": self.topology.settings(),
            "start": dict(self.start),
            "final": dict(self.final),
            "rng": self.rng.get_state(),
            "supports": {name: layer.support.tag for name, layer in self.layers.items()},
            "fed": {name: name in self._fed for name in self.layers},
            "newborn": {"mode": self.newborn.mode, "cohorts": self.newborn.state_dict()},
            "probes": {name: probe.state() for name, probe in self._probes.items() if name in self._moving},
        }

    def problems(self, state: Any) -> list[str]:
        """Why a saved state cannot be taken over, in sentences; [] if it may go on."""
        if not isinstance(state, dict) or not set(STATE) <= set(state):
            return [f"a state of a Rewirer has {', '.join(STATE)}"]
        here, there = self.topology.settings(), state["settings"]
        other = f"it does not belong to topology {self.topology.name!r} on layers {list(self.layers)}"
        if state["topology"] != self.topology.name:
            return [f"{other}: it is of topology {state['topology']!r}"]
        named = [state[key] for key in ("settings", "probes", "start", "final", "supports", "fed")]
        if any(not isinstance(part, dict) for part in named) or any(
            set(part) != set(self.layers) for part in named[2:]
        ):
            return [f"{other}: it is of others"]
        problems = [f"{key} was {there.get(key)}, is {here[key]}" for key in here if here[key] != there.get(key)]
        counts = [state["t"], *state["start"].values(), *state["final"].values(), *state["supports"].values()]
        if any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in counts):
            problems.append("t, start, final and supports are whole numbers of at least 0")
        rng = state["rng"]
        if not torch.is_tensor(rng) or rng.dtype != torch.uint8 or rng.shape != self.rng.get_state().shape:
            problems.append("rng is the state of a random generator of another kind")
        if not all(isinstance(fed, bool) for fed in state["fed"].values()):
            problems.append("fed tells of every layer whether it got a gradient")
        if not problems and state["probes"]:
            if self.topology.sense(state["t"] + 1) is None or not set(state["probes"]) <= set(self._moving):
                return ["its probes are of other layers, or of a step that senses nothing"]
            for name, saved in state["probes"].items():
                s = self.layers[name]._support
                problems += state_problems(name, saved, s, present=s.tag == state["supports"][name])
        return problems + self.newborn.problems(state["newborn"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state; refuses one of another topology, other layers or other rules. The model may be loaded before or after."""
        problems = self.problems(state)
        if problems:
            remedy = "the same topology on the same layers as when it was saved"
            raise UsageError("Rewirer", "this state was saved under other rules", reasons=problems, remedy=remedy)
        self.t = int(state["t"])
        self.last = None
        self.start, self.final = dict(state["start"]), dict(state["final"])
        self.rng.set_state(state["rng"].cpu())
        self._fed = {name for name, fed in state["fed"].items() if fed}
        self.newborn.load_state_dict(state["newborn"]["cohorts"])
        self._disarm()
        asked = self.topology.sense(self.t + 1)
        self._loaded = {name: (tag, state["probes"].get(name)) for name, tag in state["supports"].items()}
        for name in state["probes"]:
            assert asked is not None  # as was checked
            s = self.layers[name]._support
            nothing = s.col.new_empty(
                0, dtype=torch.int64
            )  # until the layer is looked at: it may be loaded later than this
            self._probes[name] = Probe(self.layers[name], self._observers[name], asked, s, nothing)

    # ---------------------------------------------------------------- whose layers they are

    def _attach(self) -> None:
        """Takes charge of the layers and watches the optimizer."""
        reference: weakref.ref[Rewirer] = weakref.ref(self)
        for layer in self.layers.values():
            layer.give_to(self)
        for keeper in keepers_of(self.optimizer):
            keeper.add(self.layers.values())
        self._observers = {name: _observer(reference, name, layer) for name, layer in self.layers.items()}
        self._handles = [
            self._inner.register_step_pre_hook(lambda *_: _call(reference, before=True)),
            self._inner.register_step_post_hook(lambda *_: _call(reference, before=False)),
        ]
        self._known = {name: layer.support for name, layer in self.layers.items()}
        self._values = {name: layer.values for name, layer in self.layers.items()}

    def __getstate__(self) -> dict[str, Any]:
        """A copy takes charge of the copied layers; what the step in progress has seen is not copied, as its gradients are not."""
        self._look_at_all()
        states = {name: (probe.sense, probe.state()) for name, probe in self._probes.items()}
        return {
            **vars(self),
            "rng": self.rng.get_state(),
            "_observers": {},
            "_handles": [],
            "_probes": states,
            "_known": {},
            "_values": {},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.rng = torch.Generator()
        self.rng.set_state(state["rng"])
        self._probes = {}
        self._attach()
        for name, (sense, saved) in state["_probes"].items():
            if name in self._moving:
                self._probes[name] = self._probe(name, sense, None, saved)

    @property
    def _moving(self) -> dict[str, SparseLayer]:
        """The layers that train."""
        return {name: layer for name, layer in self.layers.items() if layer.values.requires_grad}

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The optimizer that moves the values: the given one, or the one that it wraps."""
        return nested(self.optimizer)[-1]

    def notice(self, layer: SparseLayer) -> None:
        """A layer has been loaded: what belongs to it goes along now, unless more is being loaded that may belong to it."""
        if not any(p is layer.values for group in self._inner.param_groups for p in group["params"]):
            return  # replaced (assign=True): the next step says so
        for name, mine in self.layers.items():
            loading = name in self._loaded or any(keeper.is_loading(layer) for keeper in keepers_of(self.optimizer))
            if mine is layer and not loading:
                self._look(name, layer)

    def _look_at_all(self) -> None:
        for name, layer in self.layers.items():
            self._look(name, layer)
        for name in [name for name in self._probes if name not in self._moving]:  # frozen in the middle of a window
            self._observers[name].stop()
            del self._probes[name]

    def _look(self, name: str, layer: SparseLayer) -> None:
        """Notices that a layer has another support than at the last look: what is indexed by it goes along, or begins anew."""
        s = layer.support
        if s is self._known.get(name) and name not in self._loaded:
            return
        tag, saved = self._loaded.get(name, (None, None))
        if tag is not None and tag != s.tag:
            what = f"the state that was loaded belongs to another support than layer {name!r} has"
            raise UsageError("Rewirer", what, remedy="load the model and the rewirer of the same step")
        if tag is not None and saved is not None and (problems := state_problems(name, saved, s)):
            raise UsageError("Rewirer", "the state that was loaded is damaged", reasons=problems)
        trains = layer.values.requires_grad
        new = [
            keeper.follow(layer, self.newborn.initial(name) if trains else None)
            for keeper in keepers_of(self.optimizer)
        ][-1]
        self._loaded.pop(name, None)
        self._known[name] = s
        self.newborn.moved(name)
        if new is not None and trains:
            self.newborn.born(name, new, None)
        if (probe := self._probes.get(name)) is not None:
            self._probes[name] = self._probe(name, probe.sense, probe if tag is None else None, saved)

    def _check_held(self) -> None:
        known = {
            id(p) for optimizer in nested(self.optimizer) for group in optimizer.param_groups for p in group["params"]
        }
        strangers = [f"{name}.values" for name, layer in self._moving.items() if id(layer.values) not in known]
        if len({id(layer.values) for layer in self.layers.values()}) < len(self.layers):
            what = "two sparse layers hold the same values, and each has a support of its own"
            raise UsageError("Rewirer", what, remedy="use one layer in both places")
        if strangers:
            what = "the optimizer does not hold all sparse values"
            remedy = "make the optimizer after sparsify, and load without assign=True"
            raise UsageError("Rewirer", what, reasons=strangers, remedy=remedy)

    def _check_charge(self) -> None:
        """Refuses a step where another Rewirer has taken charge, or the values are no longer those that the optimizer holds."""
        for name, layer in self.layers.items():
            if layer.owner is not self:
                raise UsageError(
                    "Rewirer",
                    "another Rewirer has taken charge of these layers",
                    remedy="step the one that was made last",
                )
            if layer.values is not self._values[name]:
                self._check_held()
                self._values[name] = layer.values  # another parameter, and the optimizer holds it
                self._observers[name].stop()
                for keeper in keepers_of(self.optimizer):
                    keeper.add([layer])

    # ---------------------------------------------------------------- what is sensed

    def _arm(self) -> None:
        """Tells the layers what the backward pass of step t + 1 measures."""
        asked = self.topology.sense(self.t + 1)
        if asked is None:
            self._disarm()
        elif asked.fresh or not self._probes:
            before = self._probes
            self._disarm()
            for name, layer in self._moving.items():
                s = layer.support
                if s.n < s.total or (asked.active and not asked.stream):  # there is nothing to sense off a full support
                    self._probes[name] = self._probe(name, asked, before.get(name))
        else:
            for probe in self._probes.values():
                probe.sense = asked

    def _disarm(self) -> None:
        for name in self._probes:
            self._observers[name].stop()
        self._probes = {}

    def _probe(self, name: str, asked: Sensing, before: Probe | None, saved: dict[str, Any] | None = None) -> Probe:
        """A probe of the layer's present support; ``saved``: its state in the middle of a window."""
        layer, s = self.layers[name], self.layers[name].support
        state = saved or {"ids": self._drawn(s, asked, before)}
        return Probe(layer, self._observers[name], asked, s, **{key: _own(entry) for key, entry in state.items()})

    def _drawn(self, s: Support, asked: Sensing, before: Probe | None) -> Tensor:
        zeros = s.total - s.n
        if asked.stream:
            return s.col.new_empty(0, dtype=torch.int64)
        m = round(asked.fraction * zeros) if asked.count is None else min(asked.count, zeros)
        if asked.flow and before is not None and before.flow is not None:
            return s.sample_outside_by(m, *before.flow, self.rng)
        return s.sample_outside(m, self.rng)

    def _finish(self, scale: float) -> None:
        """What the step has seen enters the averages: of every layer that any rank has seen, if all of it is finite."""
        found = {name: probe.seen() for name, probe in self._probes.items()}
        finite = all(_finite(t) for seen in found.values() if seen is not None for t in seen.tensors)
        finite = finite and all(_finite(layer.values.grad) for layer in self._moving.values())
        finite, counts = agreed(finite, [seen is not None for seen in found.values()])
        for (name, probe), counted in zip(self._probes.items(), counts, strict=True):
            if not finite:
                probe.observer.forget()
            elif counted:
                probe.finish(found[name], scale)

    # ---------------------------------------------------------------- the event

    @torch.no_grad()
    def _rewire(self, t: int, update: Update, scale: float) -> Event:
        layers = self._moving
        groups = {id(p): group for group in self._inner.param_groups for p in group["params"]}
        _, fed = agreed(True, [name in self._fed for name in layers])
        states = []
        for (name, layer), has_gradient in zip(layers.items(), fed, strict=True):
            group = groups[id(layer.values)]
            lookahead = float(group["lr"]) / (1 - float(group.get("momentum", 0.0))) * update.interval
            size = self.topology.size(t, self.start[name], self.final[name])
            states.append(self._site(name, layer, size, lookahead, scale, has_gradient))
        outcomes = event(self.topology, update, states, self.rng)
        for (name, layer), layer_state, outcome in zip(layers.items(), states, outcomes, strict=True):
            if outcome.dropped or outcome.grown:
                self._move(name, layer, layer_state, outcome.support)
        self._fed = set()
        done = dict(zip(layers, outcomes, strict=True))
        return Event(
            t,
            {name: outcome.dropped for name, outcome in done.items()},
            {name: outcome.grown for name, outcome in done.items()},
            {name: outcome.support.n for name, outcome in done.items()},
            {name: outcome.sensed for name, outcome in done.items()},
        )

    def _site(
        self, name: str, layer: SparseLayer, size: int, lookahead: float, scale: float, has_gradient: bool
    ) -> LayerState:
        probe = self._probes.get(name)
        if probe is not None:
            return probe.layer_state(size, self.start[name], lookahead, scale, has_gradient and probe.steps > 0)
        s, w = layer.support, layer.layout.compact(layer.values.detach(), layer.support)
        return LayerState(
            s,
            w,
            None,
            s.col.new_empty(0, dtype=torch.int64),
            w[:0],
            size,
            self.start[name],
            lookahead,
            has_gradient=has_gradient,
        )

    def _move(self, name: str, layer: SparseLayer, layer_state: LayerState, new: Support) -> None:
        """Gives a layer its new support, and the newborn a state."""
        old = layer.support
        ids = new.ids()
        ids = ids[old.find(ids) < 0]
        sensed = _at(layer_state, ids) if self.newborn.mode == "sensed" else None
        set_support_(layer, new, self.optimizer, born=self.newborn.initial(name))
        self._known[name] = layer.support
        self.newborn.moved(name)
        self.newborn.born(name, ids, sensed)

    def _check_finite(self, t: int) -> None:
        for name, layer in self._moving.items():
            if not bool(layer.values.detach().isfinite().all()):
                raise Diverged(t, layer=name)

    # ---------------------------------------------------------------- refusals

    def _final(self) -> dict[str, int]:
        """Units of each layer at the end."""
        if self.topology.final_density is None:
            return dict(self.start)
        names, layers = list(self.layers), list(self.layers.values())
        shapes = [tuple(layer.dense_shape) for layer in layers]
        densities = budgets.resolve(
            self.topology.budget, names, shapes, self.topology.final_density, self.topology.name
        )
        return dict(zip(names, budgets.counts(densities, [layer.support.total for layer in layers]), strict=True))

    def _check_fan_in(self) -> None:
        least = self.topology.min_fan_in
        bad = [
            f"{name}: {int((fan_in < least).sum())} of {fan_in.numel()} output units have fewer"
            for name, layer in self.layers.items()
            for fan_in in [layer.support.crow.diff()]
            if bool((fan_in < least).any()) or self.final[name] < least * layer.support.grid[0]
        ]
        if bad:
            what = (
                f"min_fan_in={least} asks that every output unit keeps {least} incoming blocks, and they must have them"
            )
            raise UsageError(
                "Rewirer", what, reasons=bad, remedy=f"sparsify(..., min_fan_in={least}), or a larger density"
            )

    def _warn_of_frozen(self) -> None:
        """Says at which density a size schedule ends where it cannot reach its own."""
        frozen = [name for name, layer in self.layers.items() if not layer.values.requires_grad]
        totals = {name: layer.support.total for name, layer in self.layers.items()}
        if self.topology.final_density is not None and (
            said := budgets.frozen_warning(self.topology.final_density, totals, self.start, self.final, frozen)
        ):
            warnings.warn(f"{self.topology.name}: {said}", stacklevel=3)

    def _check_not_bucketed(self, model: nn.Module) -> None:
        wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
        if wrapped and any(layer.layout.storage == "compact" for layer in self.layers.values()):
            what = f"{self.topology.name} as set changes the number of values, and DistributedDataParallel holds them in fixed buckets"
            remedy = "a topology of constant size; or leave the wrapper out and all_reduce the gradients before step()"
            raise UsageError("Rewirer", what, remedy=remedy)

    def _check_growth(self) -> None:
        bad = [
            f"{name}: {self.start[name]} blocks now, {n} at the end"
            for name, n in self.final.items()
            if n > self.start[name]
        ]
        if bad and not self.topology.can_grow:
            what = f"{self.topology.name} only prunes, and its final budget gives layers more than they hold"
            raise UsageError(
                "Rewirer", what, reasons=bad, remedy="a larger density to start from, or budgets that agree"
            )


def _unscale(scaler: "torch.amp.GradScaler", optimizer: torch.optim.Optimizer) -> None:
    """Unscales the gradients, unless the caller has done so, to clip them: a scaler refuses a second time, and cannot be asked."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as refusal:
        if "already been called" not in str(refusal):
            raise


def _finite(t: Tensor | None) -> bool:
    """Whether all entries are finite. A sum is, if they are, unless it overflows: the second look is seldom taken."""
    return t is None or bool(t.sum().isfinite()) or bool(t.isfinite().all())


def _own(entry: Any) -> Any:
    """A copy of a saved entry, so that what was saved stays what it was."""
    if torch.is_tensor(entry):
        return entry.clone()
    return tuple(t.clone() for t in entry) if isinstance(entry, (tuple, list)) else entry


def _at(layer_state: LayerState, ids: Tensor) -> Tensor | None:
    """The gradient that was sensed at these blocks; None unless all were."""
    known, h = (
        (layer_state.ids, layer_state.h)
        if layer_state.strongest is None
        else layer_state.strongest(ids.numel(), layer_state.ties)
    )
    at = torch.searchsorted(known, ids)
    if not known.numel() or not bool((known[at.clamp(max=known.numel() - 1)] == ids).all()):
        return None
    return h[at]


def _observer(rewirer: "weakref.ref[Rewirer]", name: str, layer: SparseLayer) -> Observer:
    """An observer that asks the Rewirer what to measure, and does not keep it alive."""

    def measure(dy: Tensor, x: Tensor) -> Any:
        living = rewirer()
        probe = None if living is None else living._probes.get(name)
        return None if probe is None else probe.measure(dy, x)

    def look(seen: SparseLayer) -> None:
        living = rewirer()
        if living is not None:
            with torch.no_grad():
                living._look(name, seen)

    return Observer(layer, name or type(layer).__name__, measure, look)


def _call(rewirer: "weakref.ref[Rewirer]", before: bool) -> None:
    """The hook of the optimizer's step: also of one that the optimizer makes by itself."""
    living = rewirer()
    if living is None:
        return
    if before:
        if not living._looked:  # the optimizer steps by itself
            living._look_at_all()
        living.newborn.before_step()
    else:
        living.newborn.after_step()


def resolved(topology: object, steps: int | None) -> Topology:
    """The topology of a run of so many steps. Raises UsageError where it is none."""
    if isinstance(topology, TopologyLike) and not isinstance(topology, type):
        found = topology.resolve(steps)
        if isinstance(found, Topology):
            return found
    raise UsageError(
        "Rewirer", "topology must be a Topology", got=topology, remedy="gs.CSST(stop=...), gs.RigL(stop=...), ..."
    )
