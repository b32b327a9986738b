"""The planner: what is measured, how the choice follows from it, and that a model of several layouts is one model. No
assertion on time."""

import copy
import json
import math
import os
import pickle
import signal
from collections.abc import Callable

import pytest
import torch
from torch import nn

import gossamer as gs
from cases import FLAT, IMAGES, SGD, convnet, generator, mlp, same_state, same_supports, table, train
from gossamer._plan.break_even import SECANTS, break_even
from gossamer._plan.timing import Candidate, Work, layer_of, timed
from gossamer.cli.progress import Silent
from gossamer.products.conv2d.reference import Geometry

FLOAT, CPU = torch.float32, torch.device("cpu")
NO_LAYER = gs.Plan((), (), True, 1, "cpu", {}, "")


def clock(
    dense: float = 10.0,
    masked: float = 12.0,
    converted: float = 14.0,
    fixed: float = 1.0,
    each: float = 40.0,
    tiles: float = 50.0,
    cost: Callable[[Work], float] = lambda work: 1.0,
) -> Callable:
    """A timer: seconds by layout, csr ``fixed`` + ``each`` density, tiles a constant; channels-last costs a half more;
    times ``cost``."""

    def timer(work: Work, candidates: list[Candidate]) -> list[float]:
        found = []
        for c in candidates:
            csr = tiles if c.block != (1, 1) else fixed + each * c.density
            here = {"dense": dense, "masked": converted if c.order == "batch_last" else masked, "csr": csr}[c.layout]
            found.append(here * cost(work) * (1.5 if c.order == "channels_last" else 1.0))
        return found

    return timer


def planned(model: nn.Module | None = None, shape=(8, 13), density: float | None = 0.3, **options) -> gs.Plan:
    return gs.plan(model or mlp(), shape, **{"density": density, "budget": "pooled", "timer": clock(), **options})


def watched(timer: Callable) -> tuple[Callable, list[tuple[Work, list[Candidate]]]]:
    """The timer, and the list of what it will have been asked."""
    asked: list[tuple[Work, list[Candidate]]] = []

    def watching(work: Work, candidates: list[Candidate]) -> list[float]:
        asked.append((work, list(candidates)))
        return timer(work, candidates)

    return watching, asked


def mixed_clock(work: Work, candidates: list[Candidate]) -> list[float]:
    """The widest layer of ``mlp`` and of ``convnet`` is fastest sparse, the others masked."""
    return clock(each=1.0 if work.matrix[1] in (17, 45) else 1000.0, masked=12.0, converted=12.0)(work, candidates)


# -------------------------------------------------------------------- the choice

CHOICES = {
    "csr is faster": ({"each": 10.0}, "csr", "3.5 times as fast as masked"),
    "masked is faster": ({"each": 100.0, "masked": 14.0}, "masked", "times as fast as csr, conversions included"),
    "as fast, and csr holds less": (
        {"fixed": 2.0, "masked": 14.0},
        "csr",
        "as fast as masked within 5%, and holds less",
    ),
    "conversions decide for csr": ({"fixed": 0.0, "each": 41.0, "converted": 20.0}, "csr", "1.6 times as fast"),
    "conversions decide against a mixture": ({"converted": 20.0}, "masked", "1.1 times as fast as csr"),
    "dense is no choice": ({"dense": 0.1, "each": 20.0}, "csr", "2 times"),
    "tiles are not chosen unasked": ({"tiles": 0.1, "each": 100.0, "masked": 14.0}, "masked", ""),
}


@table(CHOICES)
def test_the_faster_layout_is_chosen(case):
    times, layout, reason = case
    plan = planned(timer=clock(**times))
    assert set(plan.layouts.values()) == {layout}, str(plan)
    assert reason in plan.rows[0].reason, str(plan)
    assert all(row.layout in str(plan) and row.reason in str(plan) for row in plan.rows)


