"""Support: the index, the closed form of the zeros, uniform sampling, and what comes from outside."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gossamer as gs
from cases import SUPPORTS, generator, table
from gossamer import laws
from gossamer._grid import LIMIT, grid_of, index_problems
from gossamer._sampling import distinct
from gossamer.support import Support
from gossamer.training.draw import sample_outside_by

RNG = generator(11)
quick = settings(max_examples=80, deadline=None, derandomize=True)


@st.composite
def matrices(draw):
    """A boolean grid and a block: any support of a small matrix."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    block = draw(st.sampled_from([(1, 1), (2, 2), (3, 1), (2, 4)]))
    total = math.prod(grid_of(shape, block))
    return shape, block, sorted(draw(st.sets(st.integers(0, total - 1))))


@table(SUPPORTS)
def test_every_support_obeys_the_law(case):
    laws.check_support(case)


@quick
@given(matrices())
def test_any_support_obeys_the_law(case):
    shape, block, ids = case
    s = Support.from_ids(torch.tensor(ids, dtype=torch.int64), shape, block)
    assert s.ids().tolist() == ids
    laws.check_support(s, draws=0)


@quick
@given(matrices(), st.data())
def test_outside_and_find_invert_each_other(case, data):
    """The rank of a zero among the zeros and the position of a kept block partition all ids."""
    shape, block, ids = case
    s = Support.from_ids(torch.tensor(ids, dtype=torch.int64), shape, block)
    zeros = sorted(set(range(s.total)) - set(ids))
    ranks = data.draw(st.lists(st.integers(0, max(0, len(zeros) - 1)), max_size=5)) if zeros else []
    got = s.outside(torch.tensor(ranks, dtype=torch.int64))
    assert got.tolist() == [zeros[r] for r in ranks]
    assert (s.find(got) == -1).all()
    assert s.find(torch.tensor(ids, dtype=torch.int64)).tolist() == list(range(len(ids)))


@quick
@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_from_index_accepts_exactly_the_valid_indices(rows, cols, data):
    crow = data.draw(st.lists(st.integers(-1, 6), min_size=rows, max_size=rows + 2))
    col = data.draw(st.lists(st.integers(-1, cols), max_size=6))
    valid = (
        len(crow) == rows + 1
        and crow[0] == 0
        and crow[-1] == len(col)
        and all(a <= b for a, b in zip(crow, crow[1:], strict=False))
        and all(0 <= j < cols for j in col)
        and all(
            a < b
            for i in range(rows)
            for a, b in zip(col[crow[i] : crow[i + 1]], col[crow[i] + 1 : crow[i + 1]], strict=False)
        )
    )
    tensors = torch.tensor(crow, dtype=torch.int64), torch.tensor(col, dtype=torch.int64)
    assert (index_problems(*tensors, (rows, cols), (1, 1)) == []) == valid
    if valid:
        laws.check_support(Support.from_index(*tensors, (rows, cols)), draws=0)
    else:
        with pytest.raises(gs.UsageError, match="not a CSR index"):
            Support.from_index(*tensors, (rows, cols))


HOSTILE = {
    "unsorted": ([0, 2, 3], [2, 1, 0], "increase strictly"),
    "twice the same": ([0, 2, 3], [1, 1, 0], "increase strictly"),
    "out of range": ([0, 2, 3], [0, 4, 0], r"lie in \[0, 4\)"),
    "negative": ([0, 2, 3], [-1, 2, 0], r"lie in \[0, 4\)"),
    "decreasing pointers": ([0, 4, 3], [0, 1, 2], "must not decrease"),
    "wrong end": ([0, 2, 2], [0, 1, 2], "run from 0 to the 3"),
    "wrong start": ([1, 2, 3], [0, 1, 2], "run from 0 to the 3"),
    "too few pointers": ([0, 3], [0, 1, 2], "must have 3 entries"),
    "float columns": ([0, 2, 3], [0.0, 1.0, 2.0], "vector of integers"),
    "boolean columns": ([0, 1, 1], [True], "vector of integers"),
    "a matrix": ([[0, 2, 3]], [0, 1, 2], "vector of integers"),
}


@table(HOSTILE)
def test_hostile_index_is_refused_with_the_reason(case):
    crow, col, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        Support.from_index(torch.tensor(crow), torch.tensor(col), (2, 4))


