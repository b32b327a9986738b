"""The file of a checkpoint: plain tensors and a JSON header by safetensors, sealed by a digest of every byte.

    digest = SHA-256 of the whole file, the 64 characters of the digest itself read as zeros

It is compared before anything in the file is believed; the header is read by Python's own JSON first, so a damaged one reaches no parser
that trusts it.
"""

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
from .disk import replacing

FORMAT, VERSION = "gossamer-checkpoint", 2
LONGEST = 100_000_000  # bytes of a header, safetensors' own limit
BLANK = "0" * 64
SEAL = re.compile(
    rb'"digest":"([0-9a-f]{64})"'
)  # in the header: quotes inside a string are escaped, so nothing else looks like it
DTYPES = {
    **{
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.complex64: "C64",
    },
    torch.bool: "BOOL",
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
    **{
        torch.uint64: "U64",
        torch.uint32: "U32",
        torch.uint16: "U16",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
    },
}
OLDER = "an older checkpoint"
FOREIGN = (
    SafetensorError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    OverflowError,
    MemoryError,
)  # of a parser


class Contents(NamedTuple):
    """What is in a file."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]


def write_file(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a sealed file, atomically and durably. Raises UsageError.

    The bytes are written here: safetensors' own writer leaves a temporary of its own behind where it is killed.
    """
    held = {
        key: _plain(key, t) for key, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    }  # aligned
    said = {"format": FORMAT, "version": str(VERSION), "digest": BLANK, "json": json.dumps(meta)}
    header: dict[str, Any] = {"__metadata__": said}
    end = 0
    for key, t in held.items():
        begin, end = end, end + t.numel() * t.element_size()
        header[key] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [begin, end]}
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise UsageError("checkpoint.save", f"the name of a tensor is no text: {error}") from error
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for t in held.values():
                file.write(t.reshape(-1).view(torch.uint8).numpy().data)
        seal(temporary)


