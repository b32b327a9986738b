"""Laws of supports."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import Unfit
from ..support import INT, Support, index_problems
from ..topology import topology as topologies
from .details import demand


def check_support(s: Support, *, draws: int = 200) -> None:
    """The index is valid and both its orders say the same; ids, ranks and positions invert each other; sampling is uniform.

    Args:
        draws: samples of the uniformity test (chi-square over all zeros, 6 sigma, a fixed seed).
    """
    who = f"support {s.shape} in units of {s.unit}, n={s.n}"
    demand(all(t.dtype == INT for t in (s.crow, s.col, s.ccol, s.row, s.perm)), f"{who}: every index tensor must be int32")
    problems = index_problems(s.crow, s.col, s.shape, s.unit)
    demand(not problems, f"{who}: not a CSR index: {'; '.join(problems)}")
    ids, everything = s.ids(), torch.arange(s.total)
    kept = torch.zeros(s.total, dtype=torch.bool)
    kept[ids] = True
    demand(int(kept.sum()) == s.n == ids.numel() and bool((ids.diff() > 0).all()), f"{who}: ids must be sorted and distinct")

    by_column = torch.sort(s.col, stable=True)[1]
    demand(torch.equal(s.perm.long(), by_column), f"{who}: perm must list the units column by column")
    demand(torch.equal(s.row, s.rows()[by_column]), f"{who}: row must be the unit rows in column order")
    counts = torch.bincount(s.col.long(), minlength=s.grid[1])
    demand(torch.equal(s.ccol.diff().long(), counts) and int(s.ccol[0]) == 0, f"{who}: ccol must point at the unit columns")

    zeros = everything[~kept]
    demand(torch.equal(s.find(ids), torch.arange(s.n)), f"{who}: find must give the position of every kept id")
    demand(bool((s.find(zeros) == -1).all()), f"{who}: find must give -1 for an id that is not kept")
    demand(torch.equal(s.outside(torch.arange(zeros.numel())), zeros), f"{who}: outside(rank) must be the rank-th id that is not kept")
    demand(Support.from_ids(ids.flip(0), s.shape, s.unit).same(s), f"{who}: from_ids of the ids must give the support back")
    demand(Support.from_index(s.crow, s.col, s.shape, s.unit).same(s), f"{who}: from_index of the index must give the support back")

    mask = s.mask()
    tiles = kept.view(s.grid).repeat_interleave(s.unit[0], 0).repeat_interleave(s.unit[1], 1)[: s.shape[0], : s.shape[1]]
    demand(torch.equal(mask, tiles), f"{who}: mask must hold exactly the kept units")
    demand(s.weights == int(mask.sum()), f"{who}: weights must count the scalars of the kept units inside the matrix")
    _check_sampling(s, zeros, who, draws)


def _check_sampling(s: Support, zeros: Tensor, who: str, draws: int) -> None:
    before = torch.get_rng_state()
    m, counts = -(-zeros.numel() // 3), torch.zeros(s.total)
    for seed in range(draws):
        drawn = s.sample_outside(m, torch.Generator().manual_seed(seed))
        demand(drawn.shape == (m,) and bool((drawn.diff() > 0).all()), f"{who}: a sample must be sorted and without replacement")
        demand(bool((s.find(drawn) == -1).all()), f"{who}: a sample of the zeros must hold no kept unit")
        counts[drawn] += 1
    again = s.sample_outside(m, torch.Generator().manual_seed(0))
    demand(torch.equal(again, s.sample_outside(m, torch.Generator().manual_seed(0))), f"{who}: a sample must follow from its generator")
    demand(torch.equal(torch.get_rng_state(), before), f"{who}: sampling with a generator must leave torch's own alone")
    demand(torch.equal(s.sample_outside(zeros.numel(), torch.Generator()), zeros), f"{who}: a sample of all zeros must be all of them")
    if draws and zeros.numel() > m:
        p, z = m / zeros.numel(), zeros.numel()
        chi2 = float(((counts[zeros] - draws * p) ** 2).sum()) / (draws * p * (1 - p)) * (z - 1) / z
        sigmas = (chi2 - (z - 1)) / math.sqrt(2 * (z - 1))
        demand(sigmas < 6, f"{who}: samples must be uniform (chi-square {chi2:.0f} for {z - 1} degrees of freedom, {sigmas:.0f} sigma)")


def check_rewire(rewire: Callable[..., Support] = topologies.rewire, *, trials: int = 60) -> None:
    """Drops the lowest scores, grows the highest, ties to the lower id, kept and grown disjoint, every row its ``min_fan_in``."""
    rng = torch.Generator().manual_seed(0)
    for trial in range(trials):
        rows, cols = 3 + trial % 5, 4 + trial % 7
        fan_in = trial % 3
        s = Support.random((rows, cols), max(rows * fan_in, rows * cols // 2), rng=rng, min_fan_in=fan_in)
        drop_score = torch.randint(4, (s.n,), generator=rng).double()  # few levels: many ties
        droppable = s.n - fan_in * rows
        drop = int(torch.randint(droppable + 1, (), generator=rng)) if droppable else 0
        stay = _expected_survivors(s, drop_score.tolist(), drop, fan_in)
        born = torch.tensor([i for i in range(s.total) if i not in stay])[torch.randperm(s.total - len(stay), generator=rng)]
        born_score = torch.randint(3, (born.numel(),), generator=rng).double()
        grow = int(torch.randint(born.numel() + 1, (), generator=rng))
        best = sorted(zip((-born_score).tolist(), born.tolist(), strict=True))[:grow]
        expected = sorted(stay | {i for _, i in best})
        try:
            got = rewire(s, drop_score, born, born_score, drop, grow, fan_in).ids().tolist()
        except Unfit as refusal:
            raise AssertionError(f"rewire: trial {trial}: grew what it kept: {refusal}") from refusal
        where = f"rewire: trial {trial}, {s.n} kept, drop {drop}, grow {grow}, min_fan_in {fan_in}"
        demand(len(got) == s.n - drop + grow, f"{where}: n must become {s.n - drop + grow}, not {len(got)}")
        demand(got == expected, f"{where}: must keep and grow the highest scores, the lower id among equals")


def _expected_survivors(s: Support, score: list[float], drop: int, fan_in: int) -> set[int]:
    best_first = sorted(zip((-v for v in score), s.ids().tolist(), strict=True))
    protected: set[int] = set()
    for row in range(s.grid[0]):
        protected |= {i for _, i in [pair for pair in best_first if pair[1] // s.grid[1] == row][:fan_in]}
    order = sorted(protected) + [i for _, i in best_first if i not in protected]
    return set(order[: s.n - drop])
