"""Readers of the official files of MNIST-like (IDX) and CIFAR data sets. Truncated and other files are refused.

IDX      0x00 0x00 type rank | rank x uint32 big-endian sizes | data          type 0x08: unsigned byte; plain or gzip
CIFAR    records of label_bytes + 3072 bytes: label(s), then 32 x 32 red, green, blue planes
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._errors import UsageError

UBYTE = 0x08
PIXELS = 3 * 32 * 32


def find(folders: list[Path], names: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """(paths, missing names) of files ``NAME`` or ``NAME.gz`` in the folder that holds most of them."""

    def look(folder: Path) -> list[Path | None]:
        return [next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None) for name in names]

    best = max((look(folder) for folder in folders), key=lambda found: sum(p is not None for p in found))
    return [p for p in best if p is not None], [name for name, p in zip(names, best, strict=True) if p is None]


def contents(path: Path) -> bytes:
    """All bytes of a plain or gzip file (recognised by its first two bytes).

    Raises: UsageError if the gzip stream is damaged.
    """
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        what = f"truncated or damaged gzip file: {error}"
        raise UsageError(str(path), what, remedy="download the file again") from error


def read_idx(path: Path, rank: int) -> Tensor:
    """A uint8 tensor of the given rank: images (n, rows, cols) have rank 3, labels (n,) rank 1. Raises UsageError."""
    raw = contents(path)
    if len(raw) < 4 or raw[0] or raw[1]:
        raise UsageError(str(path), "not an IDX file: it does not begin with two zero bytes", got=raw[:4])
    if (raw[2], raw[3]) != (UBYTE, rank):
        got = f"type {raw[2]}, {raw[3]} dimension(s)"
        raise UsageError(str(path), f"not an IDX file of unsigned bytes (type 8) with {rank} dimension(s)", got=got)
    header = 4 + 4 * rank
    if len(raw) < header:
        raise UsageError(
            str(path), f"truncated: the header has {header} bytes", got=len(raw), remedy="download the file again"
        )
    sizes = [int(v) for v in np.frombuffer(raw, ">u4", rank, 4)]
    if len(raw) - header != math.prod(sizes):
        what = "truncated" if len(raw) - header < math.prod(sizes) else "too long"
        expected = f"the header gives {' x '.join(map(str, sizes))} = {math.prod(sizes)} bytes of data"
        raise UsageError(str(path), f"{what}: {expected}", got=len(raw) - header, remedy="download the file again")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(sizes).copy())


def read_cifar(path: Path, label_bytes: int, records: int) -> tuple[Tensor, Tensor]:
    """Images (records, 3, 32, 32) uint8 and labels (records,) int64, the last label byte of each record.

    Raises UsageError.
    """
    raw = contents(path)
    size = label_bytes + PIXELS
    if len(raw) != records * size:
        what = "truncated" if len(raw) < records * size else "too long, or another format"
        expected = f"{records} records of {size} bytes are {records * size} bytes"
        raise UsageError(str(path), f"{what}: {expected}", got=len(raw), remedy="download the file again")
    table = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(records, size).copy())
    return table[:, label_bytes:].reshape(records, 3, 32, 32).contiguous(), table[:, label_bytes - 1].long()
