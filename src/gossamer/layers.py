"""Sparse layers: a support, its values, a layout that multiplies, and observers of the backward pass.

A sparse layer owns ``values`` (its only weight parameter), a ``support``, and a ``layout`` that multiplies. Biases stay dense.

The support is the layer's own: kernels read it, and nobody else writes it. The buffers ``crow`` and ``col`` are its public copy, so that
``state_dict``, ``.to()`` and broadcasts of buffers work. A copy that somebody has changed is noticed at the next use of the layer, by the
identity and the version of its two tensors, without a look at their contents; it is then verified, and adopted or refused. Under
``shadow`` the support is where the values are not zero, and there is no copy.

Initial values: normal with variance 2 / (density fan_in) (Kaiming, He et al. 2015, the fan-in scaled by the density, so that the
pre-activations of a sparse layer have the variance of a dense one's).
"""

import math
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._backend.dispatch import choose, device_type, is_placeholder, run
from ._backend.index.op import rows_of
from ._errors import UsageError, check_density
from ._initial import kaiming
from .layouts import DENSE_ABOVE, Layout, gather, layout_named, scatter
from .observe import Observer, version_of
from .products.conv2d import op as conv2d_op
from .products.conv2d.reference import Geometry
from .products.linear import op as linear_op
from .products.sense.op import SAMPLED
from .products.trilinear import check_index
from .support import Support, checked, grid_of, index_problems
from .surgery import write_

INDEX = ("crow", "col")  # the buffers


