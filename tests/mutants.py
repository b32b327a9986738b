"""Objects broken on purpose. MUTANTS: law -> what is broken -> a call of the law on it, which must raise AssertionError."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import CONVS, OPERATORS, STOP, SUPPORTS, TOPOLOGIES
from gossamer import CSR, MASKED, SHADOW, checkpoint, laws, penalties, recover
from gossamer._backend import dispatch as kernels_of
from gossamer._backend.dispatch import Kernel, always
from gossamer._backend.index import reference as index_reference
from gossamer.checkpoint.file import read_file, seal, unpacked, write_file
from gossamer.layouts import Layout, gather, scatter
from gossamer.products.conv2d import reference as conv2d
from gossamer.products.linear import op as linear_op
from gossamer.products.linear import reference as linear
from gossamer.products.sense import reference as sense
from gossamer.support import Support, distinct
from gossamer.surgery import set_support_
from gossamer.topology import event
from gossamer.topology.rewiring import survivors
from gossamer.topology.slots import grow_random, grow_sensed
from mutants_ownership import OWNERSHIP

# ---------------------------------------------------------------- supports


def _twisted(name: str = "primes", **methods: Callable) -> Callable[[], None]:
    """The law on a support with some of its methods exchanged."""
    s = SUPPORTS[name]
    twisted = type("Twisted", (Support,), methods)
    return lambda: laws.check_support(twisted(s.shape, s.block, s.crow, s.col, s.ccol, s.row, s.perm))


def _bent(name: str = "primes", **fields: Callable[[Support], torch.Tensor]) -> Callable[[], None]:
    """The law on a support with some of its tensors exchanged."""
    s = SUPPORTS[name]
    return lambda: laws.check_support(replace(s, **{key: make(s) for key, make in fields.items()}))


def _zeros(s: Support) -> int:
    return s.total - s.n


SUPPORT = {
    "columns not sorted": _bent(col=lambda s: s.col.flip(0)),
    "int64 index": _bent(col=lambda s: s.col.long()),
    "row order taken for column order": _bent(perm=lambda s: torch.arange(s.n, dtype=torch.int32)),
    "rows not in column order": _bent(row=lambda s: s.rows()),
    "column pointers shifted": _bent(ccol=lambda s: s.ccol.roll(1)),
    "column pointers with an offset": _bent(ccol=lambda s: s.ccol + 1),
    "samples with replacement": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(torch.randint(max(1, _zeros(s)), (m,), generator=rng).sort()[0])
    ),
    "samples the lower half": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(distinct(max(m, _zeros(s) // 2), m, rng))
    ),
    "samples never hold the last zero": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(distinct(max(m, _zeros(s) - 1), m, rng))
    ),
    "samples hold kept blocks": _twisted(sample_outside=lambda s, m, rng=None: distinct(s.total, m, rng)),
    "samples not sorted": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(distinct(_zeros(s), m, rng)).flip(0)
    ),
    "samples from torch's own generator": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(distinct(_zeros(s), m))
    ),
    "ranks count from the wrong side": _twisted(
        outside=lambda s, rank: rank + torch.searchsorted(s.ids() - torch.arange(s.n), rank, right=False)
    ),
    "find gives the place to insert": _twisted(find=lambda s, ids: torch.searchsorted(s.ids(), ids)),
    "weights count what hangs over the edge": _twisted(
        "ragged tiles", weights=property(lambda s: s.n * s.block[0] * s.block[1])
    ),
    "weights forget the corner": _twisted(
        "ragged corner only",
        weights=property(lambda s: s.n * 9 - s.n * 3 - s.n * 3),  # one tile, short in both directions
    ),
}

# ---------------------------------------------------------------- one event


def _rewire_by(
    bend: Callable[[torch.Tensor], torch.Tensor] = lambda score: score,
    fan_in: int | None = None,
    grow_more: int = 0,
    stay_all: bool = False,
    number: Callable[[int], int | None] = lambda ties: ties,
):
    """The real rewire, its scores bent before they are ranked, or the number that decides between equals."""

    def rewire(s, drop_score, born, born_score, drop, grow, min_fan_in=0, ties=0):
        keep = survivors(
            s, bend(drop_score), 0 if stay_all else drop, min_fan_in if fan_in is None else fan_in, number(ties) or 0
        )
        order = torch.argsort(born)
        grown = born[order][
            sense.top_k(bend(born_score[order]), grow + grow_more, sense.tie_keys(born[order], number(ties)))
        ]
        return Support.from_ids(torch.cat([s.ids()[keep], grown]), s.shape, s.block)

    return rewire


def _later_wins(score: torch.Tensor) -> torch.Tensor:
    return score + 1e-6 * torch.arange(score.numel())


def _in_the_order_given(s, drop_score, born, born_score, drop, grow, min_fan_in=0, ties=0):
    keep = survivors(s, drop_score, drop, min_fan_in, ties)
    grown = born[sense.top_k(born_score, grow, lambda at: sense.tie_key(at, ties))]
    return Support.from_ids(torch.cat([s.ids()[keep], grown]), s.shape, s.block)


def _takes_turns(s, drop_score, born, born_score, drop, grow, min_fan_in=0, ties=0):
    """Drops and grows on the whole set: what stayed may be drawn again."""
    keep = s.ids()[survivors(s, drop_score, drop, min_fan_in, ties)]
    return Support.from_ids(torch.cat([keep, keep[:grow]]), s.shape, s.block)


REWIRE = {
    name: (lambda rewire=rewire: laws.check_rewire(rewire))
    for name, rewire in {
        "the lower id wins": _rewire_by(number=lambda ties: None),
        "the higher id wins": _rewire_by(_later_wins),
        "the same order among equals every time": _rewire_by(number=lambda ties: 7),
        "equals are ordered anew at every call": _rewire_by(number=lambda ties: int(torch.randint(1 << 62, ()))),
        "few orders among equals": _rewire_by(number=lambda ties: ties % 3),
        "candidates are ranked as they come": _in_the_order_given,
        "the strongest go": _rewire_by(torch.neg),
        "a row loses its last block": _rewire_by(fan_in=0),
        "one too many grows": _rewire_by(grow_more=1),
        "nothing is dropped": _rewire_by(stay_all=True),
        "what was kept is grown": _takes_turns,
    }.items()
}

# ---------------------------------------------------------------- one event over all layers


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


def _asks_everybody(t, change, layers, rng):
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


def _own_dice(t, change, layers, rng):
    return event(t, change, layers, torch.default_generator)


EVENT = {
    "ties to the lowest id": _bent_event(lambda ids, score: torch.where(score > 0, score - 1e-9 * ids, score)),
    "blanks to the lowest id": _bent_event(lambda ids, score: torch.where(score > 0, score, -1.0 - ids)),
    "what has no gradient is exchanged": _bent_event(topology={"candidates": "anywhere"}),
    "-0.0 is a gradient": _bent_event(lambda ids, score: torch.where(score.nan_to_num(1.0) == 0, 1e-300, score)),
    "NaN is the strongest": _bent_event(lambda ids, score: score.nan_to_num(1e9)),
    "only what speaks for itself may grow": _bent_event(
        layer=lambda s: s._replace(size=min(s.size, s.s.n + int((s.h > 0).sum())))
    ),
    "layers without gradient are changed": _bent_event(
        layer=lambda s: s._replace(has_gradient=True, g=torch.ones_like(s.w))
    ),
    "every layer is asked": _event(_asks_everybody),
    "drops more than it grows": _event(_drops_all_the_same),
    "random by torch's own generator": _event(_own_dice),
    "the same dice at every event": _event(
        lambda t, change, layers, rng: event(t, change, layers, torch.Generator().manual_seed(1))
    ),
    "knows its slots by name": _event(_knows_chance),
    "counts nothing": _event(lambda *args: [o._replace(sensed=0) for o in event(*args)]),
}

# ---------------------------------------------------------------- kernels


def _kernel(
    operation: str,
    run: Callable,
    case: str = "empty rows and columns",
    reasons_against: Callable = always,
    **options: Any,
) -> Callable[[], bool]:
    s, g = (SUPPORTS[case], None) if case in SUPPORTS else (CONVS[case].support, CONVS[case].g)
    size = CONVS[case].size if case in CONVS else (7, 6)
    return lambda: laws.check_kernel(operation, Kernel("mutant", run, reasons_against), s, g, size=size, **options)


def _only_rows_with_units(x, values, s):
    y = x.new_empty(x.shape[0], s.shape[0])
    rows = s.rows().unique().long()
    y[:, rows] = linear.forward(x, values, s)[:, rows]
    return y


def _scribbles(x, values, s):
    y = linear.forward(x, values, s)
    x.mul_(2)
    return y


class _Drifts:
    """Another answer at every call, by rounding."""

    calls = 0

    def __call__(self, x, values, s):
        self.calls += 1
        return linear.forward(x, values, s) * (1 + self.calls * 2.0**-50)


def _half_the_batch(dy, x, s, g):
    return conv2d.weight_gradient(dy[: dy.shape[0] // 2], x[: x.shape[0] // 2], s, g)


def _without_the_last(values):
    return torch.cat([values[:-1], torch.zeros_like(values[-1:])])


def _tail_unwritten(dy, x, values, s):
    dx, dw = linear.backward(dy, x, values, s)
    tail = torch.empty_like(dx)
    tail[: dx.shape[0] // 4 * 4] = dx[: dx.shape[0] // 4 * 4]
    return tail, dw


def _pads_with_the_border(x, values, s, g):
    high, wide = g.padding
    return conv2d.forward(F.pad(x, (wide, wide, high, high), mode="replicate"), values, s, g._replace(padding=(0, 0)))


def _twice(dx, dw):
    return dx, 2 * dw


class _Accumulates:
    """Adds the gradient to what it found before."""

    total = 0.0

    def __call__(self, dy, x, values, s):
        dx, dw = linear.backward(dy, x, values, s)
        self.total = self.total + dw
        return dx, self.total


def _in_bfloat16(dy, x, values, s):
    dx, dw = linear.backward(dy.float(), x.float(), values, s)
    return dx.bfloat16(), dw.bfloat16().float()


def _as_if_channels_first(x, values, s, g):
    return conv2d.forward(x if x.stride(1) != 1 else x.as_strided(x.shape, x.contiguous().stride()), values, s, g)


KERNEL = {
    "forgets the last entry": _kernel(
        "csr_linear.backward", lambda dy, x, v, s: linear.backward(dy, x, _without_the_last(v), s), "primes"
    ),
    "forgets the gradient of the last entry": _kernel(
        "csr_conv2d.weight_gradient",
        lambda dy, x, s, g: _without_the_last(conv2d.weight_gradient(dy, x, s, g)),
        "padded",
    ),
    "the tail of the batch unwritten": _kernel("csr_linear.backward", _tail_unwritten, "primes"),
    "padding is not zeros": _kernel("csr_conv2d.forward", _pads_with_the_border, "padded"),
    "the weights' gradient counted twice": _kernel(
        "csr_linear.backward", lambda *a: _twice(*linear.backward(*a)), "primes"
    ),
    "the weights' gradient on top of the last call's": _kernel("csr_linear.backward", _Accumulates(), "primes"),
    "bias forgotten": _kernel("csr_linear.forward", lambda x, v, s, b: linear.forward(x, v, s), biased=True),
    "bias in the dtype of activations": _kernel(
        "csr_linear.forward",
        lambda x, v, s, b: (linear.forward(x.float(), v, s).bfloat16() + b.bfloat16()).float(),
        biased=True,
        dtype=torch.bfloat16,
    ),
    "gradient rounded to the dtype of activations": _kernel(
        "csr_linear.backward", _in_bfloat16, "primes", dtype=torch.bfloat16
    ),
    "channels-last images read as channels-first": _kernel(
        "csr_conv2d.forward", _as_if_channels_first, "padded", strange=True
    ),
    "output never written where a row is empty": _kernel("csr_linear.forward", _only_rows_with_units),
    "computed in float32": _kernel(
        "csr_linear.forward", lambda x, v, s: linear.forward(x.float(), v.float(), s).double()
    ),
    "returned in float32": _kernel("csr_linear.forward", lambda x, v, s: linear.forward(x, v, s).float()),
    "reads memory as if it were contiguous": _kernel(
        "csr_linear.forward", lambda x, v, s: linear.forward(x.as_strided(x.shape, (x.shape[1], 1)), v, s)
    ),
    "overwrites its input": _kernel("csr_linear.forward", _scribbles),
    "other bits at every call": _kernel("csr_linear.forward", _Drifts()),
    "output transposed": _kernel("csr_linear.forward", lambda x, v, s: linear.forward(x, v, s).t()),
    "values in row order for columns": _kernel(
        "csr_linear.input_gradient", lambda dy, v, s: linear.input_gradient(dy, v[torch.argsort(s.perm)], s), "primes"
    ),
    "weight gradient in column order": _kernel(
        "csr_linear.weight_gradient", lambda dy, x, s: linear.weight_gradient(dy, x, s)[s.perm.long()], "primes"
    ),
    "tiles transposed": _kernel(
        "csr_linear.weight_gradient",
        lambda dy, x, s: linear.weight_gradient(dy, x, s).transpose(1, 2).reshape(s.n, *s.block),
        "tiles",
    ),
    "half of the batch": _kernel("csr_conv2d.weight_gradient", _half_the_batch, "padded"),
    "stride ignored": _kernel(
        "csr_conv2d.forward", lambda x, v, s, g: conv2d.forward(x, v, s, g._replace(stride=(1, 1))), "strided"
    ),
    "padding transposed": _kernel(
        "csr_conv2d.forward",
        lambda x, v, s, g: conv2d.forward(x, v, s, g._replace(padding=g.padding[::-1])),
        "all unlike",
    ),
    "overlaps not added": _kernel(
        "csr_conv2d.input_gradient",
        lambda dy, v, s, g, size: conv2d.input_gradient(dy, v, s, g, size).clamp(max=1.0),
        "3x3",
    ),
    "sensed in the order of columns": _kernel(
        "csr_sense.sampled", lambda dy, x, ids, shape, block, g: sense.sampled(dy, x, ids, shape, block, g).flip(0)
    ),
    "the largest instead of the strongest": _kernel("csr_sense.strongest", lambda *a: _signed_strongest(*a), "primes"),
    "strongest among the kept too": _kernel(
        "csr_sense.strongest",
        lambda ops, s, k, g: sense.strongest(ops, Support.from_ids(s.ids()[:0], s.shape, s.block), k, g),
        "primes",
    ),
    "strongest of the first micro-batch": _kernel(
        "csr_sense.strongest", lambda ops, s, k, g: sense.strongest(ops[:1], s, k, g), "primes"
    ),
    "reasons_against says yes and no": _kernel("csr_linear.forward", linear.forward, reasons_against=lambda *_: [True]),
}


def _signed_strongest(operands, s, k, g):
    ids = s.outside(torch.arange(_zeros(s)))
    found = sum(sense.sampled(dy, x, ids, s.shape, s.block, g) for dy, x in operands)
    best = sense.top_k(found, k)
    return ids[best], found[best]


# ---------------------------------------------------------------- layouts


class _WrongGradient(torch.autograd.Function):
    """The identity, with the gradient of the values bent on its way back."""

    @staticmethod
    def forward(ctx, values, bend):
        ctx.bend = bend
        return values.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.bend(grad), None


def _bending(layout: Layout, bend: Callable) -> Layout:
    return layout._replace(
        linear=lambda x, v, s, b=None: layout.linear(x, _WrongGradient.apply(v, lambda g: bend(g, s)), s, b),
        conv2d=lambda x, v, s, g, b=None: layout.conv2d(
            x, _WrongGradient.apply(v, lambda grad: bend(grad, s)), s, g, b
        ),
    )


class _RowOrder(Layout):
    def compact(self, stored, s):
        return stored[s.perm.long()]


class _Rounded(Layout):
    def stored(self, compact, s, shape):
        return super().stored(compact.float().double(), s, shape)


def _straight_through(x, values, s):
    masked = scatter(gather(values, s), s)
    return F.linear(x, values + (masked - values).detach())


LAYOUT = {
    name: (lambda layout=layout: laws.check_layout(layout))
    for name, layout in {
        "gradient in column order": _bending(CSR, lambda g, s: g[s.perm.long()]),
        "gradient halved": _bending(CSR, lambda g, s: g / 2),
        "gradient leaks off the support": MASKED._replace(linear=_straight_through),
        "what is off the support is read": MASKED._replace(linear=lambda x, v, s: F.linear(x, v)),
        "a zero that follows gets no gradient": MASKED._replace(follows=True),
        "what follows has its gradient on the support only": SHADOW._replace(linear=MASKED.linear),
        "half a gradient off the support": _bending(SHADOW, lambda g, s: torch.where(s.mask().view(g.shape), g, g / 2)),
        "weight transposed": MASKED._replace(
            linear=lambda x, v, s: F.linear(x, scatter(gather(v, s), s).reshape(s.shape[::-1]).t())
        ),
        "input gets no gradient through one row": CSR._replace(
            linear=lambda x, v, s: torch.cat([CSR.linear(x[:1].detach(), v, s), CSR.linear(x[1:], v, s)])
        ),
        "stride and dilation exchanged": CSR._replace(
            conv2d=lambda x, v, s, g: CSR.conv2d(x, v, s, g._replace(stride=g.dilation, dilation=g.stride))
        ),
        "padding transposed": CSR._replace(
            conv2d=lambda x, v, s, g: CSR.conv2d(x, v, s, g._replace(padding=g.padding[::-1]))
        ),
        "values come back in another order": _RowOrder(*CSR),
        "values rounded when stored": _Rounded(*CSR),
        "storage of its own": CSR._replace(storage="sparse"),
    }.items()
}

# ---------------------------------------------------------------- surgery


def _surgery(after: Callable | None = None, layout: str = "csr", **options: Callable) -> Callable[[], None]:
    """The real surgery, and then something done to its result."""

    def mutant(layer, new, optimizer=None):
        before = copy.deepcopy((layer.values.detach(), dict(optimizer.state[layer.values]), layer.support))
        grad = layer.values.grad
        set_support_(layer, new, optimizer)
        with torch.no_grad():
            after(layer, new, optimizer, *before, grad)

    return lambda: laws.check_surgery(mutant, layout=layout, **options)


def _born(new: Support, old: Support) -> torch.Tensor:
    return old.find(new.ids()) < 0


def _state_not_zeroed(layer, new, optimizer, _values, _state, old, _grad):
    optimizer.state[layer.values]["momentum_buffer"][_born(new, old)] += 0.5


def _values_not_zeroed(layer, new, _optimizer, _values, _state, old, _grad):
    layer.values[_born(new, old)] = 1e-3


def _state_reset(layer, _new, optimizer, *_):
    optimizer.state[layer.values]["momentum_buffer"].zero_()


def _state_lost(layer, _new, optimizer, *_):
    optimizer.state[layer.values].clear()


def _by_position(layer, _new, _optimizer, values, _state, _old, _grad):
    n = min(layer.values.shape[0], values.shape[0])
    layer.values[:n] = values[:n]


def _gradient_kept(layer, _new, _optimizer, _values, _state, _old, grad):
    layer.values.grad = grad if grad is not None and grad.shape == layer.values.shape else None


def _storage_swapped(layer, *_):
    layer.values.data = layer.values.data.clone()


def _parameter_swapped(layer, *_):
    layer.values = torch.nn.Parameter(layer.values.detach().clone())


def _index_forgotten(layer, _new, _optimizer, _values, _state, old, _grad):
    layer.adopt_(old)


def _bias_zeroed(layer, *_):
    layer.bias.zero_()


def _left_in_the_zeros(layer, new, optimizer, *_):
    buffer = optimizer.state[layer.values]["momentum_buffer"]
    buffer[~new.mask()] = 1.0


def _index_overwritten(layer, new, optimizer=None):
    held = layer.support
    set_support_(layer, new, optimizer)
    if held.n == new.n:
        held.col.copy_(new.col), held.crow.copy_(new.crow)


SURGERY = {
    "born blocks inherit a momentum": _surgery(_state_not_zeroed),
    "born blocks inherit a value": _surgery(_values_not_zeroed),
    "momentum of all is reset": _surgery(_state_reset),
    "state is lost": _surgery(_state_lost),
    "values stay where they were in memory": _surgery(_by_position),
    "the old gradient stays": _surgery(_gradient_kept),
    "storage is swapped": _surgery(_storage_swapped),
    "the parameter is swapped": _surgery(_parameter_swapped),
    "the index is forgotten": _surgery(_index_forgotten),
    "the bias is reset": _surgery(_bias_zeroed),
    "dense momentum left where nothing is kept": _surgery(_left_in_the_zeros, layout="masked"),
    "the index is overwritten in place": lambda: laws.check_surgery(_index_overwritten),
}

# ---------------------------------------------------------------- topologies and who trains by them


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


def _torchs_own_dice(layer, dropped, change, limit, rng):
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
    "inert: nothing speaks for any candidate": _topology(replace(TOPOLOGIES["csst"], grow_score=_all_equal_to_zero)),
    "an amount of 0": _topology(replace(TOPOLOGIES["csst"], n_exchange=_nothing)),
    "share ignores where the size goes": _topology(replace(TOPOLOGIES["set growing"], allocate=_what_was_dropped)),
    "knows its slots by name": _topology(TOPOLOGIES["csst"], _KnowsItsSlots),
    "the total drifts": _topology(
        replace(TOPOLOGIES["csst pooled"], allocate=lambda layers, drops, grows, scores: [max(0, g - 1) for g in grows])
    ),
    "grows what it keeps": _topology(replace(TOPOLOGIES["csst"], grow_score=_survivors_too)),
    "random by torch's own generator": _topology(replace(TOPOLOGIES["csst"], grow_score=_torchs_own_dice)),
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

# ---------------------------------------------------------------- checkpoints


def _checkpoint(**functions: Callable) -> Callable[[], None]:
    return lambda: laws.check_checkpoint(gs.CSST(STOP, 4, 8, window=3, fraction=0.5), gs.Rewirer, **functions)


def _saves_no_rewirer(path, model, *, optimizer, rewirer, extra):
    state = {**rewirer.state_dict(), "probes": {}}

    class Emptied:
        def state_dict(self):
            return state

    checkpoint.save(path, model, optimizer=optimizer, rewirer=Emptied(), extra=extra)


def _keeps_random_state(path, model, **parts):
    state = torch.get_rng_state()
    extra = checkpoint.load(path, model, **parts)
    torch.set_rng_state(state)
    return extra


def _not_atomic(path, model, **parts):
    Path(path).write_bytes(b"here a checkpoint will be")
    checkpoint.save(path, model, **parts)


def _leaves_litter(path, model, **parts):
    Path(path).with_suffix(".partial").write_bytes(b"")
    checkpoint.save(path, model, **parts)


def _drops_what_is_not_json(path, model, *, extra, **parts):
    plain = {key: value for key, value in extra.items() if isinstance(value, (int, str))}
    checkpoint.save(path, model, extra=plain, **parts)


def _loads_without_a_look(path, model, *, optimizer, rewirer):
    """What a user's own script does: no version, no index, no digest is looked at."""
    seal(path)
    meta, tensors = read_file(Path(path))
    model.load_state_dict(
        {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}, strict=False
    )
    for name, part in (("optimizer", optimizer), ("rewirer", rewirer)):
        part.load_state_dict(unpacked(meta["states"][name], tensors, set()))
    checkpoint._set_rng_state(unpacked(meta["rng"], tensors, set()))
    return meta["extra"]


