"""Training: equal to plain torch and across layouts where it must be; accumulation, scaling, clipping; what happens
when it fails."""

import copy
import ctypes
import resource
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import (
    FLAT,
    IMAGES,
    LAYOUT_NAMES,
    MAIN,
    OPTIMIZERS,
    TWO_OPTIMIZERS,
    convnet,
    generator,
    mlp,
    same_state,
    same_supports,
    seeded,
    supports,
    table,
    topologies,
    train,
)
from gossamer.layouts import gather
from gossamer.products.sense import reference as csr_sense
from gossamer.training.events import Diverged, Event
from gossamer.training.loop import Step, fit
from gossamer.training.rewirer import Rewirer


def run(topology, *, layout="csr", optimizer="nesterov", density=0.3, make=mlp, dtype=torch.float64, seed=0, **options):
    model = gs.sparsify(make(dtype=dtype), density, layout=layout, rng=generator(3), **options)
    opt = OPTIMIZERS[optimizer](model.parameters())
    return model, opt, Rewirer(model, opt, topology, rng=generator(seed))


EVERY_FOUR = topologies(23, 4, 3)

# ---------------------------------------------------------------- equal to plain torch


MODELS = pytest.mark.parametrize(("make", "data"), [(mlp, FLAT), (convnet, IMAGES)], ids=["mlp", "convnet"])


def without_bias(make, dtype=torch.float64):
    """torch adds a bias inside its product, a sparse layer after it: the last bit may differ."""
    model = make(dtype=dtype)
    for m in model:
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            m.bias = None
    return model


@MODELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_one_masked_is_plain_torch_bit_for_bit(make, data, dtype):
    """SGD with Nesterov momentum and weight decay, a topology at work: it has nothing to change."""
    plain = without_bias(make, dtype)
    opt = OPTIMIZERS["nesterov"](plain.parameters())
    counterpart = gs.sparsify(without_bias(make, dtype), 1.0, layout="masked", init="keep")
    twin_opt = OPTIMIZERS["nesterov"](counterpart.parameters())
    rewirer = Rewirer(counterpart, twin_opt, gs.CSST(20, 4, 4, window=2))
    assert train(plain, opt, None, data.batches(15, dtype)) == train(
        counterpart, twin_opt, rewirer, data.batches(15, dtype)
    )
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), counterpart.parameters(), strict=True))


@MODELS
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("optimizer", TWO_OPTIMIZERS)
def test_density_one_is_plain_torch_to_rounding(make, data, layout, optimizer):
    plain = make()
    opt = OPTIMIZERS[optimizer](plain.parameters())
    counterpart = run(
        gs.CSST(20, 4, 4, window=2), optimizer=optimizer, layout=layout, density=1.0, make=make, init="keep"
    )
    losses = train(plain, opt, None, data.batches(15)), train(*counterpart, data.batches(15))
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


# ---------------------------------------------------------------- equal across layouts

LONG = topologies(stop=150, every=15, window=5)


def two_layers(dtype=torch.float64):
    return seeded(nn.Sequential(nn.Linear(13, 19), nn.Tanh(), nn.Linear(19, 5)).to(dtype), 0)


@pytest.mark.parametrize("optimizer", TWO_OPTIMIZERS)
@pytest.mark.parametrize("name", MAIN)
def test_masked_and_csr_give_the_same_losses_and_supports(name, optimizer):
    """200 steps in float64, supports compared at every event."""
    runs = [run(LONG[name], layout=layout, optimizer=optimizer, make=two_layers) for layout in LAYOUT_NAMES]
    first = supports(runs[0][0])
    losses: list[list[float]] = [[], []]
    for batch in FLAT.batches(200):
        for mine, parts in zip(losses, runs, strict=True):
            mine += train(*parts, [batch])
        if runs[0][2].last:
            assert same_supports(runs[0][0], runs[1][0]), f"step {runs[0][2].t}"
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)
    assert same_supports(runs[0][0], runs[1][0])
    assert name == "static" or not all(s.same(first[key]) for key, s in supports(runs[0][0]).items())


@pytest.mark.parametrize("name", ["rigl", "csst", "gmp"])
def test_the_same_for_convolutions_and_tiles(name):
    for options in ({}, {"block": (2, 3)}):
        runs = [run(EVERY_FOUR[name], layout=layout, make=convnet, **options) for layout in LAYOUT_NAMES]
        losses = [train(*parts, IMAGES.batches(25)) for parts in runs]
        assert losses[0] == pytest.approx(losses[1], rel=1e-7) and same_supports(runs[0][0], runs[1][0])


