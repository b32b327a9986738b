# pyright: reportUnknownMemberType=false
"""What the ranks of a distributed run agree on. Without ``torch.distributed`` each function returns what it is
given."""

import torch
from torch import Tensor


def mean_over_ranks(g: Tensor) -> Tensor:
    """The mean over all ranks, in place: all ranks then compare the same numbers."""
    if _is_distributed():
        torch.distributed.all_reduce(g)
        g.div_(torch.distributed.get_world_size())
    return g


def agreed(finite: bool, seen: list[bool]) -> tuple[bool, list[bool]]:
    """Whether all that was measured is finite on all ranks, and which layers any rank has seen."""
    if not _is_distributed():
        return finite, seen
    flags = torch.tensor([not finite, *seen], dtype=torch.int32)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return not bool(flags[0]), [bool(flag) for flag in flags[1:]]


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
