"""Support: which blocks of a matrix may be non-zero. It is immutable, and holds nothing of the dense size.

A matrix of ``shape`` (rows, cols) is cut into blocks of (h, w) scalars. (1, 1) is one scalar. The last row and column
of blocks may reach beyond the edge. The index of the kept blocks is in compressed sparse row (CSR) form. Ids count
blocks row by row, id = i * grid_cols + j (int64).

    crow, col          row order:     block row i holds the blocks crow[i]:crow[i+1], in columns col[...],
                                      strictly increasing
    ccol, row, perm    column order:  block column j holds the blocks ccol[j]:ccol[j+1], in rows row[...];
                                      the k-th is number perm[k] in row order

The id of the r-th block that is *not* kept (the r-th zero) has a closed form. Let k_0 < k_1 < ... be the kept ids.
Exactly k_i - i zeros precede k_i, so  id(r) = r + #{i : k_i - i <= r}. Sampling m zeros therefore takes O(m log n).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ._backend.index import op as index
from ._backend.index.reference import INT, pointers
from ._errors import UsageError
from ._grid import checked, grid_of, index_digest, index_problems, overhang, sorted_ids
from ._sampling import distinct, distinct_in_rows, unique


@dataclass(frozen=True, eq=False)
class Support:
    """The index of the kept blocks. It is made by :meth:`random`, :meth:`from_ids`, :meth:`from_index`, :meth:`of`."""

    shape: tuple[int, int]
    block: tuple[int, int]
    crow: Tensor  # (grid_rows + 1,) int32
    col: Tensor  # (n,) int32
    ccol: Tensor  # (grid_cols + 1,) int32
    row: Tensor  # (n,) int32, column order
    perm: Tensor  # (n,) int32

    # ---------------------------------------------------------------- constructors

    @staticmethod
    def from_ids(ids: Tensor, shape: Sequence[int], block: Sequence[int] = (1, 1)) -> "Support":
        """The support of the given block ids (int64, any order, no duplicates)."""
        shape, block = checked("Support", shape, block)
        grid = grid_of(shape, block)
        ids = sorted_ids(ids, grid[0] * grid[1])
        col = (ids % grid[1]).to(INT)
        rows = ids.div_(grid[1], rounding_mode="floor") if ids.numel() else ids
        return _with_column_order(shape, block, pointers(rows, grid[0]), col)

    @staticmethod
    def from_index(crow: Tensor, col: Tensor, shape: Sequence[int], block: Sequence[int] = (1, 1)) -> "Support":
        """The support of a CSR index from outside, for instance from a file. Raises UsageError if it is not valid."""
        shape, block = checked("Support", shape, block)
        if problems := index_problems(crow, col, shape, block):
            what = f"this is not a CSR index of a {shape[0]} x {shape[1]} matrix in blocks of {block}"
            raise UsageError("Support", what, reasons=problems)
        crow, col = (t.to(INT, copy=True).contiguous() for t in (crow, col))  # a support shares no memory
        return _with_column_order(shape, block, crow, col)

    @staticmethod
    def of_index(crow: Tensor, col: Tensor, shape: Sequence[int], block: Sequence[int] = (1, 1)) -> "Support":
        """The support of a CSR index (int32) that a kernel has just made. The index is not verified."""
        return _with_column_order(*checked("Support", shape, block), crow, col)

    @staticmethod
    def random(
        shape: Sequence[int],
        n: int,
        block: Sequence[int] = (1, 1),
        rng: torch.Generator | None = None,
        min_fan_in: int = 0,
    ) -> "Support":
        """``n`` random blocks, uniformly without replacement. Every block row first gets ``min_fan_in`` of them."""
        shape, block = checked("Support.random", shape, block)
        rows, cols = grid_of(shape, block)
        if not 0 <= n <= rows * cols:
            raise UsageError("Support.random", f"n must lie in [0, {rows * cols}]", got=n)
        if min_fan_in == 0:
            return Support.from_ids(distinct(rows * cols, n, rng), shape, block)
        if not min_fan_in * rows <= n or min_fan_in > cols:
            what = f"{n} blocks cannot give each of {rows} output units {min_fan_in} of {cols} incoming weights"
            raise UsageError("Support.random", what, remedy="a larger density or a smaller min_fan_in")
        first = distinct_in_rows(rows, cols, min_fan_in, rng) + torch.arange(rows)[:, None] * cols
        base = Support.from_ids(first.flatten(), shape, block)
        return Support.from_ids(torch.cat([base.ids(), base.sample_outside(n - base.n, rng)]), shape, block)

    @staticmethod
    def of(dense: Tensor, block: Sequence[int] = (1, 1)) -> "Support":
        """The blocks of a dense matrix (rows, cols) that hold a non-zero scalar."""
        shape, block = checked("Support.of", tuple(dense.shape), block)
        if block == (1, 1):
            return _with_column_order(shape, block, *index.rows_of(dense))
        i, j = dense.nonzero(as_tuple=True)
        ids = (i // block[0]) * grid_of(shape, block)[1] + j // block[1]
        return Support.from_ids(unique(ids), shape, block)

    @staticmethod
    def full(shape: Sequence[int], block: Sequence[int] = (1, 1)) -> "Support":
        """The support of density 1: it keeps every block, and is as large as the matrix."""
        rows, cols = grid_of(*checked("Support.full", shape, block))
        return Support.from_ids(torch.arange(rows * cols), shape, block)

    # ---------------------------------------------------------------- counting

    @property
    def n(self) -> int:
        """The number of kept blocks."""
        return self.col.shape[0]

    @property
    def grid(self) -> tuple[int, int]:
        """The numbers of block rows and block columns."""
        return grid_of(self.shape, self.block)

    @property
    def total(self) -> int:
        """The number of all blocks, kept or not."""
        rows, cols = self.grid
        return rows * cols

    @property
    def density(self) -> float:
        """Kept blocks divided by all blocks."""
        return self.n / self.total

    @property
    def weights(self) -> int:
        """The number of kept scalars, without the scalars of blocks that lie beyond the edge."""
        h, w = self.block
        return self.n * h * w - overhang(self.shape, self.block, self.crow, self.col, self.ccol)

    @property
    def bytes(self) -> int:
        """Bytes of the five index tensors."""
        return sum(t.numel() * t.element_size() for t in self._tensors)

    @property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.crow, self.col, self.ccol, self.row, self.perm

    # ---------------------------------------------------------------- ids

    def rows(self) -> Tensor:
        """Block row of each kept block, row order, (n,) int32."""
        rows = torch.arange(self.grid[0], dtype=INT, device=self.crow.device)
        return torch.repeat_interleave(rows, self.crow.diff(), output_size=self.n)

    def ids(self) -> Tensor:
        """Ids of the kept blocks, sorted, (n,) int64."""
        return self.rows().long().mul_(self.grid[1]).add_(self.col)

    def find(self, ids: Tensor) -> Tensor:
        """Position in row order of each id; -1 where the block is not kept. (m,) int64 -> (m,) int64."""
        if not self.n:
            return torch.full_like(ids, -1)
        kept = self.ids()
        at = torch.searchsorted(kept, ids)
        return torch.where(kept[at.clamp(max=self.n - 1)] == ids, at, -1)

    def outside(self, rank: Tensor) -> Tensor:
        """For each rank r, the id of the r-th block that is *not* kept. (m,) int64 in [0, total - n) -> (m,) int64."""
        before = self.ids().sub_(torch.arange(self.n, device=self.col.device))  # zeros before each kept block
        return rank + torch.searchsorted(before, rank, right=True)

    def sample_outside(self, m: int, rng: torch.Generator | None = None) -> Tensor:
        """Ids of ``m`` blocks that are not kept, uniformly without replacement, sorted, (m,) int64. O(m log n)."""
        return self.outside(distinct(self.total - self.n, m, rng).to(self.col.device))

    def scalars(self) -> tuple[Tensor | None, Tensor]:
        """Positions of the kept scalars, int64: in the flat values (None: all, in order), and in the flat matrix."""
        if self.block == (1, 1):
            return None, self.ids()
        at = self.places(self.ids()).flatten()
        inside = at >= 0
        return inside.nonzero().flatten(), at[inside]

    def places(self, ids: Tensor) -> Tensor:
        """Positions of the scalars of blocks in the flat matrix, (k,) int64 -> (k, h, w); -1 beyond the edge."""
        (h, w), (rows, cols) = self.block, self.shape
        i = (ids // self.grid[1])[:, None, None] * h + torch.arange(h, device=ids.device)[None, :, None]
        j = (ids % self.grid[1])[:, None, None] * w + torch.arange(w, device=ids.device)[None, None, :]
        return torch.where((i < rows) & (j < cols), i * cols + j, -1)

    def mask(self) -> Tensor:
        """Dense boolean matrix (rows, cols). Use it in tests and pictures only: it has the dense size."""
        mask = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.col.device)
        mask[self.scalars()[1]] = True
        return mask.view(self.shape)

    def to(self, device: torch.device | str) -> "Support":
        """The same support on another device."""
        return Support(self.shape, self.block, *(t.to(device) for t in self._tensors))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of (crow, col), in hexadecimal. Files store it, and processes compare it."""
        return index_digest(self.crow, self.col)

    @property
    def tag(self) -> int:
        """The first 60 bits of the digest, as a number."""
        return int(self.digest[:15], 16)

    @property
    def version(self) -> int:
        """The number of writes to its tensors, as torch counts them. It must not change: a support is immutable."""
        return self.crow._version + self.col._version + self.ccol._version + self.row._version + self.perm._version

    def again(self) -> "Support":
        """The same blocks as another object. Owners compare identities: a new one shows that the layer was loaded."""
        return Support(self.shape, self.block, *self._tensors)

    def same(self, other: "Support") -> bool:
        """True if both keep the same blocks of the same matrix."""
        alike = (self.shape, self.block, self.n) == (other.shape, other.block, other.n)
        return alike and torch.equal(self.crow, other.crow) and torch.equal(self.col, other.col)


def _with_column_order(shape: tuple[int, int], block: tuple[int, int], crow: Tensor, col: Tensor) -> Support:
    return Support(shape, block, crow, col, *index.columns_of(crow, col, grid_of(shape, block)[1]))
