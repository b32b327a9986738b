"""The ledger: torch's own counter where nothing is sparse, published formulas, sensing, and every byte."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import gossamer as gs
from cases import FLAT, IMAGES, LAYOUT_NAMES, OPTIMIZERS, TOPOLOGIES, convnet, generator, mlp, table, train
from gossamer.ledger import Cost
from gossamer.training.loop import fit
from gossamer.training.rewirer import Rewirer

MODELS = {"mlp": (mlp, FLAT), "convnet": (convnet, IMAGES)}


def counted(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """FLOPs of one forward and backward pass by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    return counter.get_total_flops()


def one_step(model: nn.Module, x: torch.Tensor) -> Cost:
    ledger = gs.Ledger(model, x)
    ledger.step(x.shape[0])
    return ledger.flops


# ---------------------------------------------------------------- FLOPs


@table(MODELS)
@pytest.mark.parametrize("layout", [None, *LAYOUT_NAMES])
def test_density_one_agrees_with_torchs_counter(case, layout):
    """Plain torch, masked and csr; forward, input gradient (but the first layer's) and weight gradient."""
    make, data = case
    x, y = data.batch(0)
    model = make() if layout is None else gs.sparsify(make(), 1.0, layout=layout)
    ledger = gs.Ledger(model, x)
    ledger.step(8)
    assert ledger.flops.total == ledger.dense_flops == counted(model, x, y) and ledger.ratio == 1.0


@table(MODELS)
@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
def test_sparse_counts_are_torchs_through_the_registered_formulas(case, block):
    """FlopCounterMode counts the sparse operators by what they keep; tiles count whole, also where they hang over the
    edge."""
    make, data = case
    x, y = data.batch(0)
    model = gs.sparsify(make(), 0.3, block=block, rng=generator())
    total = counted(model, x, y)
    if block == (1, 1):
        assert total == one_step(model, x).total
    else:
        assert total >= one_step(model, x).total
    assert total < counted(make(), x, y) * 0.5


@table(MODELS)
def test_costs_by_hand(case):
    """2 B P n each for forward, input gradient and weight gradient."""
    make, data = case
    x, _ = data.batch(0)
    model = gs.sparsify(make(), 0.3, rng=generator())
    positions = {"mlp": {"0": 1, "2": 1, "4": 1}, "convnet": {"0": 36, "3": 4, "6": 1}}[
        "mlp" if make is mlp else "convnet"
    ]
    ledger = gs.Ledger(model, x)
    cost = ledger.step_cost(8)
    for i, (name, layer) in enumerate(gs.sparse_layers(model).items()):
        one = 2 * 8 * positions[name] * layer.support.n
        assert cost[name] == Cost(one, one if i else 0, one, 0) and cost[name].total == sum(cost[name])
    ledger.step(8), ledger.step(8)
    assert ledger.flops == Cost(*(2 * sum(c[part] for c in cost.values()) for part in range(4)))
    layers = enumerate(gs.sparse_layers(model).items())
    dense = sum(2 * 8 * positions[name] * layer.dense_shape.numel() * (3 if i else 2) for i, (name, layer) in layers)
    assert ledger.dense_flops == 2 * dense and ledger.ratio == pytest.approx(ledger.flops.total / (2 * dense))


def test_an_input_that_needs_a_gradient_counts():
    x = FLAT.batch(0)[0]
    model = gs.sparsify(mlp(), 0.3, rng=generator())
    first = gs.sparse_layers(model)["0"].support.n
    assert (
        one_step(model, x.clone().requires_grad_()).backward_input - one_step(model, x).backward_input == 2 * 8 * first
    )


def test_frozen_weights_and_layers_used_twice():
    shared = nn.Linear(13, 13)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(13, 5)).double()
    model[4].weight.requires_grad_(False)
    x, y = FLAT.batch(0)
    ledger = gs.Ledger(model, x)
    ledger.step(8)
    assert ledger.flops.total == pytest.approx(
        counted(model, x, y) + 2 * 8 * 169
    )  # an input gradient is counted for both uses
    assert ledger.by_layer["4"].backward_weight == 0


def test_three_dimensional_inputs_have_positions():
    model = nn.Sequential(nn.Linear(4, 5)).double()
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert one_step(model, x).forward == counter.get_total_flops() == 2 * 3 * 7 * 20


