"""The part of a Rewirer outside its step: it owns the layers, follows supports that other code changes, and is saved,
loaded and copied.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._errors import UsageError
from ..indexed import Indexed
from ..keeper import nested
from ..layers import SparseLayer
from ..observe import Seen
from ..support import Support
from ..topology import Sensing, Topology
from .events import Diverged, Event
from .newborn import Newborn
from .ownership import Ownership
from .refusals import check_held
from .saved_state import held_bytes, probe_problems, probe_state, rewirer_problems, sensed_blocks
from .sensing import Probe
from .states import is_sequence


class Resumable(ABC):
    """The state of a :class:`~gossamer.Rewirer` between its steps.

    ``t``: number of steps made. ``last``: the event of the last step; None if it had no event. ``start``, ``final``:
    number of blocks of each layer at the start and at the end.
    """

    def __init__(
        self,
        layers: Mapping[str, SparseLayer],
        optimizer: torch.optim.Optimizer,
        topology: Topology,
        final: Mapping[str, int],
        rng: torch.Generator | None,
        newborn: str,
    ):
        self.layers, self.optimizer, self.topology = dict(layers), optimizer, topology
        self.rng = torch.Generator().manual_seed(torch.initial_seed()) if rng is None else rng
        self.t = 0
        self.last: Event | None = None
        self.start, self.final = {name: layer.support.n for name, layer in layers.items()}, dict(final)
        self._fed: set[str] = set()  # layers whose values got a gradient since the last event
        self._probes: dict[str, Probe] = {}
        self._saved: dict[str, Any] = {}  # loaded states of probes, until the layers are used
        self._is_stepping = False
        self.newborn = Newborn(nested(optimizer)[-1], self.layers, newborn)
        self._attach()

    @abstractmethod
    def _probe(self, name: str, asked: Sensing, before: Probe | None, saved: Mapping[str, Any] | None = None) -> Probe:
        """A probe of the layer's present support. ``saved``: its state in the middle of a window."""

    @property
    def sensing(self) -> dict[str, int]:
        """Blocks off the support that the step in progress measures, per layer; empty on plain steps."""
        blocks = {name: sensed_blocks(probe) for name, probe in self._probes.items()}
        blocks.update({name: len(saved["ids"]) for name, saved in self._saved.items() if not blocks[name]})
        return {name: n for name, n in blocks.items() if n}

    @property
    def sensing_bytes(self) -> int:
        """Bytes held for sensing: ids and moving averages; when streaming, the kept operands and the rows of the
        gradient that are made at a time."""
        return sum(held_bytes(probe) for probe in self._probes.values())

    def is_event(self, t: int) -> bool:
        """Whether the support changes at step t = 1, 2, ..."""
        return self.topology.when(t) is not None

    def sense(self, t: int) -> Sensing | None:
        """What the backward pass of step t measures off the support; None on plain steps."""
        return self.topology.sense(t)

    def discard(self) -> None:
        """Forgets what the backward passes since the last step have sensed. ``zero_grad`` has the same effect."""
        self._own.forget()

    # ---------------------------------------------------------------- supports that other code changes

    def _attach(self) -> None:
        """Becomes the owner of the layers, and hooks into the optimizer's step, also if other code calls it."""
        self._own = Ownership(
            self,
            self.layers,
            self.optimizer,
            measure=lambda rewirer, name, dy, x: rewirer._measure(name, dy, x),
            look=lambda rewirer, name: rewirer._look(name, rewirer.layers[name]),
        )
        self._own.hook(
            self, before=lambda rewirer: rewirer._before_step(), after=lambda rewirer: rewirer.newborn.after_step()
        )
        self._values = {name: layer.values for name, layer in self.layers.items()}

    def _before_step(self) -> None:
        if not self._is_stepping:  # step() has already called it
            self._look_at_all()
        self.newborn.before_step()

    def _check_finite(self, t: int) -> None:
        for name, layer in self._trained.items():
            if not bool(layer.values.detach().isfinite().all()):
                raise Diverged(t, layer=name)

    def _measure(self, name: str, dy: Tensor, x: Tensor) -> Seen | None:
        """The measurement of one backward pass of a layer."""
        probe = self._probes.get(name)
        return None if probe is None else probe.measure(dy, x)

    def _disarm(self) -> None:
        for name in self._probes:
            self._own.observers[name].stop()
        self._probes = {}

    @property
    def _trained(self) -> dict[str, SparseLayer]:
        return {name: layer for name, layer in self.layers.items() if layer.values.requires_grad}

    def release(self) -> None:
        """Stops observing the layers. The next owner of the layers calls this."""
        self._own.release()
        self._probes = {}

    def notice(self, layer: Indexed) -> None:
        """After a layer was loaded: carries its state at once, unless another part may still be loaded for it."""
        if not any(p is layer.values for group in self._own.inner.param_groups for p in group["params"]):
            return  # the parameter was replaced (assign=True): the next step refuses it
        for name, one in self.layers.items():
            if one is layer and not self._own.is_loading(name):
                self._look(name, one)

    def _look_at_all(self) -> None:
        for name, layer in self.layers.items():
            self._look(name, layer)
        for name in [name for name in self._probes if name not in self._trained]:  # frozen in the middle of a window
            self._own.observers[name].stop()
            del self._probes[name]

    def _look(self, name: str, layer: SparseLayer) -> None:
        """If a layer's support has changed, carries what is indexed by it, or starts it again."""
        if not self._own.has_changed(name):
            return
        was_loaded, saved = self._own.was_awaited("Rewirer", name), self._saved.get(name)
        if saved is not None and (problems := probe_problems(name, saved, layer.support)):
            raise UsageError("Rewirer", "the loaded state is damaged", reasons=problems)
        trains = layer.values.requires_grad
        initial = self.newborn.initial(name) if trains else None
        new = [keeper.follow(layer, initial) for keeper in self._own.keepers][-1]
        self._own.know(name)
        self._saved.pop(name, None)
        self.newborn.moved(name)
        if new is not None and trains:
            self.newborn.born(name, new, None)
        if (probe := self._probes.get(name)) is not None:
            self._probes[name] = self._probe(name, probe.sense, None if was_loaded else probe, saved)

    def _check_owned(self) -> None:
        """Refuses a step if another Rewirer owns the layers, or the optimizer no longer holds their values."""
        for name, layer in self.layers.items():
            if layer.owner is not self:
                what = "another Rewirer has been made for these layers, and owns them"
                raise UsageError("Rewirer", what, remedy="call step() of the Rewirer that was made last")
            if layer.values is not self._values[name]:
                check_held(self.layers, self.optimizer)
                self._values[name] = layer.values  # a new parameter, which the optimizer holds
                self._own.observers[name].stop()
                for keeper in self._own.keepers:
                    keeper.add([layer])

    # ---------------------------------------------------------------- saving, loading, copying

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume bit for bit, together with the states of the model and the optimizer."""
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
            "probes": {name: probe_state(probe) for name, probe in self._probes.items() if name in self._trained},
        }

    def problems(self, state: Any) -> list[str]:
        """Why a saved state cannot be loaded, in sentences; [] if it can."""
        problems = rewirer_problems(state, self.topology, self.layers, self.rng)
        return problems or self.newborn.problems(state["newborn"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a state. The model may be loaded before or after.

        Raises: UsageError if the state is of another topology, other layers or other settings.
        """
        if problems := self.problems(state):
            what, remedy = "this state does not fit", "the topology, its settings and the layers it was saved with"
            raise UsageError("Rewirer", what, reasons=problems, remedy=remedy)
        self.t, self.last = int(state["t"]), None
        self.start, self.final = dict(state["start"]), dict(state["final"])
        self.rng.set_state(state["rng"].cpu())
        self._fed = {name for name, fed in state["fed"].items() if fed}
        self.newborn.load_state_dict(state["newborn"]["cohorts"])
        self._disarm()
        self._own.awaited, self._saved = dict(state["supports"]), dict(state["probes"])
        asked = self.topology.sense(self.t + 1)
        for name in self._saved:  # empty until the layer is used: it may be loaded later
            assert asked is not None  # problems() has checked it
            s = self.layers[name].adopted
            self._probes[name] = Probe(self.layers[name], self._own.observers[name], asked, s, no_ids(s))

    def __getstate__(self) -> dict[str, Any]:
        """A copy owns the copied layers. Copies have no gradients, so the step in progress is left out."""
        self._look_at_all()
        probes = {name: (probe.sense, probe_state(probe)) for name, probe in self._probes.items()}
        return {**vars(self), "rng": self.rng.get_state(), "_probes": probes, "_own": None, "_values": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.rng = torch.Generator()
        self.rng.set_state(state["rng"])
        self._probes = {}
        self._attach()
        for name, (sense, saved) in state["_probes"].items():
            if name in self._trained:
                self._probes[name] = self._probe(name, sense, None, saved)


def no_ids(s: Support) -> Tensor:
    """An empty tensor of block ids, on the device of ``s``."""
    return s.col.new_empty(0, dtype=torch.int64)


def own(entry: Any) -> Any:
    """A copy of a saved entry, so that the saved state does not change."""
    if is_sequence(entry):
        return tuple(t.clone() for t in entry)
    return entry.clone() if isinstance(entry, Tensor) else entry
