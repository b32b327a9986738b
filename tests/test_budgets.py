"""Budgets: published formulas, the re-solve loop against an independent one, totals, and refusals."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gossamer as gs
from cases import generator, table
from gossamer._budgets import counts, frozen_warning, resolve

NETWORKS = {
    "mlp 784-512-512-10": [(512, 784), (512, 512), (10, 512)],
    "mlp 784-300-100-10": [(300, 784), (100, 300), (10, 100)],
    "convolutions": [(16, 3, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (64, 32, 1, 1), (10, 64)],
    "tiny beside large": [(2, 2), (1000, 1000), (1, 3)],
    "equal shapes": [(20, 30)] * 4,
    "one layer": [(7, 13)],
}
DENSITIES = (1.0, 0.9, 0.5, 0.2, 0.1, 0.02, 0.01)


def solved_by_bisection(shapes, density, raw):
    """epsilon with sum min(1, epsilon raw_l) N_l = density N, by bisection on exact fractions: no loop over dense
    layers."""
    sizes = [math.prod(s) for s in shapes]
    low, high = Fraction(0), Fraction(max(sizes)) * 10
    for _ in range(120):
        middle = (low + high) / 2
        filled = sum(min(Fraction(1), middle * r) * n for r, n in zip(raw, sizes, strict=True))
        low, high = (middle, high) if filled < Fraction(density) * sum(sizes) else (low, middle)
    return [float(min(Fraction(1), high * r)) for r in raw]


@table(NETWORKS)
@pytest.mark.parametrize("density", DENSITIES)
def test_erk_and_er_against_an_independent_solution(case, density):
    raw = {
        gs.erk: [Fraction(sum(s), math.prod(s)) for s in case],
        gs.er: [Fraction(s[0] + s[1], s[0] * s[1]) for s in case],
    }
    for budget, proportions in raw.items():
        got = budget(case, density)
        assert got == pytest.approx(solved_by_bisection(case, density, proportions), rel=1e-9)
        assert all(0 < d <= 1 for d in got)
        sizes = [math.prod(s) for s in case]
        assert sum(d * n for d, n in zip(got, sizes, strict=True)) == pytest.approx(density * sum(sizes), rel=1e-9)


def test_erk_by_hand():
    """Two linear layers 10 x 10 (raw 0.2) and 5 x 20 (raw 0.25) at density 0.3: epsilon = 60 / 45, so 0.2667 and
    0.3333."""
    assert gs.erk([(10, 10), (5, 20)], 0.3) == pytest.approx([4 / 15, 1 / 3])


def test_a_layer_that_would_exceed_one_is_dense_and_the_rest_is_solved_again():
    """(2, 2) asks for more than 1: it is dense, 4 of the 0.1 * 10404 blocks are gone, the other layer gets the rest."""
    tiny, large = gs.erk([(2, 2), (100, 104)], 0.1)
    assert tiny == 1.0 and large == pytest.approx((0.1 * 10404 - 4) / 10400)


@table({name: shapes for name, shapes in NETWORKS.items() if name == "equal shapes"})
def test_equal_shapes_get_equal_densities(case):
    for budget in (gs.er, gs.erk, gs.pooled):
        assert budget(case, 0.1) == pytest.approx([0.1] * len(case))


def test_kernel_sizes_count_for_erk_only():
    shapes = [(8, 4, 3, 3), (8, 4, 1, 1)]
    assert gs.er(shapes, 0.1)[0] == pytest.approx(gs.er(shapes, 0.1)[1])
    assert gs.erk(shapes, 0.1)[0] < gs.erk(shapes, 0.1)[1]


def test_uniform_leaves_the_first_layer_dense():
    shapes = NETWORKS["mlp 784-300-100-10"]
    assert gs.uniform(shapes, 0.1) == [1.0, 0.1, 0.1]
    assert gs.uniform(shapes, 0.1, dense_first=False) == [0.1] * 3
    assert gs.uniform(shapes[:1], 0.1) == [0.1]  # a single layer is not first among others


# ---------------------------------------------------------------- whole blocks


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(1e-4, 1.0)), min_size=1, max_size=8))
def test_blocks_are_whole_positive_and_add_up(layers):
    """At least 1 per layer, at most all, the sum the rounded total (unless that is less than one per layer), each
    within 1 where it can."""
    totals, densities = [t for t, _ in layers], [d for _, d in layers]
    got = counts(densities, totals)
    exact = [d * t for d, t in zip(densities, totals, strict=True)]
    assert all(1 <= n <= t for n, t in zip(got, totals, strict=True))
    assert sum(got) == max(round(sum(exact)), len(got))
    if all(e >= 1 for e in exact):
        assert all(abs(n - e) < 1 + 1e-6 for n, e in zip(got, exact, strict=True))


def test_blocks_by_hand():
    assert counts([0.25, 0.25, 0.25], [10, 10, 10]) == [3, 3, 2]  # 7.5 rounds to 8: the lower index first
    assert counts([0.5, 1.0], [3, 4]) == [2, 4]
    assert counts([0.4, 0.4, 0.92], [1, 1, 10]) == [
        1,
        1,
        8,
    ]  # what the small ones take beyond their share, the large one gives


@pytest.mark.parametrize("budget", gs.BUDGETS)
@pytest.mark.parametrize("density", (0.5, 0.1, 0.03))
def test_sparsify_keeps_the_budgets_total(budget, density):
    """Every budget but uniform keeps exactly the rounded share of all weights."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(37, 29))
    gs.sparsify(model, density, budget=budget, rng=generator())
    kept = sum(row.nonzeros for row in model.sparsity_report.rows)
    weights = sum(math.prod(row.shape) for row in model.sparsity_report.rows)
    if budget == "uniform":
        assert isinstance(model[0], nn.Conv2d)
    else:
        assert kept == round(density * weights)


