"""Diagnostics are right where the truth is known: small matrices by enumeration, planted gradients, the population formula."""

import itertools
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import IMAGES, convnet, gaussian_problem, generator, normal
from gossamer import recover
from gossamer.recover import diagnose


def test_coherence_is_the_largest_cosine(monkeypatch):
    A = normal(20, 37)
    unit = A / A.norm(dim=0)
    gram = (unit.T @ unit).abs().fill_diagonal_(0)
    whole = diagnose.coherence(A)
    assert whole.value == pytest.approx(float(gram.max())) and float(gram[whole.pair]) == pytest.approx(whole.value)
    monkeypatch.setattr(diagnose.matrices, "BLOCK_NUMBERS", 100)
    assert diagnose.coherence(A).value == pytest.approx(whole.value)
    assert diagnose.coherence(torch.eye(4, dtype=torch.float64)).value == 0
    assert diagnose.coherence(normal(5, 1).repeat(1, 2)).value == pytest.approx(1)


@pytest.mark.parametrize("s", [2, 3])
def test_isometry_brackets_the_constant_and_swaps_find_it(s):
    A = normal(12, 14)
    unit = A / A.norm(dim=0)
    eye = torch.eye(s, dtype=torch.float64)
    true = max(
        float(torch.linalg.matrix_norm(unit[:, list(S)].T @ unit[:, list(S)] - eye, 2)) for S in itertools.combinations(range(14), s)
    )
    found = diagnose.isometry(A * torch.rand(14, generator=generator(), dtype=torch.float64).add(0.5), s, supports=20)
    assert found.mean <= found.sampled <= found.improved <= true + 1e-9 <= found.gershgorin + 2e-9
    assert found.improved > 0.9 * true
    S = unit[:, found.support]
    assert float(torch.linalg.matrix_norm(S.T @ S - eye, 2)) == pytest.approx(found.improved)
    assert "<= delta_" in str(found)


def test_sampled_constants_are_the_listed_ones():
    """m = 256, d = 512, Gaussian, 2000 supports, columns as they are: largest and mean. Columns of unit norm have smaller ones."""
    A = normal(256, 512, seed=1) / 16
    for s, largest, mean in ((4, 0.446, 0.214), (8, 0.560, 0.325), (16, 0.726, 0.487), (32, 0.980, 0.752)):
        S = diagnose.matrices._supports(512, s, 2000, None)
        low, high = diagnose.matrices._edges(recover.Dense(A * 16), S, normalised=False)
        delta = torch.maximum(high - 1, 1 - low)
        assert abs(float(delta.max()) - largest) < 0.08 and abs(float(delta.mean()) - mean) < 0.015
        found = diagnose.isometry(A, s, swaps=0)
        assert found.mean < mean and found.sampled < largest


def test_gated_constants_are_those_of_the_population():
    h, X = normal(6, 5), normal(200_000, 5, seed=2)
    A = recover.GatedReLU(X, h)
    found = diagnose.convexity(A, 8, generators=h, supports=20)
    assert found.deviation is not None and found.deviation < 1e-2
    assert found.alpha == pytest.approx(found.population_alpha, abs=1e-2) and found.beta == pytest.approx(found.population_beta, abs=1e-2)
    assert found.alpha <= 0.5 <= found.beta and "population" in str(found)
    assert diagnose.convexity(A, 8, supports=5).population_alpha is None


@pytest.mark.parametrize("call", [
    lambda: diagnose.isometry(normal(4, 5), 6),
    lambda: diagnose.isometry(torch.zeros(4, 5, dtype=torch.float64), 2),
    lambda: diagnose.convexity(normal(4, 5), 2, generators=normal(4, 5)),
    lambda: diagnose.sensing([(normal(1, 4), normal(1, 5))], gs.Support.random((4, 5), 5, rng=generator()), grow=2),
    lambda: diagnose.sensing([(normal(3, 4), normal(3, 4))], gs.Support.random((4, 4), 2, (2, 2), generator()), grow=2),
])  # fmt: skip
def test_what_cannot_be_diagnosed_is_refused(call):
    with pytest.raises(gs.Unfit):
        call()


# ---------------------------------------------------------------- layers


def planted_operands(batches: int, batch: int, noise: float, seed: int = 0):
    """A layer 30 x 40 with independent inputs; the gradient's mean is a sparse-ish matrix G: dy = (x G^T + noise) / batch."""
    G = normal(30, 40, seed=seed) ** 3
    operands = []
    for b in range(batches):
        x = normal(batch, 40, seed=100 + b + seed)
        operands.append(((x @ G.T + noise * normal(batch, 30, seed=900 + b + seed)) / batch, x))
    return operands, gs.Support.random((30, 40), 60, rng=generator(seed)), G


def test_noise_is_the_variance_between_batches():
    operands, s, _ = planted_operands(400, 16, 3.0)
    ids = s.sample_outside(50, generator(3))
    g, v = diagnose.gradient_and_noise(operands, s, ids)
    each = torch.stack([(dy.T @ x).flatten()[ids] for dy, x in operands])
    torch.testing.assert_close(g, each.mean(0))
    assert float((v / each.var(0)).log().abs().mean()) < 0.15 and abs(float(v.mean() / each.var(0).mean()) - 1) < 0.05