def _looks_after_loading(path, model, **parts):
    _, tensors = read_file(Path(path))
    values = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    with torch.no_grad():
        for key, t in model.state_dict().items():
            if key in values and values[key].shape == t.shape and not key.endswith(("crow", "col")):
                t.copy_(values[key])
    return checkpoint.load(path, model, **parts)


def _digest_ignored(path, model, **parts):
    """Makes the digests of the indices in the file fit before it looks at them."""
    meta, tensors = read_file(Path(path))
    meta.pop("version")
    for name, said in meta["supports"].items():
        if f"model.{name}.col" in tensors:
            said["sha256"] = checkpoint.digest(tensors[f"model.{name}.crow"], tensors[f"model.{name}.col"])
    write_file(Path(path), tensors, meta)
    return checkpoint.load(path, model, **parts)


def _any_bytes(path, model, **parts):
    """Looks at the structure alone: whatever the bytes are, they are those that were written."""
    with contextlib.suppress(EOFError, AssertionError):
        seal(path)
    return checkpoint.load(path, model, **parts)


def _optimizer_unseen(path, model, *, optimizer, rewirer):
    """The optimizer is loaded without a look, before the rest is verified."""
    meta, tensors = read_file(Path(path))
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        optimizer.load_state_dict(unpacked(meta["states"]["optimizer"], tensors, set()))
    return checkpoint.load(path, model, optimizer=optimizer, rewirer=rewirer)


