"""Diagnostics are right where the truth is known: enumeration, planted gradients, the population formula."""

import itertools
import json
import math

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


def isometry_constant(A: torch.Tensor, s: int) -> float:
    """By enumeration."""
    supports = torch.tensor(list(itertools.combinations(range(A.shape[1]), s)))
    a = A[:, supports].permute(1, 0, 2)
    values = torch.linalg.eigvalsh(a.transpose(1, 2) @ a)
    return float(torch.maximum(values[:, -1] - 1, 1 - values[:, 0]).max())


def constant_at(A: torch.Tensor, support: torch.Tensor) -> float:
    """||A_S^T A_S - I||."""
    S = A[:, support]
    return float(torch.linalg.matrix_norm(S.T @ S - torch.eye(support.numel(), dtype=A.dtype), 2))


@pytest.fixture
def searched(monkeypatch):
    """However few supports there are, they are searched and not enumerated."""
    monkeypatch.setattr(diagnose.matrices, "EXACT", 0)


def test_isometry_brackets_the_constant(searched):
    A = normal(12, 14)
    unit = A / A.norm(dim=0)
    for s in (2, 3):
        found = diagnose.isometry(
            A * torch.rand(14, generator=generator(), dtype=torch.float64).add(0.5), s, supports=20
        )
        assert (
            found.mean
            <= found.sampled
            <= found.improved
            <= isometry_constant(unit, s) + 1e-9
            <= found.gershgorin + 2e-9
        )
        assert constant_at(unit, found.support) == pytest.approx(found.improved)
        assert not found.exact and f"<= delta_{s} <=" in str(found)


