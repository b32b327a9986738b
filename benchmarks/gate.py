"""The gate of all benchmarks: results are compared before times are measured. Wrong variants get no time.

error     norm of the difference over the norm of the expected result
problems  the parts of a result whose error exceeds the tolerance
sampled   a check of output and both gradients of a sparse linear layer, in a few rows and columns, without the dense
          matrix
"""

from collections.abc import Mapping

import torch
from torch import Tensor

import gossamer as gs

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}


class Mismatch(ArithmeticError):
    """A variant computes wrong results, so no time is reported."""

    def __init__(self, what: str):
        super().__init__(f"{what}. No time is reported.")


def error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected result."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-300))


def problems(pairs: Mapping[str, tuple[Tensor, Tensor]], tolerance: float) -> list[str]:
    """Names and errors of the (got, expected) pairs that differ by more than ``tolerance``."""
    errors = {what: error(*pair) for what, pair in pairs.items()}
    return [f"{what} by {e:.1e}" for what, e in errors.items() if not e <= tolerance]  # NaN compares as False


def sampled(layer: gs.SparseLinear, x: Tensor, dy: Tensor) -> None:
    """Checks output, weight gradient and input gradient in four rows and columns, by direct products.

    Args:
        layer: a layer of single weights.
        x: (batch, in).
        dy: (batch, out), gradient of the output.

    Raises: Mismatch.
    """
    s, values = layer.support, layer.values.detach()
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    dx, dw = torch.autograd.grad(y, (leaf, layer.values), dy)
    bias = torch.zeros(s.shape[0]) if layer.bias is None else layer.bias.detach()
    for i in (0, 1, s.shape[0] // 2, s.shape[0] - 1):
        row, column = slice(int(s.crow[i]), int(s.crow[i + 1])), slice(int(s.ccol[i]), int(s.ccol[i + 1]))
        cols, rows, at = s.col[row].long(), s.row[column].long(), s.perm[column].long()
        pairs = {
            "output": (y[:, i], x[:, cols] @ values[row] + bias[i]),
            "weight gradient": (dw[row], dy[:, i] @ x[:, cols]),
            "input gradient": (dx[:, i], dy[:, rows] @ values[at]),
        }
        if wrong := problems(pairs, TOLERANCE[torch.float32]):
            raise Mismatch(f"{s.shape[0]} x {s.shape[1]}, row {i}: {', '.join(wrong)} of its norm")
