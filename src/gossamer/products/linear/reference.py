# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""y = x W^T for a sparse W, its two gradients, and the gradient at other coordinates: the reference, by torch.sparse.

    forward            y[b, i]  = sum_{j in S_i} W[i, j] x[b, j]                       2 B n flops
    input_gradient     dx[b, j] = sum_{i : j in S_i} W[i, j] dy[b, i]                  2 B n
    weight_gradient    dW[i, j] = sum_b dy[b, i] x[b, j]   for (i, j) in S  (SDDMM)    2 B n

Memory O(n + activations). With blocks of (h, w) the values are (n, h, w), and the same equations hold for blocks.
"""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...support import Support, grid_of

with warnings.catch_warnings():  # torch warns once per process that CSR tensors are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(
        torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1), check_invariants=False
    )

TILE_NUMBERS = 1 << 22  # numbers that the block kernels gather at a time


def forward(x: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
    """(B, cols), (n,) or (n, h, w), (rows,) -> (B, rows)."""
    if s.block == (1, 1):
        y = (_csr(s.crow, s.col, values, s.shape) @ x.t()).t()
    else:
        y = _tiles(x, values, s.rows(), s.col, s.grid)[:, : s.shape[0]]
    return y if bias is None else y + bias


def backward(dy: Tensor, x: Tensor, values: Tensor, s: Support) -> tuple[Tensor, Tensor]:
    """Both gradients: (B, rows), (B, cols), (n,) or (n, h, w) -> (B, cols), (n,) or (n, h, w)."""
    return input_gradient(dy, values, s), weight_gradient(dy, x, s)


def input_gradient(dy: Tensor, values: Tensor, s: Support) -> Tensor:
    """(B, rows), (n,) or (n, h, w) -> (B, cols)."""
    values = values[s.perm]
    if s.block == (1, 1):
        return (_csr(s.ccol, s.row, values, s.shape[::-1]) @ dy.t()).t()
    cols = torch.repeat_interleave(torch.arange(s.grid[1], device=s.row.device), s.ccol.diff())
    return _tiles(dy, values.transpose(1, 2), cols, s.row, (s.grid[1], s.grid[0]))[:, : s.shape[1]]


def weight_gradient(dy: Tensor, x: Tensor, s: Support) -> Tensor:
    """(B, rows), (B, cols) -> (n,) or (n, h, w): the gradient on the support."""
    return sampled(dy, x, s.crow, s.col, s.shape, s.block)


def sampled(dy: Tensor, x: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """dW at the blocks of any CSR index: (B, rows), (B, cols) -> (m,) or (m, h, w)."""
    if block == (1, 1):
        where = _csr(crow, col, torch.zeros(col.shape[0], dtype=x.dtype, device=x.device), shape)
        return torch.sparse.sampled_addmm(where, dy.t(), x, beta=0.0).values()
    (h, w), grid = block, grid_of(shape, block)
    dy = pad(dy, (0, grid[0] * h - shape[0])).t().reshape(grid[0], h, -1)
    x = pad(x, (0, grid[1] * w - shape[1])).t().reshape(grid[1], w, -1)
    rows = torch.repeat_interleave(torch.arange(grid[0], device=col.device), crow.diff())
    out = x.new_empty(col.shape[0], h, w)
    for k in _chunks(col.shape[0], (h + w) * x.shape[-1]):
        out[k] = torch.bmm(dy[rows[k]], x[col[k]].transpose(1, 2))
    return out


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def _tiles(x: Tensor, values: Tensor, rows: Tensor, cols: Tensor, grid: tuple[int, int]) -> Tensor:
    """Gathers the inputs of the blocks, multiplies, adds by rows: (B, ?), (n, h, w), (n,), (n,) -> (B, grid_rows h)."""
    (_, h, w), batch = values.shape, x.shape[0]
    x = pad(x, (0, grid[1] * w - x.shape[1])).t().reshape(grid[1], w, batch)
    y = x.new_zeros(grid[0], h, batch)
    for k in _chunks(values.shape[0], (h + w) * batch):
        y.index_add_(0, rows[k], torch.bmm(values[k], x[cols[k]]))
    return y.view(grid[0] * h, batch).t()


def _chunks(n: int, numbers_each: int) -> Iterator[slice]:
    step = max(1, TILE_NUMBERS // max(1, numbers_each))
    return (slice(start, start + step) for start in range(0, n, step))