def test_looking_does_not_change_the_model():
    model = gs.sparsify(convnet().train(), 0.3, rng=generator())
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    gs.Ledger(model, IMAGES.batch(0)[0])
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    assert modes == [m.training for m in model.modules()] and not any(m._forward_hooks for m in model.modules())


# ---------------------------------------------------------------- the published formulas

PUBLISHED = {  # algorithms.md, cost model: method, f_S / f_D -> training FLOPs over dense (3 f_D)
    "RigL at 90 %": ("rigl", 0.24, 0.2425),
    "RigL at 80 %": ("rigl", 0.42, 0.422),
    "SNFS at 90 %": ("snfs", 0.24, 0.493),
    "SNFS at 80 %": ("snfs", 0.42, 0.613),
    "static": ("static", 0.1, 0.1),
    "SET": ("set", 0.1, 0.1),
    "dense": ("dense", 0.1, 1.0),
}


@table(PUBLISHED)
def test_the_published_numbers(case):
    method, f_sparse, expected = case
    assert gs.cost_model(method, f_sparse, 1.0, every=100) / 3 == pytest.approx(expected, abs=6e-4)


def test_csst_costs_its_window():
    """3 f_S + W / I * rho * (f_D - f_S): at 90 %, W = 10, I = 250 this is 1.2 % above static."""
    assert gs.cost_model("csst", 0.1, 1.0, every=250, window=10, fraction=0.1) / 0.3 == pytest.approx(1.012)
    with pytest.raises(gs.UsageError, match="did you mean 'rigl'"):
        gs.cost_model("rigle", 0.1, 1.0)


def whole_run(topology, steps: int, density: float = 0.1) -> tuple[gs.Ledger, float, float]:
    """Ledger of a run on inputs that need a gradient (so every layer has all three parts), forward FLOPs sparse and
    dense."""
    model = gs.sparsify(mlp(), density, rng=generator(3))
    opt = OPTIMIZERS["nesterov"](model.parameters())
    x = FLAT.batch(0)[0].requires_grad_()
    rewirer, ledger = Rewirer(model, opt, topology, rng=generator()), gs.Ledger(model, x)
    f_s = 2 * 8 * sum(layer.support.n for layer in gs.sparse_layers(model).values())
    f_d = 2 * 8 * sum(layer.dense_shape.numel() for layer in gs.sparse_layers(model).values())
    for x, y in FLAT.batches(steps):
        F.cross_entropy(model(x), y).backward()
        ledger.step(8, rewirer)
        rewirer.step()
        opt.zero_grad()
    return ledger, f_s, f_d


def test_static_and_set_cost_three_forward_passes():
    for topology in (gs.Static(), gs.SET(50, 10)):
        ledger, f_s, f_d = whole_run(topology, 20)
        assert ledger.flops.total == 20 * gs.cost_model("static", f_s, f_d) and ledger.dense_flops == 20 * 3 * f_d


def test_rigl_costs_what_its_paper_says():
    """ΔT plain steps and one that makes the dense weight gradient, over ΔT + 1: every = ΔT + 1 here."""
    ledger, f_s, f_d = whole_run(gs.RigL(1000, every=10), 40)
    assert ledger.flops.total == pytest.approx(40 * gs.cost_model("rigl", f_s, f_d, every=9), rel=1e-12)
    assert ledger.flops.sensing == 4 * (f_d - f_s)


def test_snfs_costs_a_dense_gradient_every_step():
    ledger, f_s, f_d = whole_run(gs.SNFS(1000, every=10), 20)
    assert ledger.flops.total == pytest.approx(20 * gs.cost_model("snfs", f_s, f_d), rel=1e-12)


def test_csst_costs_what_its_windows_sense():
    ledger, f_s, f_d = whole_run(gs.CSST(1000, every=20, last_every=20, window=5, fraction=0.25), 60)
    expected = 60 * gs.cost_model("csst", f_s, f_d, every=20, window=5, fraction=0.25)
    assert ledger.flops.total == pytest.approx(expected, rel=1e-2)  # |Omega| is rounded
    assert ledger.flops.sensing == pytest.approx(15 * 0.25 * (f_d - f_s), rel=2e-2)