def test_a_model_may_mix_layouts():
    model = gs.sparsify(mlp(), 0.3, include="0", layout="masked", rng=generator(3))
    gs.sparsify(model, 0.3, rng=generator(4))
    assert [layer.layout.name for layer in gs.sparse_layers(model).values()] == ["masked", "csr", "csr"]
    opt = OPTIMIZERS["nesterov"](model.parameters())
    train(model, opt, Rewirer(model, opt, EVERY_FOUR["csst"]), FLAT.batches(10))


# ---------------------------------------------------------------- what is sensed

SENSED = {
    "linear": (mlp, FLAT, {}),
    "linear tiles": (mlp, FLAT, {"block": (2, 3)}),
    "convolutions": (convnet, IMAGES, {}),
    "convolution tiles": (convnet, IMAGES, {"block": (2, 4)}),
}


@table(SENSED)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_the_sensed_gradient_is_the_dense_gradient_at_omega(case, layout):
    """Over a window: the bias-corrected moving average of what the dense counterpart's weight gradient is there."""
    make, data, options = case
    model, opt, rewirer = run(
        gs.CSST(9, 5, 5, window=3, fraction=0.4, drop_fraction=0.0, decay=0.8), layout=layout, make=make, **options
    )
    mean: dict[str, torch.Tensor] = {}
    for t, (x, y) in enumerate(data.batches(4), 1):
        if t >= 3:
            counterpart = gs.densify(copy.deepcopy(model))
            counterpart.zero_grad()
            F.cross_entropy(counterpart(x), y).backward()
            for name, layer in gs.sparse_layers(model).items():
                zeros = layer.support.total - layer.support.n
                ids = rewirer.state_dict()["probes"][name]["ids"]
                assert (
                    ids.numel() == round(0.4 * zeros) == rewirer.sensing[name] and (layer.support.find(ids) == -1).all()
                )
                omega = gs.Support.from_ids(ids, layer.support.shape, layer.block)
                now = gather(counterpart.get_submodule(name).weight.grad.reshape(layer.support.shape), omega)
                mean[name] = 0.8 * mean.get(name, 0) + 0.2 * now
        train(model, opt, rewirer, [(x, y)])
    for name, probe in rewirer.state_dict()["probes"].items():
        assert probe["steps"] == 2 and torch.allclose(probe["mean"], mean[name], atol=1e-12)


def test_sensing_is_told_per_step():
    """Events at 4, 9, 14, windows of 3: what the step in progress senses; the step that measures the flow senses no
    block."""
    for candidates in ("uniform", "flow"):
        model, opt, rewirer = run(gs.CSST(23, 4, 8, window=3, count=5, candidates=candidates))
        told = []
        for batch in FLAT.batches(12):
            told.append(next(iter(rewirer.sensing.values()), None))
            train(model, opt, rewirer, [batch])
        assert told == [None, 5, 5, 5, None, None, 5, 5, 5, None, None, 5]


@table({name: EVERY_FOUR[name] for name in ("csst", "rigl", "snfs", "csst by flow")})
def test_sensing_buffers_are_freed_after_the_event(case):
    model, opt, rewirer = run(case)
    train(model, opt, rewirer, FLAT.batches(30))
    assert rewirer.sensing == {} and rewirer.sensing_bytes == 0
    assert all(layer.observers == () for layer in gs.sparse_layers(model).values())


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_growing_does_not_change_the_output(layout):
    """The first event of a merging run only grows: the outputs are those of a counterpart that made the same step
    without the event."""
    model, opt, rewirer = run(gs.CSST(40, 4, 4, window=2, fraction=0.5, drop_fraction=0.5, mode="merge"), layout=layout)
    train(model, opt, rewirer, FLAT.batches(3))
    counterpart, twin_opt = copy.deepcopy((model, opt))
    train(counterpart, twin_opt, None, [FLAT.batch(3)])
    train(model, opt, rewirer, [FLAT.batch(3)])
    assert sum(rewirer.last.grown.values()) > 20 and sum(rewirer.last.dropped.values()) == 0
    x = FLAT.batch(9)[0]
    assert (
        torch.equal(model(x), counterpart(x))
        if layout == "masked"
        else torch.allclose(model(x), counterpart(x), rtol=1e-12)
    )