def _other_exception(path, model, **parts):
    try:
        return checkpoint.load(path, model, **parts)
    except gs.UsageError as refusal:
        raise RuntimeError(str(refusal)) from refusal


CHECKPOINT = {
    "the window in progress is not saved": _checkpoint(save=_saves_no_rewirer),
    "torch's random state does not come back": _checkpoint(load=_keeps_random_state),
    "a failed save destroys the old file": _checkpoint(save=_not_atomic),
    "a save leaves litter": _checkpoint(save=_leaves_litter),
    "what is not JSON is dropped in silence": _checkpoint(save=_drops_what_is_not_json),
    "nothing is verified": _checkpoint(load=_loads_without_a_look),
    "verified after the model has changed": _checkpoint(load=_looks_after_loading),
    "the digest of an index is not compared": _checkpoint(load=_digest_ignored),
    "the digest of the file is not compared": _checkpoint(load=_any_bytes),
    "the optimizer is not verified": _checkpoint(load=_optimizer_unseen),
    "refused with another exception": _checkpoint(load=_other_exception),
}

# ---------------------------------------------------------------- penalties


def _penalty(base: Any, *, shapes=((7,), (5, 7), (3, 4, 3, 2)), **methods: Callable) -> Callable[[], None]:
    """The law on a penalty with some of its methods exchanged."""
    twisted = type("Twisted", (type(base),), methods)
    return lambda: laws.check_penalty(twisted(**vars(base)), shapes=shapes)


