"""Checkpoints: one safetensors file, every tensor dense and named, the rest as JSON in its header. docs/checkpoint.md is the format.

    model.NAME                               the model's state_dict; sparse layers hold NAME.values, NAME.crow, NAME.col
    optimizer. scheduler. rewirer. ledger. target. rng.     tensors of their state_dicts, placed by the JSON

Loading is verify, then commit. Verified: every byte (a digest of the file), that the file is ours and of this version, names, shapes, types
and indices of the model, that every state fits the object it is for. Then the parts are loaded, the model and the optimizer first; if one
of them refuses after all, those before it get back what they held.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UsageError
from ..layers import sparse_layers
from ..support import index_digest as digest
from .file import FORMAT as FORMAT
from .file import OLDER, VERSION, packed, read_file, read_meta, unpacked, write_file
from .optimizer import optimizer_problems
from .verify import COUNTS, FOREIGN, devices, judged, model_problems, name_problems, random_problems, unlike

__all__ = ["FORMAT", "VERSION", "digest", "inspect", "load", "save"]
PARTS = ("optimizer", "scheduler", "rewirer", "ledger", "target")  # in the order in which they are loaded


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: Any = None,
    rewirer: Any = None,
    scheduler: Any = None,
    ledger: Any = None,
    target: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint, atomically and durably: a save that is interrupted, by whatever, leaves the old file.

    Args:
        model, optimizer, rewirer, scheduler, ledger, target: whatever has a ``state_dict()``; torch's random state is saved too.
        extra: a dict of anything JSON can hold (the epoch, the position in it).

    Raises: UsageError if a state holds something that is neither tensor nor JSON, or the file cannot be written.
    """
    path, states = (
        Path(path),
        _given(optimizer=optimizer, scheduler=scheduler, rewirer=rewirer, ledger=ledger, target=target),
    )
    if extra is not None and not isinstance(extra, Mapping):
        raise UsageError("checkpoint.save", "extra must be a dict", got=extra)
    try:
        extra = json.loads(json.dumps(extra or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError("checkpoint.save", f"extra must be JSON: {error}") from error
    tensors: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UsageError(
                "checkpoint.save", f"entry {key!r} of the model's state is a {type(value).__name__}, not a tensor"
            )
        tensors[f"model.{key}"] = value
    meta: dict[str, Any] = {"supports": _describe(model), "extra": extra}
    meta["states"] = {name: packed(part.state_dict(), name, tensors) for name, part in states.items()}
    meta["rng"] = packed(_rng_state(), "rng", tensors)
    write_file(path, tensors, meta)


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says of itself: ``version``, ``supports`` (per layer shape, block, layout, n, digest), ``states``, ``extra``."""
    return read_meta(Path(path))


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

    Raises: UsageError on a missing, damaged or foreign file, another model, an index that does not fit, a state that was not saved or is not of
    these objects; all of them, and torch's generators, are then what they were.
    """
    path, parts = (
        Path(path),
        _given(optimizer=optimizer, scheduler=scheduler, rewirer=rewirer, ledger=ledger, target=target),
    )
    meta, tensors = read_file(path)
    absent = [name for name in parts if name not in meta["states"]]
    if absent:
        raise UsageError(
            str(path), f"this checkpoint holds no {' and no '.join(absent)} state", remedy="load the model alone"
        )
    mine = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    states, random = _states(path, meta, tensors, len(mine))
    _verify(path, model, mine, meta["supports"], parts, states, random)
    _commit(path, model, mine, parts, states, random)
    return meta["extra"]


# -------------------------------------------------------------------- verify


def _states(path: Path, meta: dict[str, Any], tensors: dict[str, Tensor], of_model: int) -> tuple[dict[str, Any], Any]:
    """All states of a file and the random state. Every tensor belongs to one place. Raises UsageError."""
    used: set[str] = set()
    try:
        states = {name: unpacked(state, tensors, used) for name, state in meta["states"].items()}
        random = unpacked(meta["rng"], tensors, used)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(str(path), f"it is damaged: {error}", remedy=OLDER) from error
    if any(name.startswith("model.") for name in used) or len(used) + of_model != len(tensors):
        raise UsageError(str(path), "it is damaged: it holds tensors that are not those its header names", remedy=OLDER)
    return states, random


def _verify(
    path: Path,
    model: nn.Module,
    mine: dict[str, Tensor],
    supports: Any,
    parts: dict[str, Any],
    states: Any,
    random: Any,
) -> None:
    """Raises UsageError with all that keeps a file from being loaded."""
    if reasons := name_problems(model, mine):
        raise UsageError(str(path), "this checkpoint is of another model", reasons=reasons[:10])
    if reasons := model_problems(model, mine, supports):
        remedy = "build the model as it was when saved"
        raise UsageError(str(path), "this checkpoint does not fit the model", reasons=reasons[:10], remedy=remedy)
    for name, part in parts.items():
        if reasons := _part_problems(name, part, states[name], model, mine):
            remedy = f"the {name} as it was when saved, or load the model alone"
            what = (
                "saved under other rules of the topology"
                if name == "rewirer"
                else f"the state of its {name} does not fit"
            )
            raise UsageError(str(path), what, reasons=reasons[:10], remedy=remedy)
    if reasons := random_problems(random):
        raise UsageError(str(path), "it is damaged", reasons=reasons, remedy=OLDER)


def _part_problems(name: str, part: Any, state: Any, model: nn.Module, mine: dict[str, Tensor]) -> list[str]:
    if not isinstance(state, dict):
        return ["it is no dict"]
    if name == "rewirer" and state.get("topology") != part.topology.name:
        return [f"saved with topology {state.get('topology')!r}, not {part.topology.name!r}"]
    if name == "optimizer":
        return [*optimizer_problems(part, state, model, mine), *judged(part, state)]
    if name == "scheduler":
        return unlike(part.state_dict(), state, f"its {name}", whole=COUNTS)
    if name == "ledger":
        return unlike(part.state_dict(), state, f"its {name}", least=0)
    return judged(part, state)


# -------------------------------------------------------------------- commit


def _commit(
    path: Path, model: nn.Module, mine: dict[str, Tensor], parts: dict[str, Any], states: Any, random: Any
) -> None:
    """Loads everything, or nothing: whatever stops it, what was loaded before gets its former state back. Raises UsageError."""
    order, given = {"model": model, **parts}, {"model": mine, **states}
    before, generators, begun = (
        {name: deepcopy(part.state_dict()) for name, part in order.items()},
        deepcopy(_rng_state()),
        [],
    )
    try:
        for name, part in order.items():
            begun.append(name)
            part.load_state_dict(given[name])
        _set_rng_state(random)
    except BaseException as error:
        try:
            for name in begun:
                with suppress(*FOREIGN):  # who refuses even what it held has not let go of it
                    order[name].load_state_dict(before[name])
        finally:
            _set_rng_state(generators)
        if not isinstance(error, FOREIGN):
            raise
        what, reasons = (
            f"the {begun[-1]} does not take its state; nothing has changed",
            [f"{type(error).__name__}: {error}"],
        )
        raise UsageError(str(path), what, reasons=reasons, remedy=f"the {begun[-1]} as it was when saved") from error


# -------------------------------------------------------------------- details


def _given(**parts: Any) -> dict[str, Any]:
    return {name: parts[name] for name in PARTS if parts[name] is not None}


def _describe(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "shape": list(layer.dense_shape),
            "block": list(layer.block),
            "layout": layer.layout.name,
            "n": layer.support.n,
            "sha256": layer.support.digest,
        }
        for name, layer in sparse_layers(model).items()
    }


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if devices(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
