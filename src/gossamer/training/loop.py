"""``fit``, a plain training loop."""

# pyright: strict

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .events import Diverged, Event
from .stepper import Stepper
from .target import TargetDensity

Batch = tuple[Tensor, Tensor]  # (input, target)


class Step(NamedTuple):
    """What :func:`fit` reports after each optimizer step."""

    t: int
    loss: float  # mean over the batches of the step
    seconds: float
    event: Event | None


class Accounts(Protocol):
    """What :func:`fit` calls of a :class:`~gossamer.Ledger`."""

    def step(self, batch: int, rewirer: Stepper | None = None) -> None:
        """Records one training step over ``batch`` examples, after its backward pass."""
        ...


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    rewirer: Stepper | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    target: TargetDensity | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    clip: float | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    ledger: Accounts | None = None,
    on_step: Callable[[Step], object] | None = None,
) -> None:
    """A plain training loop, once over ``batches`` of (input, target).

    Args:
        rewirer: a :class:`~gossamer.Rewirer` or a :class:`~gossamer.Multilevel`, stepped in place of the optimizer.
        scheduler: stepped after every optimizer step.
        target: a :class:`~gossamer.TargetDensity`, stepped after both.
        loss: (output, target) -> the loss, a tensor of no dimensions.
        clip: largest norm of all gradients together.
        accumulate: batches per optimizer step; their mean loss is used. A last incomplete group is one step too.
        autocast: dtype of the forward pass, for example ``torch.bfloat16``.
        ledger: a :class:`~gossamer.Ledger` that records every step.
        on_step: called with a :class:`Step` after every optimizer step.

    Raises: Diverged if the loss is NaN or infinite, before the optimizer steps.
    """
    model.train()
    device = next(model.parameters()).device
    t = rewirer.t if rewirer is not None else 0
    for group in _grouped(batches, accumulate):
        begin, total, examples = time.perf_counter(), 0.0, 0
        optimizer.zero_grad(set_to_none=True)
        for x, y in group:
            x, y = x.to(device), y.to(device)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                value = loss(model(x), y) / len(group)
            total += float(value.detach())
            examples += x.shape[0]
            if not math.isfinite(total):
                optimizer.zero_grad(set_to_none=True)
                if rewirer is not None:
                    rewirer.discard()
                raise Diverged(t + 1, total)
            value.backward()  # pyright: ignore[reportUnknownMemberType]  # torch gives it no types
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if ledger is not None:
            ledger.step(examples, rewirer)
        (optimizer if rewirer is None else rewirer).step()
        if scheduler is not None:
            scheduler.step()
        if target is not None:
            target.step()
        t += 1
        if on_step is not None:
            on_step(Step(t, total, time.perf_counter() - begin, rewirer.last if rewirer is not None else None))


def _grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
