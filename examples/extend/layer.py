"""A sparse 1-d convolution, made of a sparse 2-d convolution over images of height 1.

The inner layer holds the support and the values. So the optimizer, the topology, the ledger, checkpoints and
``gs.densify`` find it, as they find every ``gs.SparseLayer``, and nothing else has to be written.
"""

from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs


class SparseConv1d(nn.Module):
    """y = W * x + b with a sparse kernel W.

    Args:
        in_channels: channels of the input (B, in_channels, length).
        out_channels: channels of the output (B, out_channels, length').
        kernel_size: taps of the kernel.
        stride: step between outputs.
        padding: zeros at each end.
        dilation: step between taps.
        settings: ``density``, ``bias``, ``layout``, ``block``, ``rng``, ``min_fan_in``, ..., as of ``gs.SparseConv2d``.

    Raises: UsageError, from ``gs.SparseConv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        **settings: Any,
    ):
        super().__init__()
        geometry = {"stride": (1, stride), "padding": (0, padding), "dilation": (1, dilation)}
        self.flat = gs.SparseConv2d(in_channels, out_channels, (1, kernel_size), **geometry, **settings)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, conv: nn.Conv1d, density: float, **settings: Any) -> "SparseConv1d":
        """A sparse layer of the same geometry and device; its values are drawn anew, its bias is kept."""
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise gs.UsageError("SparseConv1d", "one group and zero padding by a number", got=conv)
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size[0])
        geometry = (conv.stride[0], conv.padding[0], conv.dilation[0])
        place = {"dtype": conv.weight.dtype, "device": conv.weight.device}
        sparse = cls(*shape, *geometry, density=density, bias=conv.bias is not None, **place, **settings)
        if conv.bias is not None and sparse.flat.bias is not None:
            sparse.flat.bias.copy_(conv.bias)
        return sparse

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, length) -> (B, out_channels, length')."""
        return self.flat(x.unsqueeze(2)).squeeze(2)


def sparsify_conv1d(model: nn.Module, density: float, **settings: Any) -> nn.Module:
    """Replaces every ``nn.Conv1d`` within ``model`` by a ``SparseConv1d``, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv1d):
                setattr(module, name, SparseConv1d.from_dense(child, density, **settings))
    return model
