# pyright: strict
"""The non-zero weights of a layer. For a sparse layer no tensor of the dense size is made."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...layers import SparseLayer

Layer = nn.Linear | nn.Conv2d | SparseLayer


class Weights(NamedTuple):
    """The non-zero weights of a layer: output channel, column of the matrix (out, in kh kw), and value, (m,) each, on
    the CPU."""

    row: Tensor
    column: Tensor
    value: Tensor  # float64


def weights_of(m: Layer) -> Weights:
    """The non-zero weights of a layer. NaN counts as non-zero."""
    with torch.no_grad():
        if isinstance(m, SparseLayer):
            inside, flat = m.support.scalars()
            values = m.layout.compact(m.values, m.support).reshape(-1)
            values = values if inside is None else values[inside]
        else:
            matrix = m.weight.flatten()
            flat = matrix.nonzero().flatten()
            values = matrix[flat]
        live = values != 0
        flat, values, columns = flat[live].cpu(), values[live].double().cpu(), columns_of(m)
        return Weights(flat // columns, flat % columns, values)


def sizes_of(m: Layer) -> tuple[int, int]:
    """(output channels, input channels or features)."""
    shape = m.dense_shape if isinstance(m, SparseLayer) else m.weight.shape
    return shape[0], shape[1]


def columns_of(m: Layer) -> int:
    """The number of columns of the matrix."""
    return sizes_of(m)[1] * taps_of(m)


def taps_of(m: Layer) -> int:
    """The number of columns per input channel: kh kw, or 1 for a linear layer."""
    shape = m.dense_shape if isinstance(m, SparseLayer) else m.weight.shape
    return shape[2:].numel()


def bias_of(m: Layer) -> Tensor:
    """The bias, zeros if there is none, (out,) float64 on the CPU."""
    bias: Tensor | None = m.bias
    return torch.zeros(sizes_of(m)[0], dtype=torch.float64) if bias is None else bias.detach().double().cpu()


def is_image_layer(m: Layer) -> bool:
    """Whether the layer is a convolution."""
    return m.geometry is not None if isinstance(m, SparseLayer) else isinstance(m, nn.Conv2d)


def pads_zeros(m: Layer) -> bool:
    """Whether the layer pads its input with zeros. A constant channel is then not constant at the border."""
    if isinstance(m, SparseLayer):
        return m.geometry is not None and max(m.geometry.padding) > 0
    if not isinstance(m, nn.Conv2d) or m.padding_mode != "zeros":
        return False
    return m.padding == "same" if isinstance(m.padding, str) else max(m.padding) > 0