def _divides_by_zero(p, u, tau):
    norm = penalties.norms(u, p.group)
    return u * penalties.spread((1 - tau * p.lam * penalties.root(u, p.group) / norm).clamp_min(0.0), u)


def _in_place(p, u, tau):
    return u.copy_(penalties.soft(u, tau * p.lam))


PENALTY = {
    "thresholds twice": _penalty(gs.L1(0.5), prox=lambda p, u, tau: penalties.soft(u, 2 * tau * p.lam)),
    "thresholds without tau": _penalty(gs.L1(0.5), prox=lambda p, u, tau: penalties.soft(u, p.lam)),
    "hard for soft": _penalty(
        gs.L1(0.5), prox=lambda p, u, tau: torch.where(u.abs() > tau * p.lam, u, torch.zeros_like(u))
    ),
    "a value of nothing": _penalty(gs.L1(0.5), value=lambda p, w: w.new_zeros(())),
    "0 / 0 in a group that is zero": _penalty(gs.GroupL1(0.5), prox=_divides_by_zero),
    "groups without the root of their size": _penalty(
        gs.GroupL1(0.5), prox=lambda p, u, tau: penalties.shrink(u, tau * p.lam, p.group)
    ),
    "changes what it is given": _penalty(gs.L1(0.5), prox=_in_place),
    "gives back what it is given": _penalty(gs.L1(0.0), prox=lambda p, u, tau: u),
    "negative weights stay": _penalty(gs.NonNegativeL1(0.5), prox=lambda p, u, tau: penalties.soft(u, tau * p.lam)),
    "keeps the smallest": _penalty(
        gs.TopK(3), prox=lambda p, u, tau: torch.where(u.abs() <= u.abs().flatten().kthvalue(3)[0], u, 0.0)
    ),
    "keeps one too few": _penalty(gs.TopK(3), prox=lambda p, u, tau: gs.TopK(2).prox(u, tau)),
    "no subgradient at all": _penalty(gs.L1(0.5), subgradient=lambda p, w: -p.lam * w.sign()),
    "a subgradient where the weight is zero": _penalty(
        gs.L1(0.5), subgradient=lambda p, w: p.lam * torch.where(w >= 0, 1.0, -1.0).to(w)
    ),
    "batched another way": _penalty(gs.L1(0.5), proxes=lambda p, us, taus: penalties.softs(us, 1.01 * taus * p.lam)),
    "weights of the logarithm ignored": _penalty(gs.LogL1(0.5, 0.1), prox=lambda p, u, tau: penalties.soft(u, p.lam)),
    "calls itself convex": _penalty(gs.TopK(density=0.3), convex=True),
}

