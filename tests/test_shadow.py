"""The shadow layout: the support is where the values are not zero, products are sparse, the weight gradient is not."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import FLAT, IMAGES, convnet, generator, mlp, same_state, train

RULE = gs.LinBreg(gs.L1(0.05), momentum=0.5)


def test_a_write_that_torch_does_not_count_is_seen_at_the_next_change_of_mode():
    net, x = shadow(), FLAT.batch(0)[0]
    net(x)
    for layer in gs.sparse_layers(net).values():
        layer.values.data.copy_(
            torch.randn(layer.values.shape, generator=generator())
        )  # as averages of weights are written
    net.eval()
    assert torch.allclose(net(x), gs.densify(copy.deepcopy(net))(x))


def test_a_layer_made_in_inference_mode_works():
    with torch.inference_mode():
        net, x = shadow(), FLAT.batch(0)[0]
        first = net(x)
        net[0].values.zero_()
        assert not torch.equal(net(x), first)


def shadow(make=mlp, density: float = 0.15, seed: int = 0) -> nn.Module:
    return gs.sparsify(make(seed), density, layout="shadow", budget="pooled", rng=generator(seed))


def optimizer(net: nn.Module, rule=RULE, lr: float = 0.1, **options) -> gs.SparseOptimizer:
    return gs.SparseOptimizer(gs.parameter_groups(net), rule, lr, **options)


@pytest.mark.parametrize(("make", "data"), [(mlp, FLAT), (convnet, IMAGES)], ids=["mlp", "convnet"])
@pytest.mark.parametrize("density", [0.15, 1.0], ids=["sparse products", "dense products"])
def test_a_run_is_that_of_the_dense_network(make, data, density):
    """The same losses and weights as plain torch layers that begin with the same weights, whichever kernels run."""
    net = shadow(make, density)
    counterpart = gs.densify(copy.deepcopy(net))
    losses = []
    for model in (net, counterpart):
        groups = [
            {"params": [p for p in model.parameters() if p.dim() > 1]},
            {"params": [p for p in model.parameters() if p.dim() < 2]},
        ]
        losses.append(train(model, gs.SparseOptimizer(groups, RULE, 0.1), None, data.batches(25)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    for p, q in zip(net.parameters(), counterpart.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12)
    kernels = {name for layer in gs.sparse_layers(net).values() for name in layer.kernels.values()}
    assert "dense" in kernels and any(
        layer.density < layer.dense_above for layer in gs.sparse_layers(net).values()
    ) == (kernels != {"dense"})


def test_the_support_follows_the_values():
    layer = gs.SparseLinear(7, 5, density=0.2, layout="shadow", rng=generator(), dtype=torch.float64)
    assert layer.support.n == 7
    s = layer.support
    assert layer.support is s
    with torch.no_grad():
        layer.values.mul_(2)
    assert layer.support.same(s)
    assert layer.support is s  # re-indexed only when the support changed
    with torch.no_grad():
        layer.values[2, 3], layer.values[0] = 1.0, 0.0
    assert torch.equal(layer.support.mask(), layer.values.detach() != 0) and layer.density == layer.support.n / 35
    x = torch.randn(4, 7, generator=generator(), dtype=torch.float64)
    assert torch.allclose(layer(x), F.linear(x, layer.values, layer.bias))


@pytest.mark.parametrize("density", [0.15, 1.0])
def test_an_all_zero_layer_gets_its_gradient(density):
    layer = gs.SparseLinear(7, 5, density=density, layout="shadow", rng=generator(), dtype=torch.float64)
    with torch.no_grad():
        layer.values.zero_()
    x = torch.randn(4, 7, generator=generator(), dtype=torch.float64)
    layer(x).sum().backward()
    assert layer.support.n == 0 and torch.allclose(layer.values.grad, x.sum(0).expand(5, 7))


def test_sequences_batches_of_none_and_no_gradient():
    layer = gs.SparseLinear(7, 5, density=0.15, layout="shadow", rng=generator(), dtype=torch.float64)
    x = torch.randn(2, 3, 7, generator=generator(), dtype=torch.float64)
    y = layer(x)
    y.square().sum().backward()
    dense = F.linear(x, layer.to_dense(), layer.bias.detach())
    assert torch.allclose(y, dense) and torch.allclose(
        layer.values.grad, (2 * dense).flatten(0, 1).t() @ x.flatten(0, 1)
    )
    assert layer(x[:0]).shape == (0, 3, 5)
    with torch.no_grad():
        assert torch.allclose(layer(x), dense)


def test_autocast_widens_what_it_sums():
    layer = gs.SparseLinear(7, 5, density=0.15, layout="shadow", rng=generator())
    x = torch.randn(4, 7, generator=generator(), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.values.grad.dtype == x.grad.dtype == torch.float32


def test_checkpoints_hold_the_support_of_their_values(tmp_path):
    net = shadow()
    opt = optimizer(net)
    train(net, opt, None, FLAT.batches(6))  # the last step changed values that no forward pass has seen
    gs.checkpoint.save(tmp_path / "a.safetensors", net, optimizer=opt)
    expected = train(net, opt, None, FLAT.batches(6))
    other = shadow(seed=1)
    again = optimizer(other)
    gs.checkpoint.load(tmp_path / "a.safetensors", other, optimizer=again)
    assert train(other, again, None, FLAT.batches(6)) == expected and same_state(net, other)


def test_the_ledger_counts_a_dense_weight_gradient():
    net = shadow()
    ledger = gs.Ledger(net, FLAT.batch(0)[0])
    ledger.step(8)
    for entry in ledger.entries:
        n, N, cost = entry.n, entry.weights, ledger.by_layer[entry.name]
        assert n < entry.module.dense_above * N and not entry.simulated
        assert (cost.forward, cost.backward_weight) == (16 * n, 16 * N)
    assert not ledger.simulated
    full = gs.Ledger(shadow(density=1.0), FLAT.batch(0)[0])
    full.step(8)
    assert full.ratio == 1.0 and len(full.entries) == len(ledger.entries)


def test_dense_memory_is_accounted_for():
    net = shadow()
    opt = optimizer(net)
    ledger = gs.Ledger(net, FLAT.batch(0)[0], optimizer=opt)
    train(net, opt, None, FLAT.batches(2))
    held, numel = ledger.bytes(), sum(p.numel() for p in net.parameters())
    assert held["values"] == held["gradients"] == 8 * numel and held["optimizer"] == 2 * 8 * numel


def test_what_does_not_go_with_it_is_refused():
    net = shadow()
    with pytest.raises(gs.UsageError, match="a topology cannot change it"):
        gs.Rewirer(net, torch.optim.SGD(net.parameters(), lr=0.1), gs.Static())
    layer = gs.sparse_layers(net)["0"]
    with pytest.raises(gs.UsageError, match="is where the values are not zero"):
        gs.set_support_(layer, gs.Support.full(layer.support.shape))
    with pytest.raises(gs.UsageError, match="single weights"):
        gs.SparseLinear(6, 6, density=0.5, layout="shadow", block=(2, 2))


def test_compiled_steps_see_the_support_of_now():
    layer = gs.SparseLinear(7, 5, density=0.15, layout="shadow", rng=generator(), dtype=torch.float64)
    compiled = torch.compile(layer, backend="eager")
    x = torch.randn(4, 7, generator=generator(), dtype=torch.float64)
    for i in range(3):
        with torch.no_grad():
            layer.values[i, i] = 1.0
        assert torch.allclose(compiled(x), F.linear(x, layer.values, layer.bias))


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("layout", ["csr", "shadow"])
def test_reinitialised_values_preserve_the_variance(distribution, layout):
    net = gs.sparsify(nn.Sequential(nn.Linear(400, 300)), 0.1, layout=layout, rng=generator())
    gs.reinitialise_(net, distribution=distribution, gain=0.5, positive_bias=2.0, rng=generator(1))
    layer = gs.sparse_layers(net)["0"]
    values = layer.to_dense()[layer.support.mask()]
    assert float(values.std()) == pytest.approx(0.5 * math.sqrt(2 / (layer.density * 400)), rel=0.03)
    assert bool((layer.bias >= 0).all()) and float(layer.bias.detach().max()) == pytest.approx(2 / 20, rel=0.05)
    with pytest.raises(gs.UsageError):
        gs.reinitialise_(net, distribution="cauchy")
    with pytest.raises(gs.UsageError):
        gs.reinitialise_(net, gain=0.0)
