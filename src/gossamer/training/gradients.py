"""Two questions about gradients: whether they are finite, and at which scale."""

import torch
from torch import Tensor


def is_finite(t: Tensor | None) -> bool:
    """Whether all entries are finite. Then their sum is too, unless it overflows: the second look is seldom taken."""
    return t is None or bool(t.sum().isfinite()) or bool(t.isfinite().all())


def unscale(scaler: "torch.amp.GradScaler", optimizer: torch.optim.Optimizer) -> None:
    """Unscales the gradients, unless the caller did, to clip them: a scaler refuses a second time, and does not
    tell."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as refusal:
        if "already been called" not in str(refusal):
            raise
