# pyright: reportUnknownMemberType=false
"""Reductions over the ranks of a distributed run. Without ``torch.distributed`` each function returns its arguments."""

import torch
from torch import Tensor


def mean_over_ranks(g: Tensor) -> Tensor:
    """The mean over all ranks, in place. So all ranks compare the same numbers."""
    if _is_distributed():
        torch.distributed.all_reduce(g)
        g.div_(torch.distributed.get_world_size())
    return g


def agreed(finite: bool, seen: list[bool]) -> tuple[bool, list[bool]]:
    """Whether all measurements are finite on all ranks, and which layers at least one rank has measured."""
    if not _is_distributed():
        return finite, seen
    flags = torch.tensor([not finite, *seen], dtype=torch.int32)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return not bool(flags[0]), [bool(flag) for flag in flags[1:]]


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