def test_a_mixture_is_weighed_against_a_network_without_conversions():
    """One layer sparse: its gain must outweigh what the others pay to convert."""
    pays = planned(
        timer=lambda w, c: clock(each=1.0 if w.matrix == (11, 17) else 99.0, masked=12.0, converted=13.0)(w, c)
    )
    assert pays.layouts == {"0": "masked", "2": "csr", "4": "masked"}
    wasted = planned(
        timer=lambda w, c: clock(each=1.0 if w.matrix == (11, 17) else 99.0, masked=12.0, converted=20.0)(w, c)
    )
    assert wasted.layouts == {"0": "masked", "2": "masked", "4": "masked"}
    assert (
        "times as fast as csr" in wasted.row("0").reason
        and "all masked, the network is 1.1 times" in wasted.row("2").reason
    )
    assert pays.totals[0] == pytest.approx(26.0 + 1.3, rel=1e-3) and wasted.totals == pytest.approx((36.0, 30.0))


@pytest.mark.parametrize(("tiles", "layout"), [(3.0, "csr"), (40.0, "masked")])
def test_the_block_asked_for_is_the_one_compared(tiles, layout):
    plan = planned(timer=clock(fixed=0.0, each=0.0, tiles=tiles), block=(4, 1))
    assert set(plan.layouts.values()) == {layout} and "csr 4x1" in str(plan)
    assert all(row.block == (4, 1) and row.sparse == tiles for row in plan.rows)


def test_without_batch_last_nothing_is_converted():
    timer, asked = watched(clock(converted=math.nan))
    plan = planned(timer=timer, batch_last=False)
    assert {c.order for _, cs in asked for c in cs if c.layout != "dense"} == {"plain"} and "converted" not in str(plan)


# -------------------------------------------------------------------- the break-even density

LINES = {
    "in proportion": (0.0, 2.0, 0.5),
    "a fixed cost": (0.4, 3.0, 0.2),
    "nearly all fixed": (0.9, 1.0, 0.1),
    "steep": (0.2, 100.0, 0.008),
    "never": (1.1, 1.0, None),
    "at the end of the range": (0.0, 100.0, 0.01),
    "always": (0.1, 0.5, None),
    "below the range": (0.5, 200.0, None),
}


@table(LINES)
@pytest.mark.parametrize("begin", [0.005, 0.05, 0.3, 0.9, 1.0])
def test_break_even_is_where_the_line_is_one(case, begin):
    fixed, each, expected = case
    curve = {begin: fixed + each * begin}
    found = break_even(lambda d: fixed + each * d, curve, 0.005, 0.9)
    assert found == (None if expected is None else pytest.approx(expected, rel=0.06))
    assert len(curve) <= 1 + SECANTS and all(0.005 <= d <= 0.9 or d == begin for d in curve)


@pytest.mark.parametrize("power", [0.6, 0.8, 1.2])
@pytest.mark.parametrize("root", [0.03, 0.4])
def test_break_even_of_what_is_no_line(power, root):
    found = break_even(lambda d: (d / root) ** power, {0.1: (0.1 / root) ** power}, 0.005, 0.9)
    assert found == pytest.approx(root, rel=0.1)


def test_break_even_in_noise():
    rng = generator()

    def ratio(d: float) -> float:
        return (0.1 + 3 * d) * (1 + 0.05 * float(torch.randn((), generator=rng)))

    for begin in (0.01, 0.1, 0.3, 0.31, 0.6):
        assert break_even(ratio, {begin: ratio(begin)}, 0.005, 0.9) == pytest.approx(0.3, rel=0.25)
    assert break_even(lambda d: 0.8, {0.1: 0.8}, 0.005, 0.9) is None  # as fast at every density
    assert break_even(lambda d: 1.2 - d / 100, {0.1: 1.2}, 0.005, 0.9) is None  # faster the denser
    assert break_even(lambda d: 1.0, {0.1: 1.0}, 0.005, 0.9) == 0.1


WORDS = {
    "found": ({"each": 38.0}, 9 / 38, "sparse wins below density 0.24"),
    "never": ({"fixed": 11.0}, None, "dense wins down to density 0.002 at least"),
    "always": ({"each": 1.0}, None, "sparse wins up to density 0.9 at least"),
}


@table(WORDS)
def test_a_plan_says_where_sparse_wins(case):
    times, expected, words = case
    plan = planned(timer=clock(**times))
    for row in plan.rows:
        assert row.break_even == (None if expected is None else pytest.approx(expected)) and row.wins == words
    assert expected is None or "0.24" in str(plan)


# -------------------------------------------------------------------- what is measured


