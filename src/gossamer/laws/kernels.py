"""Laws of kernels and layouts."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._backend.dispatch import Kernel
from ..layouts import Layout, gather, scatter
from ..products.conv2d.reference import Geometry
from ..support import INT, Support
from ..topology.slots import block_norm
from .details import TOLERANCE, close, demand


def check_kernel(
    operation: str,
    kernel: Kernel,
    s: Support,
    g: Geometry | None = None,
    *,
    batch: int = 5,
    size: tuple[int, int] = (7, 6),
    dtype: torch.dtype = torch.float64,
    biased: bool = False,
    strange: bool = False,
) -> bool:
    """One kernel on one support: the dense product's numbers, whatever the memory order of its inputs, which it leaves alone, twice alike.

    Args:
        operation: ``csr_linear.`` or ``csr_conv2d.`` and ``forward``, ``backward``, ``input_gradient`` or ``weight_gradient``;
            ``csr_sense.sampled`` or ``csr_sense.strongest``.
        g: the convolution's geometry; None is a linear layer.
        batch, size: of the inputs; height and width matter to convolutions only.
        dtype: of the activations. With bfloat16 the values are float32, and float32 must be what is computed in: the numbers of the
            float32 product of the rounded activations, rounded once where they are activations.
        biased: give ``forward`` a bias.
        strange: besides contiguous and batch-last inputs also channels-last ones and views with gaps.

    Returns: False if the kernel said (``reasons_against``) that it cannot run here, which breaks no law.
    """
    where = f"{operation} by {kernel.name!r} on {s.shape} in blocks of {s.block}, n={s.n}" + (
        f", {g}, {size}" if g else ""
    )
    where = f"{where}, batch {batch}, {dtype}"
    x, dy, values = _operands(s, g, batch, size, dtype)
    bias = _bias(s, values.dtype) if biased else None
    expected = _expected(operation, x.to(values.dtype), dy.to(values.dtype), values, s, g, bias)
    for order in (torch.Tensor.contiguous, _batch_last, *((_channels_last, _gapped) if strange else ())):
        arguments = _arguments(operation, order(x), order(dy), values, s, g, size, bias)
        reasons = kernel.reasons_against(*arguments)
        demand(all(isinstance(reason, str) for reason in reasons), f"{where}: reasons_against must give sentences")
        if reasons:
            return False
        kept = copy.deepcopy([a for a in arguments if isinstance(a, Tensor)])
        with poisoned_memory():
            got, again = kernel.run(*arguments), kernel.run(*arguments)
        unchanged = all(
            torch.equal(a, b) for a, b in zip(kept, (a for a in arguments if isinstance(a, Tensor)), strict=True)
        )
        demand(unchanged, f"{where}: the inputs must not change")
        got, again = (r if isinstance(r, tuple) else (r,) for r in (got, again))
        for a, b, (exact, activations) in zip(got, again, expected, strict=True):
            exact = exact.to(dtype) if activations else exact
            demand(a.shape == exact.shape, f"{where}: shape {tuple(a.shape)}, must be {tuple(exact.shape)}")
            demand(a.dtype == exact.dtype, f"{where}: dtype {a.dtype}, must be {exact.dtype}")
            demand(not bool(a.isnan().any()), f"{where}: some of the output was never written")
            close(a, exact, f"{where}: must be the dense product's", TOLERANCE[a.dtype])
            demand(torch.equal(a, b), f"{where}: two runs must give the same bits")
    return True


def check_index(kernels: Mapping[str, Kernel], w: Tensor) -> None:
    """``rows_of``, ``columns_of`` and ``values_at`` give the non-zeros of a matrix: strictly increasing columns in each row, the same in
    column order with rows increasing, and what stands there. -0.0 is zero, NaN is not."""
    where = f"of {tuple(w.shape)} with {int(w.count_nonzero())} non-zeros"
    with poisoned_memory():
        crow, col = kernels["rows_of"].run(w)
    spots = [(i, j) for i in range(w.shape[0]) for j in range(w.shape[1]) if float(w[i, j]) != 0.0]
    fans = [sum(i == spot[0] for spot in spots) for i in range(w.shape[0])]
    demand(
        crow.tolist() == [sum(fans[:i]) for i in range(w.shape[0] + 1)],
        f"crow {where} must count the non-zeros of the rows above",
    )
    demand(col.tolist() == [j for _, j in spots], f"col {where} must be the columns, row by row")
    with poisoned_memory():
        values = kernels["values_at"].run(w, crow, col)
        ccol, row, perm = kernels["columns_of"].run(crow, col, w.shape[1])
    demand(all(t.dtype is INT for t in (crow, col, ccol, row, perm)), f"an index {where} must be int32")
    order = sorted(range(len(spots)), key=lambda k: (spots[k][1], spots[k][0]))
    demand(
        ccol.tolist() == [sum(j < c for _, j in spots) for c in range(w.shape[1] + 1)],
        f"ccol {where} must count the columns before",
    )
    demand(row.tolist() == [spots[k][0] for k in order], f"row {where} must be the rows, column by column")
    demand(perm.tolist() == order, f"perm {where} must give the places in row order")
    expected = torch.tensor([float(w[spot]) for spot in spots], dtype=w.dtype)
    demand(
        values.dtype is w.dtype and torch.equal(values.nan_to_num(7.0), expected.nan_to_num(7.0)),
        f"values {where} must be the entries",
    )


def check_layout(
    layout: Layout,
    s: Support | None = None,
    g: Geometry | None = None,
    *,
    batch: int = 5,
    size: tuple[int, int] = (7, 6),
) -> None:
    """One layout on one support (None: a few hard ones): stores without loss, multiplies as the dense weight does, forward and backward,
    and neither reads nor gives a gradient to anything off the support. One that follows its values gives all of them their gradient.
    """
    if s is None:
        for case, geometry in _hard_supports():
            check_layout(layout, case, geometry, batch=batch, size=size)
        return
    where = f"layout {layout.name!r} on {s.shape} in blocks of {s.block}, n={s.n}" + (f", {g}" if g else "")
    demand(layout.storage in ("dense", "compact"), f"{where}: storage must be 'dense' or 'compact'")
    x, dy, values = _operands(s, g, batch, size)
    shape = torch.Size(s.shape if g is None else (s.shape[0], x.shape[1], *g.kernel))
    stored = layout.stored(values, s, shape)
    demand(layout.storage == "compact" or stored.shape == shape, f"{where}: dense storage must have the weight's shape")
    demand(torch.equal(layout.compact(stored, s), values), f"{where}: compact(stored(values)) must be the values")

    if layout.storage == "dense" and not layout.follows:
        stored = torch.where(
            scatter(torch.ones_like(values), s).view(shape) > 0, stored, 7.0
        )  # what is off the support must not be read
    stored.requires_grad_()
    x.requires_grad_()
    dense, x2 = scatter(values, s).requires_grad_(), x.detach().clone().requires_grad_()
    expected = (
        F.linear(x2, dense) if g is None else F.conv2d(x2, dense.view(shape), None, g.stride, g.padding, g.dilation)
    )
    dx2, dense_grad = torch.autograd.grad(expected, (x2, dense), dy)
    with poisoned_memory():
        y = layout.linear(x, stored, s) if g is None else layout.conv2d(x, stored, s, g)
        demand(y.shape == expected.shape, f"{where}: output of shape {tuple(y.shape)}, must be {tuple(expected.shape)}")
        close(y, expected, f"{where}: the output must be the dense layer's")
        dx, dw = torch.autograd.grad(y, (x, stored), dy)
    close(dx, dx2, f"{where}: the input's gradient must be the dense layer's")
    demand(dw.shape == stored.shape, f"{where}: the gradient must have the parameter's shape")
    close(
        layout.compact(dw, s),
        gather(dense_grad, s),
        f"{where}: the gradient on the support must be the dense weight's, there",
    )
    if layout.follows:
        close(
            dw.reshape(s.shape),
            dense_grad,
            f"{where}: the gradient must be the dense weight's, on the support and off it",
        )
    elif layout.storage == "dense":
        demand(bool((dw.view(s.shape)[~s.mask()] == 0).all()), f"{where}: the gradient must be 0 off the support")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory is filled with NaN in here, so that what a kernel forgets to write shows."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


def _hard_supports() -> Iterator[tuple[Support, Geometry | None]]:
    rng = torch.Generator().manual_seed(0)
    conv = Geometry((3, 2), (2, 1), (1, 2), (1, 2))
    yield Support.random((7, 11), 30, rng=rng), None
    yield Support.from_ids(torch.tensor([12, 14, 40]), (7, 11)), None  # empty rows and columns
    yield Support.from_ids(torch.empty(0, dtype=torch.int64), (3, 2)), None
    yield Support.full((3, 5)), None
    yield Support.random((7, 11), 5, (3, 4), rng), None  # tiles that hang over the edge
    yield Support.random((5, 18), 40, rng=rng), conv
    yield Support.random((5, 18), 7, (2, 4), rng), conv


def _operands(
    s: Support, g: Geometry | None, batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, output gradient and values (0 where a tile hangs over the edge), which are float32 at least."""
    rng = torch.Generator().manual_seed(1)
    dense = torch.randn(s.shape, generator=rng, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    if g is None:
        shapes = (batch, s.shape[1]), (batch, s.shape[0])
    else:
        channels = s.shape[1] // math.prod(g.kernel)
        shapes = (batch, channels, *size), (batch, s.shape[0], *g.out(*size))
    x, dy = (torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, dy, gather(dense, s)


def _bias(s: Support, dtype: torch.dtype) -> Tensor:
    return torch.randn(s.shape[0], generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def _arguments(
    operation: str,
    x: Tensor,
    dy: Tensor,
    values: Tensor,
    s: Support,
    g: Geometry | None,
    size: tuple[int, int],
    bias: Tensor | None,
) -> tuple[Any, ...]:
    conv = () if g is None else (g,)
    table: dict[str, tuple[Any, ...]] = {
        "forward": (x, values, s, *conv, *(() if bias is None else (bias,))),
        "backward": (dy, x, values, s, *conv),
        "input_gradient": (dy, values, s, *conv, *(() if g is None else (size,))),
        "weight_gradient": (dy, x, s, *conv),
        "sampled": (dy, x, _some_zeros(s), s.shape, s.block, g),
        "strongest": ([(dy, x), (dy, 0.5 * x)], s, (s.total - s.n + 1) // 2, g),
    }
    return table[operation.split(".")[1]]


def _expected(
    operation: str, x: Tensor, dy: Tensor, values: Tensor, s: Support, g: Geometry | None, bias: Tensor | None
) -> list[tuple[Tensor, bool]]:
    """What the dense layer computes, and whether that is activations (or their gradient)."""
    dense, x = scatter(values, s).requires_grad_(), x.detach().clone().requires_grad_()
    shape = s.shape if g is None else (s.shape[0], x.shape[1], *g.kernel)
    y = F.linear(x, dense, bias) if g is None else F.conv2d(x, dense.view(shape), bias, g.stride, g.padding, g.dilation)
    dx, dw = torch.autograd.grad(y, (x, dense), dy)
    what = operation.split(".")[1]
    if what == "sampled":
        return [(gather(dw, Support.from_ids(_some_zeros(s), s.shape, s.block)), False)]
    if what == "strongest":
        zeros = Support.from_ids(s.outside(torch.arange(s.total - s.n)), s.shape, s.block)
        tiles = 1.5 * gather(dw, zeros)
        ranked = sorted(zip((-block_norm(tiles)).tolist(), range(zeros.n), strict=True))[: (s.total - s.n + 1) // 2]
        at = torch.tensor(sorted(i for _, i in ranked), dtype=torch.int64)
        return [(zeros.ids()[at], False), (tiles[at], False)]
    forward, of_x, of_w = (y.detach(), True), (dx, True), (gather(dw, s), False)
    return {"forward": [forward], "backward": [of_x, of_w], "input_gradient": [of_x], "weight_gradient": [of_w]}[what]


def _some_zeros(s: Support) -> Tensor:
    return s.sample_outside((s.total - s.n + 1) // 2, torch.Generator().manual_seed(2))


def _batch_last(t: Tensor) -> Tensor:
    return t.permute(*range(1, t.dim()), 0).contiguous().permute(-1, *range(t.dim() - 1))


def _channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def _gapped(t: Tensor) -> Tensor:
    return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]
