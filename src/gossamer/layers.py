"""Sparse layers: a linear layer and a 2-D convolution.

A sparse layer owns ``values`` (its only weight parameter), a ``support`` (``indexed.py`` stores it and its public
copy), a ``layout`` that multiplies, and one slot for observations of the backward pass. Biases stay dense.

Initial values are normal with variance 2 / (density fan_in): Kaiming (He et al. 2015) with the fan-in scaled by the
density. The pre-activations then have the same variance as those of a dense layer.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ._backend.dispatch import device_type, run
from ._errors import UsageError, check_density
from ._geometry import Sizes, geometry_of
from ._grid import checked, grid_of
from ._initial import kaiming
from ._kernel_names import kernel_names
from .indexed import Indexed
from .layouts import DENSE_ABOVE, Layout, gather, layout_named, scatter, write_
from .observe import watched
from .products.conv2d.reference import Geometry
from .products.sense.flow import sums_of_squares
from .products.sense.op import SAMPLED
from .support import Support


class SparseLayer(Indexed):
    """Base class of the two sparse layers: support, values, bias, layout, observations. Do not make it directly."""

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
        who, shape = type(self).__name__, (dense_shape[0], math.prod(dense_shape[1:]))
        if (density is None) == (support is None):
            raise UsageError(who, "give either density or support, not both")
        if density is not None:
            kept = check_density(who, density) * math.prod(grid_of(*checked(who, shape, block)))
            support = Support.random(shape, max(1, round(kept)), block, rng, min_fan_in)
        assert support is not None  # one of the two was given
        if support.shape != shape:
            raise UsageError(who, f"the support must be of a {shape[0]} x {shape[1]} matrix", got=support.shape)
        layout = layout_named(layout, who)
        if layout.follows and support.block != (1, 1):
            what, remedy = f"layout {layout.name} takes single weights only", "block=(1, 1), or another layout"
            raise UsageError(who, what, got=support.block, remedy=remedy)
        dtype = dtype or torch.get_default_dtype()
        values = nn.Parameter(torch.empty(0, dtype=dtype, device=device))
        super().__init__(dense_shape, support.to(device) if device else support, layout, values)
        self.geometry = geometry
        dense = nn.Parameter(torch.empty(dense_shape[0], dtype=dtype, device=device)) if bias else None
        self.register_parameter("bias", dense)
        self.reset_parameters(rng)

    # ---------------------------------------------------------------- sensing

    def sensed(self, dy: Tensor, x: Tensor, ids: Tensor) -> Tensor:
        """Gradient of one pass at block ids off the support, (m,) -> (m,) or (m, h, w). ``dy``: of the output."""
        dtype, s = self.values.dtype, self.support
        return run(SAMPLED, dy.to(dtype), x.to(dtype), ids, s.shape, s.block, self.geometry)

    def flow(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of squares of the output gradient per block row, (grid_rows,), and of the input per block column."""
        dtype = self.values.dtype
        return sums_of_squares(dy.to(dtype), x.to(dtype), self.block, self.geometry)

    # ---------------------------------------------------------------- values

    @property
    def weight(self) -> Tensor:
        """The dense weight, differentiable in ``values``. Every access makes a new tensor of the dense size."""
        s = self.support
        return scatter(self.layout.compact(self.values, s), s).view(self.dense_shape)

    def to_dense(self) -> Tensor:
        """The dense weight, detached, of shape ``dense_shape``."""
        return self.weight.detach()

    @torch.no_grad()
    def reset_parameters(self, rng: torch.Generator | None = None) -> None:
        """Draws Kaiming normal values (fan-in scaled by the density), and a uniform +-1/sqrt(fan_in) bias, as torch."""
        self.set_values_(kaiming(self.support, self.values.dtype, rng).to(self.values.device))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.dense_shape[1:]))
            self.bias.copy_(torch.empty(self.bias.shape, dtype=self.bias.dtype).uniform_(-bound, bound, generator=rng))

    @torch.no_grad()
    def set_values_(self, compact: Tensor) -> None:
        """Writes values given in compact form, (n,) or (n, h, w). Scalars beyond the edge of the matrix become 0."""
        s = self.support
        if s.weights != compact.numel():
            compact = gather(scatter(compact, s), s)
        write_(self.values, self.layout.stored(compact, s, self.dense_shape))

    # ---------------------------------------------------------------- reports

    @property
    def dense_above(self) -> float:
        """The density above which a ``shadow`` layer is multiplied by dense kernels."""
        return DENSE_ABOVE["linear" if self.geometry is None else "conv2d"]

    @property
    def kernels(self) -> dict[str, str]:
        """The name of the kernel that runs each product; ``dense (simulated)`` under the masked layout."""
        return kernel_names(self.values, self.support, self.layout, self.dense_above, self.dense_shape, self.geometry)


