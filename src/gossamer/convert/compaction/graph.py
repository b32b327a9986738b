# pyright: strict
"""The channels of a model: which layers make them, which read them, and which are constant.

A trace of the model (torch.fx) is followed node by node. An unsupported operation keeps all channels that it reads, and
its result counts as unknown. It can therefore only keep too many channels, never too few.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from ..._backend.private_torch import BatchNorm as AnyBatchNorm
from ..._modules import named_modules
from ...batch_last import PLAIN, ReLU, hooked
from ...layers import SparseConv2d, SparseLayer, SparseLinear
from . import operations as ops
from .values import Space, Value
from .weights import Layer, Weights, bias_of, is_image_layer, pads_zeros, sizes_of, taps_of, weights_of

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, SparseLinear, SparseConv2d)


class Untraceable(ValueError):
    """The forward pass cannot be traced, or depends on the widths of layers; the message gives the reason."""


@dataclass(eq=False)
class Reader:
    """A layer. It reads the channels of ``source`` (None: its input is unknown) and makes the channels ``made``."""

    name: str
    module: Layer
    source: Space | None
    spread: int  # features per channel of the source
    made: Space
    weights: Weights
    channel: Tensor  # (m,) channel of the source that each non-zero weight reads
    constant: Tensor  # (m,) the constant input of each weight, NaN if it depends on the input of the model


@dataclass(eq=False)
class Norm:
    """A batch normalisation. Each channel of ``space`` has ``spread`` entries in its parameters."""

    name: str
    module: AnyBatchNorm
    space: Space
    spread: int


@dataclass(eq=False)
class Channels:
    """All layers and normalisations whose channels can be followed, and the spaces of their channels."""

    readers: list[Reader] = field(default_factory=list[Reader])
    norms: list[Norm] = field(default_factory=list[Norm])
    alone: dict[str, str] = field(default_factory=dict[str, str])  # modules that must not change: name -> reason

    def spaces(self) -> list[Space]:
        """The root spaces."""
        return list(dict.fromkeys(reader.made.root() for reader in self.readers))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True for torch's modules, sparse layers and batch-last counterparts: each is one node."""
        ours = isinstance(m, SparseLayer) or type(m) in PLAIN
        return ours or super().is_leaf_module(m, module_qualified_name)


