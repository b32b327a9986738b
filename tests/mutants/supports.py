"""Supports, and the rewiring of one support, broken on purpose."""

from collections.abc import Callable
from dataclasses import replace

import torch

from cases import SUPPORTS
from gossamer import laws
from gossamer.products.sense import reference as sense
from gossamer.support import Support, distinct
from gossamer.topology.rewiring import survivors


def _twisted(name: str = "primes", **methods: Callable) -> Callable[[], None]:
    """The law on a support with some of its methods exchanged."""
    s = SUPPORTS[name]
    twisted = type("Twisted", (Support,), methods)
    return lambda: laws.check_support(twisted(s.shape, s.block, s.crow, s.col, s.ccol, s.row, s.perm))


def _bent(name: str = "primes", **fields: Callable[[Support], torch.Tensor]) -> Callable[[], None]:
    """The law on a support with some of its tensors exchanged."""
    s = SUPPORTS[name]
    return lambda: laws.check_support(replace(s, **{key: make(s) for key, make in fields.items()}))


def _zeros(s: Support) -> int:
    return s.total - s.n


SUPPORT = {
    "columns not sorted": _bent(col=lambda s: s.col.flip(0)),
    "int64 index": _bent(col=lambda s: s.col.long()),
    "row order taken for column order": _bent(perm=lambda s: torch.arange(s.n, dtype=torch.int32)),
    "rows not in column order": _bent(row=lambda s: s.rows()),
    "column pointers shifted": _bent(ccol=lambda s: s.ccol.roll(1)),
    "column pointers with an offset": _bent(ccol=lambda s: s.ccol + 1),
    "samples with replacement": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(torch.randint(max(1, _zeros(s)), (m,), generator=rng).sort()[0])
    ),
    "samples the lower half": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(distinct(max(m, _zeros(s) // 2), m, rng))
    ),
    "samples never hold the last zero": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(distinct(max(m, _zeros(s) - 1), m, rng))
    ),
    "samples hold kept blocks": _twisted(sample_outside=lambda s, m, rng=None: distinct(s.total, m, rng)),
    "samples not sorted": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(distinct(_zeros(s), m, rng)).flip(0)
    ),
    "samples from torch's own generator": _twisted(
        sample_outside=lambda s, m, rng=None: s.outside(distinct(_zeros(s), m))
    ),
    "ranks count from the wrong side": _twisted(
        outside=lambda s, rank: rank + torch.searchsorted(s.ids() - torch.arange(s.n), rank, right=False)
    ),
    "find gives the place to insert": _twisted(find=lambda s, ids: torch.searchsorted(s.ids(), ids)),
    "weights count what hangs over the edge": _twisted(
        "ragged tiles", weights=property(lambda s: s.n * s.block[0] * s.block[1])
    ),
    "weights forget the corner": _twisted(
        "ragged corner only",
        weights=property(lambda s: s.n * 9 - s.n * 3 - s.n * 3),  # one tile, short in both directions
    ),
}


def _rewire_by(
    bend: Callable[[torch.Tensor], torch.Tensor] = lambda score: score,
    fan_in: int | None = None,
    grow_more: int = 0,
    stay_all: bool = False,
    number: Callable[[int], int | None] = lambda ties: ties,
):
    """The real rewire, its scores bent before they are ranked, or the number that decides between equals."""

    def rewire(s, drop_score, born, born_score, drop, grow, min_fan_in=0, ties=0):
        keep = survivors(
            s, bend(drop_score), 0 if stay_all else drop, min_fan_in if fan_in is None else fan_in, number(ties) or 0
        )
        order = torch.argsort(born)
        grown = born[order][
            sense.top_k(bend(born_score[order]), grow + grow_more, sense.tie_keys(born[order], number(ties)))
        ]
        return Support.from_ids(torch.cat([s.ids()[keep], grown]), s.shape, s.block)

    return rewire


def _later_wins(score: torch.Tensor) -> torch.Tensor:
    return score + 1e-6 * torch.arange(score.numel())


def _in_the_order_given(s, drop_score, born, born_score, drop, grow, min_fan_in=0, ties=0):
    keep = survivors(s, drop_score, drop, min_fan_in, ties)
    grown = born[sense.top_k(born_score, grow, lambda at: sense.tie_key(at, ties))]
    return Support.from_ids(torch.cat([s.ids()[keep], grown]), s.shape, s.block)


def _takes_turns(s, drop_score, born, born_score, drop, grow, min_fan_in=0, ties=0):
    """Drops and grows on the whole set: what stayed may be drawn again."""
    keep = s.ids()[survivors(s, drop_score, drop, min_fan_in, ties)]
    return Support.from_ids(torch.cat([keep, keep[:grow]]), s.shape, s.block)


REWIRE = {
    name: (lambda rewire=rewire: laws.check_rewire(rewire))
    for name, rewire in {
        "the lower id wins": _rewire_by(number=lambda ties: None),
        "the higher id wins": _rewire_by(_later_wins),
        "the same order among equals every time": _rewire_by(number=lambda ties: 7),
        "equals are ordered anew at every call": _rewire_by(number=lambda ties: int(torch.randint(1 << 62, ()))),
        "few orders among equals": _rewire_by(number=lambda ties: ties % 3),
        "candidates are ranked as they come": _in_the_order_given,
        "the strongest go": _rewire_by(torch.neg),
        "a row loses its last block": _rewire_by(fan_in=0),
        "one too many grows": _rewire_by(grow_more=1),
        "nothing is dropped": _rewire_by(stay_all=True),
        "what was kept is grown": _takes_turns,
    }.items()
}