def test_gmp_costs_its_falling_density():
    model = gs.sparsify(mlp(), 1.0)
    opt, x = OPTIMIZERS["sgd"](model.parameters()), FLAT.batch(0)[0]
    rewirer, ledger = Rewirer(model, opt, gs.GMP(16, 4, final_density=0.1)), gs.Ledger(model, x)
    costs = []
    for x, y in FLAT.batches(20):
        F.cross_entropy(model(x), y).backward()
        costs.append(sum(c.total for c in ledger.step_cost(8, rewirer).values()))
        ledger.step(8, rewirer)
        rewirer.step()
        opt.zero_grad()
    assert ledger.flops.total == sum(costs) and costs == sorted(costs, reverse=True) and costs[-1] < 0.2 * costs[0]


@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
def test_sensing_counts_tiles_by_their_size(block):
    model = gs.sparsify(mlp(), 0.3, block=block, rng=generator(3))
    opt, x = OPTIMIZERS["sgd"](model.parameters()), FLAT.batch(0)[0]
    rewirer = Rewirer(model, opt, gs.CSST(20, 2, 2, window=1, count=3, candidates="uniform"))
    ledger = gs.Ledger(model, x)
    train(model, opt, rewirer, [FLAT.batch(0)])
    assert {c.sensing for c in ledger.step_cost(8, rewirer).values()} == {2 * 8 * 3 * block[0] * block[1]}


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])
def test_every_byte_of_a_compact_model(name):
    """Values, gradients and slots of what is kept; five index tensors of 4 bytes, and a copy of two; biases too."""
    model = gs.sparsify(mlp(dtype=torch.float32), 0.3, rng=generator(3))
    opt = OPTIMIZERS[name](model.parameters())
    train(model, opt, None, FLAT.batches(1, torch.float32))
    n = sum(layer.support.n for layer in gs.sparse_layers(model).values())
    numbers = n + 17 + 11 + 5
    edges = sum(
        2 * (layer.support.grid[0] + 1) + layer.support.grid[1] + 1 for layer in gs.sparse_layers(model).values()
    )
    slots = {"sgd": 0, "nesterov": 1, "adamw": 3}[name]
    got = gs.Ledger(model, FLAT.batch(0, torch.float32)[0], optimizer=opt).bytes()
    counters = 4 * len(list(model.parameters())) if name == "adamw" else 0
    assert got["values"] == got["gradients"] == 4 * numbers
    assert got["indices"] == 4 * (4 * n + edges)
    assert got["optimizer"] == 4 * numbers * slots + counters
    assert got["sensing"] == 0 and got["total"] == sum(v for key, v in got.items() if key != "total")


def test_the_dense_models_bytes():
    model = gs.sparsify(mlp(dtype=torch.float32), 0.3, rng=generator(3))
    opt = OPTIMIZERS["nesterov"](model.parameters())
    train(model, opt, None, FLAT.batches(1, torch.float32))
    numbers = sum(p.numel() for p in mlp().parameters())
    assert gs.Ledger(model, FLAT.batch(0, torch.float32)[0], optimizer=opt).dense_bytes() == 4 * numbers * 3