@pytest.mark.parametrize("noise", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("fraction, window", [(0.2, 1), (1.0, 1), (1.0, 8)])
def test_predicted_recall_is_the_measured_one_on_planted_gradients(noise, fraction, window):
    operands, s, _ = planted_operands(300, 32, noise)
    measured = diagnose.measured_recall(operands, s, grow=100, fraction=fraction, window=window, trials=30)
    predicted = [
        diagnose.sensing(operands[k * 8 : k * 8 + window], s, grow=100, fraction=fraction, window=window, rng=generator(k)).recall
        for k in range(10)
    ]
    assert abs(sum(predicted) / 10 - measured) < 0.07


def test_pure_noise_is_called_random():
    x = normal(64, 40)
    d = diagnose.sensing([(normal(64, 30, seed=1) / 64, x)], gs.Support.random((30, 40), 60, rng=generator()), grow=20, fraction=0.1)
    assert "near random" in d.sentence and d.sentence.startswith("batch 64 senses 10 % of 1,140 zeros: recall 0.0")
    assert d.chance == pytest.approx(20 / 1140)
    strong, s, _ = planted_operands(1, 512, 0.1)
    clear = diagnose.sensing(strong, s, grow=20, fraction=1.0)
    assert clear.recall > 0.7 and "follows the gradient" in clear.sentence
    assert diagnose.sensing(strong, s, grow=0).sentence.endswith("nothing grows here")
    assert diagnose.sensing(strong, s, grow=9, fraction=0.0).sentence.endswith("what grows is random")


def test_conditioning_is_that_of_the_rows_inputs():
    operands, _, _ = planted_operands(1, 64, 1.0)
    row = gs.Support.from_ids(torch.tensor([3, 8, 15]), (30, 40))
    x = operands[0][1][:, [3, 8, 15]]
    sv = torch.linalg.svdvals(x / x.norm(dim=0))
    assert diagnose.sensing(operands, row, grow=5).conditioning == pytest.approx(float(sv[0] / sv[-1]))
    full = gs.Support.full((1, 40))
    few = [(normal(8, 1), normal(8, 40))]
    d = diagnose.sensing(few, full, grow=5)
    assert d.conditioning == float("inf") and json.dumps(d.record()) and d.record()["conditioning"] is None


def test_a_csst_run_logs_every_event(tmp_path):
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    gs.sparsify(net, density=0.2, batch_last=False)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    rewirer = gs.Rewirer(net, opt, gs.csst(stop=40, every=10, last_every=10, window=4, fraction=0.3))
    told: list = []
    watch = diagnose.Watch(rewirer, tmp_path / "log.jsonl", told.append)
    batches = [(normal(32, 20, seed=t).float(), torch.arange(32) % 3) for t in range(30)]
    gs.fit(net, batches, opt, rewirer=rewirer, on_step=watch)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 10, 20, 20, 30, 30] and len(told) == 6
    assert {line["name"] for line in lines} == {"0", "2"} and all(line["window"] == 4 for line in lines)
    assert all(line["fraction"] == pytest.approx(0.3, abs=0.015) for line in lines)
    assert all("batch 32 over 4 steps senses" in line["sentence"] for line in lines)
    watch.close()
    F.cross_entropy(net(batches[0][0]), batches[0][1]).backward()
    assert not watch._heard


def test_watching_changes_nothing():
    losses = []
    for watched in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
        gs.sparsify(net, density=0.3, batch_last=False)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        rewirer = gs.Rewirer(net, opt, gs.csst(stop=20, every=5, last_every=5, window=2), rng=generator(2))
        watch = diagnose.Watch(rewirer) if watched else None
        seen: list[float] = []
        batches = [(normal(16, 9, seed=t).float(), torch.arange(16) % 2) for t in range(20)]
        gs.fit(net, batches, opt, rewirer=rewirer, on_step=lambda step, w=watch, seen=seen: (seen.append(step.loss), w and w(step)))
        losses.append(seen)
    assert losses[0] == losses[1]


def test_convolutions_are_diagnosed_too():
    net = convnet()
    gs.sparsify(net, density=0.3, batch_last=False)
    layers = gs.sparse_layers(net)
    x, y = IMAGES.batch(0)
    heard = diagnose.hear(layers, [lambda: F.cross_entropy(net(x), y).backward()] * 2)
    assert all(len(operands) == 2 for operands in heard.values()) and all(layer.sense is None for layer in layers.values())
    name = next(iter(layers))
    layer, operands = layers[name], heard[name]
    ids = layer.support.sample_outside(10, generator())
    g, _ = diagnose.gradient_and_noise(operands, layer.support, ids, layer.geometry)
    torch.testing.assert_close(g, layer.sensed(*operands[0], ids))
    d = diagnose.sensing(operands, layer.support, grow=3, fraction=0.5, geometry=layer.geometry, name=name)
    assert 0 <= d.recall <= 1 and d.conditioning >= 1


def test_a_problem_that_recovers_is_well_conditioned():
    """The diagnosis agrees with what happens: recovery succeeds where delta_2s is small and fails where it is not."""
    A, x, y = gaussian_problem(150, 200, 4, 0)
    assert diagnose.isometry(A, 8, supports=200, swaps=5).sampled < 0.7
    assert float((recover.niht(A, y, 4).dense() - x).norm()) < 1e-6
    B = torch.cat([A[:, :100], A[:, :100] + 1e-3 * A[:, 100:]], 1)
    assert diagnose.isometry(B, 8, supports=200, swaps=30).improved > 0.99 and diagnose.coherence(B).value > 0.99