def seal(path: Path) -> None:
    """Writes the digest of a file, as it is now, into it."""
    with open(path, "r+b") as file:
        header = _header(file)
        found = SEAL.search(header)
        assert found is not None  # it has just been written so
        file.seek(8 + found.start(1))
        file.write(_digest(file, header, found).encode())


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON of a file, and its version, after the whole file was verified. Raises UsageError."""
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
                raise UsageError(
                    str(path),
                    "it is damaged: its bytes are not those that were written (SHA-256 differs)",
                    remedy=OLDER,
                )
        meta = json.loads(said["json"])
        wrong = [f"no {key}" for key in ("supports", "states", "rng", "extra") if not isinstance(meta.get(key), dict)]
    except UsageError:
        raise
    except EOFError as error:
        remedy = f"{OLDER}; a file that was cut off cannot be repaired"
        raise UsageError(str(path), f"truncated, or not a safetensors file: {error}", remedy=remedy) from error
    except OSError as error:
        raise UsageError(str(path), f"cannot be read: {error.strerror or error}") from error
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise UsageError(str(path), f"its header is damaged: {_brief(error)}", remedy=OLDER) from error
    if wrong:
        raise UsageError(str(path), "its header is damaged", reasons=wrong, remedy=OLDER)
    return {**meta, "version": VERSION}


def read_file(path: Path) -> Contents:
    """The JSON and the tensors of a file, after the whole of it was verified. Raises UsageError."""
    meta = read_meta(path)
    try:
        with safe_open(str(path), "pt") as file:  # pyright: ignore[reportGeneralTypeIssues]
            # clones: what safetensors gives is a window on the file, which changes when somebody writes into the file
            return Contents(meta, {key: file.get_tensor(key).clone() for key in file.keys()})
    except FOREIGN as error:
        raise UsageError(str(path), f"its tensors cannot be read: {_brief(error)}", remedy=OLDER) from error


# -------------------------------------------------------------------- states as JSON and tensors


def packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a nested state; its tensors go into ``tensors`` under names that start with ``name``. Raises UsageError."""
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"  # two paths with one spelling: {"a.b": x, "a": {"b": y}}
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        strange = [key for key in value if not (key is None or isinstance(key, (bool, int, float, str)))]
        if strange:
            raise UsageError(
                "checkpoint.save", f"{name} has a key that is neither a string nor a number", got=strange[0]
            )
        return {"items": [[key, packed(v, f"{name}.{key}", tensors)] for key, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if type(value) is tuple else "list"
        return {kind: [packed(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError("checkpoint.save", f"{name} is a {type(value).__name__}, neither a tensor nor JSON", got=value)


def unpacked(value: Any, tensors: Mapping[str, Tensor], used: set[str]) -> Any:
    """The state again; the names of its tensors go into ``used``. Raises ValueError where the JSON is not what :func:`packed` makes."""
    if not isinstance(value, (dict, list)):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("a value is none that was packed")
    ((kind, inner),) = value.items()
    if kind == "tensor" and isinstance(inner, str):
        if inner not in tensors or inner in used:
            raise ValueError(f"it holds no tensor {inner!r} for this place, which its header names")
        used.add(inner)
        return tensors[inner]
    if kind == "items" and isinstance(inner, list):
        return dict(_item(pair, tensors, used) for pair in inner)
    if kind in ("list", "tuple") and isinstance(inner, list):
        return (tuple if kind == "tuple" else list)(unpacked(v, tensors, used) for v in inner)
    raise ValueError(f"a value is packed as {str(kind)[:40]!r}")


def _item(pair: Any, tensors: Mapping[str, Tensor], used: set[str]) -> tuple[Any, Any]:
    if not isinstance(pair, list) or len(pair) != 2 or isinstance(pair[0], (dict, list)):
        raise ValueError("an item of a dict is no pair of key and value")
    return pair[0], unpacked(pair[1], tensors, used)


# -------------------------------------------------------------------- details


def _header(file: BinaryIO) -> bytes:
    """The bytes of the header. Raises EOFError if the file cannot hold one."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST):
        raise EOFError(f"{size} bytes, and a header that would have {length}" if size >= 8 else f"{size} bytes")
    return file.read(length)


def _outer(file: BinaryIO, header: bytes) -> dict[str, str]:
    """The strings of a header, by key. Raises EOFError if the file ends before the tensors that it names."""
    tree = json.loads(header)
    said = tree.pop("__metadata__", {})
    end = 8 + len(header) + max((int(entry["data_offsets"][1]) for entry in tree.values()), default=0)
    if (size := file.seek(0, 2)) < end:
        raise EOFError(f"{size} bytes of {end}")
    return said


def _digest(file: BinaryIO, header: bytes, found: re.Match[bytes]) -> str:
    """SHA-256 of the file with its own digest read as zeros. Leaves the position as it is."""
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
    """Refuses a file of somebody else, or of another version."""
    if said.get("format") != FORMAT:
        raise UsageError(
            str(path),
            "this is a safetensors file, but not a gossamer checkpoint",
            remedy="a file written by checkpoint.save",
        )
    version = int(said["version"])
    if version > VERSION:
        raise UsageError(
            str(path), f"format version {version}, newer than the {VERSION} known here", remedy="a newer gossamer"
        )
    if version < VERSION:
        remedy = "gossamer 0.1.0 reads all of it; its entries model.X, read by safetensors.torch.load_file, are the state_dict of the model"
        raise UsageError(str(path), f"format version {version}, which has no digest to verify it by", remedy=remedy)


def _plain(key: str, t: Tensor) -> Tensor:
    """A tensor as it is written: on the CPU, contiguous, of a type that the format knows."""
    if t.layout is not torch.strided or t.dtype not in DTYPES:
        raise UsageError("checkpoint.save", f"the format has no tensors like {key}", got=(t.dtype, t.layout))
    return t.detach().cpu().contiguous()


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__} {text[:160]}".strip()
