"""The fast twin of :func:`.reference.sampled`: the weight-gradient kernels at other coordinates."""

from typing import Any

import torch
from torch import Tensor

from ...support import INT, grid_of
from ..csr_conv2d import native as conv2d
from ..csr_conv2d.reference import Geometry
from ..csr_linear import native as linear
from ..kernels import Kernel
from ..native import BEST, why_not


def kernels(m: Any, name: str = "native") -> dict[str, Kernel]:
    """The kernels of one build, by operation."""

    def sampled(dy: Tensor, x: Tensor, ids: Tensor, shape: tuple[int, int], unit: tuple[int, int], g: Geometry | None = None) -> Tensor:
        crow = torch.searchsorted(ids, torch.arange(shape[0] + 1) * shape[1]).to(INT)
        col = (ids % shape[1]).to(INT)
        if g is not None:
            return conv2d.sampled(m, dy, x, crow, col, g)
        return linear.sampled(m, dy.reshape(-1, shape[0]), x.reshape(-1, shape[1]), crow, col)

    return {"sampled": Kernel(name, sampled, _unfit)}


def _unfit(dy: Tensor, x: Tensor, ids: Tensor, shape: tuple[int, int], unit: tuple[int, int], g: Geometry | None = None) -> list[str]:
    reasons = why_not(dy, x)
    return [*reasons, f"units must be single weights, not {unit}"] if grid_of(shape, unit) != tuple(shape) else reasons


KERNELS = kernels(BEST)