# ---------------------------------------------------------------- rules


def _rule(base: Any, *, shell: Callable = gs.SparseOptimizer, **methods: Callable) -> Callable[[], None]:
    """The law on a rule with some of its methods exchanged."""
    twisted = type("Twisted", (type(base),), methods)
    return lambda: laws.check_rule(twisted(**vars(base)), shell=shell)


def _eats_gradients(rule, w, g, state, now):
    torch._foreach_mul_(g, 0.5)
    gs.ProxSGD.update_(rule, w, g, state, now)


def _moves_house(rule, w, g, state, now):
    gs.ProxSGD.update_(rule, w, g, state, now)
    for p in w:
        p.data = p.data.clone()


class _Counts(gs.ProxSGD):
    """A rule with a state of its own, that no state_dict holds."""

    calls = [0]

    def update_(self, w, g, state, now):
        self.calls[0] += 1
        super().update_(w, g, state, now._replace(lr=now.lr / self.calls[0]))


class _ForgetsT(gs.SparseOptimizer):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        for group in self.param_groups:
            group["t"] = 0


class _ForgetsSums(gs.SparseOptimizer):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        for group in self.param_groups:
            group["sums"] = {}


class _PenalisesAll(gs.SparseOptimizer):
    def __init__(self, params, rule, lr):
        super().__init__(params, rule, lr)
        self.rules = [rule] * len(self.rules)