@pytest.mark.parametrize(
    ("ids", "reason"), [([0, 12], r"lie in \[0, 12\)"), ([-1, 2], r"lie in \[0, 12\)"), ([3, 5, 3], "must be distinct")]
)
def test_hostile_ids_are_refused(ids, reason):
    with pytest.raises(gs.UsageError, match=reason):
        Support.from_ids(torch.tensor(ids), (3, 4))


BAD_GEOMETRY = {
    "no rows": ((0, 4), (1, 1), "shape"),
    "three dimensions": ((2, 3, 4), (1, 1), "shape"),
    "float": ((2.0, 3), (1, 1), "shape"),
    "empty block": ((4, 4), (0, 1), "block"),
    "a number for a block": ((4, 4), 2, "block"),
    "too many rows": ((LIMIT + 5, 4), (1, 1), "block rows and columns"),
}


@table(BAD_GEOMETRY)
def test_bad_shapes_and_units_are_refused(case):
    shape, block, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        Support.random(shape, 1, block)


def test_a_support_is_immutable():
    """Neither its fields nor, after other supports were made of it, its numbers change."""
    s = SUPPORTS["primes"]
    with pytest.raises(AttributeError):
        s.col = s.col  # type: ignore[misc]
    before = [t.clone() for t in (s.crow, s.col, s.ccol, s.row, s.perm)]
    Support.from_ids(s.ids(), s.shape)
    s.outside(torch.arange(3)), s.find(torch.arange(3)), s.sample_outside(4), s.weights, s.mask()
    assert all(torch.equal(a, b) for a, b in zip(before, (s.crow, s.col, s.ccol, s.row, s.perm), strict=True))


def test_from_ids_leaves_its_argument_alone():
    ids = torch.tensor([5, 1, 3])
    Support.from_ids(ids, (2, 4))
    assert ids.tolist() == [5, 1, 3]


def test_of_keeps_the_units_that_hold_a_non_zero():
    dense = torch.zeros(5, 7)
    dense[4, 6] = dense[0, 0] = dense[0, 1] = 1.0
    assert Support.of(dense).ids().tolist() == [0, 1, 34]
    assert Support.of(dense, (2, 3)).ids().tolist() == [0, 8]


def test_two_supports_are_the_same_if_they_keep_the_same_units():
    a = Support.from_ids(torch.tensor([1, 5]), (2, 4))
    assert a.same(Support.from_ids(torch.tensor([5, 1]), (2, 4)))
    for other in (((2, 4), [1, 6]), ((2, 4), [1]), ((4, 2), [1, 5]), ((2, 5), [1, 5])):
        assert not a.same(Support.from_ids(torch.tensor(other[1]), other[0]))


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("total", "m"), [(1, 0), (1, 1), (7, 3), (7, 4), (7, 7), (100, 50), (100, 51), (10**6, 1000), (2**62, 500)]
)
def test_distinct_draws_are_sorted_distinct_and_in_range(total, m):
    drawn = distinct(total, m, generator())
    assert drawn.dtype == torch.int64 and drawn.shape == (m,)
    assert (drawn.diff() > 0).all() and (m == 0 or (drawn[0] >= 0 and drawn[-1] < total))


@pytest.mark.parametrize("m", [-1, 8])
def test_distinct_refuses_what_cannot_be_drawn(m):
    with pytest.raises(gs.UsageError, match="cannot draw"):
        distinct(7, m)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_every_subset_is_equally_likely(m):
    """Not only every element: chi-square over all C(6, m) subsets, below 4 sigma at a fixed seed."""
    rng, draws = generator(5), 3000
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        subset = tuple(distinct(6, m, rng).tolist())
        counts[subset] = counts.get(subset, 0) + 1
    cells = math.comb(6, m)
    chi2 = (
        sum((counts.get(c, 0) - draws / cells) ** 2 for c in counts) / (draws / cells)
        + (cells - len(counts)) * draws / cells
    )
    assert len(counts) == cells and chi2 < cells - 1 + 4 * math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("fan_in", [1, 2, 5])
