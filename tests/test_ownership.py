"""Who owns what: index, gradient, optimizer state, average, copy. Each test stands for a kind of fault that a user's
own loop brings."""

import copy
import io
import pickle
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import (
    FLAT,
    LAYOUT_NAMES,
    OPTIMIZERS,
    TOPOLOGIES,
    generator,
    mlp,
    same_state,
    same_supports,
    seeded,
    supports,
    train,
)
from gossamer import laws

SENSING = (
    "rigl",
    "rigl merging",
    "snfs",
    "csst",
    "csst iht",
    "csst merging",
    "csst pooled",
    "csst by flow",
    "csst regrowing",
)
ANY = pytest.mark.parametrize("name", TOPOLOGIES)


def parts(topology, layout="csr", optimizer="nesterov", density=0.3, **options):
    net = gs.sparsify(mlp(), density, layout=layout, rng=generator(3))
    opt = OPTIMIZERS[optimizer](net.parameters())
    return net, opt, gs.Rewirer(net, opt, topology, rng=generator(0), **options)


# ---------------------------------------------------------------- the laws over the tables


@pytest.mark.parametrize("name", SENSING)
def test_passes_that_were_thrown_away_leave_no_trace(name):
    laws.check_passes(TOPOLOGIES[name], gs.Rewirer)


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_nor_under_other_optimizers_and_layouts(optimizer):
    laws.check_passes(TOPOLOGIES["csst"], gs.Rewirer, optimizer=OPTIMIZERS[optimizer], layout="masked")


@ANY
def test_copies_go_the_way_of_the_original(name):
    laws.check_copies(TOPOLOGIES[name], gs.Rewirer)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_copies_of_young_connections_too(layout):
    laws.check_copies(
        TOPOLOGIES["csst"], partial(gs.Rewirer, newborn="fresh"), layout=layout, optimizer=OPTIMIZERS["adamw"]
    )


@ANY
def test_weights_can_be_restored_under_a_living_optimizer(name):
    laws.check_reload(TOPOLOGIES[name], gs.Rewirer)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_the_same_with_adam(layout):
    laws.check_reload(TOPOLOGIES["csst"], gs.Rewirer, layout=layout, optimizer=OPTIMIZERS["rmsprop"])


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("name", ["set", "gmp", "rigl merging", "set shrinking", "csst pooled", "snfs"])
def test_averages_follow_connections(name, layout):
    laws.check_average(gs.Rewirer, topology=TOPOLOGIES[name], layout=layout)


