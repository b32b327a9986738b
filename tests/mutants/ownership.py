"""Rewirers that keep what they must not keep, or lose what they own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import gossamer as gs
from cases import OPTIMIZERS
from gossamer import laws
from gossamer.keeper import keeper_of

WINDOW = gs.CSST(12, 4, 4, window=3, fraction=0.5, drop_fraction=0.3)
ADAMW = OPTIMIZERS["adamw"]


def _observing(change: Callable) -> type:
    """A Rewirer whose observers are bent."""

    class Bent(gs.Rewirer):
        def _attach(self):
            super()._attach()
            for observer in self._own.observers.values():
                change(observer)

    return Bent


def _counts_at_once(observer):
    def tell(dy, x):
        seen = observer.measure(dy, x)
        if seen is not None:
            held = observer._seen[-1][1].plus(seen) if observer._seen else seen
            observer._seen = [(lambda: observer.layer.values.grad, held)]

    observer._observation.tell = tell
    observer._before, observer._after = lambda grad: None, lambda values: None


def _never_forgets(observer):
    observer.has_gradient = lambda: observer.layer.values.grad is not None


def _any_pass(observer):
    after = observer._after

    def commit(values):
        number = torch._C._current_graph_task_id()
        observer._waiting = [(number, seen) for _, seen in observer._waiting]
        after(values)

    observer._after = commit


def _last_pass_only(observer):
    observer._before = lambda grad: setattr(observer, "_base", None)


def _none_is_nothing(observer):
    observer._before = lambda grad: setattr(observer, "_base", observer._seen[-1][1] if observer._seen else None)


PASSES = {
    "what is measured counts at once": lambda: laws.check_passes(WINDOW, _observing(_counts_at_once)),
    "a gradient set to zero is not seen": lambda: laws.check_passes(WINDOW, _observing(_never_forgets)),
    "a gradient set to None is not seen": lambda: laws.check_passes(WINDOW, _observing(_none_is_nothing)),
    "passes that wait count with any other": lambda: laws.check_passes(WINDOW, _observing(_any_pass)),
    "only the last pass counts": lambda: laws.check_passes(WINDOW, _observing(_last_pass_only)),
    "the same, streamed": lambda: laws.check_passes(gs.RigL(12, 4), _observing(_counts_at_once)),
}


def _copying(**changes: Any) -> type:
    """A Rewirer whose copies have lost something."""

    class Loses(gs.Rewirer):
        def __setstate__(self, state):
            super().__setstate__({**state, **{key: value for key, value in changes.items() if key != "cohorts"}})
            if "cohorts" in changes:
                self.newborn.cohorts = []

    Loses.__qualname__ = f"Loses{''.join(sorted(changes))}"
    Loses.__name__, Loses.__module__ = Loses.__qualname__, __name__
    globals()[Loses.__name__] = Loses  # so that it pickles
    return Loses


class KeepsBatches(gs.Rewirer):
    """Its layers remember their last input."""

    def _arm(self):
        super()._arm()
        for layer in self.layers.values():
            if not layer._forward_hooks:
                layer.register_forward_hook(_remembers)


def _remembers(layer, args, y):
    layer.last_input = args[0].detach()


COPIES = {
    "the window is not copied": lambda: laws.check_copies(WINDOW, _copying(_probes={})),
    "the generator is another": lambda: laws.check_copies(
        WINDOW, _copying(rng=torch.Generator().manual_seed(9).get_state())
    ),
    "the clock is not copied": lambda: laws.check_copies(WINDOW, _copying(t=0)),
    "the sizes are not copied": lambda: laws.check_copies(
        gs.SET(12, 4), _copying(start={"0": 9, "2": 9}, final_density={"0": 9, "2": 9})
    ),
    "the age of the newborn is not copied": lambda: laws.check_copies(
        WINDOW, partial(_copying(cohorts=[]), newborn="fresh"), optimizer=ADAMW
    ),
    "a layer keeps its batch": lambda: laws.check_copies(WINDOW, KeepsBatches),
}


class _StateByPosition(gs.Rewirer):
    def _look(self, name, layer):
        keeper_of(self.optimizer).held[id(layer.values)] = layer.support
        super()._look(name, layer)


class _StateReset(gs.Rewirer):
    def _look(self, name, layer):
        moved = layer.support is not self._own.known.get(name)
        super()._look(name, layer)
        if moved and "momentum_buffer" in self.optimizer.state[layer.values]:
            self.optimizer.state[layer.values]["momentum_buffer"].zero_()


class _BornWithMomentum(gs.Rewirer):
    def _look(self, name, layer):
        known = self._own.known.get(name)
        super()._look(name, layer)
        if known is not None and layer.support is not known and not layer.support.same(known):
            born = known.find(layer.support.ids()) < 0
            self.optimizer.state[layer.values]["momentum_buffer"][born] = 1.0


class _WindowGoesOn(gs.Rewirer):
    def _look(self, name, layer):
        probes, self._probes = self._probes, {}
        super()._look(name, layer)
        self._probes = probes
        for probe in probes.values():
            probe.support = probe.layer.support


class _RefusesToGoOn(gs.Rewirer):
    def _look(self, name, layer):
        if layer.support is not self._own.known.get(name) and self.t:
            raise gs.UsageError("Rewirer", "not mine")
        super()._look(name, layer)


class _PutsBack(gs.Rewirer):
    """Writes what it knew over the weights that were loaded."""

    def _look(self, name, layer):
        if layer.support is not self._own.known.get(name):
            with torch.no_grad():
                layer.values.mul_(float("nan"))
        super()._look(name, layer)


RELOAD = {
    "state stays where it was": lambda: laws.check_reload(gs.SET(12, 4), _StateByPosition),
    "state is reset": lambda: laws.check_reload(gs.SET(12, 4), _StateReset),
    "what was loaded is born with momentum": lambda: laws.check_reload(gs.SET(12, 4), _BornWithMomentum),
    "a window goes on": lambda: laws.check_reload(WINDOW, _WindowGoesOn),
    "going on is refused": lambda: laws.check_reload(WINDOW, _RefusesToGoOn),
    "weights are spoilt": lambda: laws.check_reload(WINDOW, _PutsBack),
}
