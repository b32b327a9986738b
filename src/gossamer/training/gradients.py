"""Checks whether gradients are finite, and unscales them."""

import torch
from torch import Tensor


def is_finite(t: Tensor | None) -> bool:
    """Whether all entries are finite. A finite sum shows it at low cost; the sum may overflow, so entries decide."""
    return t is None or bool(t.sum().isfinite()) or bool(t.isfinite().all())


def unscale(scaler: "torch.amp.GradScaler", optimizer: torch.optim.Optimizer) -> None:
    """Unscales the gradients, unless the caller has already done so (to clip them). A scaler refuses a second call and
    has no public flag for it, so the message of its error decides."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as refusal:
        if "already been called" not in str(refusal):
            raise
