"""Checkpoints: one safetensors file, with named tensors, and all other data as JSON in its header. docs/checkpoint.md
describes the format.

    model.NAME                               the model's state_dict; sparse layers hold NAME.values, NAME.crow, NAME.col
    optimizer. scheduler. rewirer. ledger. target. rng.     tensors of their state_dicts; the JSON refers to them

Loading verifies first, then commits. It verifies every byte (by a digest of the file), the format and its version, the
names, shapes, types and indices of the model, and that every state fits its object. Then it loads the parts, the model
and the optimizer first. If a part still refuses its state, all parts get back their former states.
"""

# pyright: strict

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .._errors import UsageError
from ..layers import sparse_layers
from ..support import index_digest as digest
from ..training.states import is_dict
from .file import FORMAT, OLDER, VERSION, packed, read_file, read_meta, unpacked, write_file
from .optimizer import optimizer_problems
from .verify import COUNTS, FOREIGN, devices, model_problems, name_problems, own_problems, random_problems, unlike

__all__ = ["FORMAT", "Stateful", "VERSION", "digest", "inspect", "load", "save"]
PARTS = ("optimizer", "scheduler", "rewirer", "ledger", "target")  # in the order in which they are loaded
State = dict[str, Any]


class Stateful(Protocol):
    """A part of a checkpoint. If it has ``problems(state)`` too, :func:`load` calls it before anything is changed."""

    def state_dict(self) -> State:
        """Its state: nested dicts, lists and tuples of tensors, numbers, strings and None."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Loads a state that :meth:`state_dict` has returned."""
        ...


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    rewirer: Stateful | None = None,
    scheduler: Stateful | None = None,
    ledger: Stateful | None = None,
    target: Stateful | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint, atomically and durably: if a save is interrupted, the old file stays. torch's random state
    is saved too.

    Args:
        path: the file.
        model: its ``state_dict()`` is saved, and a description of the supports.
        optimizer: as ``rewirer``, ``scheduler``, ``ledger`` and ``target``, any object with a ``state_dict()``.
        extra: a dict that JSON can hold, for instance the epoch and the position in it.

    Raises: UsageError if a state holds something that is neither tensor nor JSON, or the file cannot be written.
    """
    states = _given(optimizer=optimizer, scheduler=scheduler, rewirer=rewirer, ledger=ledger, target=target)
    tensors: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if not torch.is_tensor(value):
            what = f"entry {key!r} of the model's state is a {type(value).__name__}, not a tensor"
            raise UsageError("checkpoint.save", what)
        tensors[f"model.{key}"] = value
    meta: State = {"supports": _described(model), "extra": _as_json(extra)}
    meta["states"] = {name: packed(part.state_dict(), name, tensors) for name, part in states.items()}
    meta["rng"] = packed(_rng_state(), "rng", tensors)
    write_file(Path(path), tensors, meta)


def inspect(path: str | os.PathLike[str]) -> State:
    """The header of a checkpoint: ``version``, ``supports`` (per layer shape, block, layout, n, sha256), ``states``,
    ``extra``.

    Raises: UsageError on a missing, damaged or foreign file.
    """
    return read_meta(Path(path))


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    rewirer: Stateful | None = None,
    scheduler: Stateful | None = None,
    ledger: Stateful | None = None,
    target: Stateful | None = None,
) -> State:
    """Loads a checkpoint into objects that were constructed as the saved objects. Restores torch's random state too.

    Sparse layers get the supports of the file.

    Returns: the ``extra`` it was saved with.

    Raises: UsageError on a missing, damaged or foreign file, another model, an index that does not fit, and a state
    that is missing or does not belong to these objects. The objects and torch's generators do not change then.
    """
    path = Path(path)
    parts = _given(optimizer=optimizer, scheduler=scheduler, rewirer=rewirer, ledger=ledger, target=target)
    meta, tensors = read_file(path)
    absent = [name for name in parts if name not in meta["states"]]
    if absent:
        what = f"this checkpoint holds no state of the {' and the '.join(absent)}"
        raise UsageError(str(path), what, remedy="load the model alone")
    saved = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    states, random = _states(path, meta, tensors, len(saved))
    _verify(path, model, saved, meta["supports"], parts, states, random)
    _commit(path, {"model": model, **parts}, {"model": saved, **states}, random)
    return meta["extra"]


# -------------------------------------------------------------------- verify


def _states(path: Path, meta: State, tensors: Mapping[str, Tensor], of_model: int) -> tuple[State, Any]:
    """All states of a file and the random state. Raises UsageError unless every tensor is used exactly once."""
    used: set[str] = set()
    try:
        states = {name: unpacked(state, tensors, used) for name, state in meta["states"].items()}
        random = unpacked(meta["rng"], tensors, used)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(str(path), f"it is damaged: {error}", remedy=OLDER) from error
    if any(name.startswith("model.") for name in used) or len(used) + of_model != len(tensors):
        what = "it is damaged: its tensors are not the tensors that its header names"
        raise UsageError(str(path), what, remedy=OLDER)
    return states, random


def _verify(
    path: Path,
    model: nn.Module,
    saved: Mapping[str, Tensor],
    supports: Any,
    parts: Mapping[str, Stateful],
    states: State,
    random: Any,
) -> None:
    """Raises UsageError, with reasons, if a file cannot be loaded into these objects."""
    if reasons := name_problems(model, saved):
        raise UsageError(str(path), "this checkpoint is of another model", reasons=reasons[:10])
    if reasons := model_problems(model, saved, supports):
        remedy = "construct the model as it was when saved"
        raise UsageError(str(path), "this checkpoint does not fit the model", reasons=reasons[:10], remedy=remedy)
    for name, part in parts.items():
        if reasons := _part_problems(name, part, states[name], model, saved):
            remedy = f"the {name} as it was when saved, or load the model alone"
            raise UsageError(str(path), f"the state of its {name} does not fit", reasons=reasons[:10], remedy=remedy)
    if reasons := random_problems(random):
        raise UsageError(str(path), "it is damaged", reasons=reasons, remedy=OLDER)


def _part_problems(name: str, part: Any, state: Any, model: nn.Module, saved: Mapping[str, Tensor]) -> list[str]:
    if not is_dict(state):
        return ["it is not a dict"]
    if name == "optimizer":
        return [*optimizer_problems(part, state, model, saved), *own_problems(part, state)]
    if name == "scheduler":
        return unlike(part.state_dict(), state, f"its {name}", whole=COUNTS)
    if name == "ledger":
        return unlike(part.state_dict(), state, f"its {name}", least=0)
    return own_problems(part, state)


# -------------------------------------------------------------------- commit


def _commit(path: Path, parts: Mapping[str, Stateful], states: Mapping[str, Any], random: Any) -> None:
    """Loads all parts, in the order of ``parts``, or none.

    On any error, also on an interrupt, the loaded parts get back their former states. Raises UsageError if a part
    refuses its state.
    """
    before = {name: deepcopy(part.state_dict()) for name, part in parts.items()}
    generators = deepcopy(_rng_state())
    begun: list[str] = []
    try:
        for name, part in parts.items():
            begun.append(name)
            part.load_state_dict(states[name])
        _set_rng_state(random)
    except BaseException as error:
        try:
            for name in begun:
                with suppress(*FOREIGN):  # a part that refuses even its former state is left as it is
                    parts[name].load_state_dict(before[name])
        finally:
            _set_rng_state(generators)
        if not isinstance(error, FOREIGN):
            raise
        what = f"the {begun[-1]} refuses its state; nothing has changed"
        reasons = [f"{type(error).__name__}: {error}"]
        raise UsageError(str(path), what, reasons=reasons, remedy=f"the {begun[-1]} as it was when saved") from error


# -------------------------------------------------------------------- details


def _given(**parts: Stateful | None) -> dict[str, Stateful]:
    return {name: part for name in PARTS if (part := parts[name]) is not None}


def _as_json(extra: Any) -> State:
    """A copy of ``extra`` after a round trip through JSON. Raises UsageError if that is not possible."""
    if extra is not None and not isinstance(extra, Mapping):
        raise UsageError("checkpoint.save", "extra must be a dict", got=extra)
    try:
        return json.loads(json.dumps(extra or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError("checkpoint.save", f"extra must be JSON: {error}") from error


def _described(model: nn.Module) -> dict[str, State]:
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


def _rng_state() -> State:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def _set_rng_state(state: State) -> None:
    torch.set_rng_state(state["torch"])
    if devices(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
