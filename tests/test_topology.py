"""Topologies: worked examples of one event, the laws over every topology, and independent transcriptions of each
paper's rule.

A transcription is dense and slow and knows nothing of the library: weights, masks and momenta as matrices, gradients
of the dense weight.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from cases import (
    FLAT,
    LAYOUT_NAMES,
    OPTIMIZERS,
    TOPOLOGIES,
    TWO_OPTIMIZERS,
    generator,
    mlp,
    same_supports,
    supports,
    table,
    train,
)
from gossamer import laws
from gossamer.topology import LayerState, Outcome, Update, event
from gossamer.topology.rewiring import ranking, survivors
from gossamer.topology.slots import block_norm, drop_by_magnitude, drop_by_sign, grow_random

# ---------------------------------------------------------------- one event, worked by hand

W = {
    0: 0.1,
    2: -2.0,
    3: -0.2,
    5: 3.0,
    7: 0.2,
    8: -1.0,
    10: 0.5,
    11: -0.3,
}  # kept blocks of a 3 x 4 matrix and their weights
G = {1: 0.7, 4: -0.9, 6: 0.7, 9: 0.0}  # gradients of the zeros
# fraction of 8 blocks exchanged -> what may be dropped (smallest |w|; 3 and 7 tie), what may grow (1 and 6 tie; 9 has
# no merit)
TABLE = {
    0.0: ([set()], [set()]),
    0.125: ([{0}], [{4}]),
    0.25: ([{0, 7}, {0, 3}], [{4, 1}, {4, 6}]),
    0.375: ([{0, 7, 3}], [{4, 1, 6}]),
    0.5: ([{0, 7, 3}], [{4, 1, 6}]),
}
EVERY = {"every": 1, "last_every": 1, "window": 1, "selectivity": 1.0}


def matrix(kept: dict[int, float]) -> tuple[gs.Support, Tensor]:
    return gs.Support.from_ids(torch.tensor(sorted(kept)), (3, 4)), torch.tensor(
        [kept[i] for i in sorted(kept)], dtype=torch.float64
    )


@pytest.mark.parametrize("fraction", TABLE)
def test_drop_and_grow_by_hand(fraction):
    s, w = matrix(W)
    goes, comes = TABLE[fraction]
    results = [set(W) - gone | come for gone in goes for come in comes]
    for ties in range(9):
        new = gs.rewire(
            s,
            w.abs(),
            torch.tensor(list(G)),
            torch.tensor(list(G.values())).abs(),
            len(goes[0]),
            len(comes[0]),
            ties=ties,
        )
        assert set(new.ids().tolist()) in results


@pytest.mark.parametrize(("fraction", "exchanged"), [(0.0, 0), (0.24, 1), (0.25, 2), (0.5, 3), (0.75, 3), (1.0, 3)])
def test_an_event_exchanges_what_both_sides_can_serve(fraction, exchanged):
    """k = trunc(fraction * 8), at most the 3 candidates that have a gradient."""
    s, w = matrix(W)
    layer = LayerState(
        s, w, None, torch.tensor(list(G)), torch.tensor(list(G.values()), dtype=torch.float64), 8, 8, 1.0
    )
    (outcome,) = event(gs.CSST(stop=10, **EVERY).resolve(), Update(drop_fraction=fraction), [layer], generator())
    assert (outcome.dropped, outcome.grown, outcome.support.n, outcome.sensed) == (exchanged, exchanged, 8, 4)
    goes, comes = TABLE[exchanged / 8]
    assert set(outcome.support.ids().tolist()) in [set(W) - gone | come for gone in goes for come in comes]


def test_rewire_obeys_the_law():
    laws.check_rewire(gs.rewire)


def splitmix64(x: int) -> int:
    """As published (Vigna's splitmix64.c), on the state x."""
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_all_equal_scores_go_by_a_hash_of_the_id():
    """splitmix64(id xor ties), as signed numbers: the lowest stay and come."""
    assert splitmix64(1234567) == 6457827717110365317  # published
    kept, zeros = [1, 4, 6, 9], [8, 0, 3]
    s = gs.Support.from_ids(torch.tensor(kept), (3, 4))
    for ties in (0, 1, 2**61 + 5, 2**62 - 1):
        new = gs.rewire(s, torch.ones(4), torch.tensor(zeros), torch.ones(3), 2, 2, ties=ties)
        order = [sorted(ids, key=lambda i: (splitmix64(i ^ ties) + 2**63) % 2**64)[:2] for ids in (kept, zeros)]
        assert new.ids().tolist() == sorted(sum(order, []))


def test_an_event_obeys_the_law():
    laws.check_event()


def test_tiles_are_ranked_by_their_norm():
    tiles = torch.tensor([[[3.0, 4.0]], [[0.0, -6.0]], [[1.0, 1.0]]])
    assert block_norm(tiles).tolist() == pytest.approx([5.0, 6.0, math.sqrt(2)]) and block_norm(
        torch.tensor([-2.0, 1.0])
    ).tolist() == [2.0, 1.0]
    assert ranking(torch.tensor([1.0, 3.0, 3.0, 2.0, math.nan]), torch.tensor([0, 9, 4, 2, -5])).tolist() == [
        2,
        1,
        3,
        0,
        4,
    ]


def test_the_original_sets_drop_rule():
    """Positive and negative weights are ranked apart: the smallest positive and the largest negative are dropped,
    half and half."""
    s, w = matrix({0: 0.1, 1: 0.2, 2: 0.3, 3: -5.0, 4: -6.0, 5: -7.0, 6: 0.9})
    layer = LayerState(s, w, None, s.ids()[:0], w[:0], 7, 7, 1.0)
    gone = sorted(set(range(7)) - set(survivors(s, drop_by_sign(layer), 4).tolist()))
    assert gone == [0, 1, 3, 4]
    assert sorted(set(range(7)) - set(survivors(s, drop_by_magnitude(layer), 4).tolist())) == [0, 1, 2, 6]


def test_every_row_keeps_its_fan_in():
    """Row 0 holds only small weights: its best two stay, and the larger ones elsewhere go instead."""
    s = gs.Support.from_ids(torch.tensor([0, 1, 2, 4, 5, 6, 7]), (2, 4))
    score = torch.tensor([0.1, 0.3, 0.2, 5.0, 4.0, 3.0, 2.0])
    assert survivors(s, score, 3, min_fan_in=2).tolist() == [1, 2, 3, 4]
    assert survivors(s, score, 3).tolist() == [3, 4, 5, 6]


# ---------------------------------------------------------------- the laws over the table


@table(TOPOLOGIES)
def test_every_topology_obeys_the_law(case):
    laws.check_topology(case, gs.Rewirer)


@table({name: TOPOLOGIES[name] for name in ("set", "rigl", "csst", "csst pooled", "gmp")})
def test_in_the_masked_layout_and_in_tiles(case):
    laws.check_topology(case, gs.Rewirer, layout="masked", steps=13)
    laws.check_topology(case, gs.Rewirer, block=(2, 3), steps=13)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_with_every_optimizer(optimizer):
    for name in ("rigl", "csst", "gmp"):
        laws.check_topology(TOPOLOGIES[name], gs.Rewirer, optimizer=optimizer, steps=14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_surgery_carries_and_zeroes_with_every_optimizer(layout, block, optimizer):
    laws.check_surgery(layout=layout, block=block, optimizer=optimizer)


# ---------------------------------------------------------------- equal by definition


def sparse_run(
    topology: gs.Topology,
    optimizer=OPTIMIZERS["nesterov"],
    density: float = 0.3,
    seed: int = 0,
    budget="erk",
    **options,
):
    model = gs.sparsify(mlp(), density, budget=budget, rng=generator(3), **options)
    opt = optimizer(model.parameters())
    return model, opt, gs.Rewirer(model, opt, topology, rng=generator(seed))


@pytest.mark.parametrize("optimizer", TWO_OPTIMIZERS.values(), ids=TWO_OPTIMIZERS.keys())
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_csst_that_senses_everything_is_rigl(layout, optimizer):
    """Fraction 1, window 1, regular intervals, the dropped eligible, no step on event iterations: the same masks,
    step by step."""
    rigl = gs.RigL(60, 5)
    everything = gs.CSST(
        60, 5, 5, window=1, fraction=1.0, drop_fraction=0.3, selectivity=1.0, allow_regrow=True, step_optimizer=False
    )
    a, b = (sparse_run(t, optimizer, layout=layout) for t in (rigl, everything))
    events = 0
    for batch in FLAT.batches(64):
        assert train(*a, [batch]) == train(*b, [batch])
        assert same_supports(a[0], b[0])
        events += a[2].last is not None and sum(a[2].last.grown.values()) > 0
    assert events >= 9


NO_CHANGE = {
    "set": gs.SET(40, 4, drop_fraction=0.0),
    "rigl": gs.RigL(40, 4, drop_fraction=0.0, step_optimizer=True),
    "csst": gs.CSST(40, 4, 4, window=2, drop_fraction=0.0),
    "csst without selectivity": gs.CSST(40, 4, 4, window=2, selectivity=0.0),
    "csst iht": gs.CSST(40, 4, 4, window=2, drop_fraction=0.0, mode="iht"),
    "csst pooled": gs.CSST(40, 4, 4, window=2, drop_fraction=0.0, allocate="pooled"),
}


@table(NO_CHANGE)
def test_a_drop_of_nothing_is_static(case):
    a, b = sparse_run(gs.Static()), sparse_run(case)
    assert train(*a, FLAT.batches(20)) == train(*b, FLAT.batches(20))
    assert all(torch.equal(p, q) for p, q in zip(a[0].parameters(), b[0].parameters(), strict=True))


def test_static_never_changes():
    model, opt, rewirer = sparse_run(gs.Static())
    before = supports(model)
    train(model, opt, rewirer, FLAT.batches(10))
    assert (
        all(s.same(before[name]) for name, s in supports(model).items())
        and rewirer.last is None
        and rewirer.sensing == {}
    )


def random_scores(
    layer: LayerState, dropped: Tensor, _change: Update, _limit: int, rng: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """RigL's candidates, all blocks that do not stay, with random scores for gradients."""
    zeros = layer.s.outside(torch.arange(layer.s.total - layer.s.n))
    ids = torch.cat([zeros, layer.s.ids()[dropped]])
    return ids, torch.rand(ids.shape, generator=rng)


def test_rigl_with_random_scores_is_set():
    """The same blocks are dropped, exactly, and growth is uniform over all that do not stay: chi-square, 4 sigma, a
    fixed seed."""
    s = gs.Support.random((6, 7), 20, rng=generator())
    w = torch.randn(20, generator=generator(1), dtype=torch.float64)
    layer = LayerState(s, w, None, s.ids()[:0], w[:0], 20, 20, 1.0, strongest=lambda k, ties: (s.ids()[:0], w[:0]))
    change = Update(drop_fraction=0.3, allow_regrow=True)
    stay = s.ids()[survivors(s, w.abs(), 6)]
    free = sorted(set(range(42)) - set(stay.tolist()))
    draws = 500
    for topology in (gs.SET(200).resolve(), replace(gs.RigL(200).resolve(), grow_score=random_scores)):
        rng, counts = generator(7), torch.zeros(42)
        for _ in range(draws):
            (outcome,) = event(topology, change, [layer], rng)
            assert (outcome.dropped, outcome.grown, outcome.support.n) == (6, 6, 20)
            kept = outcome.support.find(stay)
            assert (kept >= 0).all()
            counts[outcome.support.ids()] += 1
        counts = counts[free]
        p = 6 / len(free)
        chi2 = float(((counts - draws * p) ** 2).sum()) / (draws * p * (1 - p)) * (len(free) - 1) / len(free)
        assert counts.sum() == 6 * draws and chi2 < len(free) - 1 + 4 * math.sqrt(2 * (len(free) - 1))


def test_set_draws_the_same_as_a_uniform_sample():
    s = gs.Support.random((6, 7), 20, rng=generator())
    layer = LayerState(s, torch.ones(20), None, s.ids()[:0], torch.empty(0), 20, 20, 1.0)
    ids, scores = grow_random(layer, torch.arange(3), Update(), 100, generator())
    assert ids.numel() == 42 - 17 and not scores.any()  # everything, the dropped too, if that many are asked for


# ---------------------------------------------------------------- transcriptions


class Dense:
    """The network of ``mlp`` with dense weights, masks and momenta; SGD with Nesterov momentum and weight decay,
    written out."""

    def __init__(self, model: nn.Module, lr: float, mu: float, wd: float):
        layers = gs.sparse_layers(model)
        self.names, self.lr, self.mu, self.wd = list(layers), lr, mu, wd
        self.w = {name: layer.to_dense().clone() for name, layer in layers.items()}
        self.mask = {name: layer.support.mask().clone() for name, layer in layers.items()}
        self.b = {name: layer.bias.detach().clone() for name, layer in layers.items()}
        self.v = {name: torch.zeros_like(w) for name, w in self.w.items()}
        self.vb = {name: torch.zeros_like(b) for name, b in self.b.items()}

    def gradients(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of the dense weights, off the support too."""
        w = {name: (self.w[name] * self.mask[name]).requires_grad_() for name in self.names}
        b = {name: self.b[name].clone().requires_grad_() for name in self.names}
        for i, name in enumerate(self.names):
            x = F.linear(x if i == 0 else torch.tanh(x), w[name], b[name])
        F.cross_entropy(x, y).backward()
        return {name: t.grad for name, t in w.items()}, {name: t.grad for name, t in b.items()}

    def move(self, gw: dict[str, Tensor], gb: dict[str, Tensor]) -> None:
        for name in self.names:
            for p, v, g in (
                (self.w[name], self.v[name], gw[name] * self.mask[name]),
                (self.b[name], self.vb[name], gb[name]),
            ):
                d = g + self.wd * p
                v.mul_(self.mu).add_(d)
                p.sub_(self.lr * (d + self.mu * v))

    def rewire(self, name: str, dropped: list[int], grown: list[int]) -> None:
        """Dropped and grown flat ids; a block in both keeps value and momentum."""
        for ids, kept in ((dropped, False), (grown, True)):
            for i in ids:
                self.mask[name].view(-1)[i] = kept
        for t in (self.w[name], self.v[name]):
            t[~self.mask[name]] = 0
            for i in set(grown) - set(dropped):
                t.view(-1)[i] = 0

    def kept(self, name: str) -> list[int]:
        return self.mask[name].view(-1).nonzero().flatten().tolist()

    def smallest(self, name: str, k: int) -> list[int]:
        """The k smallest |w| on the support; among equals the higher ids."""
        w = self.w[name].view(-1)
        return sorted(self.kept(name), key=lambda i: (float(w[i].abs()), -i))[:k]

    def agrees(self, model: nn.Module) -> bool:
        layers = gs.sparse_layers(model)
        return all(
            torch.equal(layer.support.mask(), self.mask[n]) and torch.allclose(layer.to_dense(), self.w[n], atol=1e-12)
            for n, layer in layers.items()
        )


def largest(score: Tensor, ids: list[int], k: int) -> list[int]:
    flat = score.reshape(-1)
    return sorted(ids, key=lambda i: (-float(flat[i].abs()), i))[:k]


def lockstep(
    topology: gs.Topology,
    steps: int,
    rule,
    *,
    density: float = 0.3,
    lr: float = 0.07,
    mu: float = 0.85,
    wd: float = 2e-3,
) -> int:
    """Trains the library and the transcription side by side; ``rule(dense, t, gradients, rewirer)`` is the paper's.
    Returns its events."""
    model = gs.sparsify(mlp(), density, rng=generator(3))
    opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=mu, nesterov=True, weight_decay=wd)
    rewirer, dense, events = gs.Rewirer(model, opt, topology, rng=generator(1)), Dense(model, lr, mu, wd), 0
    for t, batch in enumerate(FLAT.batches(steps), 1):
        gw, gb = dense.gradients(*batch)
        events += bool(rule(dense, t, gw, gb, rewirer, lambda batch=batch: train(model, opt, rewirer, [batch])))
        assert dense.agrees(model), f"step {t}"
    return events


CSST_SETTINGS = {
    "by the defaults": {"stop": 60, "every": 12, "last_every": 30},
    "all other settings": {
        **{
            "stop": 60,
            "every": 7,
            "last_every": 15,
            "window": 4,
            "fraction": 0.35,
            "drop_fraction": 0.45,
            "decay": 0.7,
        },
        "selectivity": 0.6,
    },
    "selective": {"stop": 50, "every": 6, "last_every": 9, "window": 3, "fraction": 0.6, "selectivity": 0.25},
    "window of one": {"stop": 40, "every": 5, "last_every": 5, "window": 1, "fraction": 0.2, "drop_fraction": 0.2},
}


@table(CSST_SETTINGS)
def test_csst_as_its_pseudo_code(case):
    """algorithms.md 1.4, and A2 for the bound. Only the draw of Omega is taken from the library (its law is tested
    elsewhere)."""
    p = {"window": 10, "fraction": 0.1, "drop_fraction": 0.5, "decay": 0.9, "selectivity": 0.25, **case}
    u, m, omega = p["every"], {}, {}

    def rule(dense, t, gw, gb, rewirer, library_step):
        nonlocal u
        live = u < p["stop"]
        if live and t == u - p["window"] + 1:
            for name in dense.names:
                omega[name] = rewirer.state_dict()["probes"][name]["ids"].tolist()
                zeros = dense.mask[name].numel() - len(dense.kept(name))
                assert len(omega[name]) == round(p["fraction"] * zeros) and not set(omega[name]) & set(dense.kept(name))
                m[name] = torch.zeros_like(gw[name])
        if live and u - p["window"] < t <= u:
            for name in dense.names:
                m[name] = p["decay"] * m[name] + (1 - p["decay"]) * gw[name]
        dense.move(gw, gb)
        library_step()
        if not live or t != u:
            return False
        anneal = (1 + math.cos(math.pi * t / p["stop"])) / 2
        for name in dense.names:
            n = len(dense.kept(name))
            k = int(min(p["drop_fraction"] * anneal * n, p["selectivity"] * len(omega[name])))
            unbiased = m[name] / (1 - p["decay"] ** p["window"])
            dense.rewire(name, dense.smallest(name, k), largest(unbiased, omega[name], k))
        u = t + round(p["every"] * (p["last_every"] / p["every"]) ** (t / p["stop"]))
        return True

    assert lockstep(gs.CSST(**case), case["stop"] + 5, rule) >= 3


@pytest.mark.parametrize(("stop", "every", "drop"), [(60, 9, 0.5), (41, 5, 0.25)])
def test_rigl_as_its_paper(stop, every, drop):
    """f = drop / 2 (1 + cos(pi t / stop)), k = trunc(f n), the dropped eligible with their own gradient, no optimizer
    step."""

    def rule(dense, t, gw, gb, _rewirer, library_step):
        library_step()
        if t % every or t >= stop:
            dense.move(gw, gb)
            return False
        for name in dense.names:
            kept = dense.kept(name)
            k = int(drop / 2 * (1 + math.cos(math.pi * t / stop)) * len(kept))
            dropped = dense.smallest(name, k)
            eligible = sorted(set(range(gw[name].numel())) - (set(kept) - set(dropped)))
            dense.rewire(name, dropped, largest(gw[name], eligible, k))
        return True

    assert lockstep(gs.RigL(stop, every, drop), stop + 5, rule) >= 3


def test_set_drops_as_its_paper():
    """trunc(drop_t n) smallest |w| after the optimizer's step; the library's own random growth is adopted, and is
    outside what stays."""

    def rule(dense, t, gw, gb, rewirer, library_step):
        dense.move(gw, gb)
        library_step()
        if t % 6 or t >= 50:
            return False
        for name, layer in rewirer.layers.items():
            k = int(0.4 / 2 * (1 + math.cos(math.pi * t / 50)) * len(dense.kept(name)))
            dropped = dense.smallest(name, k)
            stay = set(dense.kept(name)) - set(dropped)
            now = set(layer.support.ids().tolist())
            assert stay <= now and len(now - stay) == k
            regrown = (
                set(dropped) & now
            )  # SET starts them anew: but a block that goes and comes at once is simply kept by the surgery
            dense.rewire(name, sorted(set(dropped) - regrown), sorted(now - stay - regrown))
        return True

    assert lockstep(gs.SET(50, 6, 0.4), 55, rule) >= 3


def test_gmp_as_its_paper():
    """n_t = n_end + (n_start - n_end) (1 - t / stop)^3 every 5 steps and at the stop, smallest |w| first; kept sets
    are nested."""
    stop, final, start = 42, 0.08, {}

    def rule(dense, t, gw, gb, rewirer, library_step):
        if not start:
            start.update({name: len(dense.kept(name)) for name in dense.names})
        dense.move(gw, gb)
        library_step()
        if t > stop or (t % 5 and t != stop):
            return False
        shapes = [tuple(dense.w[name].shape) for name in dense.names]
        for name, density in zip(dense.names, gs.erk(shapes, final), strict=True):
            end = rewirer.final[name]
            assert abs(end - density * dense.w[name].numel()) <= 1
            target = round(end + (start[name] - end) * (1 - t / stop) ** 3)
            dense.rewire(name, dense.smallest(name, len(dense.kept(name)) - target), [])
        return True

    assert lockstep(gs.GMP(stop, 5, final_density=final), 50, rule, density=1.0) == 9


def test_snfs_as_its_paper():
    """Momentum of all gradients; every layer drops ceil(rate n); regrowth is shared by mean |m| of the active;
    largest |m| of the zeros."""
    stop, every, drop, beta = 40, 6, 0.3, 0.8
    m, age = {}, 0

    def rule(dense, t, gw, gb, _rewirer, library_step):
        nonlocal age
        if t > 36:
            dense.move(gw, gb)
            library_step()
            return False
        age += 1
        for name in dense.names:
            m[name] = beta * m.get(name, 0) + (1 - beta) * gw[name]
        dense.move(gw, gb)
        library_step()
        if t % every:
            return False
        rate = 0.005 + (drop - 0.005) / 2 * (1 + math.cos(math.pi * t / stop))
        mean = {name: float(m[name][dense.mask[name]].abs().mean()) for name in dense.names}
        dropped, zeros = {}, {}
        for name in dense.names:
            kept = dense.kept(name)
            dropped[name] = dense.smallest(name, math.ceil(rate * len(kept)))
            zeros[name] = sorted(set(range(gw[name].numel())) - set(kept))
        total = sum(len(d) for d in dropped.values())
        grow = {name: math.floor(mean[name] / sum(mean.values()) * total) for name in dense.names}
        for name in dense.names:  # what rounding left over, spread evenly
            grow[name] += sum(grow.values()) < total
        assert all(grow[name] <= len(zeros[name]) for name in dense.names) and sum(grow.values()) == total
        for name in dense.names:
            dense.rewire(name, dropped[name], largest(m[name], zeros[name], grow[name]))
        m.clear()
        age = 0
        return True

    assert lockstep(gs.SNFS(stop, every, drop, decay=beta), 45, rule) >= 3


# ---------------------------------------------------------------- iht


def some_layer(
    seed: int, n: int = 20, m: int = 12, levels: int | None = None, scale: float = 1.0, shape=(6, 7)
) -> LayerState:
    rng = generator(seed)
    s = gs.Support.random(shape, n, rng=rng)
    ids = s.sample_outside(m, rng)
    if levels:
        w, h = (torch.randint(1, levels, (k,), generator=rng).double() for k in (n, m))
    else:
        w, h = (torch.randn(k, generator=rng, dtype=torch.float64) for k in (n, m))
    return LayerState(s, w, torch.randn(n, generator=rng, dtype=torch.float64), ids, scale * h, n, n, 0.5)


@pytest.mark.parametrize("levels", [None, 4])
def test_iht_is_the_projection_on_the_n_sparse_set(levels):
    """z = w on the support, lookahead * gradient on the candidates: the n largest |z|, the support's among equals (a
    loose cap)."""
    topology, swaps = gs.CSST(10, mode="iht", **EVERY).resolve(), 0
    for seed in range(60):
        layer = some_layer(seed, levels=levels)
        z = torch.zeros(42, dtype=torch.float64)
        z[layer.s.ids()], z[layer.ids] = layer.w, 0.5 * layer.h
        sensed = set(layer.ids.tolist())
        best = sorted([*layer.s.ids().tolist(), *sensed], key=lambda i: (-float(z[i].abs()), i in sensed))[: layer.s.n]
        (outcome,) = event(topology, Update(drop_fraction=1.0), [layer], generator(seed))
        kept = outcome.support.ids()
        assert torch.equal(z[kept].abs().sort()[0], z[best].abs().sort()[0]) and outcome.grown == len(
            sensed & set(best)
        )
        assert levels or kept.tolist() == sorted(best)
        swaps += outcome.grown
    assert swaps > 60


def test_iht_swaps_at_most_the_cap():
    """Where the cap binds, iht is prune-and-grow."""
    for seed in range(20):
        layer = some_layer(seed, scale=100.0)
        results = [
            event(gs.CSST(10, mode=mode, **EVERY).resolve(), Update(drop_fraction=0.2), [layer], generator())[0]
            for mode in ("iht", "prune_grow")
        ]
        assert results[0].grown == 4 and results[0].support.same(results[1].support)


def test_iht_looks_ahead_to_the_next_event():
    """eta = lr / (1 - momentum) * interval, from the layer's own parameter group."""
    model, opt, _ = sparse_run(gs.Static())
    opt.param_groups[0].update(lr=0.25, momentum=0.5)
    seen = []
    topology = gs.CSST(20, 4, 8, window=2, mode="iht", drop_fraction=0.5).resolve()
    topology = replace(
        topology,
        n_exchange=lambda layers, change: (
            seen.append((change.interval, {s.lookahead for s in layers})) or [0] * len(layers)
        ),
    )
    train(model, opt, gs.Rewirer(model, opt, topology), FLAT.batches(20))
    assert (
        seen[0] == (4, {2.0})
        and all(lookaheads == {0.5 * interval} for interval, lookaheads in seen)
        and len(seen) >= 3
    )


# ---------------------------------------------------------------- pooled


def test_pooled_ranks_all_layers_by_gradient_over_rms():
    topology = gs.CSST(10, allocate="pooled", **EVERY).resolve()
    moved = 0
    for seed in range(30):
        layers = [
            some_layer(seed, 20, 12),
            some_layer(seed + 100, 12, 20, scale=1.3),
            some_layer(seed + 200, 30, 9, scale=0.7),
        ]
        outcomes = event(topology, Update(drop_fraction=0.3), layers, None)
        drops = [int(0.3 * s.s.n) for s in layers]
        assert [o.dropped for o in outcomes] == drops
        ranked = []
        for which, layer in enumerate(layers):
            rms = float(layer.g.square().mean().sqrt())
            ranked += [(-abs(float(h)) / rms, which, int(i)) for i, h in zip(layer.ids, layer.h, strict=True)]
        winners = sorted(ranked)[: sum(drops)]
        for which, (layer, outcome) in enumerate(zip(layers, outcomes, strict=True)):
            grown = {i for _, owner, i in winners if owner == which}
            assert set(outcome.support.ids().tolist()) - set(layer.s.ids().tolist()) == grown
            moved += len(grown) != drops[which]
        assert sum(o.support.n for o in outcomes) == sum(s.s.n for s in layers)
    assert moved > 20


def test_pooled_respects_floors():
    """One block per output unit and a fifth of the start: a layer with worthless candidates shrinks to that and no
    further."""
    shape = (10, 20)
    s, w = gs.Support.random(shape, 60, rng=generator()), torch.rand(60, generator=generator())
    poor = LayerState(s, w, torch.ones(60), s.sample_outside(80, generator()), torch.zeros(80), 60, 60, 1.0)
    rich, pooled = poor._replace(h=torch.ones(80)), gs.CSST(10, allocate="pooled", **EVERY).resolve()
    for _ in range(20):
        first, second = event(pooled, Update(drop_fraction=0.5), [poor, rich], None)
        sizes = first.support.n, second.support.n
        assert sum(sizes) == poor.s.n + rich.s.n
        poor, rich = (
            layer._replace(s=new, w=torch.rand(new.n), g=torch.ones(new.n), ids=new.sample_outside(80, generator()))
            for layer, new in ((poor, first.support), (rich, second.support))
        )
    assert sizes == (12, 108)  # a fifth of 60


def test_pooled_with_a_full_layer():
    """A layer that is full senses nothing, changes nothing and does not fail."""
    first, second = (gs.SparseLinear(i, o, density=d, rng=generator()) for i, o, d in ((13, 11, 0.3), (11, 5, 1.0)))
    model = nn.Sequential(first, nn.Tanh(), second)
    for allow_regrow in (False, True):
        opt = torch.optim.SGD(model.parameters(), 0.1)
        rewirer = gs.Rewirer(
            model,
            opt,
            gs.CSST(40, 4, 4, window=2, fraction=0.5, drop_fraction=0.3, allocate="pooled", allow_regrow=allow_regrow),
        )
        train(model, opt, rewirer, [(x.float(), y) for x, y in FLAT.batches(9)])
        assert rewirer.t == 9 and second.support.density == 1.0 and not (first.support.same(gs.Support.full((11, 13))))


def test_pooled_moves_weights_between_layers():
    model, opt, rewirer = sparse_run(
        gs.CSST(60, 5, 5, window=2, fraction=0.5, drop_fraction=0.4, allocate="pooled"), budget="pooled"
    )
    before = {name: s.n for name, s in supports(model).items()}
    train(model, opt, rewirer, FLAT.batches(60))
    after = {name: s.n for name, s in supports(model).items()}
    assert sum(before.values()) == sum(after.values()) and before != after
    assert all(
        after[name] >= max(layer.support.grid[0], before[name] / 5) for name, layer in gs.sparse_layers(model).items()
    )


# ---------------------------------------------------------------- sizes


def test_merging_holds_more_between_events_and_ends_at_its_size():
    model, opt, rewirer = sparse_run(
        gs.CSST(40, 5, 5, window=2, fraction=0.5, drop_fraction=0.3, selectivity=1.0, mode="merge")
    )
    start, sizes = {name: s.n for name, s in supports(model).items()}, []
    for batch in FLAT.batches(45):
        train(model, opt, rewirer, [batch])
        sizes.append({name: s.n for name, s in supports(model).items()})
    assert all(
        sizes[5][name] == start[name] + int(0.3 / 2 * (1 + math.cos(math.pi * 5 / 40)) * start[name]) for name in start
    )
    assert all(size[name] >= start[name] for size in sizes for name in start) and sizes[39] == sizes[-1] == start


@pytest.mark.parametrize("name", ["set shrinking", "rigl shrinking", "csst shrinking", "gmp"])
def test_sizes_follow_the_cubic_to_the_final_budget(name):
    topology = TOPOLOGIES[name]
    model, opt, rewirer = sparse_run(topology, density=0.6, budget="pooled")
    last = {n: s.n for n, s in supports(model).items()}
    for batch in FLAT.batches(topology.stop + 2):
        train(model, opt, rewirer, [batch])
        now = {n: s.n for n, s in supports(model).items()}
        assert all(now[n] <= last[n] for n in now)
        last = now
    assert last == rewirer.final and sum(last.values()) == round(topology.final_density * (13 * 17 + 17 * 11 + 11 * 5))


def test_selectivity_bounds_the_growers():
    """A2: at most selectivity * |Omega| blocks are exchanged, here far fewer than 0.5 n."""
    model, opt, rewirer = sparse_run(gs.CSST(400, 5, 5, window=1, fraction=0.1, selectivity=0.1), density=0.3)
    for batch in FLAT.batches(10):
        sensed = dict(rewirer.sensing)
        train(model, opt, rewirer, [batch])
        if rewirer.last:
            assert rewirer.last.sensed == sensed and all(
                rewirer.last.grown[name] <= 0.1 * sensed[name] for name in sensed
            )
            assert sum(rewirer.last.grown.values()) > 0


def test_an_outcome_counts():
    outcome = Outcome(gs.Support.full((2, 2)), 1, 2)
    assert (outcome.dropped, outcome.grown) == (1, 2)


# ---------------------------------------------------------------- refusals

REFUSALS = {
    "csst window": (
        lambda: gs.CSST(100, every=10, window=11),
        "window of 11 steps does not fit between events 10 steps apart",
    ),
    "csst window at the end": (
        lambda: gs.CSST(100, every=20, last_every=5, window=8),
        "does not fit between events 5 steps apart",
    ),
    "csst no window": (lambda: gs.CSST(100, window=0), "window must be at least 1"),
    "csst fraction": (lambda: gs.CSST(100, fraction=0.0), r"in \(0, 1\]"),
    "csst too large a fraction": (lambda: gs.CSST(100, fraction=10), r"in \(0, 1\]"),
    "csst window in halves": (lambda: gs.CSST(100, window=2.5), "a whole number"),
    "csst fan-in": (lambda: gs.CSST(100, min_fan_in=-1), "min_fan_in must be at least 0"),
    "csst final": (lambda: gs.CSST(100, final_density=2), "density is the fraction"),
    "snfs decay of one": (lambda: gs.SNFS(100, 10, decay=1.0), r"must lie in \[0, 1\)"),
    "a function for a topology": (lambda: sparse_run(gs.CSST), "topology must be a Topology"),
    "csst count": (lambda: gs.CSST(100, count=0), "count must be at least 1"),
    "csst drop": (lambda: gs.CSST(100, drop_fraction=1.5), "drop_fraction is a fraction"),
    "csst selectivity": (lambda: gs.CSST(200, selectivity=-1.0), "selectivity is a fraction"),
    "csst decay": (lambda: gs.CSST(100, decay=1.0), r"must lie in \[0, 1\)"),
    "csst mode": (lambda: gs.CSST(100, mode="merg"), "did you mean 'merge'"),
    "csst share": (lambda: gs.CSST(100, allocate="pool"), "did you mean 'pooled'"),
    "csst candidates": (lambda: gs.CSST(100, candidates="flows"), "did you mean 'flow'"),
    "csst pooled and shrinking": (
        lambda: gs.CSST(100, allocate="pooled", final_density=0.1),
        "neither final_density nor",
    ),
    "csst stop": (lambda: gs.CSST(0), "stop counts optimizer steps"),
    "rigl drop": (lambda: gs.RigL(100, drop_fraction=-0.1), "drop_fraction is a fraction"),
    "rigl every": (lambda: gs.RigL(100, every=0), "every must be at least 1"),
    "set drop": (lambda: gs.SET(100, drop_fraction=30), "drop_fraction is a fraction"),
    "snfs drop": (lambda: gs.SNFS(100, 10, drop_fraction=2), "drop_fraction is a fraction"),
    "snfs decay": (lambda: gs.SNFS(100, 10, decay=-1.0), r"must lie in \[0, 1\)"),
    "gmp final": (lambda: gs.GMP(100, final_density=0.0), "fraction of the weights"),
    "gmp budget": (lambda: sparse_run(gs.GMP(100, final_density=0.1, budget="erl")), "did you mean 'er"),
    "gmp budget of an unknown layer": (
        lambda: sparse_run(gs.GMP(100, final_density=0.1, budget={"1": 0.1})),
        "names a layer that is not among",
    ),
    "gmp that would have to grow": (
        lambda: sparse_run(gs.GMP(100, final_density=0.29), budget="pooled"),
        "(?s)only prunes.*4: 17 blocks now",
    ),
    "fan-in that is not there": (
        lambda: sparse_run(gs.CSST(200, min_fan_in=9)),
        "min_fan_in=9: every output unit must have as many",
    ),
    "fan-in that will not be there": (
        lambda: sparse_run(gs.GMP(100, final_density=0.02, min_fan_in=1), density=1.0),
        "min_fan_in=1: every output unit must have as many",
    ),
}


@table(REFUSALS)
def test_bad_settings_are_refused(case):
    call, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        call()
