"""The batch-last memory format through a whole network: counterparts of torch's modules that keep it.

Sparse kernels need the batch innermost in memory: an (N, C, H, W) tensor is stored as (C, H, W, N). A sparse layer
converts its input if necessary and returns this format. ReLU and every other element-by-element operation, dropout,
sums of branches and ``Flatten`` keep the format. Batch normalisation, pooling and dense layers do not, so
:func:`keep_batch_last` replaces them by counterparts:

    BatchNorm1d, BatchNorm2d     work on the matrix (C, H W N) in memory; on request they also compute the next ReLU
    dense Linear                 multiplies that matrix
    dense Conv2d                 1 x 1: multiplies the same matrix; few incoming weights: sparse kernel, full support
    pooling                      works on the channels-last image (C, N, H, W) in memory: the batch as channels

A counterpart is a subclass of torch's module with the same parameters, the same keys in ``state_dict`` and the same
results. For inputs in any other memory format, and under ``torch.compile``, ``torch.func`` or a tracer, it runs torch's
own operations.
"""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._backend.dispatch import is_traced
from ._backend.memory import batch_last as to_batch_last
from ._backend.memory import from_rows, is_batch_last, rows
from ._backend.native import BEST
from ._backend.private_torch import BatchNorm as AnyBatchNorm
from ._errors import UsageError
from .products.conv2d.op import csr_conv2d
from .products.conv2d.reference import Geometry
from .products.linear.op import csr_linear
from .products.norm.op import Running, batch_norm
from .support import Support

__all__ = ["fused", "is_batch_last", "keep_batch_last", "plain_modules", "to_batch_last"]


def keep_batch_last(model: nn.Module, *, fuse: bool = False) -> nn.Module:
    """Makes a model keep the batch-last format: torch's modules become their counterparts, in place.

    A module stays the same object, with its parameters, buffers, hooks and positions in the model. Only its class
    changes, as the class of a lazy module does in torch. Only modules of exactly torch's types are changed, because a
    subclass may compute something else. A second call changes nothing.

    Without ``fuse``, every module still computes its own output. It can be hooked, sliced out, replaced, shared or
    copied.

    Args:
        fuse: a batch normalisation directly before an ``nn.ReLU`` in an ``nn.Sequential`` also computes the ReLU, and
            the ReLU returns its input. This is done if neither has hooks and the normalisation has only one position
            in the model. The two modules are then correct only together: a hook that is set later on the
            normalisation gets the output of the ReLU, a slice that ends between them includes the ReLU, and replacing
            the ReLU does not remove it. ``print(model)`` shows the pairs; :func:`plain_modules` undoes them.

    Returns: the model.
    """
    for m in model.modules():
        if type(m) in COUNTERPARTS:
            _become(m, COUNTERPARTS[type(m)])
    if fuse:
        _fuse(model)
    return model


def _fuse(model: nn.Module) -> None:
    places = Counter(child for parent in model.modules() for child in parent._modules.values())
    for parent in model.modules():
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            for (_, norm), (name, act) in pairwise(parent._modules.items()):
                if (
                    isinstance(norm, _Normalisation)
                    and type(act) is nn.ReLU
                    and places[norm] == 1
                    and not hooked(norm, act)
                ):
                    norm.relu = True
                    if places[act] > 1:  # at its other positions it must stay a ReLU
                        act = parent._modules[name] = nn.ReLU(act.inplace).train(act.training)
                    _become(act, ReLU)


def fused(model: nn.Module) -> list[str]:
    """The names of the normalisations that also compute the ReLU after them."""
    return [name for name, m in model.named_modules() if isinstance(m, _Normalisation) and m.relu]


def plain_modules(model: nn.Module) -> nn.Module:
    """Undoes :func:`keep_batch_last`, in place: counterparts become torch's modules again. Returns: the model."""
    for m in model.modules():
        if type(m) in PLAIN:
            vars(m).pop("relu", None)
            _become(m, PLAIN[type(m)])
    return model


def _become(m: nn.Module, kind: type[nn.Module]) -> None:
    m.__class__ = kind