FRESH = {
    **OPTIMIZERS,
    "dampened": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "adagrad from a sum": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.3, lr_decay=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("block", [(1, 1), (2, 2)], ids=["", "tiles"])
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("optimizer", FRESH.values(), ids=FRESH.keys())
def test_a_newborn_takes_the_steps_of_a_fresh_parameter(optimizer, layout, block):
    laws.check_newborn(gs.Rewirer, optimizer, layout=layout, block=block)


# ---------------------------------------------------------------- newborn connections


def constant_steps(net, rewirer, steps):
    """Every weight gets the gradient 0.1; the moves of each step."""
    layer, moves = net[0], []
    x = torch.full((1, layer.in_features), 0.1)
    for _ in range(steps):
        before = layer.to_dense()
        net.zero_grad(set_to_none=True)
        net(x).sum().backward()
        rewirer.step()
        moves.append(layer.to_dense() - before)
    return moves


def one_layer(optimizer, **options):
    net = nn.Sequential(gs.SparseLinear(8, 8, density=0.3, bias=False, rng=generator(0)))
    opt = optimizer(net.parameters())
    return net, opt, gs.Rewirer(net, opt, gs.SET(stop=5000, every=500, drop_fraction=0.5), rng=generator(0), **options)


@pytest.mark.parametrize("name", ["adam", "nadam", "adamax", "adamw, fused"])
def test_they_join_without_a_jump(name):
    """After a hundred steps they share the parameter's step count, and go on as if nothing had happened."""
    net, _, rewirer = one_layer(FRESH[name], newborn="fresh")
    constant_steps(net, rewirer, 500)
    born = (net[0].to_dense() == 0) & net[0].support.mask()
    assert rewirer.newborn.cohorts and int(born.sum()) == rewirer.newborn.cohorts[0].ids.numel() > 3
    moves = constant_steps(net, rewirer, 110)
    assert not rewirer.newborn.cohorts
    steps = [float(move[born].mean()) for move in moves[95:105]]
    assert max(steps) - min(steps) < 0.01 * abs(steps[0])


def test_zero_state_is_what_it_was():
    """Under Adam's global step count: 3.2 times the step size, then less."""
    net, _, rewirer = one_layer(FRESH["adam"], newborn="zero")
    constant_steps(net, rewirer, 500)
    born = (net[0].to_dense() == 0) & net[0].support.mask()
    moves = [float(move[born].mean()) / -0.01 for move in constant_steps(net, rewirer, 3)]
    expected, T = [], 500
    for a in (1, 2, 3):
        m, v = 0.1 * (1 - 0.9**a), 0.01 * (1 - 0.999**a)
        expected.append(m / (1 - 0.9 ** (T + a)) / (v / (1 - 0.999 ** (T + a))) ** 0.5)
    assert moves == pytest.approx(expected, rel=1e-3)


def test_the_sensed_gradient_is_the_first():
    net, opt, rewirer = parts(
        gs.CSST(40, 4, 8, window=2, fraction=0.5, drop_fraction=0.3), optimizer="adamw", newborn="sensed"
    )
    train(net, opt, rewirer, FLAT.batches(4))
    cohorts = rewirer.newborn.state_dict()
    assert cohorts and all(c["age"] == 1 and float(c["state"]["step"]) == 1 for c in cohorts)
    assert all(bool((c["state"]["exp_avg"] != 0).any()) for c in cohorts)
    layers = gs.sparse_layers(net)
    for c in cohorts:
        s = layers[c["layer"]].support
        assert not bool(layers[c["layer"]].values[s.find(c["ids"])].any())  # they have not moved


def test_survivors_keep_factored_state_of_their_own():
    """Adafactor on tiles keeps moments of rows and columns of each tile."""
    net = nn.Sequential(gs.SparseLinear(16, 16, density=0.5, block=(4, 2), bias=False, rng=generator(1)))
    opt = torch.optim.Adafactor(net.parameters(), lr=0.01)
    rewirer = gs.Rewirer(net, opt, gs.SET(stop=100, every=6, drop_fraction=0.4), rng=generator(0))
    layer = net[0]
    for t in range(6):
        before = layer.support
        opt.zero_grad()
        net(torch.randn(4, 16, generator=generator(t))).square().sum().backward()
        if t == 5:
            counterpart, twin_opt = copy.deepcopy((net, opt))
            counterpart[0].values.grad = layer.values.grad.clone()
            twin_opt.step()
        rewirer.step()
    new, stay = layer.support, before.find(layer.support.ids())
    assert 0 < int((stay >= 0).sum()) < new.n
    for key in ("row_var", "col_var"):
        mine, theirs = opt.state[layer.values][key], twin_opt.state[counterpart[0].values][key]
        assert torch.equal(mine[stay >= 0], theirs[stay[stay >= 0]]) and mine.shape[0] == new.n


def test_the_default_is_what_was_measured():
    """Zero state where a step count matters; the optimizer's own initial state, which is a fresh parameter's,
    elsewhere."""
    expected = {
        "adam": "zero",
        "adamw, fused": "zero",
        "rprop": "fresh",
        "adagrad": "fresh",
        "momentum": "fresh",
        "dampened": "zero",
    }
    for name, like in expected.items():
        moves = []
        for mode in ("auto", like):
            net, _, rewirer = one_layer(FRESH[name], newborn=mode)
            constant_steps(net, rewirer, 500)
            moves.append(constant_steps(net, rewirer, 3))
        assert all(torch.equal(a, b) for a, b in zip(*moves, strict=True))


def test_an_optimizer_that_cannot_move_a_scratch_parameter_is_refused_at_once():
    class Picky(torch.optim.SGD):
        def step(self, closure=None):
            if any(p.numel() == 1 for group in self.param_groups for p in group["params"]):
                raise RuntimeError("matrices only")
            return super().step(closure)

    net = gs.sparsify(mlp(), 0.3)
    opt = Picky(net.parameters(), 0.1)
    with pytest.raises(gs.UsageError, match=r'(?s)Picky cannot move.*matrices only.*newborn="zero"'):
        gs.Rewirer(net, opt, gs.SET(20, 4))
    gs.Rewirer(net, opt, gs.SET(20, 4), newborn="zero")
    with pytest.raises(gs.UsageError, match="unknown newborn 'fesh'; did you mean 'fresh'"):
        gs.Rewirer(net, opt, gs.SET(20, 4), newborn="fesh")


# ---------------------------------------------------------------- the index


def vandalised():
    def whole(change):
        return lambda net: change(net[0])

    def buffers(net):
        net[0]._buffers["crow"] = net[0].crow + 1

    def numpy(net):
        net[0].col.numpy()[:] = 2**30
        net.state_dict()

    def data(net):
        net[0].col.data.fill_(2**30)
        net.state_dict()

    def assigned(net):
        state = {key: t.clone() for key, t in net.state_dict().items()}
        state["0.col"].fill_(2**30)
        net.load_state_dict(state, assign=True)

    def meta(net):
        net.to("meta")
        net.to_empty(device="cpu")
        net[0].col.fill_(-7)

    return {
        "filled": whole(lambda layer: layer.col.fill_(2**30)),
        "filled with a valid one": whole(
            lambda layer: layer.col.copy_(gs.Support.random((17, 13), layer.support.n, rng=generator(9)).col)
        ),
        "pointers filled": whole(lambda layer: layer.crow.fill_(7)),
        "by assignment": whole(lambda layer: setattr(layer, "col", layer.col.flip(0))),
        "of another length": whole(lambda layer: setattr(layer, "col", layer.col[:-1])),
        "floats": whole(lambda layer: setattr(layer, "col", layer.col.double())),
        "behind the module's back": buffers,
        "through NumPy, and saved": numpy,
        "through data, and saved": data,
        "by a state_dict that is not copied": lambda net: net.state_dict()["0.col"].fill_(2**30),
        "assign=True": assigned,
        "to_empty": lambda net: (net.to_empty(device="cpu"), net[0].crow.fill_(3)),
        "meta and to_empty": meta,
    }


@pytest.mark.parametrize("spoil", vandalised().values(), ids=vandalised().keys())
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_an_index_that_was_changed_from_outside_is_never_read(spoil, layout):
    """A sentence, not a crash; a masked layer, whose values do not depend on it, may take a valid one."""
    net = gs.sparsify(mlp(dtype=torch.float32), 0.3, layout=layout, rng=generator(3))
    valid = layout == "masked" and spoil is vandalised_valid()
    try:
        spoil(net)
        net(torch.randn(4, 13))
        assert valid or layout == "masked"
    except (gs.UsageError, RuntimeError) as refusal:
        assert "crow" in str(refusal) or "col" in str(refusal) or "index" in str(refusal)


def vandalised_valid():
    return vandalised()["filled with a valid one"]


@pytest.mark.parametrize("name", [n for n in vandalised() if "saved" not in n and n != "assign=True"])
def test_compact_layers_refuse_it_by_name(name):
    net = gs.sparsify(mlp(dtype=torch.float32), 0.3, rng=generator(3))
    vandalised()[name](net)
    with pytest.raises(gs.UsageError, match=r"(?s)SparseLinear.*has changed the buffers crow and col.*To fix it"):
        net(torch.randn(4, 13))


def test_numbers_written_behind_torchs_back_are_not_read():
    """NumPy and .data leave no trace: the layer goes on with the index that it knows, and a file of it is refused."""
    net = gs.sparsify(mlp(), 0.3, rng=generator(3))
    x = FLAT.batch(0)[0]
    before = net(x)
    net[0].col.data.fill_(2**30)
    assert torch.equal(net(x), before)
    with pytest.raises(gs.UsageError, match="other code has changed the buffers"):
        net.state_dict()


def test_the_same_index_may_be_written_at_any_time():
    """As a broadcast of buffers does, a cast, or a state_dict."""
    net = gs.sparsify(mlp(), 0.3, rng=generator(3))
    x = FLAT.batch(0)[0]
    before, s = net(x), net[0].support
    net[0].col.copy_(net[0].col.clone())
    net[0].crow = net[0].crow.long()
    assert torch.equal(net(x), before) and net[0].support is s


def test_functional_call_takes_another_pair():
    from torch.func import functional_call

    a, b = (gs.sparsify(mlp(), 0.3, rng=generator(seed)) for seed in (3, 4))
    x = FLAT.batch(0)[0]
    assert torch.allclose(functional_call(a, b.state_dict(), (x,)), b(x))
    assert torch.allclose(a(x), gs.densify(copy.deepcopy(a))(x))


def test_a_state_dict_that_was_not_copied_stays_a_pair():
    net, opt, rewirer = parts(gs.SET(20, 4, 0.5))
    live = net.state_dict()
    train(net, opt, rewirer, FLAT.batches(9))
    other = gs.sparsify(mlp(), 0.3, rng=generator(3))
    other.load_state_dict(live)
    assert same_state(net, other) and torch.equal(net(FLAT.batch(0)[0]), other(FLAT.batch(0)[0]))


def test_no_index_is_verified_twice(monkeypatch):
    from gossamer import indexed

    net, opt, rewirer = parts(gs.Static())
    calls = []
    monkeypatch.setattr(indexed, "index_problems", lambda *args: calls.append(args) or [])
    train(net, opt, rewirer, FLAT.batches(5))
    assert not calls


# ---------------------------------------------------------------- averages


def test_torchs_average_is_right_or_refuses():
    """By position it would be wrong after an event: then the average says so."""
    net, opt, rewirer = parts(gs.SET(40, 2, 0.5))
    mean = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for batch in FLAT.batches(6):
        train(net, opt, rewirer, [batch])
        mean.update_parameters(net)
    with pytest.raises(gs.UsageError, match=r"gs\.AveragedModel"):
        mean(FLAT.batch(0)[0])
    still = parts(gs.Static())
    plain, ours = torch.optim.swa_utils.AveragedModel(still[0]), gs.AveragedModel(still[0])
    for batch in FLAT.batches(6):
        train(*still, [batch])
        plain.update_parameters(still[0])
        ours.update_parameters(still[0])
    x = FLAT.batch(0)[0]
    assert torch.allclose(plain(x), ours(x), rtol=1e-10)


@pytest.mark.parametrize("layout", ["masked", "shadow"])
def test_torchs_average_of_dense_storage_is_right(layout):
    net = gs.sparsify(mlp(), 0.3, layout=layout, rng=generator(3))
    if layout == "shadow":
        opt, rewirer = gs.SparseOptimizer(gs.parameter_groups(net), gs.LinBreg(gs.L1(0.05)), 0.1), None
    else:
        opt = OPTIMIZERS["nesterov"](net.parameters())
        rewirer = gs.Rewirer(net, opt, gs.SET(40, 2, 0.5), rng=generator(0))
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    mean = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=average)
    expected: dict[str, torch.Tensor] = {}
    for batch in FLAT.batches(6):
        train(net, opt, rewirer, [batch])
        mean.update_parameters(net)
        for name, layer in gs.sparse_layers(net).items():
            now = layer.to_dense()
            expected[name] = 0.5 * expected[name] + 0.5 * now if name in expected else now
    for name, layer in gs.sparse_layers(mean.module).items():
        mask = gs.sparse_layers(net)[name].support.mask()
        assert torch.allclose(layer.to_dense()[mask], expected[name][mask], rtol=1e-10, atol=1e-12)


