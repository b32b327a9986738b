"""Ties and blanks, who is left alone, and that nothing hangs on which object a slot is."""

import copy
import functools
import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from cases import FLAT, SUPPORTS, TOPOLOGIES, generator, mlp, same_state, supports, table, train
from gossamer import laws
from gossamer._schedules import Events, cosine, regular
from gossamer.products.sense import reference as sense
from gossamer.topology import Annealed, LayerState, Topology, Update, event
from gossamer.topology.slots import allocate_fixed, allocate_pooled, block_norm, grow_random, grow_sensed, never

# ---------------------------------------------------------------- bag of words

WORDS, UNITS = 20_000, 64
FEW = {"every": 4, "stop": 9}
CSST = {**FEW, "last_every": 4, "window": 3}
GROWING = {
    "csst": gs.CSST(**CSST),
    "csst by flow": gs.CSST(**CSST, candidates="flow"),
    "csst iht": gs.CSST(**CSST, mode="iht"),
    "csst merging": gs.CSST(**CSST, mode="merge"),
    "csst pooled": gs.CSST(**CSST, allocate="pooled"),
    "rigl": gs.RigL(**FEW),
    "snfs": gs.SNFS(**FEW),
}


def documents(t: int) -> tuple[Tensor, Tensor]:
    """32 documents of 20 words each, by Zipf's law."""
    rng, law = generator(t), 1 / torch.arange(1, WORDS + 1)
    words = torch.multinomial(law.expand(32, -1), 20, replacement=True, generator=rng)
    x = torch.zeros(32, WORDS).scatter_add_(1, words, torch.ones(32, 20))
    return x, torch.randint(10, (32,), generator=rng)


@table(GROWING)
def test_newborns_of_a_bag_of_words_are_spread_over_all_hidden_units(case):
    """Nearly all candidates have a gradient of exactly 0: when ties went to the lowest id, block 0 got a hundred
    times what others got."""
    model = nn.Sequential(nn.Linear(WORDS, UNITS), nn.ReLU(), nn.Linear(UNITS, 10))
    for i, p in enumerate(model.parameters()):
        nn.init.normal_(p, 0.0, 0.1, generator=generator(i)) if p.dim() > 1 else nn.init.constant_(p, 0.1)
    model = gs.sparsify(model, 0.1, budget="pooled", exclude=["2"], rng=generator())
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology = case.resolve(None)
    rewirer, born = gs.Rewirer(model, opt, topology, rng=generator(1)), torch.zeros(UNITS, dtype=torch.int64)
    words, start = torch.zeros(WORDS, dtype=torch.bool), model[0].support.n
    for t in range(9):
        old, (x, y) = model[0].support, documents(t)
        words |= x.any(0)
        train(model, opt, rewirer, [(x, y)])
        new = model[0].support
        comes = old.find(new.ids()) < 0
        born += torch.bincount(new.rows()[comes].long(), minlength=UNITS)
        assert words[new.col[comes].long()].all(), "what grows has had a gradient"
        if rewirer.last is not None:
            words[:] = False
            assert rewirer.last.grown["0"] == rewirer.last.dropped["0"] or topology.merge
    assert born.sum() > 1000 and born.min() > 0 and born.max() < 5 * born.median()
    assert new.n == start


# ---------------------------------------------------------------- the strongest, streamed

TIED = {"primes": SUPPORTS["primes"], "ragged tiles": SUPPORTS["ragged tiles"], "empty": SUPPORTS["empty"]}