def _global_threshold(rule, w, g, state, now):
    size = sum(len(p) for p in w)
    gs.ProxSGD.update_(rule, w, g, state, now._replace(strength=now.strength * size))


def _looks(rule, w, g, state, now):
    if float(w[0].sum()) > -1e9:
        gs.ProxSGD.update_(rule, w, g, state, now)


def _nan_where_zero(rule, w, g, state, now):
    gs.ProxSGD.update_(rule, w, [a * p.abs().max() / p.abs().max() for a, p in zip(g, w, strict=True)], state, now)


def _starts_at_zero(rule, w, strength=1.0):
    return {"v": torch.zeros_like(w)}


def _starts_without_subgradient(rule, w, strength=1.0):
    return {"v": w.detach() / rule.delta}


RULE = {
    "gradients are changed": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_eats_gradients),
    "parameters move in memory": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_moves_house),
    "remembers outside its state": lambda: laws.check_rule(_Counts(gs.L1(0.1))),
    "resume forgets the step count": lambda: laws.check_rule(gs.AdaBreg(gs.L1(0.1)), shell=_ForgetsT),
    "resume forgets the threshold": lambda: laws.check_rule(gs.RDA(gs.L1(0.01)), shell=_ForgetsSums),
    "penalises where nothing is to be": lambda: laws.check_rule(gs.ProxSGD(gs.L1(0.1)), shell=_PenalisesAll),
    "tensors see each other": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_global_threshold),
    "reads a weight": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_looks),
    "0 / 0 where all is zero": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_nan_where_zero),
    "the mirror variable starts at zero": _rule(gs.LinBreg(gs.L1(0.1)), init=_starts_at_zero),
    "the mirror variable starts without a subgradient": _rule(gs.LinBreg(gs.L1(0.1)), init=_starts_without_subgradient),
    "dual averaging starts at zero": _rule(
        gs.RDA(gs.L1(0.01)), init=lambda rule, w, strength=1.0: {"u": torch.zeros_like(w)}
    ),
    "the state is the weight itself": _rule(gs.RDA(gs.L1(0.01)), init=lambda rule, w, strength=1.0: {"u": w.detach()}),
}

# ---------------------------------------------------------------- operators and solvers


def _operator(**methods: Callable) -> Callable[[], None]:
    """The law on a gated-ReLU operator with some of its methods exchanged."""
    real = OPERATORS["gated"]()
    kind = type("Twisted", (recover.GatedReLU,), methods)
    twisted = kind.__new__(kind)
    vars(twisted).update(vars(real))
    return lambda: laws.check_operator(twisted)


_G = recover.GatedReLU


def _whole(A: recover.GatedReLU, r: torch.Tensor) -> torch.Tensor:
    return torch.cat([block for _, block in _G.adjoint(A, r)])


OPERATOR = {
    "gates forgotten": _operator(matvec=lambda A, x: A.X @ x.view(A.neurons, -1).sum(0)),
    "a sparse vector takes another path": _operator(
        matvec=lambda A, x: _G.matvec(A, x) * (1 if int(x.count_nonzero()) > 1 else 2)
    ),
    "the last block is missing": _operator(adjoint=lambda A, r: iter([(0, _whole(A, r)[:-5])])),
    "blocks out of order": _operator(adjoint=lambda A, r: iter([(5, _whole(A, r)[5:]), (0, _whole(A, r)[:5])])),
    "the adjoint ignores r's sign": _operator(adjoint=lambda A, r: _G.adjoint(A, r.abs())),
    "columns come sorted": _operator(columns=lambda A, ids: _G.columns(A, ids.sort()[0])),
    "squared norms": _operator(norms=lambda A: _G.norms(A).square()),
    "another matrix at every look": _operator(columns=lambda A, ids: _G.columns(A, ids) + 1e-12 * torch.randn(())),
    "the wrong precision": _operator(columns=lambda A, ids: _G.columns(A, ids).float()),
}


