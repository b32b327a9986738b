"""The Rewirer: it steps the optimizer and changes the supports.

One step t = 1, 2, ...:

    before    the end of step t - 1 has armed the sensing of step t: it set what the backward pass measures
    forward, backward         by the caller; micro-batches add up, on the support and off it
    step()    average what was sensed -> optimizer.step(), unless the event skips it -> the event -> arm step t + 1
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UsageError
from ..layers import sparse_layers
from ..support import Support
from ..surgery import set_support_
from ..topology import LayerState, Sensing, TopologyLike, Update, event
from .draw import sample_outside_by
from .events import Event
from .gradients import is_finite, unscale
from .ranks import agreed
from .refusals import check_held, check_layers, check_not_bucketed, check_sizes, final_sizes, resolved
from .resumable import Resumable, no_ids, own
from .sensing import Probe


class Rewirer(Resumable):
    """Steps the optimizer and rewires the layers. Call :meth:`step` in place of ``optimizer.step()``.

    Args:
        model: a model with sparse layers.
        optimizer: any torch optimizer over its parameters. Schedulers, clipping and accumulation work as usual.
        topology: ``gs.CSST(...)``, ``gs.RigL(...)``, ..., or a :class:`~gossamer.Topology`.
        steps: optimizer steps of the whole run, for a topology whose ``stop`` is a fraction of the run.
        rng: generator of every random choice of the topology, with the same seed on all ranks of a distributed run;
            None makes one, seeded by torch's initial seed. Torch's own generator is never advanced.
        newborn: the optimizer's state of a newborn connection. ``"fresh"``: as for a new parameter, with a step count
            from 0; ``"zero"``: zeros, with the step count of the layer; ``"sensed"``: fresh, and the gradient sensed at
            birth is the first one; ``"auto"``: zero where the optimizer's step count matters, else fresh
            (docs/methods/newborn.md).

    It works with gradient accumulation (an event uses the sum of the backward passes since the gradients were last None
    or zero), autocast (values stay float32), a ``GradScaler`` (pass it to :meth:`step`; a step that overflows measures
    nothing), ``load_state_dict`` of the model (the optimizer's state follows its connections, and a new window starts),
    copies of (model, optimizer, rewirer) together, and ``torch.distributed`` (what is sensed is averaged over the
    ranks). An event does not change a layer that got no gradient since the last event.

    Raises: UsageError where layers, optimizer and topology do not fit together.
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
        layers, topology = sparse_layers(model), resolved(topology, steps)
        check_layers(layers)
        check_held(layers, optimizer)
        check_not_bucketed(model, layers, topology)
        final = final_sizes(layers, topology)
        check_sizes(layers, topology, final)
        super().__init__(layers, optimizer, topology, final, rng, newborn)
        self._arm()

    # ---------------------------------------------------------------- one step

    def step(self, closure: Callable[[], Any] | None = None, *, scaler: "torch.amp.GradScaler | None" = None) -> Any:
        """One step of the optimizer, then the event, if this step has one. Returns the result of the optimizer.

        Raises: Diverged if weights are NaN or infinite at an event. The support has not changed then.
        """
        self._check_owned()
        self._look_at_all()
        t = self.t + 1
        update = self.topology.when(t)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        if closure is not None and (update is not None or self._probes):
            what = "an optimizer that evaluates a closure has no single gradient, and rewiring needs one"
            raise UsageError("Rewirer.step", what, remedy="an optimizer without closure: SGD, Adam, ...")
        if update is not None:
            self._check_finite(t)
        if scaler is not None and (self._probes or (update is not None and not update.step_optimizer)):
            unscale(scaler, self.optimizer)
        observers = self._own.observers.items()
        self._fed.update([name for name, one in observers if name not in self._fed and one.has_gradient()])
        if self._probes:
            self._average(scale)
        result = None
        if update is None or update.step_optimizer:
            self._is_stepping = True
            try:
                result = self.optimizer.step(closure) if scaler is None else scaler.step(self.optimizer)
            finally:
                self._is_stepping = False
        if update is not None:
            self._check_finite(t)
        self.last = None if update is None else self._rewire(t, update, scale)
        self.t = t
        self._arm()
        return result

    # ---------------------------------------------------------------- what is sensed

    def _arm(self) -> None:
        """Sets what the backward pass of step t + 1 measures."""
        asked = self.topology.sense(self.t + 1)
        if asked is None:
            self._disarm()
        elif asked.fresh or not self._probes:
            before = self._probes
            self._disarm()
            for name, layer in self._trained.items():
                s = layer.support
                if s.n < s.total or (asked.active and not asked.stream):  # a full support has no zeros to sense
                    self._probes[name] = self._probe(name, asked, before.get(name))
        else:
            for probe in self._probes.values():
                probe.sense = asked

    def _probe(self, name: str, asked: Sensing, before: Probe | None, saved: Mapping[str, Any] | None = None) -> Probe:
        """A probe of the layer's present support. ``saved``: its state in the middle of a window."""
        layer, s = self.layers[name], self.layers[name].support
        state = saved or {"ids": self._drawn(s, asked, before)}
        return Probe(layer, self._own.observers[name], asked, s, **{key: own(entry) for key, entry in state.items()})

    def _drawn(self, s: Support, asked: Sensing, before: Probe | None) -> Tensor:
        """Ids of the blocks to sense, sorted."""
        zeros = s.total - s.n
        if asked.stream:
            return no_ids(s)
        m = round(asked.fraction * zeros) if asked.count is None else min(asked.count, zeros)
        if asked.flow and before is not None and before.flow is not None:
            return sample_outside_by(s, m, *before.flow, self.rng)
        return s.sample_outside(m, self.rng)

    def _average(self, scale: float) -> None:
        """Adds the step's measurements to the averages, for layers that any rank has measured, if all are finite."""
        found = {name: probe.observer.seen() for name, probe in self._probes.items()}
        finite = all(is_finite(t) for seen in found.values() if seen is not None for t in seen.tensors)
        finite = finite and all(is_finite(layer.values.grad) for layer in self._trained.values())
        finite, counts = agreed(finite, [seen is not None for seen in found.values()])
        for (name, probe), counted in zip(self._probes.items(), counts, strict=True):
            if not finite:
                probe.observer.forget()
            elif counted:
                probe.finish(found[name], scale)

    # ---------------------------------------------------------------- the event

    @torch.no_grad()
    def _rewire(self, t: int, update: Update, scale: float) -> Event:
        layers = self._trained
        _, fed = agreed(True, [name in self._fed for name in layers])
        states = [self._layer_state(name, t, update, scale, has) for name, has in zip(layers, fed, strict=True)]
        outcomes = dict(zip(layers, event(self.topology, update, states, self.rng), strict=True))
        for (name, outcome), state in zip(outcomes.items(), states, strict=True):
            if outcome.dropped or outcome.grown:
                self._move(name, state, outcome.support)
        self._fed = set()
        return Event(
            t,
            dropped={name: outcome.dropped for name, outcome in outcomes.items()},
            grown={name: outcome.grown for name, outcome in outcomes.items()},
            n={name: outcome.support.n for name, outcome in outcomes.items()},
            sensed={name: outcome.sensed for name, outcome in outcomes.items()},
        )

    def _layer_state(self, name: str, t: int, update: Update, scale: float, has_gradient: bool) -> LayerState:
        """The state of a layer at the event."""
        layer, s = self.layers[name], self.layers[name].support
        group = next(g for g in self._own.inner.param_groups if any(p is layer.values for p in g["params"]))
        lookahead = float(group["lr"]) / (1 - float(group.get("momentum", 0.0))) * update.interval
        w = layer.layout.compact(layer.values.detach(), s)
        size = self.topology.size(t, self.start[name], self.final[name])
        state = LayerState(s, w, None, no_ids(s), w[:0], size, self.start[name], lookahead, has_gradient=has_gradient)
        probe = self._probes.get(name)
        return state if probe is None else probe.added_to(state, scale)

    def _move(self, name: str, state: LayerState, new: Support) -> None:
        """Gives a layer its new support, and the newborn blocks an optimizer state."""
        layer, ids = self.layers[name], new.ids()
        ids = ids[layer.support.find(ids) < 0]
        sensed = self.newborn.sensed_at(state, ids)
        set_support_(layer, new, self.optimizer, newborn=self.newborn.initial(name))
        self._own.know(name)
        self.newborn.moved(name)
        self.newborn.born(name, ids, sensed)
