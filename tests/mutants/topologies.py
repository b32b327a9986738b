"""Topologies broken on purpose, and rewirers that apply a topology wrongly."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

import gossamer as gs
from cases import TOPOLOGIES
from gossamer import laws
from gossamer.support import Support, distinct
from gossamer.surgery import set_support_
from gossamer.topology.slots import grow_random, grow_sensed


def _topology(topology: gs.Topology, rewirer: Callable = gs.Rewirer, **options) -> Callable[[], None]:
    return lambda: laws.check_topology(topology, rewirer, **options)


class _LosesOne(gs.Rewirer):
    """One block fewer in every layer after the first event."""

    def _rewire(self, t, change, scale):
        done = super()._rewire(t, change, scale)
        for layer in self.layers.values():
            s = layer.support
            set_support_(layer, Support.from_ids(s.ids()[1:], s.shape, s.block), self.optimizer)
        return done


class _KnowsItsSlots(gs.Rewirer):
    """Rewires by the functions it knows, and not at all by others."""

    def __init__(self, model, optimizer, topology, **options):
        known = topology.grow_score in (grow_sensed, grow_random)
        super().__init__(model, optimizer, topology if known else replace(topology, n_exchange=_nothing), **options)


def _nothing(layers, change):
    return [0] * len(layers)


def _what_was_dropped(layers, drops, grows, scores):
    return list(drops)


def _all_equal_to_zero(layer, dropped, change, limit, rng):
    return layer.ids, torch.zeros(layer.ids.shape)


def _survivors_too(layer, dropped, change, limit, rng):
    return layer.s.ids(), torch.ones(layer.s.n)


def _by_torchs_generator(layer, dropped, change, limit, rng):
    ids, score = grow_sensed(layer, dropped, change, limit, rng)
    return ids, score + torch.rand(score.shape)


class _Memory:
    """A drop score that depends on how often it was asked: a topology with a state of its own."""

    calls = 0

    def __call__(self, layer):
        self.calls += 1
        return layer.w.abs() * (1 + torch.arange(layer.s.n) * self.calls % 5)


@dataclass(frozen=True)
class _Overshoots(gs.Topology):
    """Prunes to a little less than it should."""

    def size(self, t, start, final):
        return max(1, super().size(t, start, final) - 1)


class _ForgetsProbe(gs.Rewirer):
    def state_dict(self):
        return {**super().state_dict(), "probes": {}}


class _ForgetsMean(gs.Rewirer):
    def state_dict(self):
        state = copy.deepcopy(super().state_dict())
        for probe in state["probes"].values():
            probe["mean"], probe["steps"] = None, 0
        return state


class _ForgetsRng(gs.Rewirer):
    def state_dict(self):
        return {**super().state_dict(), "rng": torch.Generator().manual_seed(9).get_state()}


class _ForgetsTime(gs.Rewirer):
    def load_state_dict(self, state):
        super().load_state_dict({**state, "t": 0})


class _NoEvents(gs.Rewirer):
    def _rewire(self, t, change, scale):
        return None


class _EventFirst(gs.Rewirer):
    """Rewires, then lets the optimizer move."""

    def step(self, closure=None, *, scaler=None):
        moving, self.optimizer.step = self.optimizer.step, lambda closure=None: None
        grads = {name: layer.values.grad for name, layer in self.layers.items()}
        super().step()
        self.optimizer.step = moving
        for name, layer in self.layers.items():
            layer.values.grad = grads[name]
        moving()


class _SensesTheSame(gs.Rewirer):
    """Draws the coordinates of every window from the same ranks, among all blocks."""

    def _drawn(self, s, asked, *_):
        m = round(asked.fraction * (s.total - s.n)) if asked.count is None else asked.count
        return distinct(s.total, m, torch.Generator().manual_seed(0))


class _SensesHalf(gs.Rewirer):
    def _drawn(self, s, asked, *before):
        return super()._drawn(s, asked._replace(fraction=asked.fraction / 2), *before)


class _Resets(gs.Rewirer):
    """Momentum of all layers starts anew at every event."""

    def _rewire(self, t, change, scale):
        done = super()._rewire(t, change, scale)
        for layer in self.layers.values():
            self.optimizer.state[layer.values]["momentum_buffer"].zero_()
        return done


TOPOLOGY = {
    "n drifts": _topology(TOPOLOGIES["csst"], _LosesOne),
    "inert: nothing is sensed": _topology(replace(TOPOLOGIES["csst"], sense=lambda t: None)),
    "inert: grows at random, and does not say so": _topology(replace(TOPOLOGIES["set"], candidates="sensed")),
    "inert: no candidate has a score": _topology(replace(TOPOLOGIES["csst"], grow_score=_all_equal_to_zero)),
    "an amount of 0": _topology(replace(TOPOLOGIES["csst"], n_exchange=_nothing)),
    "allocate ignores the size that is due": _topology(replace(TOPOLOGIES["set growing"], allocate=_what_was_dropped)),
    "knows its slots by name": _topology(TOPOLOGIES["csst"], _KnowsItsSlots),
    "the total drifts": _topology(
        replace(TOPOLOGIES["csst pooled"], allocate=lambda layers, drops, grows, scores: [max(0, g - 1) for g in grows])
    ),
    "grows what it keeps": _topology(replace(TOPOLOGIES["csst"], grow_score=_survivors_too)),
    "random by torch's own generator": _topology(replace(TOPOLOGIES["csst"], grow_score=_by_torchs_generator)),
    "has a state of its own": _topology(replace(TOPOLOGIES["set"], drop_score=_Memory())),
    "events after the stop": _topology(replace(TOPOLOGIES["rigl"], stop=5), steps=20),
    "pruning overshoots": _topology(_Overshoots(**vars(TOPOLOGIES["gmp"]))),
    "resume forgets the probe": _topology(TOPOLOGIES["csst"], _ForgetsProbe),
    "resume forgets what was sensed": _topology(TOPOLOGIES["csst"], _ForgetsMean),
    "resume forgets the generator": _topology(TOPOLOGIES["set"], _ForgetsRng),
    "resume forgets the time": _topology(TOPOLOGIES["gmp"], _ForgetsTime),
    "events do not take place": _topology(TOPOLOGIES["set"], _NoEvents),
    "the optimizer moves after the event": _topology(TOPOLOGIES["set"], _EventFirst),
    "senses what is kept": _topology(TOPOLOGIES["csst"], _SensesTheSame),
    "senses half": _topology(TOPOLOGIES["csst"], _SensesHalf),
    "momentum of all is reset": _topology(TOPOLOGIES["rigl"], _Resets),
}
