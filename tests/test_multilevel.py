"""Multilevel training: coarse steps on a frozen support, fine steps that change it, and the limits of both."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import FLAT, IMAGES, convnet, generator, mlp, same_state, train
from gossamer._errors import misfits
from gossamer.training.stepper import Stepper

LAM = 0.05
RULES = {
    "LinBreg": gs.LinBreg(gs.L1(LAM), 1.5),
    "momentum": gs.LinBreg(gs.L1(LAM), momentum=0.7),
    "Adam": gs.AdaBreg(gs.L1(LAM)),
}
LR = {"LinBreg": 0.2, "momentum": 0.2, "Adam": 0.01}


def sparse(layout: str, make=mlp, seed: int = 0) -> nn.Module:
    return gs.sparsify(make(seed), 0.2, layout=layout, budget="pooled", rng=generator(seed))


def trainer(name: str, coarse: int, make=mlp, seed: int = 0, decay: float = 0.0, **options):
    net = sparse("csr", make, seed)
    optimizer = gs.SparseOptimizer(
        gs.parameter_groups(net, weight_decay=decay), RULES[name], LR[name], allow_compact=True
    )
    return net, optimizer, gs.Multilevel(net, optimizer, coarse, **options)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("make", "data"), [(mlp, FLAT), (convnet, IMAGES)], ids=["mlp", "convnet"])
def test_without_coarse_steps_it_is_the_rule_itself(name, make, data):
    net, optimizer, multilevel = trainer(name, 0, make, decay=0.01)
    plain = sparse("shadow", make)
    losses = train(net, optimizer, multilevel, data.batches(20))
    whole = gs.SparseOptimizer(gs.parameter_groups(plain, weight_decay=0.01), RULES[name], LR[name])
    assert losses == pytest.approx(train(plain, whole, None, data.batches(20)), abs=1e-12)
    for a, b in zip(gs.sparse_layers(net).values(), gs.sparse_layers(plain).values(), strict=True):
        assert a.support.same(b.support) and torch.allclose(a.to_dense(), b.to_dense(), atol=1e-12)


def test_it_is_its_equations():
    """One linear layer, written out densely: v off the support changes in fine steps only, by their dense gradient."""
    m, s, delta, lam, scale = 3, 0.02, 1.5, 0.1, 2.5
    net = gs.sparsify(nn.Sequential(nn.Linear(9, 6, bias=False)).double(), 0.4, rng=generator(), budget="pooled")
    w = gs.sparse_layers(net)["0"].to_dense().numpy()
    v, S = w / delta + lam * np.sign(w), w != 0
    optimizer = gs.SparseOptimizer(gs.parameter_groups(net), gs.LinBreg(gs.L1(lam), delta), s, allow_compact=True)
    multilevel = gs.Multilevel(net, optimizer, m, fine_lr_scale=scale)
    sizes = set()
    for t in range(1, 21):
        x = torch.randn(5, 9, generator=generator(t), dtype=torch.float64)
        optimizer.zero_grad()
        (net(x) - 1).square().sum().backward()
        multilevel.step()
        g = 2 * (x.numpy() @ w.T - 1).T @ x.numpy()
        if t % (m + 1):
            v = np.where(S, v - s * g, v)
            w = np.where(S, delta * np.sign(v) * np.maximum(np.abs(v) - lam, 0), 0)
        else:
            v = np.where(S, v - s * g, v - scale * s * g)
            w = delta * np.sign(v) * np.maximum(np.abs(v) - lam, 0)
            S = w != 0
            sizes.add(int(S.sum()))
        s_now = gs.sparse_layers(net)["0"].support
        assert np.array_equal(s_now.mask().numpy(), S)
        assert np.abs(gs.sparse_layers(net)["0"].to_dense().numpy() - w).max() < 1e-12
    assert len(sizes) > 1


def test_coarse_phases_freeze_the_support_and_what_is_off_it():
    net, optimizer, multilevel = trainer("LinBreg", 4)
    supports, cold = {}, {}
    for t, (x, y) in enumerate(FLAT.batches(20), 1):
        F.cross_entropy(net(x), y).backward()
        assert bool(multilevel.sensing) == (t % 5 == 0)
        multilevel.step()
        optimizer.zero_grad()
        now = {name: layer.support for name, layer in gs.sparse_layers(net).items()}
        if t % 5:
            assert multilevel.last is None and all(now[name].same(supports[name]) for name in supports)
            for name, before in cold.items():
                assert torch.equal(multilevel._cold.layers[name]["v"], before)
        else:
            assert multilevel.last is not None and multilevel.last.n == {name: s.n for name, s in now.items()}
            for name, s in now.items():
                v = multilevel._cold.layers[name]["v"]
                assert bool((v.abs()[~s.mask()] <= LAM).all()) and bool((v.abs()[s.mask()] > LAM).all())
        supports, cold = now, {name: state["v"].clone() for name, state in multilevel._cold.layers.items()}
    assert all(name in cold for name in now)


def test_gradients_of_several_passes_add_up():
    runs = []
    for parts in (1, 2):
        net, optimizer, multilevel = trainer("LinBreg", 1)
        for x, y in FLAT.batches(6):
            for i in range(parts):
                piece = slice(i * 8 // parts, (i + 1) * 8 // parts)
                (F.cross_entropy(net(x[piece]), y[piece]) / parts).backward()
            multilevel.step()
            optimizer.zero_grad()
        runs.append(net)
    for a, b in zip(*(gs.sparse_layers(net).values() for net in runs), strict=True):
        assert a.support.same(b.support) and torch.allclose(a.values, b.values, atol=1e-12)


def test_a_gradient_made_in_slices_is_the_same(monkeypatch):
    from gossamer.training import fine_step as module

    whole, *parts = trainer("momentum", 1)
    train(whole, *parts, FLAT.batches(8))
    monkeypatch.setattr(module, "SLICE_NUMBERS", 40)
    blocks, *parts = trainer("momentum", 1)
    train(blocks, *parts, FLAT.batches(8))
    for a, b in zip(gs.sparse_layers(whole).values(), gs.sparse_layers(blocks).values(), strict=True):
        assert a.support.same(b.support) and torch.allclose(a.values, b.values, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("at", [3, 6, 8])
def test_a_resumed_run_goes_on_bit_for_bit(name, at, tmp_path):
    batches = FLAT.batches(16)
    net, optimizer, multilevel = trainer(name, 2)
    train(net, optimizer, multilevel, batches[:at])
    gs.checkpoint.save(tmp_path / "a.safetensors", net, optimizer=optimizer, rewirer=multilevel)
    expected = train(net, optimizer, multilevel, batches[at:])
    other, *parts = trainer(name, 2, seed=1)
    gs.checkpoint.load(tmp_path / "a.safetensors", other, optimizer=parts[0], rewirer=parts[1])
    assert train(other, *parts, batches[at:]) == expected and same_state(net, other)


def test_what_a_step_costs():
    net, optimizer, multilevel = trainer("LinBreg", 3)
    ledger = gs.Ledger(net, FLAT.batch(0)[0], optimizer=optimizer)
    totals = []
    for x, y in FLAT.batches(4):
        n, N = (sum(getattr(entry, key) for entry in ledger.entries) for key in ("n", "weights"))
        first = ledger.entries[0]
        before = ledger.flops.total
        F.cross_entropy(net(x), y).backward()
        ledger.step(8, multilevel)
        totals.append((ledger.flops.total - before, 16 * (3 * n - first.n), 16 * (2 * n - first.n + N)))
        multilevel.step()
        optimizer.zero_grad()
    assert all(spent == coarse for spent, coarse, _ in totals[:3]) and totals[3][0] == totals[3][2]
    assert ledger.bytes(multilevel)["sensing"] >= 8 * sum(entry.weights for entry in ledger.entries)


def test_fit_drives_it_and_forgets_what_diverged():
    net, optimizer, multilevel = trainer("LinBreg", 1)
    events = []
    gs.fit(net, FLAT.batches(6), optimizer, rewirer=multilevel, on_step=lambda step: events.append(step.event))  # type: ignore[arg-type]
    assert [event is not None for event in events] == [False, True] * 3
    bad = [FLAT.batch(0), (torch.full((8, 13), torch.nan, dtype=torch.float64), FLAT.batch(1)[1])]
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(gs.Diverged):
        gs.fit(net, bad, optimizer, rewirer=multilevel)  # type: ignore[arg-type]
    assert (
        not any(observer.seen() for observer in multilevel._own.observers.values())
        and before.keys() == net.state_dict().keys()
    )


@pytest.mark.parametrize("make", [lambda: trainer("LinBreg", 3)[2], lambda: rewirer()], ids=["Multilevel", "Rewirer"])
def test_what_drives_training_fits_one_protocol(make):
    stepper = make()
    assert misfits(stepper, Stepper) == []
    events = [t for t in range(1, 25) if stepper.is_event(t)]
    assert events and all(stepper.sense(t) is not None for t in events)
    assert any(stepper.sense(t) is None for t in range(1, 25)) and stepper.problems(stepper.state_dict()) == []


def rewirer():
    net = sparse("csr")
    return gs.Rewirer(net, torch.optim.SGD(net.parameters(), lr=0.1), gs.RigL(stop=24, every=8))


def test_the_states_of_a_rewirer_and_of_multilevel_are_not_mixed_up():
    one, other = rewirer(), trainer("LinBreg", 3)[2]
    assert one.problems(other.state_dict())[0].startswith("a state of a Rewirer has")
    assert other.problems(one.state_dict())[0].startswith("a state of Multilevel has")


def refusals():
    net, optimizer, _ = trainer("LinBreg", 1)
    shadow = sparse("shadow")
    tiles = gs.sparsify(mlp(), 0.2, block=(2, 2), budget="pooled")
    other = gs.SparseOptimizer(gs.parameter_groups(net), gs.ProxSGD(gs.L1(0.1)), 0.1, allow_compact=True)
    yield "a dense model", lambda: gs.Multilevel(mlp(), optimizer, 1), "no sparse layer"
    yield (
        "shadow layers",
        lambda: gs.Multilevel(shadow, gs.SparseOptimizer(gs.parameter_groups(shadow), RULES["LinBreg"], 0.1), 1),
        "layout shadow",
    )
    yield "tiles", lambda: gs.Multilevel(tiles, optimizer, 1), "blocks of"
    yield (
        "an optimizer of torch",
        lambda: gs.Multilevel(net, torch.optim.SGD(net.parameters(), lr=0.1), 1),
        "SparseOptimizer",
    )
    yield "no mirror variable", lambda: gs.Multilevel(net, other, 1), "no mirror variable"
    yield "another model's optimizer", lambda: gs.Multilevel(sparse("csr"), optimizer, 1), "not in the optimizer"
    yield "half a coarse step", lambda: gs.Multilevel(net, optimizer, 0.5), "whole number"
    yield "a negative scale", lambda: gs.Multilevel(net, optimizer, 1, fine_lr_scale=-1.0), "fine_lr_scale"
    yield "a closure", lambda: gs.Multilevel(net, optimizer, 1).step(lambda: 0.0), "closure"
    yield (
        "a state of other settings",
        lambda: gs.Multilevel(net, optimizer, 1).load_state_dict(gs.Multilevel(net, optimizer, 2).state_dict()),
        "coarse",
    )


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in refusals()], ids=[case[0] for case in refusals()])
def test_misuse_is_refused(make, words):
    with pytest.raises(gs.UsageError, match=words):
        make()
