"""The laws of supports and of rewiring one support."""

# torch leaves Tensor.tolist without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._errors import UsageError
from ..support import INT, Support, index_problems
from ..topology import rewire as real_rewire
from .details import demand, uniform


def check_support(s: Support, *, draws: int = 200) -> None:
    """The index is valid, row order and column order have the same blocks, and samples of the zeros are uniform.

    The maps between ids, ranks and positions are inverse to each other.

    Args:
        s: the support.
        draws: samples in the test of uniformity (chi-square over all zeros, 6 sigma, a fixed seed).

    Raises: AssertionError.
    """
    who = f"support {s.shape} in blocks of {s.block}, n={s.n}"
    int32 = all(t.dtype == INT for t in (s.crow, s.col, s.ccol, s.row, s.perm))
    demand(int32, f"{who}: every index tensor must be int32")
    problems = index_problems(s.crow, s.col, s.shape, s.block)
    demand(not problems, f"{who}: not a CSR index: {'; '.join(problems)}")
    ids = s.ids()
    kept = torch.zeros(s.total, dtype=torch.bool)
    kept[ids] = True
    distinct = int(kept.sum()) == s.n == ids.numel() and bool((ids.diff() > 0).all())
    demand(distinct, f"{who}: ids must be sorted and distinct")

    by_column = torch.sort(s.col, stable=True)[1]
    demand(torch.equal(s.perm.long(), by_column), f"{who}: perm must list the blocks column by column")
    demand(torch.equal(s.row, s.rows()[by_column]), f"{who}: row must be the block rows in column order")
    counts = torch.bincount(s.col.long(), minlength=s.grid[1])
    pointers = torch.equal(s.ccol.diff().long(), counts) and int(s.ccol[0]) == 0
    demand(pointers, f"{who}: ccol must point at the block columns")

    zeros = torch.arange(s.total)[~kept]
    demand(torch.equal(s.find(ids), torch.arange(s.n)), f"{who}: find must give the position of every kept id")
    demand(bool((s.find(zeros) == -1).all()), f"{who}: find must give -1 for an id that is not kept")
    ranked = s.outside(torch.arange(zeros.numel()))
    demand(torch.equal(ranked, zeros), f"{who}: outside(rank) must be the rank-th id that is not kept")
    again = Support.from_ids(ids.flip(0), s.shape, s.block)
    demand(again.same(s), f"{who}: from_ids of the ids must give the support back")
    again = Support.from_index(s.crow, s.col, s.shape, s.block)
    demand(again.same(s), f"{who}: from_index of the index must give the support back")

    (h, w), (rows, cols) = s.block, s.shape
    tiles = kept.view(s.grid).repeat_interleave(h, 0).repeat_interleave(w, 1)[:rows, :cols]
    demand(torch.equal(s.mask(), tiles), f"{who}: mask must hold exactly the kept blocks")
    demand(s.weights == int(tiles.sum()), f"{who}: weights must count the scalars of the kept blocks inside the matrix")
    _check_sampling(s, zeros, who, draws)


