"""Dispatch with reasons: a kernel says in sentences why it cannot run; the first that has nothing to say runs."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import Unfit, nearest

ENVIRONMENT = "GOSSAMER_BACKEND"


class Kernel(NamedTuple):
    """One implementation of an operation: ``run(*args)`` if ``unfit(*args)`` is empty."""

    name: str
    run: Callable[..., Any]
    unfit: Callable[..., list[str]]  # sentences; [] = can run


def always(*_args: Any) -> list[str]:
    """No objection."""
    return []


def full_precision(first: Tensor, *_args: Any) -> list[str]:
    """The objection of kernels that know float32 and float64 only (operators cast their inputs to the dtype of the values)."""
    known = first.dtype in (torch.float32, torch.float64)
    return [] if known else [f"values must be float32 or float64, not {first.dtype} (under autocast they stay float32)"]


def choose(kernels: Sequence[Kernel], *args: Any) -> Kernel:
    """The first kernel, fastest first, that can run on these arguments; ``GOSSAMER_BACKEND`` forces one by name."""
    asked = os.environ.get(ENVIRONMENT)
    names = [k.name for k in kernels]
    if asked and asked not in names:
        raise Unfit(
            ENVIRONMENT, f"there is no kernel {asked!r} for this operation{nearest(asked, names)}", remedy=f"one of {', '.join(names)}"
        )
    for kernel in kernels:
        if (not asked or kernel.name == asked) and not kernel.unfit(*args):
            return kernel
    raise Unfit("kernels", "no kernel can run on these arguments", reasons=[line for _, lines in why(kernels, *args) for line in lines])


def run(kernels: Sequence[Kernel], *args: Any) -> Any:
    """What the chosen kernel makes of these arguments, the first of them a tensor; autocast is off inside, where it would change dtypes."""
    with torch.autocast(args[0].device.type, enabled=False):
        return choose(kernels, *args).run(*args)


def why(kernels: Sequence[Kernel], *args: Any) -> list[tuple[str, list[str]]]:
    """For each kernel its name and the reasons against it, [] if it can run."""
    return [(k.name, k.unfit(*args)) for k in kernels]