def test_sensing_bytes_and_the_peak():
    """In a window: coordinates (8 bytes) and two moving buffers; the peak remembers it, and that it was freed shows
    after."""
    model = gs.sparsify(mlp(dtype=torch.float32), 0.3, rng=generator(3))
    opt = OPTIMIZERS["nesterov"](model.parameters())
    rewirer = Rewirer(model, opt, gs.CSST(9, 4, 4, window=2, fraction=0.5, candidates="uniform"))
    ledger, totals = gs.Ledger(model, FLAT.batch(0, torch.float32)[0], optimizer=opt), []
    for x, y in FLAT.batches(12, torch.float32):
        F.cross_entropy(model(x), y).backward()
        m = sum(rewirer.sensing.values())
        ledger.step(8, rewirer)
        totals.append((m, ledger.bytes(rewirer)["sensing"]))
        rewirer.step()
        opt.zero_grad()
    assert [m > 0 for m, _ in totals] == [
        False,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert all(held == (0 if m == 0 else 12 * m if i in (2, 6) else 16 * m) for i, (m, held) in enumerate(totals))
    assert ledger.peak_bytes == ledger.bytes()["total"] + max(held for _, held in totals)


# ---------------------------------------------------------------- accounts


def test_fit_keeps_the_ledger():
    model = gs.sparsify(mlp(), 0.3, rng=generator(3))
    opt = OPTIMIZERS["nesterov"](model.parameters())
    rewirer, ledger = Rewirer(model, opt, TOPOLOGIES["csst"]), gs.Ledger(model, FLAT.batch(0)[0], optimizer=opt)
    fit(model, FLAT.batches(12), opt, rewirer=rewirer, ledger=ledger, accumulate=2)
    assert (ledger.steps, ledger.examples) == (6, 96) and ledger.flops.sensing > 0 and ledger.peak_bytes > 0
    assert ledger.flops == Cost(*map(sum, zip(*ledger.by_layer.values(), strict=True)))


def test_accounts_go_on_after_a_restart():
    x = FLAT.batch(0)[0]
    model = gs.sparsify(mlp(), 0.3, rng=generator(3))
    whole, first, second = (gs.Ledger(model, x) for _ in range(3))
    for i in range(6):
        whole.step(8)
        (first if i < 3 else second).step(8)
        if i == 2:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == whole.state_dict()
    with pytest.raises(gs.UsageError, match="other layers"):
        whole.load_state_dict(gs.Ledger(gs.sparsify(nn.Linear(13, 5).double(), 0.3), x).state_dict())


def test_the_table_and_what_is_simulated():
    x = FLAT.batch(0)[0]
    for layout in LAYOUT_NAMES:
        ledger = gs.Ledger(gs.sparsify(mlp(), 0.3, layout=layout, rng=generator(3)), x)
        ledger.step(8)
        text = ledger.table()
        assert [line.split()[0] for line in text.splitlines()[:5]] == ["layer", "0", "2", "4", "total"]
        assert ledger.simulated == ("simulated" in text) == (layout == "masked")
    assert f"{ledger.ratio:.4f}" in text


def test_a_fresh_ledger_prints():
    ledger = gs.Ledger(gs.sparsify(mlp(), 0.3), FLAT.batch(0)[0])
    assert "total" in ledger.table() and ledger.ratio != ledger.ratio and ledger.flops.total == 0


def test_dense_layers_are_in_the_account():
    """A mixed model: what sparsify left dense counts as dense."""
    model = gs.sparsify(mlp(), 0.3, exclude="4", rng=generator(3))
    ledger = gs.Ledger(model, FLAT.batch(0)[0])
    ledger.step(8)
    assert ledger.by_layer["4"] == Cost(2 * 8 * 55, 2 * 8 * 55, 2 * 8 * 55, 0)


def test_what_is_neither_linear_nor_conv2d_is_one_entry():
    """Attention's projections are plain parameters: without the entry the ratio would be that of the two sparse layers
    alone."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    gs.sparsify(model, 0.1)
    ledger = gs.Ledger(model, torch.randn(1, 5, 8))
    ledger.step(4)
    assert [e.name for e in ledger.entries] == ["linear1", "linear2", "(other arithmetic)"]
    projections = 2 * 5 * (3 * 8 * 8 + 8 * 8)  # forward, one example; attention itself comes on top
    assert ledger.by_layer["(other arithmetic)"].forward >= 4 * projections and ledger.ratio > 0.3
    # the total row counts weights of layers, and multiply-adds, in columns of their own
    rows = {line.split("  ")[0]: line for line in ledger.table().splitlines()}
    head, other, total = (
        [cell for cell in rows[name].split("  ") if cell] for name in ("layer", "(other arithmetic)", "total")
    )
    at = {name.strip(): i for i, name in enumerate(head)}
    kept = sum(layer.support.n for layer in gs.sparse_layers(model).values())
    assert [other[at[name]].strip() for name in ("kept", "of", "density")] == ["-"] * 3
    assert (
        total[at["kept"]].strip() == f"{kept:,}" == f"{ledger.kept:,}"
        and total[at["of"]].strip() == "256"
        and ledger.weights == 256
    )
    assert float(total[at["density"]]) == round(kept / 256, 4)
    adds = 5 * kept + ledger.entries[-1].weights  # five positions
    assert (
        total[at["multiply-adds"]].strip() == f"{adds:,}"
        and int(other[at["multiply-adds"]].replace(",", "")) >= projections // 2
    )


def test_multiply_adds_are_those_of_a_forward_pass():
    x = IMAGES.batch(0)[0]
    model = gs.sparsify(convnet(), 0.3, rng=generator(3))
    ledger = gs.Ledger(model, x)
    assert 2 * 8 * sum(entry.multiply_adds for entry in ledger.entries) == sum(
        cost.forward for cost in ledger.step_cost(8).values()
    )