# ---------------------------------------------------------------- accumulation, scaling, autocast, clipping, schedules


@pytest.mark.parametrize("name", ["rigl", "csst", "csst pooled", "snfs", "csst by flow"])
def test_accumulated_gradients_decide_as_the_whole_batch(name):
    """2 x B/2 and B: the same supports and, to rounding, the same losses."""
    whole, halves = run(EVERY_FOUR[name]), run(EVERY_FOUR[name])
    for x, y in FLAT.batches(20):
        train(*whole, [(x, y)])
        fit(halves[0], [(x[:4], y[:4]), (x[4:], y[4:])], halves[1], rewirer=halves[2], accumulate=2)
        assert same_supports(whole[0], halves[0])
    assert halves[2].t == 20
    for p, q in zip(whole[0].parameters(), halves[0].parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["rigl", "csst", "set", "gmp", "csst regrowing", "csst pooled"])
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled by the caller"])
def test_a_grad_scaler_changes_nothing(name, unscale):
    """A scale that is a power of two is exact: the same bits with and without, also where the caller unscales to
    clip."""
    plain, scaled = run(EVERY_FOUR[name], dtype=torch.float32), run(EVERY_FOUR[name], dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    model, opt, rewirer = scaled
    for x, y in FLAT.batches(20, torch.float32):
        train(*plain, [(x, y)])
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if unscale:
            scaler.unscale_(opt)
        rewirer.step(scaler=scaler)
        scaler.update()
        opt.zero_grad(set_to_none=True)
        assert same_supports(plain[0], model)
    assert same_state(plain[0], model) and scaler.get_scale() > 1024


def test_a_scaler_on_an_event_that_does_not_move():
    """SET with step_optimizer=False senses nothing and makes no step: the scaler still gets its check."""
    model, opt, rewirer = run(gs.SET(20, 4, step_optimizer=False))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for x, y in FLAT.batches(9):
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        rewirer.step(scaler=scaler)
        scaler.update()
        opt.zero_grad()
    assert rewirer.t == 9


@pytest.mark.parametrize("name", ["rigl", "csst", "csst regrowing", "csst pooled", "snfs"])
def test_a_step_that_overflows_measures_nothing(name):
    """As a GradScaler's first steps do: the optimizer skips, n stays, what was sensed on the other steps of a window
    decides."""
    model, opt, rewirer = run(EVERY_FOUR[name], dtype=torch.float32)
    n = sum(s.n for s in supports(model).values())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    overflows, events = (4, 9, 10, 11, 12), []
    for t, (x, y) in enumerate(FLAT.batches(20, torch.float32), 1):
        before = copy.deepcopy(model.state_dict())
        scaler.scale(F.cross_entropy(model(x), y) * (1e38 if t in overflows else 1.0)).backward()
        rewirer.step(scaler=scaler)
        scaler.update()
        opt.zero_grad(set_to_none=True)
        if t in overflows and rewirer.last is None:
            assert all(torch.equal(before[key], now) for key, now in model.state_dict().items())
        events += [(t, sum(rewirer.last.grown.values()))] if rewirer.last else []
    assert (
        sum(s.n for s in supports(model).values()) == n
        and rewirer.t == 20
        and scaler.get_scale() == 1024 / 2 ** len(overflows)
    )
    assert all(p.isfinite().all() for p in model.parameters()) and sum(grown for _, grown in events) > 0
    if name == "rigl":  # one step decides there: events on steps that overflowed exchange nothing
        assert [grown > 0 for t, grown in events[:4]] == [False, True, False, True] and [t for t, _ in events[:4]] == [
            4,
            8,
            12,
            16,
        ]


def test_autocast_keeps_values_in_float32():
    model, opt, rewirer = run(gs.CSST(20, 4, 4, window=2, fraction=0.5, drop_fraction=0.3), dtype=torch.float32)
    outputs = []
    model.register_forward_hook(lambda _m, _x, y: outputs.append(y.dtype))
    fit(model, FLAT.batches(10, torch.float32), opt, rewirer=rewirer, autocast=torch.bfloat16)
    assert set(outputs) == {torch.bfloat16} and rewirer.t == 10
    assert all(layer.values.dtype == torch.float32 for layer in gs.sparse_layers(model).values())


def test_fit_is_the_plain_loop():
    """Clipping, scheduler, accumulation and reports as a user would write them."""
    mine, theirs = (run(gs.CSST(20, 4, 4, window=2, fraction=0.5, drop_fraction=0.3)) for _ in range(2))
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 12) for _, opt, _ in (mine, theirs)]
    seen: list[Step] = []
    fit(
        mine[0],
        FLAT.batches(24),
        mine[1],
        rewirer=mine[2],
        scheduler=schedulers[0],
        clip=0.5,
        accumulate=2,
        on_step=seen.append,
    )
    model, opt, rewirer = theirs
    pairs = FLAT.batches(24)
    for (x1, y1), (x2, y2) in zip(pairs[::2], pairs[1::2], strict=True):
        opt.zero_grad()
        for x, y in ((x1, y1), (x2, y2)):
            (F.cross_entropy(model(x), y) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        rewirer.step()
        schedulers[1].step()
    assert same_state(mine[0], theirs[0]) and same_supports(mine[0], theirs[0])
    assert [s.t for s in seen] == list(range(1, 13)) and all(s.seconds > 0 for s in seen)
    assert [s.t for s in seen if s.event] == [4, 8, 12] and isinstance(seen[3].event, Event)
    assert seen[3].event.n == {name: s.n for name, s in supports(model).items()}


def test_fit_without_a_rewirer_and_with_an_incomplete_group():
    model = mlp()
    opt, seen = torch.optim.SGD(model.parameters(), lr=0.1), []
    fit(model, FLAT.batches(5), opt, accumulate=2, on_step=seen.append)
    assert [s.t for s in seen] == [1, 2, 3] and all(s.event is None for s in seen)


def test_fit_goes_on_where_it_was():
    model, opt, rewirer = run(EVERY_FOUR["set"])
    seen: list[Step] = []
    for batch in FLAT.batches(3):
        fit(model, [batch], opt, rewirer=rewirer, on_step=seen.append)
    assert [s.t for s in seen] == [1, 2, 3]


def test_the_loss_may_be_any():
    model, opt, rewirer = run(EVERY_FOUR["csst"])
    batches = [(x, F.one_hot(y, 5).double()) for x, y in FLAT.batches(6)]
    losses = []
    fit(model, batches, opt, rewirer=rewirer, loss=F.mse_loss, on_step=lambda s: losses.append(s.loss))
    assert len(losses) == 6


def test_values_stay_in_place_all_through_training():
    model, opt, rewirer = run(gs.CSST(80, 4, 8, window=2, fraction=0.5, drop_fraction=0.3))
    layers = gs.sparse_layers(model)
    places = {name: (id(layer.values), layer.values.data_ptr()) for name, layer in layers.items()}
    train(model, opt, rewirer, FLAT.batches(60))
    assert places == {name: (id(layer.values), layer.values.data_ptr()) for name, layer in layers.items()}


def test_a_graph_that_is_still_alive_does_not_stop_an_event():
    """A loop that keeps its last loss, while the number of weights changes."""
    model, opt, rewirer = run(gs.GMP(20, 2, final_density=0.1), density=0.6, budget="pooled")
    kept = []
    for x, y in FLAT.batches(20):
        opt.zero_grad()
        kept.append(F.cross_entropy(model(x), y))
        kept[-1].backward()
        rewirer.step()
    assert {name: s.n for name, s in supports(model).items()} == rewirer.final


def test_frozen_layers_are_left_alone():
    model = gs.sparsify(mlp(), 0.3, rng=generator(3))
    model[0].values.requires_grad_(False)
    opt = OPTIMIZERS["nesterov"](p for p in model.parameters() if p.requires_grad)
    rewirer = Rewirer(model, opt, gs.CSST(20, 4, 4, window=2, fraction=0.5, drop_fraction=0.3))
    before = copy.deepcopy(model[0].state_dict())
    train(model, opt, rewirer, FLAT.batches(9))
    after = model[0].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in ("values", "crow", "col"))
    assert rewirer.sensing.keys() <= {"2", "4"} and rewirer.t == 9


