"""Events over all layers broken on purpose."""

from collections.abc import Callable
from dataclasses import replace

import torch

from gossamer import laws
from gossamer.support import Support
from gossamer.topology import event
from gossamer.topology.rewiring import survivors
from gossamer.topology.slots import grow_random, grow_sensed


def _event(act: Callable) -> Callable[[], None]:
    return lambda: laws.check_event(act)


def _bent_event(
    bend: Callable | None = None, topology: dict | None = None, layer: Callable = lambda s: s
) -> Callable[[], None]:
    """The law on the real event with scores of candidates, settings, or what it is told of a layer bent."""

    def act(t, change, layers, rng):
        def grow(*args):
            ids, score = t.grow_score(*args)
            return ids, score if bend is None else bend(ids, score)

        return event(replace(t, grow_score=grow, **(topology or {})), change, [layer(s) for s in layers], rng)

    return _event(act)


def _calls_for_every_layer(t, change, layers, rng):
    for layer in layers:
        t.drop_score(layer)
    return event(t, change, layers, rng)


def _knows_chance(t, change, layers, rng):
    return event(
        t if t.grow_score in (grow_random, grow_sensed) else replace(t, candidates="sensed"), change, layers, rng
    )


def _drops_all_the_same(t, change, layers, rng):
    """Drops what it was asked to, whatever can grow."""
    wanted, done = t.n_exchange(layers, change), event(t, change, layers, rng)
    kept = [
        survivors(o.support, torch.arange(o.support.n), max(0, k - o.dropped))
        for k, o in zip(wanted, done, strict=True)
    ]
    return [
        o._replace(support=Support.from_ids(o.support.ids()[k], o.support.shape))
        for k, o in zip(kept, done, strict=True)
    ]


def _by_torchs_generator(t, change, layers, rng):
    return event(t, change, layers, torch.default_generator)


EVENT = {
    "ties to the lowest id": _bent_event(lambda ids, score: torch.where(score > 0, score - 1e-9 * ids, score)),
    "blanks to the lowest id": _bent_event(lambda ids, score: torch.where(score > 0, score, -1.0 - ids)),
    "what has no gradient is exchanged": _bent_event(topology={"candidates": "anywhere"}),
    "-0.0 is a gradient": _bent_event(lambda ids, score: torch.where(score.nan_to_num(1.0) == 0, 1e-300, score)),
    "NaN is the strongest": _bent_event(lambda ids, score: score.nan_to_num(1e9)),
    "only candidates with a gradient may grow": _bent_event(
        layer=lambda s: s._replace(size=min(s.size, s.s.n + int((s.h > 0).sum())))
    ),
    "layers without gradient are changed": _bent_event(
        layer=lambda s: s._replace(has_gradient=True, g=torch.ones_like(s.w))
    ),
    "slots are called for every layer": _event(_calls_for_every_layer),
    "drops more than it grows": _event(_drops_all_the_same),
    "random by torch's own generator": _event(_by_torchs_generator),
    "the same random choices at every event": _event(
        lambda t, change, layers, rng: event(t, change, layers, torch.Generator().manual_seed(1))
    ),
    "knows its slots by name": _event(_knows_chance),
    "counts nothing": _event(lambda *args: [o._replace(sensed=0) for o in event(*args)]),
}