def test_an_average_loads_saves_and_updates_batch_norm():
    net = seeded(nn.Sequential(nn.Linear(13, 17), nn.BatchNorm1d(17), nn.ReLU(), nn.Linear(17, 5)).double(), 0)
    gs.sparsify(net, 0.3, rng=generator(3))
    opt = OPTIMIZERS["nesterov"](net.parameters())
    rewirer = gs.Rewirer(net, opt, gs.GMP(20, 2, final_density=0.1), rng=generator(0))
    mean = gs.AveragedModel(net)
    for batch in FLAT.batches(10):
        train(net, opt, rewirer, [batch])
        mean.update_parameters(net)
    torch.optim.swa_utils.update_bn([x for x, _ in FLAT.batches(4)], mean)
    other = gs.AveragedModel(gs.sparsify(copy.deepcopy(gs.densify(copy.deepcopy(net))), 0.3))
    other.load_state_dict(mean.state_dict())
    mean.eval(), other.eval()
    assert torch.equal(mean(FLAT.batch(0)[0]), other(FLAT.batch(0)[0])) and int(other.n_averaged) == 10
    net.load_state_dict(mean.module.state_dict())  # an average taken over as the weights
    train(net, opt, rewirer, FLAT.batches(10))


def test_an_average_of_another_model_is_refused():
    mean = gs.AveragedModel(gs.sparsify(mlp(), 0.3))
    with pytest.raises(gs.UsageError, match=r"(?s)does not fit the model that this.*'0' has another"):
        mean.update_parameters(gs.sparsify(mlp(), 0.3, layout="masked"))
    with pytest.raises(gs.UsageError, match="does not fit the model that this"):
        mean.update_parameters(nn.Sequential(nn.Linear(13, 17)))
    for decay in (1.0, -0.1, float("nan"), "0.9"):
        with pytest.raises(gs.UsageError, match="decay"):
            gs.AveragedModel(mlp(), decay=decay)


# ---------------------------------------------------------------- what is sensed


def test_operands_that_were_overwritten_are_refused():
    """RigL keeps the operands of its step: a buffer that is filled again before step() is noticed, as autograd
    notices."""
    net, opt, rewirer = parts(gs.RigL(20, 4))
    buffer = torch.empty(8, 13, dtype=torch.float64)
    train(net, opt, rewirer, FLAT.batches(3))
    x, y = FLAT.batch(3)
    buffer.copy_(x)
    F.cross_entropy(net(buffer), y).backward()
    buffer.copy_(FLAT.batch(4)[0])
    with pytest.raises(gs.UsageError, match=r"(?s)input was changed in place.*clone"):
        rewirer.step()


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_an_input_that_was_overwritten_before_backward_is_refused(layout):
    net, opt, rewirer = parts(gs.CSST(20, 4, 4, window=3, fraction=0.5, drop_fraction=0.3), layout)
    train(net, opt, rewirer, FLAT.batches(1))
    x, y = FLAT.batch(1)
    loss = F.cross_entropy(net(x), y)
    x.zero_()
    with pytest.raises((gs.UsageError, RuntimeError), match="in place|inplace"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["rigl", "csst", "csst regrowing", "snfs"])
def test_activation_checkpointing_changes_nothing(name, reentrant):
    from torch.utils.checkpoint import checkpoint

    runs = []
    for checkpointed in (False, True):
        net, opt, rewirer = parts(TOPOLOGIES[name])
        for x, y in FLAT.batches(14):
            h = x.clone().requires_grad_()
            out = net[4](checkpoint(net[:4], h, use_reentrant=reentrant) if checkpointed else net[:4](h))
            F.cross_entropy(out, y).backward()
            rewirer.step()
            opt.zero_grad()
        runs.append(net)
    assert same_state(*runs)


def test_a_layer_used_twice_counts_twice():
    """The gradient off the support is that of the sum over both uses."""
    layer = gs.SparseLinear(6, 6, density=0.3, rng=generator(0), dtype=torch.float64)
    net = nn.ModuleDict({"a": layer})
    opt = torch.optim.SGD(net.parameters(), 0.1)
    rewirer = gs.Rewirer(net, opt, gs.CSST(20, 4, 4, window=3, fraction=1.0, drop_fraction=0.3), rng=generator(0))
    x = torch.randn(4, 6, generator=generator(1), dtype=torch.float64)
    net["a"](x).sum().backward()
    rewirer.step(), opt.zero_grad()
    weight = layer.to_dense().requires_grad_()
    y = torch.tanh(layer(torch.tanh(layer(x))))
    y.square().sum().backward()
    torch.tanh(F.linear(torch.tanh(F.linear(x, weight, layer.bias)), weight, layer.bias)).square().sum().backward()
    seen = rewirer._probes["a"].observer.seen()
    ids = rewirer.state_dict()["probes"]["a"]["ids"]
    assert torch.allclose(seen.sampled, weight.grad.view(-1)[ids], rtol=1e-10)


