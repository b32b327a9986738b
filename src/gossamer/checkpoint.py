"""Checkpoints: one safetensors file, every tensor dense and named, the rest as JSON in its header. docs/checkpoint.md is the format.

    model.NAME               the model's state_dict; sparse layers hold NAME.values, NAME.crow, NAME.col
    optimizer. scheduler. rewirer. ledger. rng.     tensors of their state_dicts, placed by the JSON

Everything is verified before anything is changed: the file, that it is ours and not newer, that the model has the same layers, that every
index is a valid one and the one its values were saved with (SHA-256), that all shapes fit.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import Unfit, nearest
from .layers import sparse_layers
from .support import index_problems

FORMAT, VERSION = "gossamer-checkpoint", 1
PARTS = ("optimizer", "rewirer", "scheduler", "ledger", "target")


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: Any = None,
    rewirer: Any = None,
    scheduler: Any = None,
    ledger: Any = None,
    target: Any = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Writes a checkpoint, atomically: an interrupted save leaves the old file.

    Args:
        model, optimizer, rewirer, scheduler, ledger, target: whatever has a ``state_dict()``; torch's random state is saved too.
        extra: anything JSON can hold (the epoch, the position in it).

    Raises: Unfit if a state holds something that is neither tensor nor JSON.
    """
    path = Path(path)
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    states = {name: part for name, part in zip(PARTS, (optimizer, rewirer, scheduler, ledger, target), strict=True) if part is not None}
    try:
        json.dumps(extra)
    except (TypeError, ValueError) as error:
        raise Unfit("checkpoint.save", f"extra must be JSON: {error}") from error
    meta: dict[str, Any] = {"supports": _describe(model), "extra": extra or {}}
    meta["states"] = {name: _packed(part.state_dict(), name, tensors) for name, part in states.items()}
    meta["rng"] = _packed(_rng_state(), "rng", tensors)
    header = {"format": FORMAT, "version": str(VERSION), "json": json.dumps(meta)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        save_file(_separate(tensors), temporary, metadata=header)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says of itself: ``version``, ``supports`` (per layer shape, unit, layout, n, digest), ``states``, ``extra``."""
    return _read(Path(path))[0]


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: Any = None,
    rewirer: Any = None,
    scheduler: Any = None,
    ledger: Any = None,
    target: Any = None,
) -> dict[str, Any]:
    """Reads a checkpoint into objects built as they were when it was saved; torch's random state too. Sparse layers take its supports.

    Returns: the ``extra`` it was saved with.

    Raises: Unfit on a missing, truncated or foreign file, another model, an index that does not fit, a state that was not saved;
    nothing has been changed then.
    """
    path = Path(path)
    meta, tensors = _read(path)
    states = {name: part for name, part in zip(PARTS, (optimizer, rewirer, scheduler, ledger, target), strict=True) if part is not None}
    absent = [name for name in states if name not in meta["states"]]
    if absent:
        raise Unfit(str(path), f"this checkpoint holds no {' and no '.join(absent)} state", remedy="load the model alone")
    mine = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    _verify(path, model, mine, meta["supports"])
    try:
        unpacked = {name: _unpacked(meta["states"][name], tensors) for name in states}
        random = _unpacked(meta["rng"], tensors)
    except KeyError as missing:
        raise Unfit(
            str(path), f"it is damaged: it holds no tensor {missing}, which its header names", remedy="an older checkpoint"
        ) from missing
    if optimizer is not None:
        _verify_optimizer(path, model, optimizer, unpacked["optimizer"], mine)
    if rewirer is not None and unpacked["rewirer"]["topology"] != rewirer.topology.name:
        raise Unfit(str(path), f"saved with topology {unpacked['rewirer']['topology']!r}, not {rewirer.topology.name!r}")
    if rewirer is not None and (problems := rewirer.problems(unpacked["rewirer"])):
        remedy = "the same topology as when it was saved, or load the model alone"
        raise Unfit(str(path), "saved under other rules of the topology", reasons=problems, remedy=remedy)
    if ledger is not None and unpacked["ledger"]["by_layer"].keys() != ledger.by_layer.keys():
        raise Unfit(str(path), f"its ledger is of layers {list(unpacked['ledger']['by_layer'])}, not {list(ledger.by_layer)}")
    model.load_state_dict(mine)
    for name, part in states.items():
        part.load_state_dict(unpacked[name])
    _set_rng_state(random)
    return meta["extra"]


# -------------------------------------------------------------------- details


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
        raise Unfit(str(path), f"there is no such file{nearest(path.name, siblings)}")
    try:
        with safe_open(str(path), "pt") as file:  # pyright: ignore[reportGeneralTypeIssues]
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise Unfit(
                    str(path), "this is a safetensors file, but not a gossamer checkpoint", remedy="a file written by checkpoint.save"
                )
            if int(header["version"]) > VERSION:
                raise Unfit(
                    str(path), f"format version {header['version']}, newer than the {VERSION} known here", remedy="a newer gossamer"
                )
            meta = {"version": int(header["version"]), **json.loads(header["json"])}
            if absent := [key for key in ("supports", "states", "rng", "extra") if key not in meta]:
                raise KeyError(*absent)
            return meta, {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        remedy = "an older checkpoint; a file that was cut off cannot be repaired"
        raise Unfit(str(path), f"truncated, or not a safetensors file: {error}", remedy=remedy) from error
    except (KeyError, ValueError, TypeError) as error:
        if isinstance(error, Unfit):
            raise
        raise Unfit(str(path), f"its header is damaged: {error!r}", remedy="an older checkpoint") from error


def _describe(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "shape": list(layer.dense_shape),
            "unit": list(layer.unit),
            "layout": layer.layout.name,
            "n": layer.support.n,
            "sha256": digest(layer.support.crow, layer.support.col),
        }
        for name, layer in sparse_layers(model).items()
    }


def digest(crow: Tensor, col: Tensor) -> str:
    """SHA-256 of an index."""
    state = hashlib.sha256()
    for t in (crow, col):
        state.update(t.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def _verify(path: Path, model: nn.Module, saved: dict[str, Tensor], supports: dict[str, dict[str, Any]]) -> None:
    """All that could go wrong in ``model.load_state_dict``, said before it happens."""
    mine, layers, reasons = model.state_dict(), sparse_layers(model), []
    reasons += [f"the model has {key!r}, the file has not{nearest(key, saved)}" for key in mine if key not in saved]
    reasons += [f"the file has {key!r}, the model has not{nearest(key, mine)}" for key in saved if key not in mine]
    if reasons:
        raise Unfit(str(path), "this checkpoint is of another model", reasons=reasons[:10])
    indexed = {f"{name}.{part}" if name else part for name in layers for part in ("values", "crow", "col")}
    for name, layer in layers.items():
        s, dot = layer.support, f"{name}." if name else ""
        values, crow, col = (saved[dot + part] for part in ("values", "crow", "col"))
        said = supports.get(name)
        if said is None:
            reasons.append(f"{name}: the file does not describe its support")
            continue
        here = {"shape": list(layer.dense_shape), "unit": list(layer.unit), "layout": layer.layout.name}
        reasons += [f"{name}: {key} is {here[key]} here, {said.get(key)} in the file" for key in here if here[key] != said.get(key)]
        problems = [] if reasons else index_problems(crow, col, s.shape, s.unit)
        reasons += [f"{name}: {problem}" for problem in problems]
        if not reasons and digest(crow, col) != said["sha256"]:
            reasons.append(f"{name}: the index is not the one its values were saved with (SHA-256 differs)")
        expected = (col.numel(), *layer.values.shape[1:]) if layer.layout.storage == "compact" else tuple(layer.dense_shape)
        if not reasons and tuple(values.shape) != expected:
            reasons.append(f"{name}: values of shape {tuple(values.shape)} for {col.numel()} kept units")
        if not reasons and values.dtype != layer.values.dtype:
            reasons.append(f"{name}: values are {values.dtype} in the file, {layer.values.dtype} here")
    for key, t in mine.items():
        if key not in indexed and (t.shape != saved[key].shape or t.dtype != saved[key].dtype):
            reasons.append(f"{key}: {tuple(saved[key].shape)} of {saved[key].dtype} in the file, {tuple(t.shape)} of {t.dtype} here")
    if reasons:
        raise Unfit(
            str(path), "this checkpoint does not fit the model", reasons=reasons[:10], remedy="build the model as it was when saved"
        )


def _verify_optimizer(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], saved: dict[str, Tensor]
) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    mine, theirs = [group["params"] for group in optimizer.param_groups], [group["params"] for group in state["param_groups"]]
    if [len(g) for g in mine] != [len(g) for g in theirs]:
        raise Unfit(str(path), f"saved with parameter groups of sizes {[len(g) for g in theirs]}, not {[len(g) for g in mine]}")
    unknown = sorted({key for key in optimizer.defaults for group in state["param_groups"] if key not in group})
    if unknown:
        what = f"saved with another kind of optimizer: its groups have no {', '.join(unknown)}"
        raise Unfit(str(path), what, remedy=f"the optimizer it was saved with, not {type(optimizer).__name__}")
    for p, index in zip((p for g in mine for p in g), (i for g in theirs for i in g), strict=True):
        name = names.get(id(p), "")
        shape = saved[name].shape if name in saved else p.shape
        for key, entry in state["state"].get(index, {}).items():
            if torch.is_tensor(entry) and entry.dim() > 0 and entry.shape != shape and entry.dim() == len(shape):
                raise Unfit(str(path), f"optimizer state {key!r} of {name} has shape {tuple(entry.shape)}, its parameter {tuple(shape)}")


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    out = {}
    for key, t in tensors.items():
        t = t.detach().cpu().contiguous()
        if t.numel() and t.untyped_storage().data_ptr() in seen or t.numel() != t.untyped_storage().nbytes() // t.element_size():
            t = t.clone()
        seen.add(t.untyped_storage().data_ptr())
        out[key] = t
    return out


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a nested state; its tensors go into ``tensors`` under names that start with ``name``."""
    if torch.is_tensor(value):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _packed(v, f"{name}.{key}", tensors)] for key, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {
            type(value).__name__ if type(value) in (list, tuple) else "list": [
                _packed(v, f"{name}.{i}", tensors) for i, v in enumerate(value)
            ]
        }
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise Unfit("checkpoint.save", f"{name} is a {type(value).__name__}, neither a tensor nor JSON", got=value)


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "items":
        return {key: _unpacked(v, tensors) for key, v in inner}
    return (tuple if kind == "tuple" else list)(_unpacked(v, tensors) for v in inner)


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