def trace_of(model: nn.Module) -> fx.Graph:
    """The forward pass of a model in eval mode, as a graph. Raises :class:`Untraceable`."""
    try:
        return _Tracer().trace(model)
    # the forward pass is code of the user: it can raise any of these errors on the proxies of the tracer
    except (ValueError, TypeError, RuntimeError, AttributeError, LookupError, NotImplementedError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise Untraceable(f"torch.fx cannot trace it: {type(error).__name__}: {first}") from error


def same_program(a: fx.Graph, b: fx.Graph) -> bool:
    """Whether two traces have the same operations with the same operands and numbers."""

    def lines(graph: fx.Graph) -> list[tuple[object, ...]]:
        return [(n.op, n.target, *(fx.map_arg(v, str) for v in (n.args, n.kwargs))) for n in graph.nodes]

    return lines(a) == lines(b)


def channels_of(model: nn.Module, graph: fx.Graph) -> Channels:
    """Follows the channels through the trace of a model."""
    walk = _Walk(model, graph)
    for node in graph.nodes:
        walk.visit(node)
    return walk.found


class _Walk:
    """One pass over the nodes of a trace, in the order in which they run."""

    def __init__(self, model: nn.Module, graph: fx.Graph):
        self.found = Channels()
        self.values: dict[Node, Value | None] = {}  # None: the tensor is unknown
        self.modules = named_modules(model)
        self.alone = self.found.alone = _to_leave_alone(self.modules, graph)

    def visit(self, node: Node) -> None:
        """Sets the value of a node from the values of its operands."""
        if node.op == "call_module":
            self.values[node] = self._module(node, str(node.target))
        elif node.op in ("call_function", "call_method"):
            self.values[node] = self._operation(node)
        else:
            self.values[node] = self._opaque(node, "the model returns its output")

    def _opaque(self, node: Node, why: str) -> None:
        """Keeps all channels of the operands, and drops their constants.

        The constants are lost because the operation may write to the memory of its operands, or return a view of it.
        """
        for operand in node.all_input_nodes:
            if (value := self.values[operand]) is not None:
                value.space.pin(why)
                value.forget()

    def _operand(self, node: Node) -> Value | None:
        """The value of the first operand."""
        first = node.args[0] if node.args else None
        return self.values[first] if isinstance(first, Node) else None

    # ---------------------------------------------------------------- modules

    def _module(self, node: Node, name: str) -> Value | None:
        m, value = self.modules[name], self._operand(node)
        kind, into = PLAIN.get(type(m), type(m)), f"its output goes into {name} ({type(m).__name__})"
        if name in self.alone or len(node.all_input_nodes) != 1 or len(node.args) != 1:
            return self._opaque(node, f"{into}, which must not change")
        if kind in LAYERS:
            return self._layer(name, cast("Layer", m), value, into)
        made = None if value is None else self._between(name, m, kind, value)
        return self._opaque(node, f"{into}, which compact does not support") if made is None else made

    def _between(self, name: str, m: nn.Module, kind: type[nn.Module], value: Value) -> Value | None:
        """The result of a module that keeps the channels; None if the module is not supported."""
        written = bool(getattr(m, "inplace", False))
        if isinstance(m, AnyBatchNorm) and ops.NORMS.get(kind) == value.kind and value.known(m.num_features):
            return self._norm(name, m, value)
        if (
            kind in ops.UNCHANGED or type(m) is ReLU
        ):  # this ReLU returns its input: the normalisation before it computes the ReLU
            return value.result(value.constant, alias=True)
        if kind in ops.ACTIVATIONS:
            return value.result(ops.apply(m, value.constant), written=written)
        if kind in ops.POOLS and value.kind == "image" and not getattr(m, "return_indices", False):
            return value.result(value.constant if ops.keeps_constants(m) else ops.zeros_only(value.constant))
        if isinstance(m, nn.Flatten) and (m.start_dim, m.end_dim) == (1, -1):
            return _flat(value)
        return None

    def _layer(self, name: str, m: Layer, value: Value | None, into: str) -> Value:
        """The output of a layer: new channels. Channels that read only constants are constant."""
        (out, width), kind = sizes_of(m), "image" if is_image_layer(m) else "vector"
        if value is not None and (value.kind != kind or not value.known(width)):
            value.space.pin(f"{into}, whose inputs are not whole channels")
            value = None
        weights, made, spread = weights_of(m), Space(out), 1
        feature, constant = weights.column // taps_of(m), torch.full_like(weights.value, torch.nan)
        if value is not None:
            spread = value.spread or 1
            by_feature = value.by_feature()
            constant = (ops.zeros_only(by_feature) if pads_zeros(m) else by_feature)[feature]
        source = None if value is None else value.space
        self.found.readers.append(Reader(name, m, source, spread, made, weights, feature // spread, constant))
        if isinstance(m, SparseLayer):
            made.tie(1, m.block[0])
            if source is not None:
                source.tie(spread * taps_of(m), m.block[1])
        constants = bias_of(m).index_add(0, weights.row, weights.value * constant)
        return Value(made, kind, torch.where(constants.isfinite(), constants, torch.nan)[:, None])

    def _norm(self, name: str, m: AnyBatchNorm, value: Value) -> Value:
        """The output of a batch normalisation in eval mode: an affine function of each channel."""
        spread = value.spread or 1
        self.found.norms.append(Norm(name, m, value.space, spread))

        def per_channel(t: Tensor | None, default: float) -> Tensor:
            full = torch.full((m.num_features,), default, dtype=torch.float64)
            return (full if t is None else t.detach().double().cpu()).view(-1, spread)

        scale, shift = per_channel(m.weight, 1.0), per_channel(m.bias, 0.0)
        mean, var = (
            per_channel(m.running_mean, torch.nan),
            per_channel(m.running_var, torch.nan),
        )  # NaN: batch statistics
        result = (value.constant - mean) / (var + m.eps).sqrt() * scale + shift
        result = torch.where(scale == 0, shift, result)
        return value.result(result.clamp(min=0) if getattr(m, "relu", False) else result)

    # ---------------------------------------------------------------- functions and methods

    def _operation(self, node: Node) -> Value | None:
        made, value = None, self._operand(node)
        if ops.asks_for_sizes(node):
            return None
        if ops.is_arithmetic(node):
            made = self._arithmetic(node)
        elif value is not None:
            made = _flat(value) if ops.flattens(node) else self._of_one(node, value)
        name = getattr(node.target, "__name__", str(node.target))
        return (
            self._opaque(node, f"its output goes into {name}, which compact does not support") if made is None else made
        )

    def _of_one(self, node: Node, value: Value) -> Value | None:
        """The result of an operation on one tensor that keeps the channels; None if it is not supported."""
        constant = value.constant
        if ops.is_unchanging(node):
            return value.result(constant, alias=True)
        if ops.is_elementwise(node):
            constant = ops.apply(ops.function_of(node), constant, *node.args[1:], **node.kwargs)
            return value.result(constant, written=ops.writes(node))
        if value.kind == "image" and ops.is_pooling(node):
            return value.result(constant if ops.pools_constants(node) else ops.zeros_only(constant))
        if value.kind == "image" and (kind := ops.averages_pixels(node)) is not None:
            return value.result(constant, kind=kind)
        return None

    def _arithmetic(self, node: Node) -> Value | None:
        """The sum or product of two tensors with the same channels, or of a tensor and a number; None for others."""
        operands = [self.values[a] if isinstance(a, Node) else a for a in node.args]
        tensors = [v for v in operands if isinstance(v, Value)]
        if None in operands or not all(ops.same_channels(tensors[0], v) for v in tensors):
            return None
        for other in tensors[1:]:
            tensors[0].space.join(other.space)
        constants = [v.constant if isinstance(v, Value) else v for v in operands]
        return tensors[0].result(ops.function_of(node)(*constants), written=True)


def _flat(value: Value) -> Value:
    """The result of flattening all dimensions but the batch: each channel has one feature per pixel of the image."""
    if value.kind == "vector":
        return value.result(value.constant, alias=True)
    made = value.result(value.constant, kind="vector", alias=True)
    made.spread = None
    return made


def _to_leave_alone(modules: dict[str, nn.Module], graph: fx.Graph) -> dict[str, str]:
    """Layers and normalisations that must not change, with the reasons."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    users = Counter(p for m in modules.values() for p in m.parameters(recurse=False))
    found: dict[str, str] = {}
    for name, m in modules.items():
        kind = PLAIN.get(type(m), type(m))
        if isinstance(m, nn.Linear | nn.Conv2d | SparseLayer) and kind not in LAYERS:
            found[name] = "it is a subclass or a parametrisation of a layer, which compact does not support"
        elif hooked(m):
            found[name] = "it has hooks"
        elif kind in LAYERS or kind in ops.NORMS:
            if calls[name] > 1:
                found[name] = "it is called more than once"
            elif any(users[p] > 1 for p in m.parameters(recurse=False)):
                found[name] = "it shares a parameter with another module"
            elif any(attribute.rpartition(".")[0] == name for attribute in read):
                found[name] = "the model reads its parameters directly"
            elif isinstance(m, nn.Conv2d) and m.groups > 1:
                found[name] = f"it is a convolution with {m.groups} groups"
    return found
