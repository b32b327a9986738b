"""The file of a checkpoint: tensors and a JSON header in the safetensors format, sealed by a digest of all bytes.

    digest = SHA-256 of the whole file, with the 64 characters of the digest itself read as zeros

The digest is compared before anything else in the file is used. Python's JSON module reads the header first, because
the parser of safetensors does not check it.
"""

# pyright: strict

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._errors import UsageError, nearest
from ..training.states import is_dict, is_list, is_sequence
from .disk import replacing

FORMAT, VERSION = "gossamer-checkpoint", 3
LONGEST = 100_000_000  # most bytes of a header: the limit of safetensors
BLANK = "0" * 64
SEAL = re.compile(rb'"digest":"([0-9a-f]{64})"')  # unique in a header: JSON escapes quotes inside strings
DTYPES = {
    torch.bool: "BOOL",
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8"},
    **{torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
}
OLDER = "an older checkpoint"
# errors that the parser of safetensors may raise
PARSER = (SafetensorError, OSError, ValueError, TypeError, LookupError, RuntimeError, OverflowError, MemoryError)
# errors that reading a damaged header may raise
DAMAGED = (LookupError, ValueError, TypeError, AttributeError, RecursionError, MemoryError)


class Contents(NamedTuple):
    """The contents of a file: its JSON and its tensors."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]


def write_file(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a sealed file, atomically and durably. Raises UsageError if that fails.

    The writer of safetensors is not used, because it leaves a temporary file behind if it is killed.
    """
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))  # so that every tensor is aligned
    held = {key: _plain(key, tensors[key]) for key in order}
    said = {"format": FORMAT, "version": str(VERSION), "digest": BLANK, "json": json.dumps(meta)}
    header: dict[str, Any] = {"__metadata__": said}
    end = 0
    for key, t in held.items():
        begin, end = end, end + t.numel() * t.element_size()
        header[key] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [begin, end]}
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise UsageError("checkpoint.save", f"the name of a tensor is not valid text: {error}") from error
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST:
        what = f"the states hold too many numbers that are no tensors: a header of {len(text):,} bytes"
        raise UsageError("checkpoint.save", what, remedy=f"at most {LONGEST:,}; a topology with fewer events")
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for t in held.values():
                file.write(t.reshape(-1).view(torch.uint8).numpy().data)
        seal(temporary)


