"""The grid of blocks of a matrix, and what a CSR index (crow, col) over it must satisfy."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ._errors import UsageError

LIMIT = 2**31 - 1  # most blocks, block rows and block columns of one support: indices are int32


def grid_of(shape: Sequence[int], block: Sequence[int]) -> tuple[int, int]:
    """The numbers of block rows and block columns of a matrix."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def checked(who: str, shape: object, block: object) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shape and block of a support as pairs. Raises UsageError."""
    sizes = _pair(who, "shape", shape), _pair(who, "block", block)
    if max(grid := grid_of(*sizes)) > LIMIT - 1:
        raise UsageError(who, f"a matrix has at most {LIMIT - 1} block rows and columns", got=grid)
    return sizes


def _pair(who: str, name: str, pair: object) -> tuple[int, int]:
    match pair:
        case [int(first), int(second)] if first >= 1 and second >= 1:
            return first, second
        case _:
            raise UsageError(who, f"{name} must be two positive whole numbers", got=pair)


def sorted_ids(ids: Tensor, total: int) -> Tensor:
    """A sorted copy of block ids, int64. Raises UsageError unless they are distinct numbers in [0, total)."""
    ids = ids.to(torch.int64, copy=True)
    if not bool((ids[1:] > ids[:-1]).all()):
        ids = torch.sort(ids)[0]
        if bool((ids[1:] == ids[:-1]).any()):
            raise UsageError("Support", "ids must be distinct")
    if ids.numel() and (int(ids[0]) < 0 or int(ids[-1]) >= total):
        raise UsageError("Support", f"ids must lie in [0, {total})", got=(int(ids[0]), int(ids[-1])))
    if ids.numel() > LIMIT:
        what, remedy = f"one support holds at most {LIMIT} blocks", "larger blocks, block=(h, w)"
        raise UsageError("Support", what, got=ids.numel(), remedy=remedy)
    return ids


def overhang(shape: tuple[int, int], block: tuple[int, int], crow: Tensor, col: Tensor, ccol: Tensor) -> int:
    """The number of scalars of the kept blocks that lie beyond the edge of the matrix."""
    (rows, cols), (h, w), (grid_rows, grid_cols) = shape, block, grid_of(shape, block)
    if rows % h == 0 and cols % w == 0:
        return 0
    tall, wide = rows - (grid_rows - 1) * h, cols - (grid_cols - 1) * w  # size of the last block row and column
    last_row, last_col = int(crow[-1] - crow[-2]), int(ccol[-1] - ccol[-2])
    corner = int(last_row > 0 and col[-1] == grid_cols - 1)
    return last_row * (h - tall) * w + last_col * h * (w - wide) - corner * (h - tall) * (w - wide)


def index_digest(crow: Tensor, col: Tensor) -> str:
    """SHA-256 of a CSR index, in hexadecimal."""
    state = hashlib.sha256()
    for t in (crow, col):
        state.update(t.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def index_problems(crow: object, col: object, shape: Sequence[int], block: Sequence[int]) -> list[str]:
    """What is wrong with a CSR index, in sentences; [] if it is valid."""
    rows, cols = grid_of(shape, block)
    for name, t in (("crow", crow), ("col", col)):
        if not isinstance(t, Tensor):
            return [f"{name} must be a tensor, not a {type(t).__name__}"]
        if t.dim() != 1 or t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            return [f"{name} must be a vector of integers, not {tuple(t.shape)} of {t.dtype}"]
    assert isinstance(crow, Tensor) and isinstance(col, Tensor)  # the loop has checked it
    if crow.numel() != rows + 1:
        return [f"crow must have {rows + 1} entries, the number of block rows plus one, not {crow.numel()}"]
    crow, col = crow.long(), col.long()
    first, last, n = int(crow[0]), int(crow[-1]), col.numel()
    problems: list[str] = []
    if first != 0 or last != n:
        problems.append(f"crow must run from 0 to the {n} entries of col, not from {first} to {last}")
    if bool((crow.diff() < 0).any()):
        problems.append("crow must not decrease")
    if n and (int(col.min()) < 0 or int(col.max()) >= cols):
        problems.append(f"columns must lie in [0, {cols}), not in [{int(col.min())}, {int(col.max())}]")
    if not problems and n > 1:
        starts = torch.zeros(n, dtype=torch.bool, device=col.device)
        inner = crow[1:-1]
        starts[inner[inner < n]] = True
        if bool(((col.diff() <= 0) & ~starts[1:]).any()):
            problems.append("columns must increase strictly within each row")
    return problems
