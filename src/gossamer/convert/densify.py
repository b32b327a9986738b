# pyright: strict
"""From a sparse model back to a dense one."""

from torch import nn

from .._errors import check_module
from .._modules import replaced
from ..batch_last import plain_modules
from ..layers import SparseLayer, sparse_layers


def densify(model: nn.Module) -> nn.Module:
    """Replaces every sparse layer by torch's layer with the same weights, in place.

    Batch-last counterparts are replaced by torch's modules too.

    Returns: the model (a new module if the model is a single layer).
    """
    check_module("densify", model)
    model = plain_modules(replaced(model, {layer: _dense(layer) for layer in sparse_layers(model).values()}))
    if "sparsity_report" in vars(model):
        del model.sparsity_report
    return model


def _dense(layer: SparseLayer) -> nn.Module:
    """The ``nn.Linear`` or ``nn.Conv2d`` with the weights of this layer.

    It has the same parameter as bias, so an optimizer with this parameter stays valid.
    """
    rows, cols, g, bias = *layer.dense_shape[:2], layer.geometry, layer.bias is not None
    dense: nn.Linear | nn.Conv2d
    if g is None:
        dense = nn.Linear(cols, rows, bias=bias, device="meta")
    else:
        dense = nn.Conv2d(cols, rows, g.kernel, g.stride, g.padding, g.dilation, bias=bias, device="meta")
    dense.register_parameter("weight", nn.Parameter(layer.to_dense(), layer.values.requires_grad))
    dense.register_parameter("bias", layer.bias)
    return dense.train(layer.training)