def _solver(change: Callable[..., Any]) -> Callable[[], None]:
    """The law on NIHT, whose result, or whose problem, is bent."""
    return lambda: laws.check_solver(change)


def _bent_result(**fields: Callable) -> Callable[[], None]:
    def solve(A, y, s):
        found = recover.niht(A, y, s)
        return found._replace(**{name: make(found) for name, make in fields.items()}) if s else found

    return _solver(solve)


def _mirrored(A, y, s):
    """Solves with the columns turned round: ties go to the highest index."""
    M = A.matrix if isinstance(A, recover.Dense) else A
    found = recover.niht(M.flip(1), y, s)
    order = torch.argsort(M.shape[1] - 1 - found.support)
    return found._replace(support=(M.shape[1] - 1 - found.support)[order], values=found.values[order])


def _takes_the_zero_column(A, y, s):
    found = recover.niht(A, y, s)
    if s < 3 or found.size < 8:
        return found
    x = found.dense()
    x[found.support[found.values.abs().argmin()]], x[7] = 0.0, 1e-300
    S = x.nonzero().flatten()
    return found._replace(support=S, values=x[S])


def _says_nothing_of_nan(A, y, s):
    return recover.niht(A, y.nan_to_num(0.0), s)


def _clips_the_count(A, y, s):
    return recover.niht(A, y, min(s, A.shape[1]))


def _noisy_bits(A, y, s):
    found = recover.niht(A, y, s)
    return found._replace(values=found.values * (1 + 1e-12 * torch.rand((), dtype=torch.float64)))


SOLVER = {
    "one too many": _solver(lambda A, y, s: recover.niht(A, y, s + 1 if 0 < s < A.shape[1] else s)),
    "one too few": _solver(lambda A, y, s: recover.niht(A, y, s - 1 if s > 1 else s)),
    "the highest index among equals": _solver(_mirrored),
    "a zero column is taken": _solver(_takes_the_zero_column),
    "not sorted": _bent_result(support=lambda f: f.support.flip(0), values=lambda f: f.values.flip(0)),
    "the residual of the start": _bent_result(residuals=lambda f: [f.residuals[0] + 1.0]),
    "shrunk values": _bent_result(values=lambda f: 0.9 * f.values),
    "never converged": _bent_result(converged=lambda f: False),
    "x of the wrong size": _bent_result(size=lambda f: f.size + 1),
    "NaN is taken for zero": _solver(_says_nothing_of_nan),
    "too large a count is clipped": _solver(_clips_the_count),
    "other bits every time": _solver(_noisy_bits),
    "s = 0 gives something": _solver(lambda A, y, s: recover.niht(A, y, max(s, 1))),
}


def _units(change: Callable[..., Any], dtype: torch.dtype = torch.float64) -> Callable[[], None]:
    """The law on NIHT, whose result is bent."""
    return lambda: laws.check_units(lambda A, y: change(recover.niht(A, y, 3), A, y), dtype=dtype)


def _squares_vanish(found, A, y):
    """As at 0.1.0: a y whose squares vanish in its precision is taken for zero."""
    return found if bool(y.square().any()) else found._replace(support=found.support[:0], values=found.values[:0])


UNITS = {
    "a y whose squares vanish is zero": _units(_squares_vanish, torch.float32),
    "squares that are infinite": _units(
        lambda f, A, y: f._replace(converged=bool(A.square().sum().isfinite())), torch.float32
    ),
    "x in the solver's own blocks": _units(lambda f, A, y: f._replace(values=f.values / y.norm())),
    "a residual relative to y": _units(
        lambda f, A, y: f._replace(residuals=[r / float(y.norm()) + 1e-3 for r in f.residuals])
    ),
    "an absolute tolerance": _units(lambda f, A, y: f._replace(values=f.values.where(f.values.abs() > 1e-9, 0.0))),
    "an absolute residual": _units(lambda f, A, y: f._replace(converged=f.residuals[-1] < 1e-6)),
    "an x that vanished is called converged": _units(lambda f, A, y: f._replace(converged=True), torch.float32),
    "infinite values": _units(
        lambda f, A, y: f if f.converged else f._replace(values=y[:1] / 0, support=torch.tensor([0])), torch.float32
    ),
}


def _index(**changed):
    """The reference kernels of an index, some of them broken, on a matrix with an empty row and column, -0.0 and NaN."""
    good = {k: getattr(index_reference, k) for k in ("rows_of", "columns_of", "values_at")}
    w = torch.tensor(
        [[0.0, 2.0, -0.0, 3.0, 0.0], [0.0] * 5, [4.0, 5.0, 0.0, float("nan"), 0.0], [0.0, 6.0, 0.0, 7.0, 0.0]]
    )
    kernels = {k: Kernel("mutant", changed.get(k, run), always) for k, run in good.items()}
    return lambda: laws.check_index(kernels, w)


def _by_bits(w):
    """Takes -0.0 for a non-zero."""
    return index_reference.rows_of(w.view(torch.int32))


def _in_any_order(crow, col, cols):
    """Rows fall within a column."""
    perm = torch.sort(col.flip(0), stable=True)[1]
    perm = col.numel() - 1 - perm
    ccol, row, right = index_reference.columns_of(crow, col, cols)
    return ccol, row[torch.argsort(right)][perm], perm.to(right.dtype)


def _inverse(crow, col, cols):
    """The places in column order, asked for by row order."""
    ccol, row, perm = index_reference.columns_of(crow, col, cols)
    return ccol, row, torch.argsort(perm).to(perm.dtype)