@table(TIED)
@pytest.mark.parametrize("seed", [0, 5, 2**62 - 1])
def test_streamed_ties_do_not_depend_on_the_blocks(case, seed, monkeypatch):
    """Gradients of few levels: in blocks of any size what one top-k over all zeros by (score, key) gives."""
    s = case
    dy = torch.randint(0, 2, (1, s.shape[0]), generator=generator()).double()
    x = torch.randint(-1, 2, (1, s.shape[1]), generator=generator(1)).double()
    zeros = s.outside(torch.arange(s.total - s.n))
    score = block_norm(sense.sampled(dy, x, zeros, s.shape, s.block))
    for k in (1, 3, zeros.numel() // 2, zeros.numel() - 1):
        expected = zeros[sense.top_k(score, k, sense.tie_keys(zeros, seed))]
        for block in (1, 30, 1 << 22):
            monkeypatch.setattr(sense, "SLAB_NUMBERS", block)
            assert torch.equal(sense.strongest([(dy, x)], s, k, seed=seed)[0], expected)


def test_top_k_breaks_ties_by_the_keys_it_is_given():
    score, keys = torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0, math.nan, -math.inf]), torch.tensor([5, 9, 1, 2, 3, 1, 0])
    chosen = [sense.top_k(score, k, lambda at: keys[at]).tolist() for k in range(8)]
    assert chosen == [
        [],
        [3],
        [1, 3],
        [1, 2, 3],
        [1, 2, 3, 4],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 6],
        [0, 1, 2, 3, 4, 5, 6],
    ]


def test_keys_of_distinct_ids_are_distinct():
    ids = torch.cat([torch.arange(100_000), 2**61 + torch.arange(1000)])
    assert all(sense.tie_key(ids, seed).unique().numel() == ids.numel() for seed in (0, 3, 2**62 - 1))