# ---------------------------------------------------------------- choosing one

NAMES, SHAPES = ["a", "b.c"], [(4, 5), (6, 7)]


def test_a_budget_is_a_name_a_function_or_a_mapping():
    assert resolve("pooled", NAMES, SHAPES, 0.2, "x") == [0.2, 0.2]
    assert resolve(lambda shapes, density: [density, 1.0], NAMES, SHAPES, 0.2, "x") == [0.2, 1.0]
    assert resolve({"b.c": 0.5}, NAMES, SHAPES, 0.2, "x") == [0.2, 0.5]


REFUSALS = {
    "misspelt name": ("unifrom", "did you mean 'uniform'"),
    "no such name": ("zzz", "unknown budget 'zzz'"),
    "unknown layer": ({"b.d": 0.5}, "did you mean 'b.c'"),
    "density of a layer": ({"a": 1.5}, r"number in \(0, 1\]"),
    "too few": (lambda shapes, density: [density], "1 densities for 2 layers"),
    "out of range": (lambda shapes, density: [0.0, 1.0], r"number in \(0, 1\]"),
}


@table(REFUSALS)
def test_bad_budgets_are_refused(case):
    budget, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        resolve(budget, NAMES, SHAPES, 0.2, "x")


@pytest.mark.parametrize("budget", gs.BUDGETS.values(), ids=gs.BUDGETS.keys())
@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, float("nan"), float("inf"), True, "0.1", None])
def test_bad_densities_are_refused(budget, density):
    with pytest.raises(gs.UsageError, match=r"fraction of the weights .* number in \(0, 1\]"):
        budget(SHAPES, density)


def test_density_one_is_a_full_layer():
    layer = gs.SparseLinear(5, 4, density=1.0, rng=generator())
    assert layer.support.same(gs.Support.full((4, 5))) and layer.density == 1.0


def test_the_smallest_density_keeps_one_block():
    assert gs.SparseLinear(5, 4, density=1e-9, rng=generator()).support.n == 1


def test_tiles_count_as_blocks():
    layer = gs.SparseLinear(12, 8, density=0.25, block=(2, 3), rng=generator())
    assert layer.support.n == round(0.25 * 16) and layer.values.shape == torch.Size((4, 2, 3))


def test_a_frozen_layer_ends_where_it_is_and_that_is_said():
    """seams: gmp(final_density=0.05) with a frozen layer ended elsewhere, without a word."""

    def rewirer(*frozen):
        model = gs.sparsify(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)), 1.0, rng=generator())
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in frozen:
            model[i].values.requires_grad_(False)
        return gs.Rewirer(model, opt, gs.GMP(20, 5, final_density=0.05, budget="pooled"))

    rewirer()
    with pytest.warns(
        UserWarning,
        match=r"gmp: the sparse layers will end at density 0.6833, not 0.05.*0 keeps 600 of 600 blocks, not 30",
    ):
        assert rewirer(0).final == {"0": 30, "2": 15}
    with pytest.warns(UserWarning, match=r"density 1, not 0.05: .*0 keeps 600 of 600 blocks, not 30, 2 keeps 300"):
        rewirer(0, 2)
    totals, start = {"a": 10, "b": 90}, {"a": 5, "b": 45}
    assert frozen_warning(0.5, totals, start, start, ["a", "b"]) is None  # they are where they are to be
    assert frozen_warning(0.1, totals, start, {"a": 1, "b": 9}, []) is None
    assert "density 0.14, not 0.1" in frozen_warning(0.1, totals, start, {"a": 1, "b": 9}, ["a"])