def hooked(*modules: nn.Module) -> bool:
    """Whether one of the modules has a hook."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


def _lies_batch_last(x: Tensor) -> bool:
    """Whether an input is batch-last, and not seen by a compiler, a tracer or a transform."""
    return not is_traced(x) and is_batch_last(x) and x.numel() > 0


class _Counterpart(nn.Module):
    def __prepare_scriptable__(self) -> nn.Module:
        """Refuses ``torch.jit.script``, which calls this and would put the returned module into the model itself."""
        remedy = "torch.jit.script(gossamer.densify(copy.deepcopy(model))), or torch.jit.trace"
        what = f"it compiles the source of a module, and {type(self).__name__} takes decisions at run time"
        raise UsageError("torch.jit.script", what, remedy=remedy)


# -------------------------------------------------------------------- normalisation


class _Normalisation(_Counterpart, AnyBatchNorm):
    relu: bool = False  # whether it also computes the ReLU that follows

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape, in the same memory format if that is batch-last."""
        if not self._takes(input):
            return self._activated(super().forward(input))
        if self.training or self.running_mean is None:
            return batch_norm(input, self.weight, self.bias, self.eps, self.relu, self._running())
        y = F.batch_norm(
            rows(input)[None], self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return from_rows(self._activated(y)[0], input.shape)

    def _takes(self, x: Tensor) -> bool:
        """Whether the counterpart can be used: a valid, batch-last input; all tensors float32, or all float64."""
        if x.dtype not in (torch.float32, torch.float64) or not _lies_batch_last(x):
            return False
        self._check_input_dim(x)
        for t in (self.weight, self.bias, self.running_mean):
            if t is not None and t.dtype != x.dtype:
                return False
        return x.is_cpu and self.eps > 0 and x.shape[1] == self.num_features and x.numel() > x.shape[1]

    def _activated(self, y: Tensor) -> Tensor:
        return F.relu(y, inplace=True) if self.relu else y

    def _running(self) -> Running | None:
        """The running statistics that this step updates, and the factor of the update, as torch computes it."""
        mean, var, batches, momentum = self.running_mean, self.running_var, self.num_batches_tracked, self.momentum
        if not self.training or not self.track_running_stats or mean is None or var is None:
            return None
        if batches is not None:
            batches.add_(1)
            if momentum is None:  # the mean of all batches
                momentum = 1.0 / float(batches)
        return Running(mean, var, momentum or 0.0)

    def extra_repr(self) -> str:
        """As torch's, and whether this module also computes the next ReLU."""
        return super().extra_repr() + (", relu=True" if self.relu else "")


class BatchNorm1d(_Normalisation, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` that keeps the batch-last format: (N, C) or (N, C, L)."""


class BatchNorm2d(_Normalisation, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that keeps the batch-last format: (N, C, H, W)."""


class ReLU(_Counterpart, nn.ReLU):
    """An ``nn.ReLU`` that returns its input, because the batch normalisation before it computes the ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        """The input."""
        return input

    def extra_repr(self) -> str:
        """Shows where the ReLU is computed."""
        return "done by the normalisation before it"


# -------------------------------------------------------------------- pooling


class MaxPool2d(_Counterpart, nn.MaxPool2d):
    """``nn.MaxPool2d`` that keeps the batch-last format: (N, C, H, W) -> (N, C, H', W')."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's; with ``return_indices`` it is torch's."""
        return super().forward(input) if self.return_indices else _pooled(super().forward, input)  # type: ignore[return-value]


class AvgPool2d(_Counterpart, nn.AvgPool2d):
    """``nn.AvgPool2d`` that keeps the batch-last format: (N, C, H, W) -> (N, C, H', W')."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's."""
        return _pooled(super().forward, input)


class AdaptiveMaxPool2d(_Counterpart, nn.AdaptiveMaxPool2d):
    """``nn.AdaptiveMaxPool2d`` that keeps the batch-last format: (N, C, H, W) -> (N, C, H', W')."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's; with ``return_indices`` it is torch's."""
        return super().forward(input) if self.return_indices else _pooled(super().forward, input)  # type: ignore[return-value]


class AdaptiveAvgPool2d(_Counterpart, nn.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d`` that keeps the batch-last format: (N, C, H, W) -> (N, C, H', W')."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's."""
        if self.output_size in (1, (1, 1)) and input.dim() == 4 and _lies_batch_last(input):
            # torch's own operation is a mean, and the gradient of a mean has another memory format
            return _pooled(lambda x: F.avg_pool2d(x, x.shape[2:]), input)
        return _pooled(super().forward, input)


# -------------------------------------------------------------------- layers that stay dense

FEW = 1 << 15  # weights: up to this number the sparse kernel with full support is faster than a dense product


class Linear(_Counterpart, nn.Linear):
    """``nn.Linear`` that keeps the batch-last format of a matrix (N, F), for which torch's own product is slow.

    It computes the transposed product. With few weights, as in the last layer, it runs the sparse kernel with full
    support.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        plain = input.dim() != 2 or input.is_contiguous() or input.dtype != self.weight.dtype or not input.is_cpu
        if plain or torch.is_autocast_enabled("cpu") or not _lies_batch_last(input):
            return super().forward(input)
        if BEST is not None and self.weight.numel() <= FEW:
            return csr_linear(input, self.weight.view(-1), _full(self.out_features, self.in_features), self.bias)
        x = input.t()
        return (self.weight @ x if self.bias is None else torch.addmm(self.bias[:, None], self.weight, x)).t()


SMALL = 64  # incoming weights: up to this number the sparse kernel with full support is faster than two conversions


class Conv2d(_Counterpart, nn.Conv2d):
    """``nn.Conv2d`` that returns the batch-last format where that is cheap.

    A 1 x 1 kernel multiplies the matrix (C, H W N). A kernel of few incoming weights, as in the first layer, runs as
    the sparse kernel with full support.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H', W')."""
        if not self._takes(input):
            return super().forward(input)
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            return self._pointwise(to_batch_last(input))
        g = Geometry(*self._sizes())
        return csr_conv2d(input, self.weight.view(-1), _full(self.out_channels, self.weight[0].numel()), g, self.bias)

    def _takes(self, x: Tensor) -> bool:
        """Whether the counterpart can be used: a valid input, all tensors float32 or all float64, and a fast kernel."""
        if (
            x.dim() != 4
            or x.dtype not in (torch.float32, torch.float64)
            or torch.is_autocast_enabled(x.device.type)
            or x.numel() == 0
        ):
            return False
        if is_traced(x) or not x.is_cpu or self.groups != 1 or isinstance(self.padding, str):
            return False
        if self.weight.dtype != x.dtype or x.shape[1] != self.in_channels or self.padding_mode != "zeros":
            return False
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            return is_batch_last(x)
        return (
            BEST is not None and self.weight[0].numel() <= SMALL and min(Geometry(*self._sizes()).out(*x.shape[2:])) > 0
        )

    def _pointwise(self, x: Tensor) -> Tensor:
        images = x.movedim(0, -1)[:, :: self.stride[0], :: self.stride[1]]  # (C, H', W', N)
        flat, weight = images.flatten(1), self.weight.flatten(1)
        y = weight @ flat if self.bias is None else torch.addmm(self.bias[:, None], weight, flat)
        return from_rows(y, (x.shape[0], self.out_channels, *images.shape[1:3]))

    def _sizes(self) -> list[tuple[int, int]]:
        return [self.kernel_size, self.stride, self.padding, self.dilation]  # type: ignore[list-item]


@lru_cache(maxsize=64)
def _full(rows: int, cols: int) -> Support:
    return Support.full((rows, cols))


def _pooled(pool: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Pools a batch-last image as the channels-last image (C, N, H, W), for which torch has its fastest kernels."""
    return pool(x.transpose(0, 1)).transpose(0, 1) if x.dim() == 4 and _lies_batch_last(x) else pool(x)


COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.MaxPool2d: MaxPool2d,
    nn.AvgPool2d: AvgPool2d,
    nn.AdaptiveMaxPool2d: AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool2d,
}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    **{counterpart: plain for plain, counterpart in COUNTERPARTS.items()},
    ReLU: nn.ReLU,
}