def seal(path: Path) -> None:
    """Computes the digest of a file and writes it into the file."""
    with open(path, "r+b") as file:
        header = _header(file)
        found = SEAL.search(header)
        assert found is not None  # write_file has written it
        file.seek(8 + found.start(1))
        file.write(_digest(file, header, found).encode())


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON of a file, and its version. Verifies the whole file first. Raises UsageError if it is not valid."""
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
        what = "this is a folder" if path.is_dir() else f"there is no such file{nearest(path.name, siblings)}"
        raise UsageError(str(path), what)
    try:
        with open(path, "rb") as file:
            header = _header(file)
            said = _outer(file, header)
            _check_kind(path, said)
            found = SEAL.findall(header)
            match = SEAL.search(header)
            if match is None or len(found) != 1 or said["digest"].encode() != found[0]:
                raise ValueError("it holds no digest")
            if _digest(file, header, match).encode() != found[0]:
                what = "it is damaged: its bytes are not the bytes that were written (SHA-256 differs)"
                raise UsageError(str(path), what, remedy=OLDER)
        meta = json.loads(said["json"])
        wrong = [f"no {key}" for key in ("supports", "states", "rng", "extra") if not isinstance(meta.get(key), dict)]
    except UsageError:
        raise
    except EOFError as error:
        remedy = f"{OLDER}; a file that was cut off cannot be repaired"
        raise UsageError(str(path), f"truncated, or not a safetensors file: {error}", remedy=remedy) from error
    except OSError as error:
        raise UsageError(str(path), f"cannot be read: {error.strerror or error}") from error
    except DAMAGED as error:
        raise UsageError(str(path), f"its header is damaged: {_brief(error)}", remedy=OLDER) from error
    if wrong:
        raise UsageError(str(path), "its header is damaged", reasons=wrong, remedy=OLDER)
    return {**meta, "version": VERSION}


def read_file(path: Path) -> Contents:
    """The JSON and the tensors of a file. Verifies the whole file first. Raises UsageError if it is not valid."""
    meta = read_meta(path)
    try:
        opened: Any = safe_open(str(path), "pt")  # safetensors gives it no types
        with opened as file:
            # clones: the tensors of safetensors are mapped to the file, and would change if the file is written to
            return Contents(meta, {key: file.get_tensor(key).clone() for key in file.keys()})
    except PARSER as error:
        raise UsageError(str(path), f"its tensors cannot be read: {_brief(error)}", remedy=OLDER) from error


# -------------------------------------------------------------------- states as JSON and tensors


def packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Converts a nested state to JSON. Its tensors are added to ``tensors``, under names that start with ``name``.

    Raises: UsageError if the state holds something that is neither a tensor nor JSON.
    """
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"  # two entries may get the same name: {"a.b": x, "a": {"b": y}}
        tensors[name] = value
        return {"tensor": name}
    if is_dict(value):
        wrong = [key for key in value if not (key is None or isinstance(key, (bool, int, float, str)))]
        if wrong:
            what = f"{name} has a key that is neither a string nor a number"
            raise UsageError("checkpoint.save", what, got=wrong[0])
        return {"items": [[key, packed(v, f"{name}.{key}", tensors)] for key, v in value.items()]}
    if is_sequence(value):
        kind = "tuple" if type(value) is tuple else "list"
        return {kind: [packed(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError("checkpoint.save", f"{name} is a {type(value).__name__}, neither a tensor nor JSON", got=value)


def unpacked(value: Any, tensors: Mapping[str, Tensor], used: set[str]) -> Any:
    """The state that :func:`packed` has converted to JSON. Adds the names of its tensors to ``used``.

    Raises: ValueError if the JSON was not made by :func:`packed`.
    """
    if not is_dict(value) and not is_list(value):
        return value
    if not is_dict(value) or len(value) != 1:
        raise ValueError("a value has not the form of a packed value")
    kind, inner = next(iter(value.items()))
    if kind == "tensor" and isinstance(inner, str):
        if inner not in tensors or inner in used:
            raise ValueError(f"its header names a tensor {inner!r} that is missing, or used twice")
        used.add(inner)
        return tensors[inner]
    if kind == "items" and is_list(inner):
        return dict(_item(pair, tensors, used) for pair in inner)
    if kind in ("list", "tuple") and is_list(inner):
        return (tuple if kind == "tuple" else list)(unpacked(v, tensors, used) for v in inner)
    raise ValueError(f"a value is packed as {str(kind)[:40]!r}")


def _item(pair: Any, tensors: Mapping[str, Tensor], used: set[str]) -> tuple[Any, Any]:
    if not is_list(pair) or len(pair) != 2 or isinstance(pair[0], (dict, list)):
        raise ValueError("an item of a dict is not a pair of key and value")
    return pair[0], unpacked(pair[1], tensors, used)


# -------------------------------------------------------------------- details


def _header(file: BinaryIO) -> bytes:
    """The bytes of the header. Raises EOFError if the file is too short for its header."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST):
        raise EOFError(f"it has {size} bytes, and its header {length}" if size >= 8 else f"it has {size} bytes")
    return file.read(length)


def _outer(file: BinaryIO, header: bytes) -> dict[str, str]:
    """The metadata of a header, by key. Raises EOFError if the file ends before its tensors."""
    tree = json.loads(header)
    said = tree.pop("__metadata__", {})
    end = 8 + len(header) + max((int(entry["data_offsets"][1]) for entry in tree.values()), default=0)
    if (size := file.seek(0, 2)) < end:
        raise EOFError(f"it has {size} bytes of {end}")
    return said


def _digest(file: BinaryIO, header: bytes, found: re.Match[bytes]) -> str:
    """SHA-256 of the file with its own digest read as zeros. Leaves the position in the file unchanged."""
    at = file.tell()
    state = hashlib.sha256(len(header).to_bytes(8, "little"))
    state.update(header[: found.start(1)] + BLANK.encode() + header[found.end(1) :])
    file.seek(8 + len(header))
    for block in _blocks(file):
        state.update(block)
    file.seek(at)
    return state.hexdigest()


def _blocks(file: BinaryIO, size: int = 1 << 20) -> Iterator[bytes]:
    while block := file.read(size):
        yield block


def _check_kind(path: Path, said: dict[str, str]) -> None:
    """Refuses a file of another program, or of another version."""
    if said.get("format") != FORMAT:
        what = "this is a safetensors file, but not a gossamer checkpoint"
        raise UsageError(str(path), what, remedy="a file written by checkpoint.save")
    version = int(said["version"])
    if version > VERSION:
        what = f"it has format version {version}; this gossamer reads version {VERSION}"
        raise UsageError(str(path), what, remedy="a newer gossamer")
    if version < VERSION:
        weights = "its entries model.X, read by safetensors.torch.load_file, are the state_dict of the model"
        remedy = f"{weights}; gossamer 0.1.0 reads all of version 1"
        what = f"it has format version {version}; this gossamer reads version {VERSION}"
        raise UsageError(str(path), what, remedy=remedy)


def _plain(key: str, t: Tensor) -> Tensor:
    """A contiguous copy of a tensor on the CPU. Raises UsageError if the format does not have its type."""
    if t.layout is not torch.strided or t.dtype not in DTYPES:
        what = f"the file format cannot hold the dtype and layout of {key}"
        raise UsageError("checkpoint.save", what, got=(t.dtype, t.layout))
    return t.detach().cpu().contiguous()


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__} {text[:160]}".strip()