class SparseLinear(SparseLayer):
    """y = x W^T + b with a sparse W of shape (out_features, in_features). Under layout ``csr`` no dense W is made.

    Args:
        in_features: size of an input.
        out_features: size of an output.
        density: the fraction of the weights that may be non-zero, in (0, 1]; the support is drawn uniformly.
        bias: whether there is a dense bias.
        layout: ``"csr"`` (compact, O(n)); ``"shadow"`` (dense storage and weight gradient, sparse products otherwise,
            for rules whose zeros may come back); or ``"masked"`` (dense storage and kernels: a simulation).
        block: (h, w) tiles instead of single weights; ``density`` then counts tiles.
        rng: generator of the support and the initial values; torch's default generator if None.
        support: a given support, instead of ``density``.
        min_fan_in: the least number of incoming blocks of every output unit.

    Input (..., in_features), output (..., out_features), in the input's dtype; ``values`` are float32 or float64. Under
    ``csr`` the batch is the innermost dimension of the output in memory. Merge its dimensions by ``reshape``.
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
        shape = (out_features, in_features)
        super().__init__(shape, None, density, support, bias, layout, block, min_fan_in, rng, dtype, device)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if x.shape[-1] != self.in_features:
            what = f"the last dimension of the input must be {self.in_features}"
            raise UsageError("SparseLinear", what, got=tuple(x.shape))
        return watched(self._observations, _as_autocast(x), self._multiply)

    def _multiply(self, x: Tensor) -> Tensor:
        return self.layout.linear(x, self.values, self.support, self.bias)


class SparseConv2d(SparseLayer):
    """2-D convolution with a sparse kernel: any stride, zero padding and dilation; one group.

    ``padding`` also takes ``"valid"`` and ``"same"`` (stride 1, an even total padding). Other arguments are those of
    :class:`SparseLinear`. The support is of the matrix (out_channels, in_channels kh kw). Input (B, in, H, W), output
    (B, out, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
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
        geometry = geometry_of(kernel_size, stride, padding, dilation)
        shape = (out_channels, in_channels, *geometry.kernel)
        super().__init__(shape, geometry, density, support, bias, layout, block, min_fan_in, rng, dtype, device)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding, self.dilation = geometry

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            what = f"the input must be (batch, {self.in_channels}, height, width)"
            raise UsageError("SparseConv2d", what, got=tuple(x.shape))
        return watched(self._observations, _as_autocast(x), self._multiply)

    def _multiply(self, x: Tensor) -> Tensor:
        return self.layout.conv2d(x, self.values, self.support, self.geometry, self.bias)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers of a model by qualified name, in order of definition."""
    untyped: Any = model  # the stubs of torch leave the type of named_modules open
    return {name: m for name, m in untyped.named_modules() if isinstance(m, SparseLayer)}


def _as_autocast(x: Tensor) -> Tensor:
    """The input, in autocast's dtype where autocast is on: torch's own layers cast it in the same way."""
    kind = device_type(x)
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