def test_min_fan_in_is_kept_and_the_rest_is_random(fan_in):
    counts = torch.zeros(4, 5)
    for seed in range(200):
        s = Support.random((4, 5), 20 if fan_in == 5 else 11, rng=generator(seed), min_fan_in=fan_in)
        assert (s.crow.diff() >= fan_in).all()
        counts += s.mask()
    n = 20 if fan_in == 5 else 11
    assert ((counts / 200 - n / 20).abs() < 0.16).all()


@pytest.mark.parametrize(("n", "fan_in"), [(7, 2), (20, 6)])
def test_min_fan_in_that_cannot_be_had_is_refused(n, fan_in):
    with pytest.raises(gs.UsageError, match="cannot give each of 4 output units"):
        Support.random((4, 5), n, min_fan_in=fan_in)


@pytest.mark.parametrize("n", [-1, 21])
def test_random_refuses_impossible_sizes(n):
    with pytest.raises(gs.UsageError, match=r"n must lie in \[0, 20\]"):
        Support.random((4, 5), n)


def test_sampling_by_weight_is_drawing_one_after_another():
    """Every pair of the 4 zeros of a 2 x 3 matrix as often as two draws by weight, without replacement, give it:
    chi-square, 4 sigma."""
    s, rows, cols = (
        Support.from_ids(torch.tensor([1, 3]), (2, 3)),
        torch.tensor([1.0, 4.0]),
        torch.tensor([0.5, 1.0, 3.0]),
    )
    weight = {i: float(rows[i // 3] * cols[i % 3]) for i in (0, 2, 4, 5)}
    total, draws, counts = sum(weight.values()), 2000, {}
    for _ in range(draws):
        pair = tuple(sample_outside_by(s, 2, rows, cols, RNG).tolist())
        counts[pair] = counts.get(pair, 0) + 1
    chi2 = 0.0
    for a, b in itertools.combinations(weight, 2):
        p = weight[a] / total * weight[b] / (total - weight[a]) + weight[b] / total * weight[a] / (total - weight[b])
        chi2 += (counts.get((a, b), 0) - draws * p) ** 2 / (draws * p)
    assert sum(counts.values()) == draws and chi2 < 5 + 4 * math.sqrt(10)


WEIGHTS = {
    "even": (torch.ones(13), torch.ones(7)),
    "concentrated": (torch.eye(13)[4] + 1e-30, torch.eye(7)[2] + 1e-30),
    "one row": (torch.eye(13)[4], torch.ones(7)),
    "nothing": (torch.zeros(13), torch.zeros(7)),
    "double": (torch.rand(13).double(), torch.rand(7).double()),
}


@table(WEIGHTS)
@pytest.mark.parametrize("m", [0, 1, 10, 30, 31, 60])
def test_sampling_by_weight_never_fails(case, m):
    """As many as asked for, sorted, distinct, none of them kept, from its generator alone; what has weight comes
    first."""
    s, state = SUPPORTS["primes"], torch.get_rng_state()
    drawn = sample_outside_by(s, m, *case, generator(1))
    assert drawn.shape == (m,) and (drawn.diff() > 0).all() and (s.find(drawn) == -1).all()
    assert torch.equal(drawn, sample_outside_by(s, m, *case, generator(1))) and torch.equal(
        torch.get_rng_state(), state
    )


def test_what_has_no_weight_is_drawn_last():
    s = Support.from_ids(torch.tensor([2, 30]), (13, 7))
    drawn = sample_outside_by(
        s, 6, torch.eye(13)[4], torch.ones(7), generator()
    )  # row 4 is 28, ..., 34, of which 30 is kept
    assert drawn.tolist() == [28, 29, 31, 32, 33, 34]
    assert set(sample_outside_by(s, 9, torch.eye(13)[4], torch.ones(7), generator()).tolist()) > {
        28,
        29,
        31,
        32,
        33,
        34,
    }


def test_huge_supports_cost_what_they_keep():
    """2^36 weights, 1000 of them kept: index arithmetic in int64, memory for rows, columns and what is kept."""
    shape = (2**19, 2**17)
    s = Support.random(shape, 1000, rng=generator())
    assert s.n == 1000 and (s.ids().diff() > 0).all() and s.total == shape[0] * shape[1]
    zeros = s.sample_outside(1000, generator(1))
    assert (s.find(zeros) == -1).all() and (zeros.diff() > 0).all()
    assert int(s.outside(torch.tensor([s.total - s.n - 1]))) < s.total