def _check_sampling(s: Support, zeros: Tensor, who: str, draws: int) -> None:
    """Checks that samples of the zeros are distinct, uniform, and depend only on their generator."""
    before = torch.get_rng_state()
    m, counts = -(-zeros.numel() // 3), torch.zeros(s.total)

    def sample(seed: int) -> Tensor:
        return s.sample_outside(m, torch.Generator().manual_seed(seed))

    for seed in range(draws):
        drawn = sample(seed)
        distinct = drawn.shape == (m,) and bool((drawn.diff() > 0).all())
        demand(distinct, f"{who}: a sample must be sorted and without replacement")
        demand(bool((s.find(drawn) == -1).all()), f"{who}: a sample of the zeros must hold no kept block")
        counts[drawn] += 1
    demand(torch.equal(sample(0), sample(0)), f"{who}: a sample must follow from its generator")
    left = torch.equal(torch.get_rng_state(), before)
    demand(left, f"{who}: sampling with a generator must not advance torch's own")
    every = s.sample_outside(zeros.numel(), torch.Generator())
    demand(torch.equal(every, zeros), f"{who}: a sample of all zeros must be all of them")
    if draws and zeros.numel() > m:
        uniform(counts[zeros], draws, m / zeros.numel(), f"{who}: samples must be uniform")


# -------------------------------------------------------------------- rewiring


def check_rewire(rewire: Callable[..., Support] = real_rewire, *, trials: int = 60, draws: int = 300) -> None:
    """Rewiring drops the lowest scores and grows the highest. The order of the candidates does not matter.

    Every row keeps its best ``min_fan_in`` blocks. Only ``ties`` decides between equal scores; all orders are equally
    likely (chi-square, 6 sigma, a fixed seed).

    Args:
        rewire: ``gossamer.rewire``, or a function with its signature.
        trials: number of random cases.
        draws: values of ``ties`` in the test of uniformity.

    Raises: AssertionError.
    """
    rng = torch.Generator().manual_seed(0)
    for trial in range(trials):
        _check_trial(rewire, trial, rng)
    _check_ties(rewire, draws)


def _check_trial(rewire: Callable[..., Support], trial: int, rng: torch.Generator) -> None:
    """One random support that is rewired."""
    rows, cols, fan_in = 3 + trial % 5, 4 + trial % 7, trial % 3
    s = Support.random((rows, cols), max(rows * fan_in, rows * cols // 2), rng=rng, min_fan_in=fan_in)
    score = torch.randint(4, (s.n,), generator=rng).double()  # few values, so many ties
    droppable, ties = s.n - fan_in * rows, int(torch.randint(1 << 62, (), generator=rng))
    drop = int(torch.randint(droppable + 1, (), generator=rng))
    where = f"rewire: trial {trial}, {s.n} kept, drop {drop}, min_fan_in {fan_in}"
    nothing = torch.empty(0, dtype=torch.int64)
    stay = rewire(s, score, nothing, nothing.double(), drop, 0, fan_in, ties)
    _check_survivors(s, score, stay, drop, fan_in, where)
    born = stay.outside(torch.arange(s.total - stay.n))[torch.randperm(s.total - stay.n, generator=rng)]
    born_score = torch.randint(3, (born.numel(),), generator=rng).double()
    grow = int(torch.randint(born.numel() + 1, (), generator=rng))
    try:
        new = rewire(s, score, born, born_score, drop, grow, fan_in, ties)
    except UsageError as refusal:
        raise AssertionError(f"{where}, grow {grow}: a kept block must not grow: {refusal}") from refusal
    demand(new.n == s.n - drop + grow, f"{where}: n must become {s.n - drop + grow}, not {new.n}")
    demand(bool((new.find(stay.ids()) >= 0).all()), f"{where}: the growth must not decide which blocks stay")
    grown = new.find(born) >= 0
    low = float(born_score[grown].min()) if grow else math.inf
    high = float(born_score[~grown].max()) if grow < born.numel() else -math.inf
    demand(low >= high, f"{where}, grow {grow}: must grow the highest scores")
    again = rewire(s, score, born.flip(0), born_score.flip(0), drop, grow, fan_in, ties)
    demand(again.same(new), f"{where}, grow {grow}: the order of the candidates must not matter")


def _check_survivors(s: Support, score: Tensor, stay: Support, drop: int, fan_in: int, where: str) -> None:
    """Checks the blocks that stay: their number, the best of each row, and the highest scores of the rest."""
    subset = stay.n == s.n - drop and bool((s.find(stay.ids()) >= 0).all())
    demand(subset, f"{where}: {s.n - drop} of the kept blocks must stay")
    stays = stay.find(s.ids()) >= 0
    free: list[Tensor] = []  # scores of the blocks that stay and are not protected
    for row in range(s.grid[0]):
        mine = s.rows() == row
        kept, everything = (score[these].sort(descending=True)[0] for these in (mine & stays, mine))
        demand(torch.equal(kept[:fan_in], everything[:fan_in]), f"{where}: row {row} must keep its best {fan_in}")
        free.append(kept[fan_in:])
    low = torch.cat(free)
    fine = not drop or not low.numel() or bool(low.min() >= score[~stays].max())
    demand(fine, f"{where}: the lowest scores must be dropped")


def _check_ties(rewire: Callable[..., Support], draws: int) -> None:
    """Among equal scores, drops and growth are uniform over the values of ``ties``."""
    rng = torch.Generator().manual_seed(1)
    s = Support.random((5, 6), 12, rng=rng)
    zeros, equal = s.outside(torch.arange(18)), torch.ones(18, dtype=torch.float64)
    counts = torch.zeros(30)
    for ties in torch.randint(1 << 62, (draws,), generator=rng).tolist():
        new = rewire(s, equal[:12], zeros, equal, 5, 7, 0, ties)
        demand(
            rewire(s, equal[:12], zeros, equal, 5, 7, 0, ties).same(new),
            "rewire: only ties may decide between equal scores",
        )
        counts[new.ids()] += 1
    uniform(counts[s.ids()], draws, 7 / 12, "rewire: among equal scores all blocks must be dropped equally often")
    uniform(counts[zeros], draws, 7 / 18, "rewire: among equal scores all candidates must grow equally often")