def words_of_bits(steps: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs that are nearly all 0: gradients tie in nearly all columns."""
    draws = [
        (torch.rand(8, 13, generator=generator(t)), torch.randint(5, (8,), generator=generator(100 + t)))
        for t in range(steps)
    ]
    return [((x < 0.03).double(), y) for x, y in draws]


def in_layout(topology: Topology, layout: str, block: tuple[int, int] = (1, 1)) -> tuple[nn.Module, list[float], int]:
    model = gs.sparsify(mlp(), 0.4, layout=layout, block=block, rng=generator(3))
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rewirer, losses, grown = gs.Rewirer(model, opt, topology, rng=generator(7)), [], 0
    for batch in words_of_bits(20):
        losses += train(model, opt, rewirer, [batch])
        grown += sum(rewirer.last.grown.values()) if rewirer.last else 0
    return model, losses, grown


@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
@pytest.mark.parametrize(
    "name", ["rigl", "snfs", "csst", "csst by flow", "csst iht", "csst merging", "csst pooled", "csst regrowing"]
)
def test_ties_are_broken_alike_in_every_layout(name, block):
    (one, losses, grown), (two, again, _) = (in_layout(TOPOLOGIES[name], layout, block) for layout in ("csr", "masked"))
    assert (grown > 0 or name == "csst iht") and losses == pytest.approx(again, rel=1e-9)
    assert all(s.same(supports(two)[key]) for key, s in supports(one).items())


def test_csst_that_senses_everything_is_rigl_where_gradients_tie():
    """Streamed in blocks of rows or sampled at all zeros: the same scores, the same keys."""
    rigl = gs.RigL(20, 5)
    everything = gs.CSST(
        20, 5, 5, window=1, fraction=1.0, drop_fraction=0.3, selectivity=1.0, allow_regrow=True, step_optimizer=False
    )
    (one, losses, grown), (two, again, _) = (in_layout(topology, "csr") for topology in (rigl, everything))
    assert grown > 0 and losses == again and same_state(one, two)


# ---------------------------------------------------------------- blanks


def layer(h: list[float], n: int = 6, **more) -> LayerState:
    s = gs.Support.from_ids(torch.arange(0, 2 * n, 2), (4, 10))
    ids = s.outside(torch.arange(len(h)))
    w = torch.arange(1.0, n + 1, dtype=torch.float64)
    return LayerState(s, w, torch.ones_like(w), ids, torch.tensor(h, dtype=torch.float64), n, n, 1.0)._replace(**more)


BLANK = {  # gradients of the candidates, how many of 3 blocks are exchanged
    "all zero": ([0.0] * 5, 0),
    "minus zero": ([-0.0, 0.0, -0.0, 2.0], 1),
    "NaN": ([math.nan] * 5, 0),
    "NaN and better": ([math.nan, 1.0, math.nan, 1e-300], 2),
    "infinite": ([math.inf, 0.0, -math.inf, 0.0, 0.0], 2),
    "the least there is": ([5e-324, 0.0, 0.0, 0.0], 1),
    "nothing sensed": ([], 0),
    "enough": ([1.0, 1.0, 1.0, 0.0], 3),
}


@table(BLANK)
@pytest.mark.parametrize("mode", ["prune_grow", "merge"])
def test_an_exchange_needs_candidates_of_merit(case, mode):
    h, due = case
    topology = gs.CSST(10, 1, 1, window=1, selectivity=1.0, mode=mode).resolve()
    (outcome,) = event(topology, Update(drop_fraction=0.5), [layer(h)], generator())
    assert (outcome.dropped, outcome.grown) == (0 if mode == "merge" else due, due)


def test_what_is_dropped_and_has_no_gradient_does_not_come_back():
    """RigL: the dropped are eligible with their own gradient; with fewer exchanged, fewer are dropped, and none of
    those may come twice."""
    g = torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    for seed in range(20):
        here = layer(
            [], strongest=lambda k, ties: (torch.tensor([1, 3, 5])[:k], torch.tensor([1.0, 0.0, 0.0]).double()[:k]), g=g
        )
        (outcome,) = event(
            gs.RigL(10, 1, step_optimizer=True).resolve(),
            Update(drop_fraction=0.9, allow_regrow=True),
            [here],
            generator(seed),
        )
        # 5 are asked for: 0, 2, 4, 6, 8. Only 1 has merit, and 4 if it is dropped: then 3 are dropped and 2 can grow
        assert set(outcome.support.ids().tolist()) == {1, 2, 4, 6, 8, 10} and (outcome.dropped, outcome.grown) == (1, 1)


def test_zeros_grow_at_random_where_the_size_must_rise():
    grown = torch.zeros(40)
    for seed in range(60):
        (outcome,) = event(
            gs.CSST(10, 1, 1, window=1).resolve(),
            Update(drop_fraction=0.0),
            [layer([0.0] * 8 + [1.0], size=9)],
            generator(seed),
        )
        assert outcome.support.n == 9 and (outcome.dropped, outcome.grown) == (0, 3)
        grown[outcome.support.ids()] += 1
    ids = layer([0.0] * 9).ids
    assert grown[ids[8]] == 60 and grown[ids[:8]].min() > 4 and grown[ids[:8]].max() < 30


def test_infinities_are_ties_among_themselves():
    comes = set()
    for seed in range(20):
        candidates = layer([math.inf, -math.inf, 5.0])
        topology = gs.CSST(10, 1, 1, window=1, selectivity=1.0).resolve()
        (outcome,) = event(topology, Update(drop_fraction=0.2), [candidates], generator(seed))
        comes |= set(outcome.support.ids().tolist()) - set(layer([]).s.ids().tolist())
    assert comes == {1, 3}


def test_a_layer_without_gradient_is_left_alone():
    """By every topology, whatever its size should be: seams.md 9."""
    for name, topology in TOPOLOGIES.items():
        asleep = layer([1.0] * 5, g=None, has_gradient=False, size=3)
        for change in (Update(drop_fraction=0.5), Update(drop_fraction=0.5, allow_regrow=True), Update()):
            outcomes = event(topology, change, [asleep, asleep], generator())
            assert all(o.support is asleep.s and o[1:] == (0, 0, 0) for o in outcomes), name


# ---------------------------------------------------------------- data, not identity


def inside(function: Callable) -> Callable:
    return lambda *args: function(*args)


def tripled(function: Callable) -> Callable:
    return functools.partial(functools.partial(inside(function)))


def slots(topology: Topology, wrap: Callable) -> Topology:
    return replace(
        topology,
        **{
            name: wrap(getattr(topology, name))
            for name in ("when", "sense", "n_exchange", "drop_score", "grow_score", "allocate")
        },
    )


COUNTERPARTS = {
    "wrapped": lambda topology: slots(topology, inside),
    "partial": lambda topology: slots(topology, functools.partial),
    "wrapped again": lambda topology: slots(topology, tripled),
    "copied": copy.deepcopy,
    "pickled": lambda topology: pickle.loads(pickle.dumps(topology)),
}


def run(topology: Topology, steps: int = 20) -> nn.Module:
    model = gs.sparsify(mlp(), 0.3, rng=generator(3))
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, opt, gs.Rewirer(model, opt, topology, rng=generator(7)), FLAT.batches(steps))
    return model


@pytest.mark.parametrize("counterpart", COUNTERPARTS.values(), ids=COUNTERPARTS.keys())
def test_a_topology_of_other_objects_is_the_same(counterpart):
    for name in ("set", "set growing", "rigl", "snfs", "gmp", "csst", "csst pooled", "csst merging"):
        assert same_state(run(TOPOLOGIES[name]), run(counterpart(TOPOLOGIES[name]))), name


def test_another_function_that_senses_nothing_leaves_set_as_it_is():
    """seams.md 11: it was inert."""
    plain = gs.SET(25, 5).resolve()
    assert same_state(run(plain), run(replace(plain, sense=lambda t: None))) and not same_state(
        run(plain), run(gs.Static())
    )


def mest(**more) -> Topology:
    """docs/guides/extend.md's."""
    events = regular(4, 13)

    def asked(t):
        return gs.Sensing(fraction=0.0, active=True) if t in events else None

    def saliency(layer):
        return block_norm(layer.w) + 0.1 * block_norm(layer.g)

    return Topology(
        "mest",
        Annealed(events, cosine(0.3, 13), True, False),
        asked,
        drop_score=saliency,
        grow_score=grow_random,
        stop=13,
        **more,
    )


def test_growth_at_random_exchanges_though_nothing_is_sensed():
    laws.check_topology(mest(candidates="anywhere"), gs.Rewirer)
    model = run(mest(candidates="anywhere"))
    before = supports(gs.sparsify(mlp(), 0.3, rng=generator(3)))
    assert all(int((old.find(supports(model)[name].ids()) < 0).sum()) > 5 for name, old in before.items())
    with pytest.raises(AssertionError, match="request an exchange of blocks, and no block grew"):
        laws.check_topology(mest(), gs.Rewirer)


# ---------------------------------------------------------------- refusals

EVERY_FOUR = Annealed(Events((4, 8)), cosine(0.3, 9), True, False)


def made(**slots) -> Callable[[], Topology]:
    return lambda: Topology("mine", **{"when": EVERY_FOUR, "stop": 9, **slots})


def at_an_event(layers: list[LayerState] | None = None, **slots) -> Callable[[], object]:
    return lambda: event(
        made(**slots)(), Update(drop_fraction=0.5), layers or [layer([1.0] * 5), layer([1.0] * 5)], generator()
    )


REFUSALS = {
    "csst's first event after stop": (
        lambda: gs.CSST(stop=75),
        r"(?s)CSST: no event .*stop=75.*step 100.*every < stop",
    ),
    "csst, shrinking": (lambda: gs.CSST(stop=100, final_density=0.1), "no event takes place until stop=100"),
    "csst, merging": (lambda: gs.CSST(stop=99, mode="merge"), "no event takes place until stop=99"),
    "rigl's": (lambda: gs.RigL(stop=100), "RigL: no event takes place until stop=100"),
    "set's": (lambda: gs.SET(stop=5, every=5), "SET: no event takes place until stop=5"),
    "snfs's": (lambda: gs.SNFS(stop=5, every=8), "SNFS: no event takes place until stop=5"),
    "an event at every step": (
        lambda: gs.RigL(stop=50, every=1),
        r"(?s)every step before stop=50 is an event.*never move.*every=2",
    ),
    "the same by csst": (lambda: gs.CSST(50, 1, 1, window=1, step_optimizer=False), "the weights never move"),
    "the same by set": (lambda: gs.SET(2, 1, step_optimizer=False), "the weights never move"),
    "by hand, never": (made(when=never), "mine: no event takes place until stop=9"),
    "by hand, too late": (made(when=lambda t: Update() if t == 10 else None), "no event takes place until stop=9"),
    "by hand, always": (made(when=lambda t: Update(step_optimizer=False)), "the weights never move"),
    "grow_score of two": (
        made(grow_score=lambda layer, dropped: 0),
        r"grow_score must take \(layer, dropped, update, limit, rng\), but it takes \(layer, d",
    ),
    "drop_score of none": (made(drop_score=lambda: None), r"drop_score must take \(layer\), but it takes \(\)"),
    "no function": (made(when=5), r"when must take \(t\), but it is 5"),
    "several at once": (
        made(n_exchange=len, allocate=lambda a: a),
        r"(?s)n_exchange must.*allocate must take \(layers, drops, grows, scores\)",
    ),
    "candidates": (made(candidates="everywhere"), "candidates must be one of sensed, anywhere"),
    "allocates, and a schedule": (
        made(allocate=allocate_pooled, keeps_layer_sizes=False, final_density=0.1),
        "final_density and merge set them too",
    ),
    "allocates, and merges": (
        made(allocate=allocate_pooled, keeps_layer_sizes=False, merge=True),
        "final_density and merge set them too",
    ),
    "allocates in secret": (
        at_an_event(allocate=lambda s, d, g, c: [sum(g), 0]),
        "(?s)the sizes of the layers require.*keeps_layer_sizes=False",
    ),
    "allocates too few": (
        at_an_event(allocate=lambda s, d, g, c: [1, 1], keeps_layer_sizes=False),
        "the sum must be",
    ),
    "allocates too many": (
        at_an_event([layer([1.0] * 3)] * 2, allocate=lambda s, d, g, c: [sum(g), 0], keeps_layer_sizes=False),
        r"of \[3, 3\] candidates",
    ),
    "an exchange for one": (
        at_an_event(n_exchange=lambda s, c: [1]),
        "n_exchange must return a whole number of blocks for each of 2 layers",
    ),
    "half a block": (at_an_event(n_exchange=lambda s, c: [1.5, 1]), "a whole number"),
    "one score in all": (at_an_event(drop_score=lambda s: s.w.sum()), "one score for each of the 6 kept blocks"),
    "ids without scores": (
        at_an_event(grow_score=lambda s, d, c, k, r: (s.ids, s.h[:1])),
        "must return ids and scores",
    ),
    "regrown without a gradient": (
        lambda: event(made()(), Update(0.5, allow_regrow=True), [layer([1.0], g=None)], generator()),
        r"(?s)blocks that were just dropped are scored by the gradient.*Sensing\(active=True\)",
    ),
    "pooled without a gradient": (
        at_an_event([layer([1.0], g=None)], allocate=allocate_pooled, keeps_layer_sizes=False),
        r"Sensing\(active=True\)",
    ),
}


@table(REFUSALS)
def test_what_does_not_fit_is_told(case):
    call, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        call()


def test_slots_that_fit_are_taken():
    """With defaults, with *args, bound, built in, or of a class."""

    class Grower:
        def __call__(self, layer, dropped, change, limit, rng=None):
            return grow_sensed(layer, dropped, change, limit, rng)

    for topology in (
        made(grow_score=Grower()),
        made(allocate=lambda *a: allocate_fixed(*a)),
        made(drop_score=lambda layer, power=1.0: layer.w.abs() ** power),
    ):
        (outcome,) = event(topology(), Update(drop_fraction=0.5), [layer([1.0] * 5)], generator())
        assert outcome.grown == 3


def test_schedules_that_fire_once_or_prune_once_are_taken():
    assert [t for t in range(60) if gs.GMP(50, final_density=0.1, every=99).resolve().when(t)] == [
        50
    ]  # prunes at once, at the stop
    assert (
        len(gs.RigL(5, every=4).resolve().when.events) == 1
        and gs.RigL(50, every=1, step_optimizer=True).resolve().stop == 50
    )