def test_a_gradient_that_was_scaled_or_clipped_still_counts():
    net, opt, rewirer = parts(gs.CSST(20, 4, 4, window=3, fraction=0.5, drop_fraction=0.3))
    train(net, opt, rewirer, FLAT.batches(1))
    x, y = FLAT.batch(1)
    F.cross_entropy(net(x), y).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    assert all(probe.observer.seen() is not None for probe in rewirer._probes.values())
    for p in net.parameters():
        p.grad = p.grad * 2  # replaced, not None
    assert all(probe.observer.seen() is not None for probe in rewirer._probes.values())
    opt.zero_grad(set_to_none=False)
    assert all(probe.observer.seen() is None for probe in rewirer._probes.values())


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = seeded(nn.Sequential(nn.Linear(13, 17), nn.Tanh()).double(), 0)
        self.used, self.idle = (seeded(nn.Sequential(nn.Linear(17, 5)).double(), i) for i in (1, 2))

    def forward(self, x):
        return self.used(self.trunk(x))


@ANY
def test_a_layer_without_a_gradient_is_left_alone(name):
    net = gs.sparsify(TwoHeads(), 0.4, rng=generator(3))
    opt = OPTIMIZERS["nesterov"](net.parameters())
    rewirer = gs.Rewirer(net, opt, TOPOLOGIES[name], rng=generator(0))
    idle, others = net.idle[0].support, [supports(net)[key] for key in ("trunk.0", "used.0")]
    train(net, opt, rewirer, FLAT.batches(25))
    assert net.idle[0].support.same(idle)
    now = [supports(net)[key] for key in ("trunk.0", "used.0")]
    assert name == "static" or not all(a.same(b) for a, b in zip(others, now, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["set", "gmp", "rigl", "csst", "snfs"])
def test_an_event_refuses_weights_that_are_not_finite(name, bad):
    net, opt, rewirer = parts(TOPOLOGIES[name])
    train(net, opt, rewirer, FLAT.batches(3))
    x, y = FLAT.batch(3)
    F.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        net[2].values[5] = bad
    before = supports(net)
    with pytest.raises(gs.Diverged, match=r"layer '2' are NaN or infinite at step 4") as caught:
        rewirer.step()
    assert (caught.value.step, caught.value.layer) == (4, "2") and rewirer.t == 3
    assert all(s.same(before[key]) for key, s in supports(net).items())
    assert pickle.loads(pickle.dumps(caught.value)).layer == "2"


# ---------------------------------------------------------------- copies


def test_a_copy_of_the_network_alone_is_a_plain_network():
    for name in ("rigl", "csst", "snfs"):
        net, opt, rewirer = parts(TOPOLOGIES[name])
        train(net, opt, rewirer, FLAT.batches(3))
        x, y = FLAT.batch(3)
        F.cross_entropy(net(x), y).backward()
        alone = copy.deepcopy(net)
        assert all(layer.observers == () and layer.owner is None for layer in gs.sparse_layers(alone).values())
        other = torch.optim.SGD(alone.parameters(), 0.1)
        file, marks = io.BytesIO(), []
        for i in range(10):
            marks.append(FLAT.batch(50 + i)[0][0, 0].numpy().tobytes())
            train(alone, other, None, [FLAT.batch(50 + i)])
        torch.save(alone, file)
        assert not any(mark in file.getvalue() for mark in marks)
        rewirer.step()  # the original is as it was


def test_the_rewirer_that_was_made_last_is_in_charge():
    net, opt, first = parts(gs.CSST(20, 4, 4, window=3, fraction=0.5, drop_fraction=0.3))
    train(net, opt, first, FLAT.batches(2))
    second = gs.Rewirer(net, opt, gs.SET(20, 4), rng=generator(0))
    assert all(layer.owner is second and layer.observers == () for layer in gs.sparse_layers(net).values())
    train(net, opt, second, FLAT.batches(5))
    with pytest.raises(gs.UsageError, match="another Rewirer has been made for these layers"):
        first.step()


def test_a_rewirer_that_is_gone_leaves_nothing_behind():
    net, opt, rewirer = parts(gs.CSST(20, 4, 4, window=3, fraction=0.5, drop_fraction=0.3), optimizer="adamw")
    train(net, opt, rewirer, FLAT.batches(5))
    del rewirer
    train(net, opt, None, FLAT.batches(3))
    assert all(layer.owner is None for layer in gs.sparse_layers(net).values())


# ---------------------------------------------------------------- states that are restored apart


@pytest.mark.parametrize("order", [("net", "opt", "rewirer"), ("rewirer", "opt", "net"), ("opt", "net", "rewirer")])
@pytest.mark.parametrize("name", ["set", "gmp", "csst", "rigl", "snfs", "csst by flow", "csst pooled", "csst merging"])
@pytest.mark.parametrize("at", [6, 7, 8])
def test_states_may_be_restored_in_any_order(name, order, at):
    """In a living process that has gone on since, and sizes may have changed: the way is the same, bit for bit."""
    run = dict(zip(("net", "opt", "rewirer"), parts(TOPOLOGIES[name], optimizer="adamw", newborn="fresh"), strict=True))
    train(*run.values(), FLAT.batches(at))
    saved = copy.deepcopy({key: part.state_dict() for key, part in run.items()})
    rest = FLAT.batches(24)[at:]
    train(*run.values(), rest)
    end = copy.deepcopy(run["net"].state_dict())
    for key in order:
        run[key].load_state_dict(copy.deepcopy(saved[key]))
    train(*run.values(), rest)
    assert all(torch.equal(t, end[key]) for key, t in run["net"].state_dict().items())


def test_a_model_and_an_optimizer_restored_without_the_rewirer_stay_a_pair():
    net, opt, rewirer = parts(gs.SET(40, 4, 0.5))
    train(net, opt, rewirer, FLAT.batches(6))
    saved = copy.deepcopy((net.state_dict(), opt.state_dict()))
    train(net, opt, rewirer, FLAT.batches(6))
    net.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])
    x, y = FLAT.batch(20)
    counterpart, twin_opt = gs.sparsify(mlp(), 0.3, rng=generator(3)), None
    counterpart.load_state_dict(saved[0])
    twin_opt = OPTIMIZERS["nesterov"](counterpart.parameters())
    twin_opt.load_state_dict(copy.deepcopy(saved[1]))
    F.cross_entropy(net(x), y).backward()
    F.cross_entropy(counterpart(x), y).backward()
    rewirer.step(), twin_opt.step()
    assert same_state(net, counterpart)


