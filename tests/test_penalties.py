"""Penalties: the laws over the table, worked examples, the level of every entry, refusals."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import gossamer as gs
from cases import PENALTIES, generator, table
from gossamer import laws, penalties

SHAPES = ((7,), (5, 7), (3, 4, 3, 2))


@table(PENALTIES)
def test_penalties_obey_their_law(case):
    laws.check_penalty(case)


@table(PENALTIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_level_of_an_entry_is_where_it_goes_to_zero(case, shape):
    if case.problems(shape) or isinstance(case, (gs.TopK, penalties.Zero)) or case.lam == 0.0:
        return
    u = torch.randn(shape, generator=generator(), dtype=torch.float64)
    tau = torch.rand(case.magnitudes(u).shape, generator=generator(1), dtype=torch.float64) if case.adaptive else 0.3
    level = case.zero_threshold(u, tau)
    assert level.shape == u.shape
    for q in level.flatten().unique()[::3].tolist():
        if q > 0:
            at, below = case.prox(u, tau * (q * (1 + 1e-12))), case.prox(u, tau * (q * (1 - 1e-9)))
            assert torch.equal(at != 0, level > q * (1 + 1e-12)) and torch.equal(below != 0, level > q * (1 - 1e-9))


@pytest.mark.parametrize(
    ("group", "shrinking"), [(None, False), ("kernel", False), ("channel", False), ("kernel", True), ("channel", True)]
)
def test_the_majoriser_touches_the_logarithm(group, shrinking):
    """Their gradients agree where the magnitudes are those of w, but for the largest, by which all are scaled."""
    penalty = gs.LogL1(0.3, 0.1, group, shrinking)
    w = torch.randn(3, 4, 3, 3, generator=generator(), dtype=torch.float64)
    fixed, r = w.clone(), penalty.magnitudes(w)
    largest = r == r.max()
    a, b = fixed.clone().requires_grad_(), fixed.clone().requires_grad_()
    held = gs.LogL1(0.3, 0.1, group, shrinking)
    object.__setattr__(held, "magnitudes", lambda p: torch.where(largest, r, penalty.magnitudes(p)))
    held.value(a).backward()
    penalty.majoriser(b, penalty.weights(r, w)).backward()
    free = (penalties.spread(~largest, w) if largest.shape != w.shape else ~largest).expand_as(w)
    assert torch.allclose(a.grad[free], b.grad[free], atol=1e-12)
    assert torch.allclose((penalty.subgradient(w) * w).sum(), penalty.majoriser(w, penalty.weights(r, w)))


def test_the_weight_of_an_entry_is_one_at_the_largest_and_f_at_zero():
    penalty, w = gs.LogL1(1.0, beta=1 / 499), torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    weights = penalty.weights(penalty.magnitudes(w), w)
    F = 500  # the authors' program: F / (1 + (F - 1) r / max r)
    assert weights.tolist() == pytest.approx([F, F / (1 + (F - 1) / 2), 1.0], rel=1e-12)


def test_the_value_is_the_papers():
    penalty, w = gs.LogL1(0.3, beta=0.1), torch.randn(4, 5, generator=generator(), dtype=torch.float64)
    m = float(w.abs().max())
    expected = 0.3 * 1.1 * sum(m * math.log(0.1 + abs(v) / m) for v in w.flatten().tolist())
    assert float(penalty.value(w)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3, 2)])
@pytest.mark.parametrize("group", [None, "kernel", "channel"])
def test_a_tensor_that_is_all_zero_has_no_weight_and_can_come_back(shape, group):
    penalty, w = gs.LogL1(1.0, group=group), torch.zeros(shape)
    r = penalty.magnitudes(w)
    assert torch.equal(penalty.weights(r, w), torch.zeros_like(r)) and float(penalty.value(w)) == 0.0


def test_groups_share_their_threshold():
    w = torch.randn(3, 4, 3, 2, generator=generator(), dtype=torch.float64)
    kernel, channel = gs.LogL1(1.0, 0.1, "kernel"), gs.LogL1(1.0, 0.1, "channel")
    r = w.abs().mean((2, 3))
    assert torch.allclose(kernel.weights(kernel.magnitudes(w), w), math.sqrt(6) * 1.1 / (0.1 + r / r.max()))
    r = w.abs().mean((1, 2, 3))
    assert torch.allclose(channel.weights(channel.magnitudes(w), w), math.sqrt(24) * 1.1 / (0.1 + r / r.max()))
    flat = w.flatten(1)
    assert torch.equal(kernel.weights(kernel.magnitudes(flat), flat), gs.LogL1(1.0, 0.1).weights(flat.abs(), flat))


def test_group_shrinkage_takes_whole_groups():
    w = torch.randn(6, 4, 3, 3, generator=generator(), dtype=torch.float64)
    alive = gs.GroupL1(1.0, "kernel").prox(w, 1.0).flatten(2) != 0
    assert torch.equal(alive.all(-1), alive.any(-1)) and 0 < int(alive.any(-1).sum()) < 24


@pytest.mark.parametrize("n", [1, 3, 6])
def test_of_equals_the_lower_index_stays(n):
    u = torch.tensor([1.0, -2.0, 2.0, 1.0, 2.0, 0.5])
    kept = sorted(sorted(range(6), key=lambda i: (-abs(float(u[i])), i))[:n])
    assert gs.TopK(n).prox(u, 1.0).nonzero().flatten().tolist() == kept


REFUSALS = {
    "negative lambda": lambda: gs.L1(-1e-3),
    "lambda that is no number": lambda: gs.GroupL1(math.nan),
    "infinite lambda": lambda: gs.NonNegativeL1(math.inf),
    "negative lambda of the logarithm": lambda: gs.LogL1(-1.0),
    "beta of zero": lambda: gs.LogL1(1.0, beta=0.0),
    "an unknown group": lambda: gs.GroupL1(1.0, "colour"),
    "rows of the logarithm": lambda: gs.LogL1(1.0, group="row"),
    "shrinking what is no group": lambda: gs.LogL1(1.0, shrinking=True),
    "nothing to keep": lambda: gs.TopK(0),
    "n and density": lambda: gs.TopK(3, density=0.1),
    "neither n nor density": lambda: gs.TopK(),
    "density of zero": lambda: gs.TopK(density=0.0),
}


@table(REFUSALS)
def test_misuse_is_refused(case):
    with pytest.raises(gs.UsageError):
        case()


@dataclass(frozen=True)
class Half(penalties.L1):
    """Says that it is adaptive, and has no running magnitudes."""

    adaptive: ClassVar[bool] = True


def test_an_adaptive_penalty_is_told_what_it_lacks():
    with pytest.raises(
        gs.UsageError, match=r"(?s)no magnitudes\(w\).*no weights\(r, w\).*no batched_weights\(rs, ws\)"
    ):
        gs.XRDA(Half(0.1))


@pytest.mark.parametrize(
    ("penalty", "shape"),
    [(gs.GroupL1(1.0, "kernel"), (3, 4)), (gs.GroupL1(1.0, "row"), (3, 4, 2, 2)), (gs.TopK(13), (3, 4))],
)
def test_a_penalty_says_which_tensors_do_not_fit(penalty, shape):
    assert penalty.problems(shape) and not gs.L1(1.0).problems(shape)
    with pytest.raises(gs.UsageError, match="fit"):
        gs.SparseOptimizer([torch.nn.Parameter(torch.zeros(shape))], gs.ProxSGD(penalty), 0.1)