class Twice(nn.Module):
    """A layer used twice, one that is never used, a convolution on what the other makes."""

    def __init__(self):
        super().__init__()
        self.idle, self.mix = nn.Linear(3, 4), nn.Linear(6, 6)
        self.same, self.odd = (
            nn.Conv2d(2, 3, 3, padding="same"),
            nn.Conv2d(3, 2, (2, 3), (2, 1), "valid", (1, 2), bias=False),
        )

    def forward(self, x):
        return self.odd(self.same(self.mix(self.mix(x).tanh())))


def test_a_pass_shows_what_each_layer_does():
    model = Twice().double()
    model.same.weight.requires_grad_(False)
    timer, asked = watched(clock())
    plan = planned(model, (5, 2, 6, 6), timer=timer, blocks=())
    works = {work for work, _ in asked}
    f64 = (torch.float64, CPU)
    assert works == {
        Work((6, 6), None, (5, 2, 6, 6), True, False, True, *f64),  # what comes from outside needs no gradient
        Work((6, 6), None, (5, 2, 6, 6), True, True, True, *f64),
        Work((3, 2, 3, 3), Geometry((3, 3), (1, 1), (1, 1), (1, 1)), (5, 2, 6, 6), True, True, False, *f64),
        Work((2, 3, 2, 3), Geometry((2, 3), (2, 1), (0, 0), (1, 2)), (5, 3, 6, 6), False, True, True, *f64),
    }
    assert plan.row("mix").inputs == ((5, 2, 6, 6),) * 2 and plan.row("mix").seconds["dense"] == 20.0
    assert (
        plan.row("idle").layout == "csr" and "did not use it" in plan.row("idle").reason and plan.row("idle").wins == ""
    )
    assert gs.sparsify(model, 0.3, budget="pooled", layout=plan) is model and "not measured" in str(plan)


def test_layers_alike_are_measured_once():
    model = nn.Sequential(*(nn.Linear(9, 9) for _ in range(5)), nn.Linear(9, 7))
    timer, asked = watched(clock(each=1.0))
    plan = planned(model, (4, 9), timer=timer, densities=(0.29, 0.31), blocks=())
    assert {work[:2] + work[4:5] for work, _ in asked} == {
        ((9, 9), None, False),
        ((9, 9), None, True),
        ((7, 9), None, True),
    }
    assert sum(len(candidates) > 2 for _, candidates in asked) == 3  # once each, beside the search for break-even
    assert [row.name for row in plan.rows] == list("012345") and [row._replace(name="") for row in plan.rows[2:5]] == [
        plan.rows[1]._replace(name="")
    ] * 3


def test_candidates_are_what_the_table_shows():
    timer, asked = watched(clock())
    planned(convnet(), (8, 2, 6, 6), timer=timer)
    conv = next(candidates for work, candidates in asked if work.shape == (7, 5, 3, 3))
    shown = [(c.layout, c.order, c.block) for c in conv]
    assert shown == [
        ("dense", "plain", (1, 1)),
        ("dense", "channels_last", (1, 1)),
        ("masked", "plain", (1, 1)),
        ("masked", "channels_last", (1, 1)),
        ("masked", "batch_last", (1, 1)),
        ("csr", "batch_last", (1, 1)),
        ("csr", "batch_last", (4, 1)),  # 16 x 16 tiles do not fit into 7 x 45
    ]


def test_a_plan_names_the_kernels():
    plan = planned(convnet(), (8, 2, 6, 6), block=(2, 1), blocks=[(1, 1), (16, 16)])
    assert list(plan.kernels) == ["csr", "csr 2x1"] and "csr 2x1 by the " in str(plan)
    for block, said in (((1, 1), plan.kernels["csr"]), ((2, 1), plan.kernels["csr 2x1"])):
        layers = gs.sparse_layers(gs.sparsify(convnet(), 0.3, block=block)).values()
        assert set(said.split(", ")) == {kernel for layer in layers for kernel in layer.kernels.values()}


def test_a_sparse_model_is_measured_as_it_is():
    model = nn.Sequential(
        gs.SparseLinear(13, 17, density=0.1), gs.SparseLinear(17, 5, density=0.5, block=(2, 2), layout="masked")
    )
    timer, asked = watched(clock())
    plan = planned(model, (8, 13), density=None, timer=timer, blocks=())
    assert [row.density for row in plan.rows] == pytest.approx([layer.support.density for layer in model], rel=0.01)
    assert [row.block for row in plan.rows] == [(1, 1), (2, 2)] and {c.block for _, cs in asked for c in cs} == {
        (1, 1),
        (2, 2),
    }