class Branching(nn.Module):
    """One layer is used every other step only, one never, one twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(13, 13), nn.Linear(13, 13), nn.Linear(13, 5)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = self.a(self.a(x).tanh())
        return self.c(x)


@pytest.mark.parametrize("name", ["rigl", "csst", "snfs", "csst pooled", "csst regrowing", "csst by flow"])
def test_layers_without_a_gradient(name):
    """A layer that no loss reaches has gradient 0 everywhere: it exchanges by id or not at all, and nothing fails."""
    model = gs.sparsify(Branching().double(), 0.3, rng=generator(3))
    opt = OPTIMIZERS["nesterov"](model.parameters())
    rewirer = Rewirer(model, opt, EVERY_FOUR[name], rng=generator())
    n = sum(s.n for s in supports(model).values())
    train(model, opt, rewirer, FLAT.batches(20))
    assert sum(s.n for s in supports(model).values()) == n


# ---------------------------------------------------------------- randomness


def test_torchs_seed_decides_unless_a_generator_is_given():
    ends = []
    for seed, rng in ((5, None), (5, None), (6, None), (6, generator(1)), (7, generator(1))):
        torch.manual_seed(seed)
        model = gs.sparsify(mlp(), 0.3, rng=generator(3))
        opt = OPTIMIZERS["nesterov"](model.parameters())
        state = torch.get_rng_state()
        train(model, opt, Rewirer(model, opt, gs.SET(20, 4), rng=rng), FLAT.batches(9))
        assert torch.equal(state, torch.get_rng_state())  # never advanced
        ends.append(model)
    assert same_supports(ends[0], ends[1]) and not same_supports(ends[1], ends[2]) and same_supports(ends[3], ends[4])


# ---------------------------------------------------------------- refusals and failures


def test_a_model_without_sparse_layers_is_refused():
    model = mlp()
    with pytest.raises(gs.UsageError, match="no sparse layer"):
        Rewirer(model, torch.optim.SGD(model.parameters(), 0.1), gs.Static())


def test_an_optimizer_made_before_sparsify_is_refused():
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    gs.sparsify(model, 0.3)
    with pytest.raises(
        gs.UsageError, match=r"(?s)does not hold all sparse values.*0\.values.*make the optimizer after sparsify"
    ):
        Rewirer(model, opt, gs.Static())


def test_a_closure_is_refused_where_there_is_no_single_gradient():
    """LBFGS works on plain steps, also with a rewirer; on steps that sense or rewire it is refused before anything
    happens."""
    model = gs.sparsify(mlp(), 0.3, rng=generator(3))
    opt = torch.optim.LBFGS(model.parameters(), max_iter=3)
    rewirer = Rewirer(model, opt, gs.CSST(20, 4, 4, window=2, candidates="uniform"))
    x, y = FLAT.batch(0)

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    first = float(rewirer.step(closure).detach())
    assert float(rewirer.step(closure).detach()) < first
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(gs.UsageError, match="no single gradient"):
        rewirer.step(closure)
    assert rewirer.t == 2 and all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["rigl", "csst", "csst by flow"])
def test_a_loss_that_is_not_a_number_stops_before_anything_changes(name, accumulate, bad):
    """Weights, optimizer state, supports and sensing are as after the last good step: going on is as if the bad batch
    had never been."""
    mine, theirs = run(EVERY_FOUR[name]), run(EVERY_FOUR[name])
    batches = FLAT.batches(16)
    good, rest = batches[:6], batches[6:]
    poisoned = (batches[7][0] * bad, batches[7][1])
    fit(mine[0], good, mine[1], rewirer=mine[2], accumulate=accumulate)
    before = copy.deepcopy((mine[0].state_dict(), mine[1].state_dict(), mine[2].t))
    with pytest.raises(Diverged, match=r"at step \d+; nothing was changed") as caught:
        fit(mine[0], [batches[9]] * (accumulate - 1) + [poisoned], mine[1], rewirer=mine[2], accumulate=accumulate)
    assert caught.value.step == 6 // accumulate + 1 and caught.value.loss != caught.value.loss
    assert mine[2].t == before[2] and all(torch.equal(t, before[0][key]) for key, t in mine[0].state_dict().items())
    assert all(p.grad is None for p in mine[0].parameters())
    fit(mine[0], rest, mine[1], rewirer=mine[2], accumulate=accumulate)
    fit(theirs[0], good + rest, theirs[1], rewirer=theirs[2], accumulate=accumulate)
    assert same_state(mine[0], theirs[0])


def test_discard_forgets_the_passes_of_a_dropped_step():
    mine, theirs = run(EVERY_FOUR["csst"]), run(EVERY_FOUR["csst"])
    for t, batch in enumerate(FLAT.batches(12)):
        if t in (2, 3):  # a pass whose gradients the user throws away
            F.cross_entropy(mine[0](FLAT.batch(77)[0]), FLAT.batch(77)[1]).backward()
            mine[1].zero_grad(set_to_none=True)
            mine[2].discard()
        train(*mine, [batch])
        train(*theirs, [batch])
    assert same_state(mine[0], theirs[0])


def test_a_state_of_another_topology_or_other_layers_is_refused():
    state = run(EVERY_FOUR["csst"])[2].state_dict()
    for other in (run(EVERY_FOUR["rigl"])[2], run(EVERY_FOUR["csst"], exclude="2")[2]):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(gs.UsageError, match="does not belong to topology"):
            other.load_state_dict(state)
        assert other.state_dict()["t"] == before["t"]


def test_a_topology_by_hand():
    """The record is open: a rule of one's own for who goes (here the oldest ids) under RigL's schedule."""
    topology = replace(
        EVERY_FOUR["rigl"], name="by id", drop_score=lambda layer: torch.arange(layer.s.n, dtype=torch.float64)
    )
    model, opt, rewirer = run(topology)
    first = {name: s.ids() for name, s in supports(model).items()}
    train(model, opt, rewirer, FLAT.batches(4))
    for name, s in supports(model).items():
        k = rewirer.last.dropped[name]
        assert k > 0 and (s.find(first[name][k:]) >= 0).all()


# ---------------------------------------------------------------- memory


@contextmanager
def at_most(mebibytes: int):
    """The process may take this much more address space in here: a dense matrix cannot be made. What it holds unused
    is given back."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + mebibytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits address space")