def scaled_columns(m: int, d: int, seed: int, normalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A, and A as its constant is meant."""
    A = normal(m, d, seed=seed) * torch.rand(d, generator=generator(seed), dtype=torch.float64).add(0.5) / m**0.5
    return A, A / A.norm(dim=0) if normalise else A


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("d, s", [(4, 4), (8, 5), (12, 9), (9, 7), (9, 8), (12, 1), (12, 2), (1, 1)])
def test_where_all_supports_can_be_looked_at_the_constant_is_exact(d, s, normalise):
    A, meant = scaled_columns(20, d, d, normalise)
    true = isometry_constant(meant, s)
    found = diagnose.isometry(A, s, normalise=normalise, supports=5, swaps=0)
    assert found.exact and f"delta_{s} = " in str(found) and found.support.unique().numel() == s
    assert found.improved == pytest.approx(true, rel=1e-9, abs=1e-12)
    assert constant_at(meant, found.support) == pytest.approx(true, abs=1e-12)
    assert found.sampled <= found.improved <= true + 1e-9 <= found.gershgorin + 2e-9


def test_the_bound_on_enumeration_is_the_one_stated():
    assert math.comb(128, 2) < diagnose.matrices.EXACT == 16_384 < math.comb(182, 2)
    assert (
        diagnose.isometry(normal(9, 128), 2, supports=3).exact
        and not diagnose.isometry(normal(9, 182), 2, supports=3, swaps=1).exact
    )


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("d, s", [(4, 4), (8, 5), (9, 8), (12, 1), (12, 2)])
def test_swaps_stay_within_the_supports_there_are(searched, d, s, normalise):
    """With d - s columns off the support, no fewer and no more can enter: the constant is never exceeded."""
    A, meant = scaled_columns(20, d, d, normalise)
    found = diagnose.isometry(A, s, normalise=normalise, supports=5)
    assert found.support.unique().numel() == s and constant_at(meant, found.support) == pytest.approx(
        found.improved, abs=1e-12
    )
    assert 0.75 * isometry_constant(meant, s) <= found.improved <= isometry_constant(meant, s) + 1e-9


@pytest.mark.parametrize("normalise", [True, False])
def test_the_search_finds_the_constant_of_two_hundred_random_matrices(searched, normalise):
    """Against enumeration. A search may end in a local maximum: a few constants are missed, by little."""
    found = []
    for seed in range(100):
        d, s, m = 6 + seed % 9, 2 + seed % 4, 10 + seed % 11
        A, meant = scaled_columns(m, d, seed, normalise)
        constant = diagnose.isometry(A, s, normalise=normalise, supports=50).improved
        found.append((constant + 1e-12) / (isometry_constant(meant, s) + 1e-12))
    assert max(found) <= 1 + 1e-9 and min(found) > 0.8
    assert sum(share > 1 - 1e-9 for share in found) >= 95


@pytest.mark.parametrize("copies", [2, 3])
def test_ties_do_not_stop_the_search(searched, copies):
    """Columns that repeat ``copies`` times, so scores are tied. delta_2 is 1, from two equal columns."""
    unit = torch.linalg.qr(normal(8, 8))[0].repeat(1, copies)
    assert diagnose.isometry(unit, 2, supports=1).improved == pytest.approx(1)
    assert diagnose.isometry(unit, copies, supports=3).improved == pytest.approx(copies - 1)


def test_sampled_constants_are_the_listed_ones():
    """m = 256, d = 512, Gaussian, 2000 supports, columns as they are: largest and mean. Unit columns have less."""
    A = normal(256, 512, seed=1) / 16
    for s, largest, mean in ((4, 0.446, 0.214), (8, 0.560, 0.325), (16, 0.726, 0.487), (32, 0.980, 0.752)):
        found = diagnose.isometry(A, s, normalise=False, swaps=0)
        assert abs(found.sampled - largest) < 0.08 and abs(found.mean - mean) < 0.015
        scaled = diagnose.isometry(A, s, swaps=0)
        assert scaled.mean < mean and scaled.sampled < largest


def test_gated_constants_are_those_of_the_population():
    h, X = normal(6, 5), normal(200_000, 5, seed=2)
    A = recover.GatedReLU(X, h)
    found = diagnose.convexity(A, 8, generators=h, supports=20)
    assert found.deviation is not None and found.deviation < 1e-2
    assert found.alpha == pytest.approx(found.population_alpha, abs=1e-2) and found.beta == pytest.approx(
        found.population_beta, abs=1e-2
    )
    assert found.alpha <= 0.5 <= found.beta and "population" in str(found)
    assert diagnose.convexity(A, 8, supports=5).population_alpha is None


def holed(*shape: int, value: float = math.nan) -> torch.Tensor:
    """Normal numbers, one of them ``value``."""
    A = normal(*shape)
    A[1, 2] = value
    return A


def layer_4x5() -> gs.Support:
    return gs.Support.random((4, 5), 5, rng=generator())


def pairs(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(normal(b, 4, seed=b), normal(b, 5, seed=b + 50)) for b in sizes]


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: diagnose.isometry(normal(4, 5), 6), "A has only 5 columns"),
        (lambda: diagnose.isometry(torch.zeros(4, 5, dtype=torch.float64), 2), "zero columns"),
        (lambda: diagnose.isometry(normal(4, 5), 2, supports=0), "supports must be at least 1"),
        (lambda: diagnose.isometry(normal(4, 5), 2, swaps=-1), "swaps must be at least 0"),
        (lambda: diagnose.isometry(holed(4, 5), 2), "A holds entries that are NaN"),
        (lambda: diagnose.isometry(holed(4, 5), 2, normalise=False), "A holds entries that are NaN"),
        (lambda: diagnose.coherence(holed(4, 5, value=math.inf)), "A holds entries that are NaN"),
        (lambda: diagnose.coherence(normal(4, 0)), "A is empty"),
        (lambda: diagnose.convexity(holed(4, 5), 2), "A holds entries that are NaN"),
        (lambda: diagnose.convexity(normal(4, 5), 2, supports=0), "supports must be at least 1"),
        (lambda: diagnose.convexity(normal(4, 5), 2, generators=normal(4, 5)), "must be those of a GatedReLU"),
        (
            lambda: diagnose.convexity(recover.GatedReLU(normal(9, 5), normal(2, 5)), 2, generators=holed(2, 5)),
            "generators hold",
        ),
        (
            lambda: diagnose.convexity(
                recover.GatedReLU(normal(9, 5), normal(2, 5)), 2, generators=normal(2, 5) * torch.tensor([[0.0], [1.0]])
            ),
            "a generator is zero",
        ),
        (
            lambda: diagnose.sensing(
                [(normal(3, 4), normal(3, 4))], gs.Support.random((4, 4), 2, (2, 2), generator()), n_grow=2
            ),
            "single weights",
        ),
        (lambda: diagnose.sensing(pairs(1), layer_4x5(), n_grow=2), "one sample"),
        (lambda: diagnose.sensing(pairs(3, 1), layer_4x5(), n_grow=2), "one sample"),
        (lambda: diagnose.sensing([], layer_4x5(), n_grow=2), "at least one batch"),
        (lambda: diagnose.sensing(pairs(3), layer_4x5(), n_grow=-1), "n_grow must be at least 0"),
        (
            lambda: diagnose.sensing(pairs(3), layer_4x5(), n_grow=2, fraction=1.5),
            "fraction is a fraction, a number in",
        ),
        (
            lambda: diagnose.sensing(pairs(3), layer_4x5(), n_grow=2, fraction=-0.1),
            "fraction is a fraction, a number in",
        ),
        (lambda: diagnose.sensing(pairs(3), layer_4x5(), n_grow=2, window=0), "window must be at least 1"),
        (
            lambda: diagnose.sensing([(holed(3, 4), normal(3, 5))], layer_4x5(), n_grow=2),
            "dy of batch 0 holds 1 entries",
        ),
        (
            lambda: diagnose.sensing([*pairs(3), (normal(3, 4), holed(3, 5, value=math.inf))], layer_4x5(), n_grow=2),
            "x of batch 1 holds 1",
        ),
        (lambda: diagnose.measured_recall([], layer_4x5(), n_grow=2), "at least one batch"),
        (lambda: diagnose.measured_recall(pairs(3), layer_4x5(), n_grow=0), "n_grow must be at least 1"),
        (lambda: diagnose.measured_recall(pairs(3), layer_4x5(), n_grow=2, fraction=0.0), "nothing is sensed"),
        (
            lambda: diagnose.measured_recall(pairs(3), layer_4x5(), n_grow=2, fraction=0.5, window=2),
            "a window of 2 steps",
        ),
        (
            lambda: diagnose.measured_recall([(holed(3, 4), normal(3, 5))], layer_4x5(), n_grow=2, fraction=0.5),
            "dy of batch 0",
        ),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(call, sentence):
    with pytest.raises(gs.UsageError, match=sentence):
        call()


# ---------------------------------------------------------------- layers


def planted_operands(batches: int, batch: int, noise: float, seed: int = 0):
    """A layer 30 x 40 with independent inputs. The gradient's mean is a matrix G: dy = (x G^T + noise) / batch."""
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
    measured = diagnose.measured_recall(operands, s, n_grow=100, fraction=fraction, window=window, trials=30)
    predicted = [
        diagnose.sensing(
            operands[k * 8 : k * 8 + window], s, n_grow=100, fraction=fraction, window=window, rng=generator(k)
        ).recall
        for k in range(10)
    ]
    assert abs(sum(predicted) / 10 - measured) < 0.07


def test_pure_noise_is_called_random():
    x = normal(64, 40)
    d = diagnose.sensing(
        [(normal(64, 30, seed=1) / 64, x)], gs.Support.random((30, 40), 60, rng=generator()), n_grow=20, fraction=0.1
    )
    assert "near random" in d.sentence and d.sentence.startswith("batch 64 senses 10 % of 1,140 zeros: recall 0.0")
    assert d.chance == pytest.approx(20 / 1140)
    strong, s, _ = planted_operands(1, 512, 0.1)
    clear = diagnose.sensing(strong, s, n_grow=20, fraction=1.0)
    assert clear.recall > 0.7 and "follows the gradient" in clear.sentence
    assert diagnose.sensing(strong, s, n_grow=0).sentence.endswith("nothing grows here")
    assert diagnose.sensing(strong, s, n_grow=9, fraction=0.0).sentence.endswith("what grows is random")


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_without_gradients_recall_is_that_of_chance(fraction):
    s = gs.Support.random((30, 40), 60, rng=generator())
    nothing = [(torch.zeros(64, 30, dtype=torch.float64), normal(64, 40))]
    d = diagnose.sensing(nothing, s, n_grow=57, fraction=fraction)
    assert d.recall == d.chance == 0.05 and "there is no gradient" in d.sentence
    assert d.record()["snr"] is None and json.dumps(d.record())
    measured = diagnose.measured_recall(nothing, s, n_grow=57, fraction=fraction, trials=40)
    assert measured == pytest.approx(0.05, abs=0.03)


def test_zeros_without_gradient_are_no_easy_finds():
    """Only one output has a gradient, at fewer zeros than grow: what else grows is random."""
    s, dy = gs.Support.random((30, 40), 60, rng=generator()), torch.zeros(512, 30, dtype=torch.float64)
    x = normal(512, 40)
    dy[:, 7] = x @ normal(40, seed=5)
    d = diagnose.sensing([(dy, x)], s, n_grow=570, fraction=1.0)
    live = 40 - int((s.rows() == 7).sum())
    assert d.recall == pytest.approx((live + (570 - live) ** 2 / (1140 - live)) / 570, abs=0.05)


def told(recall: float, of_sensed: float, chance: float, fraction: float) -> str:
    return diagnose.Diagnosis(
        "a", 32, 1, 100, fraction, 10, recall, of_sensed, chance, 1.0, 1.0, 1.0, 1.0, None
    ).sentence


def test_the_verdict_compares_with_chance():
    assert "near random" in told(0.52, 0.52, 0.5, 1.0) and "near random" not in told(0.67, 0.67, 0.5, 1.0)
    assert "follows the gradient" in told(0.95, 0.95, 0.6, 1.0)
    assert "chosen at random; raise the fraction" in told(0.1, 1.0, 0.1, 0.1)
    assert "near random" in told(0.06, 0.6, 0.05, 0.1) and "ranked well" in told(0.06, 0.6, 0.002, 0.1)
    assert "nothing to choose" in told(1.0, 1.0, 1.0, 1.0)
    full = diagnose.sensing(pairs(8), gs.Support.full((4, 5)), n_grow=5)
    assert full.recall == full.chance == 0 and full.sentence.endswith("nothing grows here")


def test_a_watched_step_that_overflows_is_told_as_such():
    net = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
    gs.sparsify(net, density=0.3, batch_last=False)
    rewirer = gs.Rewirer(
        net, torch.optim.SGD(net.parameters(), lr=0.1), gs.CSST(stop=20, every=2, last_every=2, window=1)
    )
    watch, scaler = diagnose.Watch(rewirer), torch.amp.GradScaler("cpu", init_scale=2.0)
    for t in range(2):
        scaler.scale(net(normal(16, 9).float()).sum().mul(math.inf if t else 1.0)).backward()
        rewirer.step(scaler=scaler)
        scaler.update()
    assert watch().keys() == {"0", "2"}
    assert all(
        "NaN or infinities" in d.sentence and json.loads(json.dumps(d.record()))["recall"] is None
        for d in watch.last.values()
    )


def test_conditioning_is_that_of_the_rows_inputs():
    operands, _, _ = planted_operands(1, 64, 1.0)
    row = gs.Support.from_ids(torch.tensor([3, 8, 15]), (30, 40))
    x = operands[0][1][:, [3, 8, 15]]
    sv = torch.linalg.svdvals(x / x.norm(dim=0))
    assert diagnose.sensing(operands, row, n_grow=5).conditioning == pytest.approx(float(sv[0] / sv[-1]))
    full = gs.Support.full((1, 40))
    few = [(normal(8, 1), normal(8, 40))]
    d = diagnose.sensing(few, full, n_grow=5)
    assert d.conditioning == float("inf") and json.dumps(d.record()) and d.record()["conditioning"] is None


def test_a_csst_run_logs_every_event(tmp_path):
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    gs.sparsify(net, density=0.2, batch_last=False)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    rewirer = gs.Rewirer(net, opt, gs.CSST(stop=40, every=10, last_every=10, window=4, fraction=0.3))
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
    assert not watch._seen


def test_watching_changes_nothing():
    losses = []
    for watched in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
        gs.sparsify(net, density=0.3, batch_last=False)
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        rewirer = gs.Rewirer(net, opt, gs.CSST(stop=20, every=5, last_every=5, window=2), rng=generator(2))
        watch = diagnose.Watch(rewirer) if watched else None
        seen: list[float] = []
        batches = [(normal(16, 9, seed=t).float(), torch.arange(16) % 2) for t in range(20)]
        gs.fit(
            net,
            batches,
            opt,
            rewirer=rewirer,
            on_step=lambda step, w=watch, seen=seen: (seen.append(step.loss), w and w(step)),
        )
        losses.append(seen)
    assert losses[0] == losses[1]


def test_convolutions_are_diagnosed_too():
    net = convnet()
    gs.sparsify(net, density=0.3, batch_last=False)
    layers = gs.sparse_layers(net)
    x, y = IMAGES.batch(0)
    operands_of = diagnose.record_operands(layers, [lambda: F.cross_entropy(net(x), y).backward()] * 2)
    assert all(len(operands) == 2 for operands in operands_of.values()) and all(
        layer.observers == () for layer in layers.values()
    )
    name = next(iter(layers))
    layer, operands = layers[name], operands_of[name]
    ids = layer.support.sample_outside(10, generator())
    g, _ = diagnose.gradient_and_noise(operands, layer.support, ids, layer.geometry)
    torch.testing.assert_close(g, layer.sensed(*operands[0], ids))
    d = diagnose.sensing(operands, layer.support, n_grow=3, fraction=0.5, geometry=layer.geometry, name=name)
    assert 0 <= d.recall <= 1 and d.conditioning >= 1


def test_a_problem_that_recovers_is_well_conditioned():
    """The diagnosis agrees with what happens: recovery succeeds where delta_2s is small and fails where it is not."""
    A, x, y = gaussian_problem(150, 200, 4, 0)
    assert diagnose.isometry(A, 8, supports=200, swaps=5).sampled < 0.7
    assert float((recover.niht(A, y, 4).dense() - x).norm()) < 1e-6
    B = torch.cat([A[:, :100], A[:, :100] + 1e-3 * A[:, 100:]], 1)
    assert diagnose.isometry(B, 8, supports=200, swaps=30).improved > 0.99 and diagnose.coherence(B).value > 0.99


def test_a_watched_batch_that_was_overwritten_is_refused():
    net = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
    gs.sparsify(net, density=0.3, batch_last=False)
    rewirer = gs.Rewirer(
        net, torch.optim.SGD(net.parameters(), lr=0.1), gs.CSST(stop=20, every=2, last_every=2, window=1)
    )
    watch, buffer = diagnose.Watch(rewirer), torch.empty(16, 9)
    for _ in range(2):
        buffer.copy_(normal(16, 9).float())
        net(buffer).sum().backward()
        rewirer.step()
    buffer.zero_()
    with pytest.raises(gs.UsageError, match="changed in place"):
        watch()