def test_an_optimizer_restored_without_its_model_is_refused():
    net, opt, rewirer = parts(gs.SET(40, 4, 0.5))
    train(net, opt, rewirer, FLAT.batches(6))
    saved = copy.deepcopy(opt.state_dict())
    train(net, opt, rewirer, FLAT.batches(6))
    opt.load_state_dict(saved)
    F.cross_entropy(net(FLAT.batch(0)[0]), FLAT.batch(0)[1]).backward()
    with pytest.raises(gs.UsageError, match="belongs to another support"):
        rewirer.step()


def test_assign_replaces_the_parameter_and_that_is_said():
    net, opt, rewirer = parts(gs.SET(40, 4, 0.5))
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    F.cross_entropy(net(FLAT.batch(0)[0]), FLAT.batch(0)[1]).backward()
    with pytest.raises(gs.UsageError, match=r"(?s)does not hold all sparse values.*without assign=True"):
        rewirer.step()


# ---------------------------------------------------------------- rules and multilevel

RULES = {
    "LinBreg": gs.LinBreg(gs.L1(0.05), momentum=0.5),
    "AdaBreg": gs.AdaBreg(gs.L1(0.05)),
    "LinBreg, delta": gs.LinBreg(gs.L1(0.05), 2.0),
    "RDA": gs.RDA(gs.L1(0.001)),
    "xRDA": gs.XRDA(gs.LogL1(0.0005, 0.1), 0.5),
    "xRDA, one threshold": gs.XRDA(gs.LogL1(0.0005, 0.1), 0.5, accumulate=False),
    "xRDA, l1": gs.XRDA(gs.L1(0.001), 0.5),
    "prox-SGD": gs.ProxSGD(gs.L1(0.01), 0.5),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_restored_weights_stay_under_a_rule(rule):
    """A latent variable of other weights would undo them at the next step."""
    net = gs.sparsify(mlp(), 0.3, layout="shadow", rng=generator(3))
    opt = gs.SparseOptimizer(gs.parameter_groups(net), rule, 0.02)
    train(net, opt, None, FLAT.batches(10))
    best = copy.deepcopy(net.state_dict())
    train(net, opt, None, FLAT.batches(40))
    far = max(float((net[i].values.detach() - best[f"{i}.values"]).abs().max()) for i in (0, 2, 4))
    net.load_state_dict(best)
    for group in opt.param_groups:
        group["lr"] = 1e-9
    train(net, opt, None, FLAT.batches(1))
    near = max(float((net[i].values.detach() - best[f"{i}.values"]).abs().max()) for i in (0, 2, 4))
    assert near < 5e-3 < far
    for group in opt.param_groups:
        group["lr"] = 0.02
    train(net, opt, None, FLAT.batches(20))
    assert all(bool(p.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_what_nobody_else_wrote_is_not_looked_at(rule):
    """Copies, resumed optimizers: not a bit changes."""
    net = gs.sparsify(mlp(), 0.3, layout="shadow", rng=generator(3))
    opt = gs.SparseOptimizer(gs.parameter_groups(net), rule, 0.02)
    train(net, opt, None, FLAT.batches(5))
    counterpart, twin_opt = copy.deepcopy((net, opt))
    state = copy.deepcopy((net.state_dict(), opt.state_dict()))
    train(net, opt, None, FLAT.batches(5))
    train(counterpart, twin_opt, None, FLAT.batches(5))
    assert same_state(net, counterpart)
    net.load_state_dict(state[0]), opt.load_state_dict(state[1])
    train(net, opt, None, FLAT.batches(5))
    assert same_state(net, counterpart)


def multilevel(coarse=3, rule="LinBreg"):
    net = gs.sparsify(mlp(), 0.3, rng=generator(3))
    mirror = gs.LinBreg(gs.L1(0.05)) if rule == "LinBreg" else RULES[rule]
    opt = gs.SparseOptimizer(gs.parameter_groups(net), mirror, 0.05 if rule == "LinBreg" else 0.01, allow_compact=True)
    return net, opt, gs.Multilevel(net, opt, coarse)


@pytest.mark.parametrize("rule", ["LinBreg", "AdaBreg"])
@pytest.mark.parametrize(("early", "late"), [(2, 3), (4, 9), (5, 12), (6, 8)])
def test_weights_can_be_restored_under_multilevel(rule, early, late):
    net, opt, trainer = multilevel(rule=rule)
    train(net, opt, trainer, FLAT.batches(early))
    best = copy.deepcopy(net.state_dict())
    train(net, opt, trainer, FLAT.batches(late - early))
    net.load_state_dict(best)
    for group in opt.param_groups:
        group["lr"] = 1e-9
    train(net, opt, trainer, FLAT.batches(5))  # over a fine step
    for name, layer in gs.sparse_layers(net).items():
        other = gs.sparsify(mlp(), 0.3, rng=generator(3))
        other.load_state_dict(best)
        before = gs.sparse_layers(other)[name].to_dense()
        assert torch.allclose(layer.to_dense(), before, atol=1e-3)
    for group in opt.param_groups:
        group["lr"] = 0.02
    train(net, opt, trainer, FLAT.batches(20))
    assert all(bool(p.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("at", [3, 4, 6])
def test_multilevel_copies_go_the_way_of_the_original(at):
    run = multilevel()
    train(*run, FLAT.batches(at))
    others = copy.deepcopy(run), pickle.loads(pickle.dumps(run))
    train(*run, FLAT.batches(9))
    for other in others:
        train(*other, FLAT.batches(9))
        assert same_state(run[0], other[0])
    assert all(layer.observers == () for layer in gs.sparse_layers(copy.deepcopy(run[0])).values())


def test_a_skipped_fine_step_leaves_no_trace():
    clean, spoilt = multilevel(1), multilevel(1)
    for t, batch in enumerate(FLAT.batches(10)):
        x = torch.full((8, 13), torch.nan, dtype=torch.float64)
        F.cross_entropy(spoilt[0](x), batch[1]).backward()
        spoilt[1].zero_grad(set_to_none=bool(t % 2))
        train(*clean, [batch])
        train(*spoilt, [batch])
    assert same_state(clean[0], spoilt[0])


def test_a_fine_gradient_that_is_not_finite_moves_nothing():
    net, opt, trainer = multilevel(1)
    train(net, opt, trainer, FLAT.batches(3))
    before = supports(net), copy.deepcopy(trainer.state_dict()["cold"])
    out = net(FLAT.batch(3)[0])
    out.backward(torch.full_like(out, float("inf")))
    trainer.step()
    assert trainer.t == 4 and trainer.last is not None and not any(trainer.last.grown.values())
    assert all(s.same(before[0][name]) for name, s in supports(net).items())
    after = trainer.state_dict()["cold"]
    assert all(torch.equal(t, before[1][name][key]) for name, cold in after.items() for key, t in cold.items())
    assert all(bool(layer.values.isfinite().all()) for layer in gs.sparse_layers(net).values())


def test_multilevel_states_may_be_restored_in_any_order():
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        run = multilevel()
        train(*run, FLAT.batches(6))
        saved = copy.deepcopy([part.state_dict() for part in run])
        train(*run, FLAT.batches(9))
        end = copy.deepcopy(run[0].state_dict())
        for i in order:
            run[i].load_state_dict(copy.deepcopy(saved[i]))
        train(*run, FLAT.batches(9))
        assert all(torch.equal(t, end[key]) for key, t in run[0].state_dict().items())


# ---------------------------------------------------------------- observers


def test_a_tap_tells_of_every_pass():
    layer = gs.SparseLinear(6, 5, density=0.4, rng=generator(0), dtype=torch.float64)
    told: list = []
    x = torch.randn(3, 6, generator=generator(1), dtype=torch.float64, requires_grad=True)
    with layer.observe(lambda dy, x: told.append((dy, x))):
        torch.autograd.grad(layer(x).sum(), x)
    layer(x).sum().backward()
    assert len(told) == 1 and layer.observers == ()


def test_both_paths_end_alike_where_a_state_dict_changes_nothing():
    """Loading what is there is no change of the support: only a window begins anew."""
    a, b = parts(TOPOLOGIES["set"]), parts(TOPOLOGIES["set"])
    for batch in FLAT.batches(14):
        train(*a, [batch])
        b[0].load_state_dict(copy.deepcopy(b[0].state_dict()))
        train(*b, [batch])
    assert same_state(a[0], b[0]) and same_supports(a[0], b[0])


@pytest.mark.parametrize("layout", ["csr", "masked", "shadow"])
def test_a_network_made_without_memory_takes_a_state(layout):
    """On the meta device, then allocated, then loaded: as torch's own modules do it."""
    net = gs.sparsify(mlp(), 0.3, layout=layout, rng=generator(3))
    state, x = copy.deepcopy(net.state_dict()), FLAT.batch(0)[0]
    before = net(x)
    net.to("meta")
    net.to_empty(device="cpu")
    net.load_state_dict(state)
    assert torch.equal(net(x), before) and same_supports(net, gs.sparsify(mlp(), 0.3, layout=layout, rng=generator(3)))


def test_a_state_that_does_not_fit_can_be_replaced():
    """The optimizer holds another step's state: a matching pair can still be loaded, from a file too."""
    net, opt, rewirer = parts(gs.SET(40, 4, 0.5))
    train(net, opt, rewirer, FLAT.batches(6))
    old = copy.deepcopy(opt.state_dict())
    train(net, opt, rewirer, FLAT.batches(6))
    pair = copy.deepcopy((net.state_dict(), opt.state_dict()))
    opt.load_state_dict(old)
    assert opt.state_dict()["state"][0]["support"] == old["state"][0]["support"]
    net.load_state_dict(pair[0])
    opt.load_state_dict(pair[1])
    train(net, opt, rewirer, FLAT.batches(3))


# ---------------------------------------------------------------- more of every kind


def test_what_was_loaded_shares_no_memory_with_the_layer():
    net = gs.sparsify(mlp(), 0.3, rng=generator(3))
    best, x = (
        {key: t.clone() for key, t in gs.sparsify(mlp(), 0.3, rng=generator(4)).state_dict().items()},
        FLAT.batch(0)[0],
    )
    net.load_state_dict(best)
    before = net(x)
    for t in best.values():
        t.fill_(2**30)
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("name", ["crow", "col", "ccol", "row", "perm"])
def test_a_support_that_was_written_to_is_not_read(name):
    net = gs.sparsify(mlp(), 0.3, rng=generator(3))
    getattr(net[0].support, name).fill_(2**30)
    with pytest.raises(gs.UsageError, match="the tensors of the support were written to"):
        net(FLAT.batch(0)[0])


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("penalty", ["beside a loss", "alone"])
def test_a_gradient_penalty_is_sensed_like_its_gradient(layout, penalty):
    """The pass through the input's gradient adds to the weights' gradients, off the support as on it."""
    net, opt, rewirer = parts(gs.CSST(20, 4, 4, window=3, fraction=1.0, drop_fraction=0.3), layout)
    train(net, opt, rewirer, FLAT.batches(1))
    counterpart = gs.densify(copy.deepcopy(net))
    for model in (net, counterpart):
        x = FLAT.batch(1)[0].requires_grad_()
        y = model(x)
        (gx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (gx.square().sum() + (y.sum() if penalty == "beside a loss" else 0.0)).backward()
    for name, layer in gs.sparse_layers(net).items():
        dense, probe = counterpart.get_submodule(name).weight.grad, rewirer._probes[name]
        on = layer.layout.compact(layer.values.grad, layer.support)
        assert torch.allclose(on, dense.view(-1)[layer.support.ids()], rtol=1e-8, atol=1e-12)
        assert torch.allclose(probe.observer.seen().sampled, dense.view(-1)[probe.ids], rtol=1e-8, atol=1e-12)


def test_gradients_put_aside_and_back_are_the_ones_that_count():
    net, opt, rewirer = parts(gs.CSST(20, 4, 4, window=3, fraction=0.5, drop_fraction=0.3))
    train(net, opt, rewirer, FLAT.batches(1))
    F.cross_entropy(net(FLAT.batch(1)[0]), FLAT.batch(1)[1]).backward()
    seen = {name: probe.observer.seen().sampled.clone() for name, probe in rewirer._probes.items()}
    aside = [p.grad for p in net.parameters()]
    opt.zero_grad()
    net(FLAT.batch(2)[0]).sum().backward()
    for p, grad in zip(net.parameters(), aside, strict=True):
        p.grad = grad
    assert all(torch.equal(probe.observer.seen().sampled, seen[name]) for name, probe in rewirer._probes.items())


def test_gradients_zeroed_behind_torchs_back_are_gone():
    net, opt, rewirer = parts(gs.CSST(20, 4, 4, window=3, fraction=0.5, drop_fraction=0.3))
    train(net, opt, rewirer, FLAT.batches(1))
    net(FLAT.batch(2)[0]).sum().backward()
    for p in net.parameters():
        p.grad.data.zero_()
    F.cross_entropy(net(FLAT.batch(1)[0]), FLAT.batch(1)[1]).backward()
    counterpart = gs.densify(copy.deepcopy(net))
    F.cross_entropy(counterpart(FLAT.batch(1)[0]), FLAT.batch(1)[1]).backward()
    for name, probe in rewirer._probes.items():
        assert torch.allclose(
            probe.observer.seen().sampled,
            counterpart.get_submodule(name).weight.grad.view(-1)[probe.ids],
            rtol=1e-8,
            atol=1e-12,
        )


@pytest.mark.parametrize("name", ["set", "gmp"])
def test_gradients_given_by_hand_count(name):
    net, opt, rewirer = parts(TOPOLOGIES[name])
    first = supports(net)
    for x, y in FLAT.batches(9):
        grads = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
        for p, grad in zip(net.parameters(), grads, strict=True):
            p.grad = grad
        rewirer.step()
    assert not any(s.same(first[key]) for key, s in supports(net).items())


def test_a_stray_pass_that_was_zeroed_does_not_feed_an_idle_layer():
    net = gs.sparsify(TwoHeads(), 0.4, rng=generator(3))
    opt = OPTIMIZERS["nesterov"](net.parameters())
    rewirer = gs.Rewirer(net, opt, gs.SET(40, 4, 0.5), rng=generator(0))
    idle = net.idle[0].support
    for x, y in FLAT.batches(9):
        net.idle(net.trunk(x)).sum().backward()
        opt.zero_grad(set_to_none=False)
        F.cross_entropy(net(x), y).backward()
        rewirer.step()
        opt.zero_grad(set_to_none=False)
    assert net.idle[0].support.same(idle)


def test_transforms_work_in_a_window():
    net, opt, rewirer = parts(gs.CSST(20, 4, 4, window=3, fraction=0.5, drop_fraction=0.3))
    train(net, opt, rewirer, FLAT.batches(1))
    x = FLAT.batch(1)[0]
    jacobian = torch.autograd.functional.jacobian(net, x, vectorize=True)
    per_sample = torch.func.grad(lambda one: net(one).square().sum())(x)
    assert jacobian.shape == (8, 5, 8, 13) and per_sample.shape == x.shape
    assert all(probe.observer.seen() is None for probe in rewirer._probes.values())


def test_tied_parameters_are_averaged_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.body(self.embed(x)))

    net = Tied().double()
    gs.sparsify(net, 0.4, include="body", rng=generator(3))
    ours, theirs = gs.AveragedModel(net), torch.optim.swa_utils.AveragedModel(net)
    for t in range(4):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape, generator=generator(t), dtype=p.dtype))
        ours.update_parameters(net), theirs.update_parameters(net)
    assert torch.allclose(ours.module.head.weight, theirs.module.head.weight)


def test_an_optimizer_loaded_before_its_rewirer_is_made():
    net, opt, rewirer = parts(gs.SET(40, 4, 0.5))
    train(net, opt, rewirer, FLAT.batches(3))
    best = copy.deepcopy(net.state_dict())
    train(net, opt, rewirer, FLAT.batches(8))
    state = copy.deepcopy(opt.state_dict())
    other = gs.sparsify(mlp(), 0.3, rng=generator(3))
    fresh = OPTIMIZERS["nesterov"](other.parameters())
    fresh.load_state_dict(state)
    other.load_state_dict(best)
    late = gs.Rewirer(other, fresh, gs.SET(40, 4, 0.5), rng=generator(0))
    F.cross_entropy(other(FLAT.batch(0)[0]), FLAT.batch(0)[1]).backward()
    with pytest.raises(gs.UsageError, match="belongs to another support"):
        late.step()
    run = multilevel()
    train(*run, FLAT.batches(6))
    again = gs.sparsify(mlp(), 0.3, rng=generator(3))
    mirror = gs.SparseOptimizer(gs.parameter_groups(again), run[1].rule, 0.05, allow_compact=True)
    mirror.load_state_dict(copy.deepcopy(run[1].state_dict()))
    again.load_state_dict(run[0].state_dict())
    train(again, mirror, gs.Multilevel(again, mirror, 3), FLAT.batches(5))


@pytest.mark.parametrize("whole", [True, False], ids=["with the rewirer", "without"])
def test_a_copy_made_right_after_loading_is_whole(whole):
    net, opt, rewirer = parts(gs.SET(40, 4, 0.5))
    train(net, opt, rewirer, FLAT.batches(3))
    best = copy.deepcopy(net.state_dict())
    train(net, opt, rewirer, FLAT.batches(7))
    net.load_state_dict(best)
    counterpart, twin_opt, *rest = copy.deepcopy((net, opt, rewirer) if whole else (net, opt))
    for model, step in ((net, rewirer.step), (counterpart, rest[0].step if whole else twin_opt.step)):
        F.cross_entropy(model(FLAT.batch(0)[0]), FLAT.batch(0)[1]).backward()
        step()
    assert same_state(net, counterpart)


def test_a_refusal_is_not_forgotten():
    net, opt, rewirer = parts(gs.SET(40, 4, 0.5))
    train(net, opt, rewirer, FLAT.batches(3))
    old = copy.deepcopy(rewirer.state_dict())
    train(net, opt, rewirer, FLAT.batches(8))
    rewirer.load_state_dict(old)
    for _ in range(6):
        F.cross_entropy(net(FLAT.batch(0)[0]), FLAT.batch(0)[1]).backward()
        with pytest.raises(gs.UsageError, match="belongs to another support"):
            rewirer.step()


def test_a_copied_controller_knows_the_copied_layers():
    net, opt, trainer = multilevel()
    target = gs.TargetDensity(opt, 0.1, 40, multilevel=trainer, every=4)
    run = copy.deepcopy((net, opt, trainer, target))
    assert run[3].total == target.total == sum(layer.dense_shape.numel() for layer in gs.sparse_layers(net).values())


def test_a_fine_step_refuses_weights_that_are_not_finite():
    net, opt, trainer = multilevel(1)
    train(net, opt, trainer, FLAT.batches(1))
    with torch.no_grad():
        net[0].values[0] = float("nan")
    net(FLAT.batch(0)[0]).nan_to_num(0.0).sum().backward()
    with pytest.raises(gs.Diverged, match="'0'"):
        trainer.step()


@pytest.mark.parametrize("name", ["set", "csst", "rigl", "gmp", "snfs"])
def test_layers_may_freeze_and_thaw(name):
    net, opt, _ = parts(TOPOLOGIES[name], optimizer="adamw")
    net[2].values.requires_grad_(False)
    with pytest.warns(UserWarning) if name == "gmp" else nullcontext():
        rewirer = gs.Rewirer(net, opt, TOPOLOGIES[name], rng=generator(0), newborn="fresh")
    still = net[2].support
    train(net, opt, rewirer, FLAT.batches(6))
    assert net[2].support.same(still)
    net[2].values.requires_grad_(True)
    net[0].values.requires_grad_(False)
    copied = copy.deepcopy((net, opt, rewirer))
    rewirer.load_state_dict(copy.deepcopy(rewirer.state_dict()))
    for run in ((net, opt, rewirer), copied):
        train(*run, FLAT.batches(16)[6:])
    assert same_state(net, copied[0]) and not net[2].support.same(still)


def test_newborns_are_looked_after_if_the_optimizer_steps_alone():
    net, opt, rewirer = parts(gs.SET(40, 4, 0.5), optimizer="adamw", newborn="fresh")
    train(net, opt, rewirer, FLAT.batches(3))
    best = copy.deepcopy(net.state_dict())
    train(net, opt, rewirer, FLAT.batches(7))
    net.load_state_dict(best)
    counterpart, twin_opt, twin_rewirer = copy.deepcopy((net, opt, rewirer))
    F.cross_entropy(net(FLAT.batch(0)[0]), FLAT.batch(0)[1]).backward()
    F.cross_entropy(counterpart(FLAT.batch(0)[0]), FLAT.batch(0)[1]).backward()
    opt.step(), twin_rewirer.step()
    assert same_state(net, counterpart)


def test_a_step_size_of_zero_at_birth_hides_nothing():
    net, opt, rewirer = one_layer(FRESH["adam"], newborn="fresh")
    opt.param_groups[0]["lr"] = 0.0
    constant_steps(net, rewirer, 500)
    opt.param_groups[0]["lr"] = 0.01
    assert rewirer.newborn.counts("0")


class LookAhead(torch.optim.Optimizer):
    """k steps forward, one step back (Zhang et al. 2019), around another optimizer."""

    def __init__(self, inner, k=2, share=0.5):
        self.inner, self.k, self.share, self.calls = inner, k, share, 0
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        self.inner.step()
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.detach().clone())
                if self.calls % self.k == 0:
                    slow.add_(p.detach() - slow, alpha=self.share)
                    p.data.copy_(slow)


@pytest.mark.parametrize("name", ["set", "gmp", "csst"])
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_an_optimizer_around_an_optimizer(name, optimizer):
    """Both keep states of connections, and both follow."""
    runs = []
    for layout in LAYOUT_NAMES:
        net = gs.sparsify(mlp(), 0.3, layout=layout, rng=generator(3))
        opt = LookAhead(OPTIMIZERS[optimizer](net.parameters()))
        rewirer = gs.Rewirer(net, opt, TOPOLOGIES[name], rng=generator(0), newborn="fresh")
        train(net, opt, rewirer, FLAT.batches(20))
        runs.append(net)
    for a, b in zip(*(gs.sparse_layers(net).values() for net in runs), strict=True):
        assert a.support.same(b.support) and torch.allclose(a.to_dense(), b.to_dense(), rtol=1e-8, atol=1e-10)


def test_values_of_two_layers_at_once_are_refused():
    net = gs.sparsify(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), 0.3, rng=generator(3))
    net[1].values = net[0].values
    with pytest.raises(gs.UsageError, match="hold the same values"):
        gs.Rewirer(net, torch.optim.SGD(net.parameters(), 0.1), gs.SET(20, 4))


def test_networks_may_be_made_and_loaded_in_inference_mode():
    with torch.inference_mode():
        net = gs.sparsify(mlp(), 0.3, rng=generator(3))
        net.load_state_dict(gs.sparsify(mlp(), 0.5, rng=generator(3)).state_dict())
        assert net(FLAT.batch(0)[0]).shape == (8, 5)


@pytest.mark.parametrize(
    "change", [lambda layer: delattr(layer, "col"), lambda layer: setattr(layer, "col", None)], ids=["gone", "none"]
)
def test_an_index_that_is_gone_is_said_to_be(change):
    net = gs.sparsify(mlp(), 0.3, rng=generator(3))
    change(net[0])
    with pytest.raises(gs.UsageError, match="the buffer col was removed"):
        net(FLAT.batch(0)[0])


def test_newborns_of_a_fused_optimizer_under_a_scaler():
    """It unscales within its step, and skips it within: so do the newborn."""
    runs = []
    for scale in (None, 256.0):
        net = gs.sparsify(mlp(dtype=torch.float32), 0.3, rng=generator(3))
        opt = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
        rewirer = gs.Rewirer(net, opt, gs.SET(40, 4, 0.5), rng=generator(0), newborn="fresh")
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
        for t, (x, y) in enumerate(FLAT.batches(10, torch.float32)):
            if scaler is None:
                train(net, opt, rewirer, [(x, y)])
                continue
            if t == 6:  # one more, which is skipped
                age = [c["age"] for c in rewirer.newborn.state_dict()]
                rewirer.discard()
                scaler.scale(F.cross_entropy(net(x), y) * 1e38).backward()
                scaler.step(opt)
                scaler.update()
                opt.zero_grad()
                assert [c["age"] for c in rewirer.newborn.state_dict()] == age
            scaler.scale(F.cross_entropy(net(x), y)).backward()
            rewirer.step(scaler=scaler)
            scaler.update()
            opt.zero_grad()
        runs.append(net)
    for a, b in zip(*(net.parameters() for net in runs), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


class Handed(torch.optim.Optimizer):
    """A trainer's wrapper: it never calls torch's constructor, and hands everything on."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def state(self):
        return self.optimizer.state

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def defaults(self):
        return self.optimizer.defaults

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


@pytest.mark.parametrize("name", ["set", "gmp", "csst"])
def test_a_wrapper_that_hands_everything_on(name):
    runs = []
    for wrap in (lambda opt: opt, Handed):
        net = gs.sparsify(mlp(), 0.3, rng=generator(3))
        opt = wrap(OPTIMIZERS["adamw"](net.parameters()))
        train(net, opt, gs.Rewirer(net, opt, TOPOLOGIES[name], rng=generator(0), newborn="fresh"), FLAT.batches(20))
        runs.append(net)
    assert same_state(*runs)


def test_a_parameter_that_was_replaced_in_layer_and_optimizer_is_taken():
    net, opt, rewirer = parts(gs.CSST(40, 4, 4, window=3, fraction=0.5, drop_fraction=0.3))
    train(net, opt, rewirer, FLAT.batches(5))
    net[2].values = nn.Parameter(net[2].values.detach().clone())
    opt.add_param_group({"params": [net[2].values]})
    before = net[2].support
    train(net, opt, rewirer, FLAT.batches(9))
    assert not net[2].support.same(before)


def test_an_optimizer_that_fails_leaves_the_rewirer_as_it_was():
    net, opt, rewirer = parts(gs.SET(40, 4, 0.5), optimizer="adamw", newborn="fresh")
    train(net, opt, rewirer, FLAT.batches(5))

    def fails(*_):
        raise OSError("no")

    handle = opt.register_step_pre_hook(fails)
    F.cross_entropy(net(FLAT.batch(0)[0]), FLAT.batch(0)[1]).backward()
    with pytest.raises(OSError):
        rewirer.step()
    handle.remove()
    assert rewirer.t == 5
    train(net, opt, rewirer, FLAT.batches(9))