class SparseLayer(nn.Module):
    """What the two sparse layers share: support, values, bias, layout and the hook that senses. Not to be made directly."""

    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        dense_shape: tuple[int, ...],
        geometry: Geometry | None,
        density: float | None,
        support: Support | None,
        bias: bool,
        layout: str | Layout,
        block: tuple[int, int],
        min_fan_in: int,
        rng: torch.Generator | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ):
        super().__init__()
        who, shape = type(self).__name__, (dense_shape[0], math.prod(dense_shape[1:]))
        if (density is None) == (support is None):
            raise UsageError(who, "give either density or support")
        if support is None:
            total = math.prod(grid_of(*checked(who, shape, block)))
            support = Support.random(shape, max(1, round(check_density(who, density) * total)), block, rng, min_fan_in)  # type: ignore[arg-type]
        if support.shape != shape:
            raise UsageError(who, f"the support must be that of a {shape[0]} x {shape[1]} matrix", got=support.shape)
        self.dense_shape = torch.Size(dense_shape)
        self.geometry = geometry
        self.block = support.block
        self.layout = layout_named(layout, who)
        self._seen: tuple[int, int] | None = (
            None  # where the values were, and in which version, when their non-zeros were last looked up
        )
        if self.layout.follows and self.block != (1, 1):
            raise UsageError(
                who,
                f"layout {self.layout.name} follows single weights",
                got=self.block,
                remedy="block=(1, 1), or another layout",
            )
        self.observers: tuple[Observer, ...] = ()  # who is told of the backward passes of the step in progress
        self._owner: Any = None  # a weak reference to the Rewirer or Multilevel that changes the support
        dtype = dtype or torch.get_default_dtype()
        self.values = nn.Parameter(torch.empty(0, dtype=dtype, device=device))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(dense_shape[0], dtype=dtype, device=device)) if bias else None
        )
        self.adopt_(support.to(device) if device else support)
        self._mark()
        self.reset_parameters(rng)
        self.register_load_state_dict_pre_hook(_adopt_index)
        self.register_load_state_dict_post_hook(_tell_owner)
        self.register_state_dict_post_hook(_add_index)  # type: ignore[arg-type]

    def _mark(self) -> None:
        """Lets an optimizer that is given bare parameters tell compact values, which are vectors, from biases."""
        self.values.compact = self.layout.storage == "compact"  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a file, has no observer, no owner, and nothing of what they have measured."""
        return {**vars(self), "observers": (), "_owner": None, "_copied": None, "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()  # a copy of a parameter forgets its attributes

    def __prepare_scriptable__(self) -> nn.Module:
        """``torch.jit.script`` asks for this. (It would put what it gets into the model itself, so there is nothing right to give.)"""
        remedy = "torch.jit.script(gossamer.densify(copy.deepcopy(model))), or torch.jit.trace"
        raise UsageError(
            "torch.jit.script", f"it reads source, and {type(self).__name__} decides while it runs", remedy=remedy
        )

    @property
    def owner(self) -> Any:
        """The :class:`~gossamer.Rewirer` or :class:`~gossamer.Multilevel` in charge of the support, if there is one."""
        return None if self._owner is None else self._owner()

    def give_to(self, owner: Any) -> None:
        """Puts ``owner`` in charge; the one before lets go."""
        if (before := self.owner) is not None and before is not owner:
            before.release()
        self._owner = None if owner is None else weakref.ref(owner)

    def train(self, mode: bool = True) -> "SparseLayer":
        """As ``nn.Module.train``. The support under ``shadow`` is then looked up anew: a write through ``.data`` leaves no other trace."""
        self._seen = None
        return super().train(mode)

    # ---------------------------------------------------------------- the support

    @property
    def support(self) -> Support:
        """Which blocks of the (out, in) or (out, in kh kw) matrix may be non-zero; under ``shadow``, which are.

        Raises: UsageError where ``crow`` and ``col`` have been changed to something that does not go with the values.
        """
        if self.layout.follows:
            if not torch.compiler.is_exporting():  # an exported product does not need the index
                self._follow()
            return self._support
        if torch.compiler.is_compiling():
            return self._support
        buffers, seen, s = self._buffers, self._copied, self._support
        crow, col = buffers.get("crow"), buffers.get("col")
        if seen is None or crow is not seen[0] or col is not seen[1] or crow._version + col._version != seen[2]:  # type: ignore[union-attr]
            self._look_again()
        elif s.crow._version + s.col._version + s.ccol._version + s.row._version + s.perm._version != seen[3]:
            self._refuse(["the support itself, which nobody may write to, was written to"])
        return self._support

    @torch.inference_mode(False)
    @torch.no_grad()
    def adopt_(self, s: Support) -> None:
        """Makes ``s`` the support. The values are the caller's to bring along (:func:`~gossamer.set_support_` does)."""
        if s.crow.is_inference() or s.perm.is_inference():
            s = Support(s.shape, s.block, *(t.clone() for t in (s.crow, s.col, s.ccol, s.row, s.perm)))
        before: Any = vars(self).get("_support")
        self._support = s
        if self.layout.follows:
            return
        for name in INDEX:
            mine, new = self._buffers.get(name), getattr(s, name)
            alike = (
                mine is not None and mine.shape == new.shape and mine.device == new.device and not mine.is_inference()
            )
            if before is not None and mine is not None and alike:
                mine.copy_(
                    new
                )  # a state_dict that was not copied stays a pair with the values, which are written in place too
            else:
                self.register_buffer(name, new.clone())
        self._remember()

    def _remember(self) -> None:
        crow, col = (self._buffers[name] for name in INDEX)
        s = self._support
        self._copied = (crow, col, crow._version + col._version, s.version, self.values)  # type: ignore[union-attr]

    @torch.compiler.disable()  # type: ignore[arg-type]
    @torch.inference_mode(False)
    @torch.no_grad()
    def _look_again(self) -> None:
        """Somebody has written or replaced the copy of the index: the same one, another with other values, or what cannot be used."""
        for name in INDEX:
            if not isinstance(self._buffers.get(name), Tensor):
                self._refuse([f"there is no buffer {name} any more"])
            if self._buffers[name].is_inference():  # type: ignore[union-attr]
                self._buffers[name] = self._buffers[name].clone()  # type: ignore[union-attr]
        (crow, col), s, seen = (self._buffers[name] for name in INDEX), self._support, self._copied
        assert crow is not None and col is not None
        check_index(type(self).__name__, crow, col)
        if crow.is_meta or col.is_meta:
            self._support = s if s.crow.is_meta else s.to("meta")
        elif not _equal(crow, s.crow) or not _equal(col, s.col):
            self._take(crow, col, s, whole=self._copied is not None and seen[4] is not self.values)  # type: ignore[index]
        elif crow.device != s.crow.device:
            self._support = s.to(crow.device)
        self._remember()

    def _take(self, crow: Tensor, col: Tensor, s: Support, whole: bool) -> None:
        """Another index than before: good where the values have been exchanged with it, or do not depend on it."""
        reasons = index_problems(crow, col, s.shape, s.block)
        if not reasons and self.layout.storage == "compact":
            if self.values.shape[0] != col.numel():
                reasons = [f"it has {col.numel()} blocks, and there are values for {self.values.shape[0]}"]
            elif not whole:
                reasons = ["its values have stayed, and belong to the connections of the old one"]
        if reasons:
            self._refuse(reasons)
        self._support = Support.from_index(crow, col, s.shape, s.block)

    def _refuse(self, reasons: list[str]) -> None:
        who = f"{type(self).__name__} of {tuple(self.dense_shape)}"
        what = "the buffers crow and col have been changed from outside, to an index that this layer cannot use"
        remedy = "load_state_dict with index and values together, gs.set_support_; for an average of weights gs.AveragedModel"
        raise UsageError(who, what, reasons=reasons, remedy=remedy)

    @torch.compiler.disable()  # type: ignore[arg-type]
    @torch.no_grad()
    def _follow(self) -> None:
        """Looks the non-zeros up, if the values have changed since, and makes another index, if they are others."""
        if is_placeholder(self.values):  # the product does not need the index then
            return
        version = -1 if self.values.is_inference() else self.values._version  # torch counts no writes to the former
        now = (self.values.data_ptr(), version)
        if (now == self._seen and version >= 0) or self.values.shape != self.dense_shape:
            return
        self._seen = now
        (crow, col), known = rows_of(self.values.flatten(1)), self._support
        if crow.device == known.crow.device and torch.equal(crow, known.crow) and torch.equal(col, known.col):
            return
        self._support = Support.of_index(crow, col, known.shape)

    @property
    def index_bytes(self) -> int:
        """Bytes of the index: of the support, and of its public copy."""
        copies = [self._buffers[name] for name in INDEX if name in self._buffers]
        return self.support.bytes + sum(t.numel() * t.element_size() for t in copies if t is not None)

    @property
    def density(self) -> float:
        """Kept over all weights."""
        return self.support.weights / self.dense_shape.numel()

    @property
    def dense_above(self) -> float:
        """The density above which a ``shadow`` layer is multiplied by dense kernels."""
        return DENSE_ABOVE["linear" if self.geometry is None else "conv2d"]

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew at every access (the dense size!), differentiable with respect to ``values``."""
        s = self.support
        return scatter(self.layout.compact(self.values, s), s).view(self.dense_shape)

    def to_dense(self) -> Tensor:
        """The dense weight, detached, of shape ``dense_shape``."""
        return self.weight.detach()

    @torch.no_grad()
    def reset_parameters(self, rng: torch.Generator | None = None) -> None:
        """Kaiming normal values with the fan-in scaled by the density; bias uniform in +-1/sqrt(fan_in), as torch does."""
        self.set_values_(kaiming(self.support, self.values.dtype, rng).to(self.values.device))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.dense_shape[1:]))
            self.bias.copy_(torch.empty(self.bias.shape, dtype=self.bias.dtype).uniform_(-bound, bound, generator=rng))

    @torch.no_grad()
    def set_values_(self, compact: Tensor) -> None:
        """Writes values given in compact form, (n,) or (n, h, w); what hangs over the edge of the matrix becomes 0."""
        s = self.support
        if s.weights != compact.numel():
            compact = gather(scatter(compact, s), s)
        write_(self.values, self.layout.stored(compact, s, self.dense_shape))

    def sensed(self, dy: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        """Gradient at block ids off the support, (m,) or (m, h, w), from one pass's output gradient and input."""
        dtype, s = self.values.dtype, self.support
        return run(SAMPLED, dy.to(dtype), x.to(dtype), ids, s.shape, s.block, self.geometry)

    def flow(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of squares of the output gradient per block row, (grid_rows,), and of the input per block column, (grid_cols,)."""
        (h, w), conv = self.block, self.geometry is not None

        def sums(t: Tensor, size: int, taps: int) -> Tensor:
            squares = (
                t.to(self.values.dtype)
                .square()
                .transpose(1 if conv else -1, -1)
                .flatten(0, -2)
                .sum(0)
                .repeat_interleave(taps)
            )
            return nn.functional.pad(squares, (0, -squares.numel() % size)).view(-1, size).sum(1)

        return sums(dy, h, 1), sums(x, w, math.prod(self.geometry.kernel) if self.geometry is not None else 1)

    def _watched(self, x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
        """The product, seen by the observers: its output's gradient, in the passes that make one.

        A pass through the input's gradient (a gradient penalty) adds dy^T ggx to the weight's, ggx the gradient of that gradient: it is
        seen as a pass with ggx for x.
        """
        if not torch.is_grad_enabled():
            return multiply(x)
        for observer in self.observers:
            observer.look(self)
        seen: list[Tensor] = []  # dy of the passes that may be differentiated again
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(partial(_second, self.observers, seen))
        y = multiply(x)
        if y.requires_grad:
            for observer in self.observers:
                y.register_hook(partial(observer.report, x.detach(), version_of(x)))
            if x.requires_grad:
                y.register_hook(partial(_first, seen))
        return y

    @property
    def kernels(self) -> dict[str, str]:
        """Which kernel runs each product here; ``dense (simulated)`` under the masked layout."""
        s, products = self.support, ("forward", "input_gradient", "weight_gradient")
        if self.layout.follows:
            return (
                dict.fromkeys(products, "dense")
                if s.density > self.dense_above
                else {**self._sparse_kernels(s), products[2]: "dense"}
            )
        return (
            dict.fromkeys(products, "dense (simulated)") if self.layout.storage == "dense" else self._sparse_kernels(s)
        )

    def _sparse_kernels(self, s: Support) -> dict[str, str]:
        values = self.values.new_empty(s.n, *(() if s.block == (1, 1) else s.block))
        if self.geometry is None:
            x, dy = values.new_empty(1, s.shape[1]), values.new_empty(1, s.shape[0])
            return {
                "forward": choose(linear_op.FORWARD, x, values, s).name,
                "input_gradient": choose(linear_op.INPUT_GRADIENT, dy, values, s).name,
                "weight_gradient": choose(linear_op.WEIGHT_GRADIENT, dy, x, s).name,
            }
        g = self.geometry
        size = tuple(d * (k - 1) + 1 for k, d in zip(g.kernel, g.dilation, strict=True))
        x, dy = values.new_empty(1, self.dense_shape[1], *size), values.new_empty(1, s.shape[0], *g.out(*size))
        return {
            "forward": choose(conv2d_op.FORWARD, x, values, s, g).name,
            "input_gradient": choose(conv2d_op.INPUT_GRADIENT, dy, values, s, g, size).name,
            "weight_gradient": choose(conv2d_op.WEIGHT_GRADIENT, dy, x, s, g).name,
        }

    def extra_repr(self) -> str:
        """Shape, density and layout, for ``print(model)``."""
        sizes = ", ".join(str(v) for v in self.dense_shape)
        tile = "" if self.block == (1, 1) else f", block={self.block}"
        return f"{sizes}, density={self.density:.4g}, n={self.support.n}, layout={self.layout.name}{tile}, bias={self.bias is not None}"


class SparseLinear(SparseLayer):
    """y = x W^T + b with a sparse W that never exists densely (layout ``csr``).

    Args:
        in_features, out_features: the matrix W is (out_features, in_features).
        density: share of weights that may be non-zero, in (0, 1]; the support is drawn uniformly.
        bias: with a dense bias.
        layout: ``"csr"`` (compact, O(n)); ``"shadow"`` (dense storage and weight gradient, sparse products otherwise: for rules that
            make and revive zeros); or ``"masked"`` (dense storage and kernels: a simulation).
        block: (h, w) tiles instead of single weights; ``density`` then counts tiles.
        rng: generator of the support and the initial values; None is torch's default one.
        support: a given support instead of a density.
        min_fan_in: incoming blocks that every output unit gets at least.

    Input (..., in_features), output (..., out_features), in the input's dtype; ``values`` are float32 or float64. Under ``csr``
    the output has the batch innermost in memory, as sparse products make and want it: ``reshape``, not ``view``, merges dimensions.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        density: float | None = None,
        bias: bool = True,
        layout: str | Layout = "csr",
        block: tuple[int, int] = (1, 1),
        rng: torch.Generator | None = None,
        support: Support | None = None,
        min_fan_in: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__(
            (out_features, in_features), None, density, support, bias, layout, block, min_fan_in, rng, dtype, device
        )
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if x.shape[-1] != self.in_features:
            raise UsageError(
                "SparseLinear", f"the last dimension of the input must be {self.in_features}", got=tuple(x.shape)
            )
        x = _cast(x)
        if self.observers:
            return self._watched(x, lambda x: self.layout.linear(x, self.values, self.support, self.bias))
        return self.layout.linear(x, self.values, self.support, self.bias)


class SparseConv2d(SparseLayer):
    """2-D convolution with a sparse kernel: any stride, zero padding and dilation; one group.

    ``padding`` also takes ``"valid"`` and ``"same"`` (stride 1, an even total padding). Other arguments as in :class:`SparseLinear`; the
    support lives on the matrix (out_channels, in_channels kh kw). Input (B, in, H, W), output (B, out, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        *,
        density: float | None = None,
        bias: bool = True,
        layout: str | Layout = "csr",
        block: tuple[int, int] = (1, 1),
        rng: torch.Generator | None = None,
        support: Support | None = None,
        min_fan_in: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        kernel, dilated = _pair(kernel_size), _pair(dilation)
        geometry = Geometry(kernel, _pair(stride), _padding(padding, kernel, dilated, _pair(stride)), dilated)
        if min(geometry.kernel + geometry.stride + geometry.dilation) < 1 or min(geometry.padding) < 0:
            raise UsageError(
                "SparseConv2d",
                "kernel, stride and dilation must be at least 1, padding at least 0",
                got=tuple(geometry),
            )
        shape = (out_channels, in_channels, *kernel)
        super().__init__(shape, geometry, density, support, bias, layout, block, min_fan_in, rng, dtype, device)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding, self.dilation = geometry

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise UsageError(
                "SparseConv2d", f"the input must be (batch, {self.in_channels}, height, width)", got=tuple(x.shape)
            )
        assert self.geometry is not None
        x = _cast(x)
        if self.observers:
            return self._watched(
                x, lambda x: self.layout.conv2d(x, self.values, self.support, self.geometry, self.bias)
            )
        return self.layout.conv2d(x, self.values, self.support, self.geometry, self.bias)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers of a model by qualified name, in order of definition."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def _first(seen: list[Tensor], dy: Tensor) -> None:
    if dy.requires_grad or torch.is_grad_enabled():  # create_graph: this pass may be differentiated
        seen.append(dy.detach())


def _second(observers: tuple[Observer, ...], seen: list[Tensor], dx: Tensor) -> None:
    """The gradient of the input is known, and may be differentiated: then its gradient ggx is an input of its own."""
    if dx.requires_grad and seen:
        for observer in observers:
            dx.register_hook(partial(_again, observer, seen[-1]))


def _again(observer: Observer, dy: Tensor, ggx: Tensor) -> None:
    observer.report(ggx.detach(), version_of(ggx), dy)


def _cast(x: Tensor) -> Tensor:
    """The input in autocast's dtype where autocast is on, as torch's own layers see it."""
    kind = device_type(x)
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _pair(value: int | Iterable[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise UsageError("SparseConv2d", "expected one whole number or two", got=value)
    return pair


def _padding(
    padding: int | tuple[int, int] | str, kernel: tuple[int, int], dilation: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int]:
    if padding == "valid":
        return 0, 0
    if isinstance(padding, str):
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if padding != "same" or stride != (1, 1) or any(t % 2 for t in totals):
            raise UsageError(
                "SparseConv2d", "padding is numbers, 'valid', or 'same' with stride 1 and an even total", got=padding
            )
        return totals[0] // 2, totals[1] // 2
    return _pair(padding)


def _add_index(layer: SparseLayer, state: dict[str, Any], prefix: str, _local_metadata: Any) -> None:
    """After a state_dict is made: what is saved must be a pair, and under ``shadow`` the index is of the values as they are."""
    if layer.layout.follows:
        state.update({prefix + name: getattr(layer.support, name) for name in INDEX})
    else:
        layer._look_again()  # a write through .data, or through NumPy, leaves no trace but its numbers


@torch.no_grad()
def _adopt_index(
    layer: SparseLayer, state: dict[str, Tensor], prefix: str, _meta, _strict, missing, _unexpected, errors
) -> None:
    """Before a state_dict is read: verify the index it brings and make the layer's buffers fit, or refuse it and stay as it was.

    A layer that is loaded has a new support even if it has the same units: what is measured over a window begins anew.
    """
    crow, col, values = (state.get(prefix + name) for name in ("crow", "col", "values"))
    s = layer._support
    problems = _state_problems(layer, s, crow, col, values)
    if problems:
        errors.extend(f"{prefix.rstrip('.') or type(layer).__name__}: {problem}" for problem in problems)
        for name in (*INDEX, "values"):  # torch goes on and copies what is there: let that be what is here
            state[prefix + name] = (getattr(s, name) if name in INDEX else layer.values).detach()
    elif crow is not None and col is not None:
        same = _equal(crow, s.crow) and _equal(col, s.col)
        new = (s.again() if same else Support.from_index(crow, col, s.shape, s.block)).to(layer.values.device)
        layer.adopt_(new)
        if layer.layout.storage == "compact" and layer.values.shape[0] != new.n:
            write_(layer.values, layer.values.new_zeros(new.n, *layer.values.shape[1:]))
    if layer.layout.follows:
        for name in INDEX:
            state.pop(prefix + name, None)


def _tell_owner(layer: SparseLayer, _keys: Any) -> None:
    """After a state_dict was read: what is indexed by the support goes along now, so that a copy made now has all in one step."""
    if (owner := layer.owner) is not None:
        owner.notice(layer)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two index tensors, on whatever devices, hold the same numbers."""
    known = not (a.is_meta or b.is_meta or a.is_floating_point())
    return known and a.shape == b.shape and torch.equal(a.to(b.device, b.dtype), b)


def _state_problems(
    layer: SparseLayer, s: Support, crow: Tensor | None, col: Tensor | None, values: Tensor | None
) -> list[str]:
    """Why index and values of a state_dict must not be read, in sentences."""
    if crow is None or col is None:
        alone = values is not None or crow is not None or col is not None
        return (
            ["values and index (values, crow, col) come without each other: values never load onto another support"]
            if alone
            else []
        )
    problems = index_problems(crow, col, s.shape, s.block)
    if problems:
        return problems
    if values is None:
        return (
            []
            if _equal(crow, s.crow) and _equal(col, s.col)
            else ["the index is another support's, and comes without its values"]
        )
    expected = (col.numel(), *layer.values.shape[1:]) if layer.layout.storage == "compact" else tuple(layer.dense_shape)
    fits = tuple(values.shape) == expected
    return [] if fits else [f"values of shape {tuple(values.shape)} for {col.numel()} kept blocks, {expected} expected"]
