"""One product, forward and backward, by every library that can compute it: dense torch, gossamer, torch.sparse, peers.

Each variant gets its input and the gradient of its output in the memory order that suits it best. It computes the
output and the gradients of input and weight, and keeps none of them: all its memory is freed within the call, as in the
middle of a network.

    dense        nn.Linear, batch first and batch last; nn.Conv2d, NCHW and channels last
    gossamer     SparseLinear, SparseConv2d, batch last
    torch.sparse a CSR matrix times a dense one, by torch's autograd (the weight's gradient is dense); no convolution
    sparseprop   its modules; the convolution over the batch, and over the output's width (the faster one counts)
    sparselab    its SparseLinear; no convolution
"""

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.layouts import scatter
from timing import batch_last


class Variant(NamedTuple):
    """One way to compute the product."""

    family: str
    form: str  # name of the variant within the family
    forward: Callable[[Tensor], Tensor]
    weight: Tensor  # the trained parameter
    x: Tensor
    dy: Tensor
    flat: Callable[[Tensor], Tensor]  # gradient of `weight` -> that of the dense weight's non-zeros, row by row

    @property
    def name(self) -> str:
        """Family and form."""
        return f"{self.family} {self.form}".strip()

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output, input gradient, weight gradient."""
        y = self.forward(self.x)
        dx, dw = torch.autograd.grad(y, (self.x, self.weight), self.dy)
        return y, dx, dw


def dense(layer: gs.SparseLayer, x: Tensor, dy: Tensor) -> Iterator[Variant]:
    """The dense layer with the same weight in two memory orders; the first is the order that torch's layers expect."""
    weight = layer.to_dense()
    for form, order in _orders(layer).items():
        counterpart = _dense_counterpart(layer)
        if form == "channels last":
            counterpart = counterpart.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        with torch.no_grad():
            counterpart.weight.copy_(weight)
        yield Variant(
            "dense", form, counterpart, counterpart.weight, _leaf(order(x)), order(dy), lambda g: g[weight != 0]
        )


def gossamer(layer: gs.SparseLayer, x: Tensor, dy: Tensor) -> Variant:
    """The sparse layer itself."""
    weight = layer.to_dense()

    def flat(g: Tensor) -> Tensor:
        return scatter(g, layer.support).view(weight.shape)[weight != 0]

    return Variant("gossamer", "", layer, layer.values, _leaf(batch_last(x)), batch_last(dy), flat)


def peers(layer: gs.SparseLayer, x: Tensor, dy: Tensor) -> Iterator[Variant]:
    """The variants of other libraries that are installed, in float32."""
    if layer.values.dtype != torch.float32:
        return
    if layer.geometry is None:
        yield _torch_sparse(layer, x, dy)
        if find_spec("sparselab"):
            yield _sparselab(import_module("sparselab"), layer, x, dy)
    if find_spec("sparseprop"):
        yield from _sparseprop(import_module("sparseprop.modules"), layer, x, dy)


# -------------------------------------------------------------------- details


def _orders(layer: gs.SparseLayer) -> dict[str, Callable[[Tensor], Tensor]]:
    """Memory orders of the dense layer's input and output gradient."""
    if layer.geometry is None:
        return {"batch first": torch.Tensor.contiguous, "batch last": batch_last}
    return {"NCHW": torch.Tensor.contiguous, "channels last": lambda t: t.contiguous(memory_format=torch.channels_last)}


def _dense_counterpart(layer: gs.SparseLayer) -> nn.Linear | nn.Conv2d:
    place: dict[str, Any] = {"bias": False, "dtype": layer.values.dtype}
    if layer.geometry is None:
        return nn.Linear(layer.dense_shape[1], layer.dense_shape[0], **place)
    return nn.Conv2d(layer.dense_shape[1], layer.dense_shape[0], *layer.geometry, **place)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _torch_sparse(layer: gs.SparseLayer, x: Tensor, dy: Tensor) -> Variant:
    weight = layer.to_dense()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR tensors are in beta
        csr = weight.to_sparse_csr().requires_grad_()

    def flat(g: Tensor) -> Tensor:
        return (g if g.layout == torch.strided else g.to_dense())[weight != 0]

    return Variant("torch.sparse", "", lambda x: (csr @ x.t()).t(), csr, _leaf(batch_last(x)), batch_last(dy), flat)


def _sparseprop(module: Any, layer: gs.SparseLayer, x: Tensor, dy: Tensor) -> Iterator[Variant]:
    counterpart = _dense_counterpart(layer)
    with torch.no_grad():
        counterpart.weight.copy_(layer.to_dense())
    if layer.geometry is None:
        peer = module.SparseLinear.from_dense(counterpart)
        yield Variant("sparseprop", "", peer, peer.W_val, _leaf(x.contiguous()), dy.contiguous(), lambda g: g)
        return
    for form, over_width, order in (("over batch", False, batch_last), ("over width", True, torch.Tensor.contiguous)):
        peer = module.SparseConv2d.from_dense(counterpart, vectorizing_over_on=over_width)
        yield Variant("sparseprop", form, peer, peer.W_val, _leaf(order(x)), order(dy), lambda g: g)


def _sparselab(module: Any, layer: gs.SparseLayer, x: Tensor, dy: Tensor) -> Variant:
    rows, cols = layer.dense_shape
    peer = module.SparseLinear(
        cols, rows, bias=False, sparsity=1 - layer.density
    )  # it has drawn other weights: set these
    peer._csr = module.PaddedCSR.from_dense(layer.to_dense())
    peer._values = nn.Parameter(torch.from_numpy(peer._csr.values))
    import_module("sparselab.ops")._clear_transpose_cache()  # its keys are ids, which Python reuses
    live = torch.cat(
        [torch.arange(a, a + n) for a, n in zip(peer._csr.row_start.tolist(), peer._csr.row_nnz.tolist(), strict=True)]
    )
    return Variant("sparselab", "", peer, peer._values, _leaf(x.contiguous()), dy.contiguous(), lambda g: g[live])