INDEX = {
    "-0.0 is a non-zero": _index(rows_of=_by_bits),
    "NaN is a zero": _index(rows_of=lambda w: index_reference.rows_of(w.nan_to_num(0.0))),
    "a long index": _index(rows_of=lambda w: tuple(t.long() for t in index_reference.rows_of(w))),
    "pointers one row late": _index(
        rows_of=lambda w: (index_reference.rows_of(w)[0].roll(1), index_reference.rows_of(w)[1])
    ),
    "the order within a column is lost": _index(columns_of=_in_any_order),
    "perm is its inverse": _index(columns_of=_inverse),
    "one column short": _index(
        columns_of=lambda crow, col, cols: (
            index_reference.columns_of(crow, col, cols)[0][:-1],
            *index_reference.columns_of(crow, col, cols)[1:],
        )
    ),
    "values of the transpose": _index(values_at=lambda w, crow, col: index_reference.values_at(w.abs() + 1, crow, col)),
    "values in another dtype": _index(values_at=lambda w, crow, col: index_reference.values_at(w, crow, col).double()),
}

# ---------------------------------------------------------------- foreign transforms


def _opaque(x, values, s, bias=None):
    """A product that drops tangents."""
    eager = kernels_of.in_forward_mode() and not _in_func()
    return CSR.linear(*(torch.autograd.forward_ad.unpack_dual(t)[0] if eager else t for t in (x, values)), s, bias)


def _unrecorded(x, values, s, bias=None):
    """A kernel called under a tracer: its output is a constant."""
    return linear_op.PRODUCT.forward(x, values, s, None, bias) if torch.jit.is_tracing() else CSR.linear(x, values, s, bias)


class _Once(torch.autograd.Function):
    """A slope whose backward pass takes its operands for constants, or its samples for the first of them."""

    mapped = False

    @staticmethod
    def forward(x, values, s):
        return CSR.linear(x, values, s)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, values, ctx.s = inputs
        ctx.save_for_backward(x, values)

    @staticmethod
    def backward(ctx, dy):
        x, values = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            y = CSR.linear(x, values, ctx.s)
        return *torch.autograd.grad(y, (x, values), dy), None


def _differentiable_once(x, values, s, bias=None):
    y = _Once.apply(x, values, s) if torch.is_grad_enabled() and not kernels_of.is_traced(x) else CSR.linear(x, values, s)
    return y if bias is None else y + bias


def _under(condition: Callable[[], Any], change: Callable) -> Layout:
    """The real product, its operands changed while the condition holds."""
    return CSR._replace(
        linear=lambda x, v, s, b=None: CSR.linear(*(change(x, v, s, b) if condition() else (x, v, s, b)))
    )


def _in_func() -> bool:
    return kernels_of.in_func_transform()


def _fails(*_):
    raise RuntimeError("not implemented")


TRANSFORM = {
    name: (lambda layout=layout: laws.check_transforms(layout, SUPPORTS["primes"]))
    for name, layout in {
        "a product that drops tangents": CSR._replace(linear=_opaque),
        "a kernel under a tracer": CSR._replace(linear=_unrecorded),
        "operands are constants of the second derivative": CSR._replace(linear=_differentiable_once),
        "the tangent of the values is forgotten": _under(_in_func, lambda x, v, s, b: (x, v.detach(), s, b)),
        "the bias is forgotten": _under(_in_func, lambda x, v, s, b: (x, v, s, None)),
        "a trace of the example's batch": _under(torch.jit.is_tracing, lambda x, v, s, b: (x[:3], v, s, b)),
        "values are constants of a trace": _under(
            torch.jit.is_tracing, lambda x, v, s, b: (x, v.detach().clone(), s, b)
        ),
        "an error that says nothing": _under(_in_func, _fails),
    }.items()
}

# ---------------------------------------------------------------- the meaning of modules


def _exchanged(old: type[nn.Module], new: Callable[[nn.Module], nn.Module]) -> Callable[[], None]:
    """Every module of a type replaced, the rest made sparse."""

    def change(model):
        for name, m in list(model.named_children()):
            if type(m) is old:
                setattr(model, name, new(m))
        return gs.sparsify(model, 0.4)

    return lambda: laws.check_meaning(change)


class _Lookalike(nn.Module):
    """Does what a ReLU does, and is none."""

    def forward(self, x):
        return x.relu()


class _Nested(nn.BatchNorm2d):
    """A normalisation around a normalisation."""

    def __init__(self, inner):
        super().__init__(inner.num_features)
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def _shifted(m):
    with torch.no_grad():
        m.running_mean += 0.1
    return m


MEANING = {
    "normalisation and ReLU are fused": lambda: laws.check_meaning(lambda m: gs.sparsify(m, 0.4, fuse=True)),
    "... without a sparse layer": lambda: laws.check_meaning(lambda m: gs.batch_last.keep_batch_last(m, fuse=True)),
    "another type": _exchanged(nn.ReLU, lambda _: _Lookalike()),
    "another key": _exchanged(nn.BatchNorm2d, _Nested),
    "hooks are lost": _exchanged(nn.Flatten, lambda _: nn.Flatten()),
    "the mode is lost": lambda: laws.check_meaning(lambda m: gs.sparsify(m, 0.4).train()),
    "one module less": lambda: laws.check_meaning(lambda m: gs.sparsify(nn.Sequential(*list(m)[:-1]), 0.4)),
    "statistics are not what they were": _exchanged(nn.BatchNorm2d, _shifted),
}

MUTANTS: dict[str, dict[str, Callable]] = {
    "check_support": SUPPORT,
    "check_rewire": REWIRE,
    "check_event": EVENT,
    "check_kernel": KERNEL,
    "check_index": INDEX,
    "check_layout": LAYOUT,
    "check_surgery": SURGERY,
    "check_penalty": PENALTY,
    "check_rule": RULE,
    "check_topology": TOPOLOGY,
    "check_checkpoint": CHECKPOINT,
    "check_operator": OPERATOR,
    "check_solver": SOLVER,
    **OWNERSHIP,
    "check_transforms": TRANSFORM,
    "check_meaning": MEANING,
    "check_units": UNITS,
}