def test_what_is_too_large_is_never_dense():
    """2**40 weights, by the clock: dense, any machine would refuse them."""
    wide = 2**20
    layer = gs.SparseLinear(wide, wide, support=gs.Support.random((wide, wide), 50, rng=generator()), bias=False)
    timer, asked = watched(clock())
    plan = gs.plan(nn.Sequential(layer), (2, wide), timer=timer, blocks=())
    assert (
        plan.layouts == {"0": "csr"} and plan.rows[0].reason == "too large to exist densely" and plan.totals[1] is None
    )
    assert [c.layout for _, candidates in asked for c in candidates] == ["csr"]
    work = Work((wide, wide), None, (1, wide), False, True, True, FLOAT, CPU)
    assert timed(work, [Candidate("csr", "batch_last", (1, 1), 1e-12)], seconds=0.0, rng=generator())[0] > 0


def test_the_limit_is_a_parameter():
    plan = planned(dense_bytes=13 * 17 * 8)
    assert [("too large" in row.reason) for row in plan.rows] == [False, False, False]
    assert "too large" in planned(dense_bytes=13 * 17 * 8 - 1).row("0").reason


@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
@pytest.mark.parametrize("layout", ["masked", "csr", "dense"])
@pytest.mark.parametrize("geometry", [None, Geometry((3, 2), (2, 1), (1, 0))], ids=["linear", "conv"])
def test_bytes_are_those_of_the_layer_that_is_timed(layout, block, geometry):
    work = Work((7, 5) if geometry is None else (7, 5, 3, 2), geometry, (4, 5), True, True, True, torch.float64, CPU)
    c = Candidate(layout, "plain", block, 0.4)
    layer = layer_of(work, c, generator())
    weight = layer.weight if layout == "dense" else layer.values
    index = 0 if layout == "dense" else layer.support.bytes
    assert c.bytes(work) == 2 * weight.numel() * 8 + index


KINDS = {
    "linear": Work((6, 5), None, (3, 5), True, True, True, FLOAT, CPU),
    "linear over positions": Work((6, 5), None, (3, 4, 5), False, True, True, FLOAT, CPU),
    "conv": Work((6, 5, 3, 3), Geometry((3, 3)), (3, 5, 7, 6), True, True, True, torch.float64, CPU),
    "first": Work((6, 5, 1, 1), Geometry((1, 1)), (1, 5, 7, 6), False, False, True, FLOAT, CPU),
    "frozen": Work((6, 5), None, (3, 5), False, True, False, FLOAT, CPU),
    "nothing to learn": Work((6, 5), None, (3, 5), False, False, False, FLOAT, CPU),
}


@table(KINDS)
@pytest.mark.parametrize("half", [False, True])
def test_the_clock_runs_over_all_kinds_and_orders(case, half):
    candidates = [Candidate("dense", "plain"), Candidate("dense", "channels_last")]
    candidates += [
        Candidate(name, order, (1, 1), 0.5)
        for name in ("masked", "csr")
        for order in ("plain", "channels_last", "batch_last")
    ]
    with torch.autocast("cpu", torch.bfloat16, enabled=half and case.dtype == FLOAT):
        times = timed(case, candidates, seconds=0.0, rng=generator())
    assert len(times) == len(candidates) and all(0 < t < 60 for t in times)


# -------------------------------------------------------------------- a plan changes nothing

UNTOUCHED = {"mlp": (mlp, (8, 13)), "convnet": (convnet, (8, 2, 6, 6))}


@table(UNTOUCHED)
@pytest.mark.parametrize("sparse", [False, True])
def test_planning_leaves_no_trace(case, sparse):
    """Measured by the clock: parameters, buffers, gradients, modes, hooks, random state are as they were."""
    make, shape = case
    model = make().train()
    if sparse:
        gs.sparsify(model, 0.3, rng=generator())
    list(model.children())[1].eval()
    before, modes, state = copy.deepcopy(model), [m.training for m in model.modules()], torch.get_rng_state()
    plan = gs.plan(model, shape, density=None if sparse else 0.3, seconds=0.0)
    assert torch.equal(state, torch.get_rng_state())
    assert same_state(model, before) and [m.training for m in model.modules()] == modes and torch.is_grad_enabled()
    assert not any(m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())
    assert all(t > 0 for row in plan.rows for t in row.seconds.values()) and {row.layout for row in plan.rows} <= set(
        gs.LAYOUTS
    )