def trained_layer(width: int, n: int, topology: gs.Topology) -> tuple[gs.SparseLinear, Rewirer]:
    """Init, four steps with an event at the third, a copy and a state_dict of a width x width layer with n weights."""
    s = gs.Support.random((width, width), n, rng=generator())
    layer, x = gs.SparseLinear(width, width, support=s, rng=generator()), torch.randn(2, width, generator=generator())
    opt = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    rewirer = Rewirer(layer, opt, topology, rng=generator())
    for _ in range(4):
        layer(x).square().mean().backward()
        rewirer.step()
        opt.zero_grad()
    copy.deepcopy(layer).load_state_dict(layer.state_dict())
    return layer, rewirer


@linux
@pytest.mark.parametrize("mode", ["prune_grow", "iht", "merge"])
def test_nothing_has_the_dense_size(mode):
    """2^16 x 2^16 with 20 000 weights (dense: 16 GiB, its mask 4 GiB) goes through a CSST event in 512 MiB."""
    topology = gs.CSST(9, 3, 3, window=2, count=20_000, drop_fraction=0.3, mode=mode)
    trained_layer(64, 200, topology)  # what torch loads once is not counted
    with at_most(512):
        layer, rewirer = trained_layer(2**16, 20_000, topology)
    assert layer.support.n >= 20_000 and rewirer.t == 4


SMALLER = {
    "rigl": gs.RigL(9, 3),
    "set": gs.SET(9, 3),
    "gmp": gs.GMP(9, 3, final_density=1e-5),
    "csst": gs.CSST(9, 3, 3, window=2, count=5000),
}


@linux
@table(SMALLER)
def test_no_topology_makes_a_dense_matrix_or_mask(case, monkeypatch):
    """12 500 x 12 500 (dense: 596 MiB, its mask 149 MiB) in 128 MiB; RigL streams its dense gradient."""
    monkeypatch.setattr(csr_sense, "SLAB_NUMBERS", 1 << 19)
    trained_layer(64, 200, case)
    with at_most(128):
        layer, rewirer = trained_layer(12_500, 20_000, case)
    assert rewirer.t == 4 and not layer.support.same(gs.Support.random((12_500, 12_500), 20_000, rng=generator()))


@linux
def test_the_memory_test_can_fail():
    with at_most(128), pytest.raises(RuntimeError, match="allocate"):
        torch.zeros(12_500, 125_000, dtype=torch.bool)