def test_what_fails_leaves_no_trace_either():
    model, threads = convnet(), torch.get_num_threads()
    with pytest.raises(gs.UsageError, match="does not run on an input of shape"):
        gs.plan(model, (8, 3, 6, 6), density=0.3, threads=threads + 1)
    assert torch.get_num_threads() == threads and model.training and not any(m._forward_hooks for m in model.modules())
    assert planned(threads=threads + 1).threads == threads + 1 and torch.get_num_threads() == threads
    with torch.no_grad():
        assert planned().row("2").inputs == ((8, 17),)  # and it does not mind what it is called in


def test_inputs_of_other_kinds():
    """A batch instead of its shape; several inputs."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 4)

        def forward(self, words, scale=None):
            return self.out(self.embed(words) if scale is None else self.embed(words) * scale)

    words = torch.randint(9, (3, 5), generator=generator())
    for given in (words, (words,), (words, torch.ones(1))):
        timer, asked = watched(clock())
        assert planned(Words(), given, timer=timer).row("out").inputs == ((3, 5, 6),) and asked[0][0].input_gradient
    with pytest.raises(gs.UsageError, match="or a batch itself"):
        planned(Words(), (3, 5))


# -------------------------------------------------------------------- plans as text


def test_a_plan_survives_as_text():
    for plan in (planned(), planned(Twice(), (5, 2, 6, 6)), NO_LAYER):
        again = gs.Plan.from_json(plan.to_json())
        assert again == plan and str(again) == str(plan) and again.totals == plan.totals


def text(**changes) -> str:
    tree = json.loads(planned().to_json())
    tree["rows"][0] |= changes.pop("row", {})
    return json.dumps({key: value for key, value in {**tree, **changes}.items() if value is not None})


NO_PLANS = {
    "no JSON": (lambda: "layout: csr", "this is not a plan"),
    "a number": (lambda: "3", "this is not a plan"),
    "other JSON": (lambda: "{}", "KeyError"),
    "another format": (lambda: text(format="plan"), "format 'plan'"),
    "a later version": (lambda: text(version=3), "version 3"),
    "a key too few": (lambda: text(threads=None), "threads"),
    "a key too many": (lambda: text(colour="red"), "colour"),
    "a row with another key": (lambda: text(row={"colour": "red"}), "colour"),
    "an unknown layout": (lambda: text(row={"layout": "crs"}), "0: 'crs'"),
}


@table(NO_PLANS)
def test_what_is_no_plan_is_refused(case):
    make, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        gs.Plan.from_json(make())


def test_a_plan_knows_its_layers():
    plan = planned()
    assert plan.choice("2") == plan.row("2").layout == plan.layouts["2"]
    with pytest.raises(gs.UsageError, match="it has no layer '22'; did you mean '2'"):
        plan.choice("22")


# -------------------------------------------------------------------- sparsify by plan

NETS = {"mlp": (mlp, FLAT, (8, 13)), "convnet": (convnet, IMAGES, (8, 2, 6, 6))}


def mixed(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> gs.Plan:
    return gs.plan(make(), shape, density=0.3, timer=mixed_clock)


@table(NETS)
def test_supports_and_values_do_not_depend_on_the_layout(case):
    make, _, shape = case
    plan = mixed(make, shape)
    layouts = ("csr", "masked", plan, gs.Plan.from_json(plan.to_json()))
    models = [gs.sparsify(make(), 0.3, layout=layout, rng=generator()) for layout in layouts]
    assert {layer.layout.name for layer in gs.sparse_layers(models[2]).values()} == {"masked", "csr"}
    for model in models[1:]:
        assert same_supports(model, models[0])
        for a, b in zip(*(gs.sparse_layers(m).values() for m in (model, models[0])), strict=True):
            assert torch.equal(a.to_dense(), b.to_dense()) and torch.equal(a.bias, b.bias)


@table(NETS)
def test_auto_measures_and_follows(case):
    """By the clock. What is drawn is what would be drawn without a measurement."""
    make, _, shape = case
    model, state = gs.sparsify(make(), 0.3, layout="auto", input_shape=shape), torch.get_rng_state()
    report = model.sparsity_report
    assert {name: layer.layout.name for name, layer in gs.sparse_layers(model).items()} == report.plan.layouts
    assert all(
        row.layout == report.plan.layouts.get(row.name, "") and ("wins" in row.outcome) == row.sparse
        for row in report.rows
    )
    torch.manual_seed(0)
    alike = gs.sparsify(make(), 0.3)
    assert torch.equal(state, torch.get_rng_state()) and same_supports(model, alike)
    for a, b in zip(*(gs.sparse_layers(m).values() for m in (model, alike)), strict=True):
        assert torch.equal(a.to_dense(), b.to_dense())


@table(NETS)
def test_the_report_says_which_layout_and_where_sparse_wins(case):
    make, _, shape = case
    plan = mixed(make, shape)
    rows = [row for row in gs.sparsify(make(), 0.3, layout=plan, rng=generator()).sparsity_report.rows if row.sparse]
    assert [row.layout for row in rows] == list(plan.layouts.values()) and [row.break_even for row in rows] == [
        r.break_even for r in plan.rows
    ]
    for row in rows:
        assert row.outcome == f"sparse ({row.layout}, {plan.row(row.name).wins})"
    report = gs.sparsify(make(), 0.3, layout="masked").sparsity_report
    assert (
        "sparse (masked)" in str(report) and report.plan is None and {row.break_even for row in report.rows} == {None}
    )


def test_a_plan_serves_another_density():
    """Its choices are followed; a support that grows or shrinks has the layout of the density it was planned at."""
    plan = mixed(mlp, (8, 13))
    model = gs.sparsify(mlp(), 0.1, layout=plan)
    assert {name: layer.layout.name for name, layer in gs.sparse_layers(model).items()} == plan.layouts


KEPT = {
    "csr": ("csr", None, True),
    "masked": ("masked", None, False),
    "csr, not wanted": ("csr", False, False),
    "masked, wanted": ("masked", True, True),
    "a mixture": (lambda: mixed(convnet, (8, 2, 6, 6)), None, True),
    "planned without": (lambda: planned(convnet(), (8, 2, 6, 6), batch_last=False, timer=mixed_clock), None, False),
    "planned all masked": (lambda: planned(convnet(), (8, 2, 6, 6), timer=clock(each=1e3)), None, False),
}


@table(KEPT)
def test_a_network_with_csr_layers_is_kept_batch_last(case):
    layout, asked, expected = case
    model, plain = (
        gs.sparsify(convnet(), 0.3, layout=layout() if callable(layout) else layout, batch_last=b, rng=generator())
        for b in (asked, False)
    )
    assert (type(model[1]) is not nn.BatchNorm2d) == expected and type(plain[1]) is nn.BatchNorm2d
    x = IMAGES.batch(0)[0]
    assert torch.allclose(model(x), plain(x)) and set(model.state_dict()) == set(plain.state_dict())
    assert type(gs.densify(model)[1]) is nn.BatchNorm2d


REFUSALS = {
    "no input shape": ({"layout": "auto"}, "needs input_shape"),
    "an input shape for nothing": ({"layout": "csr", "input_shape": (8, 13)}, 'only layout="auto" uses input_shape'),
    "misspelt": ({"layout": "autol"}, "did you mean 'auto'"),
    "a layer the plan has not": ({"layout": planned(mlp(), exclude="2")}, r"2 is not in the plan"),
    "another model's plan": (
        {"layout": planned(nn.Sequential(nn.Linear(13, 16)))},
        "0 is 17 x 13, in the plan 16 x 13",
    ),
    "another block's plan": ({"layout": planned(block=(2, 1))}, r"0 has blocks of \(1, 1\), in the plan \(2, 1\)"),
    "a shape of nothing": ({"layout": "auto", "input_shape": (8, 0)}, "the shape|that of a whole batch"),
    "an impossible shape": ({"layout": "auto", "input_shape": (8, 12)}, "does not run on an input of shape"),
}


@table(REFUSALS)
def test_sparsify_refuses_before_it_changes_anything(case):
    options, reason = case
    model = mlp()
    with pytest.raises(gs.UsageError, match=reason):
        gs.sparsify(model, 0.3, **options)
    assert same_state(model, mlp()) and not gs.sparse_layers(model) and model.training


PLAN_REFUSALS = {
    "no batch": ({"shape": (13,)}, "of a whole batch"),
    "no number": ({"shape": (8, "13")}, "of a whole batch"),
    "neither sparse nor a density": ({"density": None}, "no sparse layer, and no density"),
    "density": ({"density": 95}, "95 % zeros is density=0.05"),
    "nothing sparse": ({"budget": {"0": 1.0, "2": 1.0, "4": 1.0}}, "gives every layer density 1"),
    "budget": ({"budget": "erck"}, "did you mean 'erk'"),
    "a name": ({"include": "fc"}, "plan: include='fc' matches no module"),
    "block": ({"block": (0, 1)}, "block must be two positive"),
    "blocks": ({"blocks": [(4, 0)]}, "block must be two positive"),
    "densities": ({"densities": (0.5, 0.1)}, "range to look in"),
    "densities in per cent": ({"densities": (5, 90)}, "range to look in"),
    "threads": ({"threads": 0}, "threads must be at least 1"),
    "seconds": ({"seconds": -1.0}, "seconds must be at least 0"),
    "dense bytes": ({"dense_bytes": 0}, "dense_bytes must be at least 1"),
    "a pick of a sparse model": (
        {"model": nn.Sequential(gs.SparseLinear(13, 4, density=0.5)), "density": None, "include": "0"},
        "leave them out",
    ),
}


@table(PLAN_REFUSALS)
def test_plan_refuses(case):
    options, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        planned(**options)


def test_auto_with_nothing_to_choose():
    model = gs.sparsify(mlp(), 0.3, budget=dict.fromkeys("024", 1.0), layout="auto", input_shape=(8, 13))
    assert not gs.sparse_layers(model) and model.sparsity_report.plan is None


# -------------------------------------------------------------------- a model of several layouts is one model

TOPOLOGIES = {
    "csst": lambda: gs.CSST(stop=12, every=4, last_every=4, window=3, fraction=0.5),
    "rigl": lambda: gs.RigL(stop=12, every=4),
    "csst pooled": lambda: gs.CSST(stop=12, every=4, last_every=4, window=3, fraction=0.5, allocate="pooled"),
}


def trained(make, layout, topology, batches):
    model = gs.sparsify(make(), 0.3, layout=layout, rng=generator())
    optimizer = SGD(gs.parameter_groups(model, lr=0.05, density_exponent=0.25), momentum=0.9)
    rewirer = gs.Rewirer(model, optimizer, topology(), rng=generator(5))
    return model, optimizer, rewirer, train(model, optimizer, rewirer, batches)


@table(NETS)
@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_mixed_layouts_train_alike(case, topology):
    """The same losses and supports as all csr, through events."""
    make, data, shape = case
    outcomes = [trained(make, layout, topology, data.batches(10)) for layout in ("csr", mixed(make, shape))]
    (a, *_, losses), (b, *_, others) = outcomes
    assert losses == pytest.approx(others, rel=1e-9) and same_supports(a, b) and losses[-1] != losses[0]


@table(NETS)
def test_mixed_layouts_resume_bit_for_bit(case, tmp_path):
    make, data, shape = case
    plan, topology, batches = mixed(make, shape), TOPOLOGIES["csst"], data.batches(12)
    whole, *_, losses = trained(make, plan, topology, batches)
    model, optimizer, rewirer, first = trained(make, plan, topology, batches[:6])
    gs.checkpoint.save(tmp_path / "at6", model, optimizer=optimizer, rewirer=rewirer)
    other, optimizer, rewirer, _ = trained(make, gs.Plan.from_json(plan.to_json()), topology, [])
    gs.checkpoint.load(tmp_path / "at6", other, optimizer=optimizer, rewirer=rewirer)
    assert first + train(other, optimizer, rewirer, batches[6:]) == losses and same_state(other, whole)
    supports = gs.checkpoint.inspect(tmp_path / "at6")["supports"]
    assert {name: said["layout"] for name, said in supports.items()} == plan.layouts
    with pytest.raises(gs.UsageError, match="layout is csr here, masked in the file"):
        gs.checkpoint.load(tmp_path / "at6", gs.sparsify(make(), 0.3))


@table(NETS)
def test_mixed_layouts_are_counted_copied_and_made_dense(case):
    make, data, shape = case
    model = gs.sparsify(make(), 0.3, layout=mixed(make, shape), rng=generator()).eval()
    alike = gs.sparsify(make(), 0.3, layout="csr", rng=generator()).eval()
    ledgers = [gs.Ledger(m, data.batch(0)[0]) for m in (model, alike)]
    for ledger in ledgers:
        ledger.step(8)
    assert ledgers[0].flops == ledgers[1].flops and (ledgers[0].simulated, ledgers[1].simulated) == (True, False)
    x = data.batch(0)[0]
    y = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), y)
    for layer in gs.sparse_layers(model).values():
        before, kept = layer.to_dense(), layer.support
        gs.set_support_(layer, gs.Support.random(kept.shape, kept.n, rng=generator(3)))
        assert torch.equal(layer.to_dense(), torch.where(layer.support.mask().view(before.shape), before, 0.0))
    y = model(x)
    assert torch.allclose(gs.densify(model)(x), y) and not gs.sparse_layers(model)
    assert {type(m) for m in model.modules()} == {type(m) for m in make().modules()}


# -------------------------------------------------------------------- the command line


def config(**more):
    from gossamer.cli.config import parse

    tiny = {"name": "planted", "features": 12, "relevant": 6, "hidden": 8, "fan_in": 3, "examples": 80}
    method = {"name": "csst", "every": 4, "last_every": 5, "window": 3}
    small = {
        "task": tiny,
        "model.widths": [16, 16],
        "density": 0.3,
        "epochs": 2,
        "batch": 16,
        "threads": 1,
        "layout": "auto",
    }
    return parse({"method": method, **small, **more}, "test")


@pytest.fixture
def runs(monkeypatch):
    """The module of runs, its plans made by a clock that gives the first layer to csr; and how many were made."""
    pytest.importorskip("jsonargparse")
    from gossamer.cli import building, run

    made = []

    def fake(*arguments, **options):
        made.append(options)
        chosen = gs.plan(
            *arguments,
            **options,
            timer=lambda w, c: clock(each=1.0 if w.matrix[1] == 12 else 99.0, converted=12.0)(w, c),
        )
        return chosen

    monkeypatch.setattr(building, "plan", fake)
    building.measured_plan.cache_clear()
    yield run, made
    building.measured_plan.cache_clear()


def test_a_run_follows_its_plan_and_says_where_sparse_wins(runs, tmp_path, capsys):
    from gossamer.cli.report import report

    runs, made = runs
    result = runs.run(config(), tmp_path / "csst")
    other = runs.run(config(method="static"), tmp_path / "static")
    dense = runs.run(config(method="dense"), tmp_path / "dense")
    assert len(made) == 1 and (made[0]["density"], made[0]["threads"]) == (0.3, 1)
    assert (
        result["layouts"] == other["layouts"] == {"fc1": "csr", "fc2": "masked", "fc3": "masked"}
        and dense["layouts"] == {}
    )
    assert not (tmp_path / "dense" / "plan.json").exists() and dense["planned"] == {}
    plan = gs.Plan.from_json((tmp_path / "csst" / "plan.json").read_text())
    assert plan.layouts == result["layouts"] and plan.inputs == ((16, 12),)
    report(str(tmp_path))
    printed = capsys.readouterr().out
    assert (
        "fc1 csr (sparse wins up to density 0.9 at least)" in printed
        and "fc2 masked (sparse wins below density 0.091)" in printed
    )


class Presses(Silent):
    """Ctrl-C after the seventh step."""

    steps = 0

    def step(self, loss: float) -> None:
        self.steps += 1
        if self.steps == 7:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_resumed_run_follows_the_plan_in_its_folder(runs, tmp_path, monkeypatch):
    """Even where another measurement would choose otherwise."""
    from gossamer.cli import building

    runs, _ = runs
    whole = runs.run(config(), tmp_path / "whole")
    with pytest.raises(runs.Stopped):
        runs.run(config(), tmp_path / "parts", watch=Presses())
    building.measured_plan.cache_clear()
    monkeypatch.setattr(building, "plan", lambda *_, **__: pytest.fail("measured again"))
    parts = runs.run(config(), tmp_path / "parts", resume=True)
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}


def test_a_shrinking_support_is_planned_at_its_end(runs, tmp_path):
    runs, made = runs
    result = runs.run(
        config(method={"name": "csst", "every": 4, "last_every": 5, "window": 3}, start=3.0), tmp_path / "a"
    )
    assert made[0]["density"] == 0.3 and result["layouts"]["fc1"] == "csr"
