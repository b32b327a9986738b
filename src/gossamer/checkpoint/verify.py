"""What keeps a saved state from being loaded into these objects, in sentences; [] if nothing does. Nothing here changes anything.

model         names, shapes, types; every index valid and the one its values were saved with
optimizer     groups and options as here; state of each parameter by shape, type and keys as that of its peers
scheduler, ledger   built like the state they have now
random state  what a generator takes
the rest      its own ``problems(state)``
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .._errors import nearest
from ..layers import SparseLayer, sparse_layers
from ..support import index_digest, index_problems

# what is raised by who reads a state that is not its own
FOREIGN = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError, ArithmeticError)
COUNTS = ("last_epoch", "_step_count")  # of a scheduler: whole numbers
SIZES = ("lr", "weight_decay", "strength", "t")  # of a group of the optimizer: not negative


@runtime_checkable
class Judge(Protocol):
    """A part that says itself what keeps it from taking over a state."""

    def problems(self, state: Any) -> list[str]:
        """Sentences; [] if it can take it over."""
        ...


def judged(part: Any, state: Any) -> list[str]:
    """What the part itself says, if it does; that it cannot read the state, if it fails over it."""
    if not isinstance(part, Judge):
        return []
    try:
        return list(part.problems(state))
    except FOREIGN as error:
        return [f"it cannot be read: {type(error).__name__} {error}"]


# -------------------------------------------------------------------- the model


def name_problems(model: nn.Module, saved: Mapping[str, Tensor]) -> list[str]:
    """Tensors that only one of the two has."""
    mine = model.state_dict()
    reasons = [f"the model has {key!r}, the file has not{nearest(key, saved)}" for key in mine if key not in saved]
    return reasons + [
        f"the file has {key!r}, the model has not{nearest(key, mine)}" for key in saved if key not in mine
    ]


def model_problems(model: nn.Module, saved: Mapping[str, Tensor], supports: Mapping[str, Any]) -> list[str]:
    """Of a file that has the model's names: all that could go wrong in ``model.load_state_dict``."""
    mine, layers, reasons = model.state_dict(), sparse_layers(model), []
    indexed = {f"{name}.{part}" if name else part for name in layers for part in ("values", "crow", "col")}
    for name, layer in layers.items():
        found = _layer_problems(layer, saved, f"{name}." if name else "", supports.get(name))
        reasons += [f"{name}: {problem}" for problem in found]
    reasons += [
        f"{name}: no sparse layer of this model, but described in the file" for name in supports if name not in layers
    ]
    for key, t in mine.items():
        if key not in indexed and (t.shape != saved[key].shape or t.dtype != saved[key].dtype):
            reasons.append(
                f"{key}: {tuple(saved[key].shape)} of {saved[key].dtype} in the file, {tuple(t.shape)} of {t.dtype} here"
            )
    return reasons


def _layer_problems(layer: SparseLayer, saved: Mapping[str, Tensor], dot: str, said: Any) -> list[str]:
    if not isinstance(said, dict):
        return ["the file does not describe its support"]
    s, (values, crow, col) = layer.support, (saved[dot + part] for part in ("values", "crow", "col"))
    here = {"shape": list(layer.dense_shape), "block": list(layer.block), "layout": layer.layout.name}
    if wrong := [
        f"{key} is {here[key]} here, {said.get(key)} in the file"
        for key in here
        if repr(here[key]) != repr(said.get(key))
    ]:
        return wrong  # by their words: True equals 1
    if crow.dtype != torch.int32 or col.dtype != torch.int32:
        return [f"the index is of {crow.dtype} and {col.dtype}, not int32"]
    if wrong := index_problems(crow, col, s.shape, s.block):
        return wrong
    if index_digest(crow, col) != said.get("sha256") or repr(said.get("n")) != repr(col.numel()):
        return ["the index is not the one its values were saved with (SHA-256 differs)"]
    expected = (col.numel(), *layer.values.shape[1:]) if layer.layout.storage == "compact" else tuple(layer.dense_shape)
    if tuple(values.shape) != expected:
        return [f"values of shape {tuple(values.shape)} for {col.numel()} kept blocks"]
    if values.dtype != layer.values.dtype:
        return [f"values are {values.dtype} in the file, {layer.values.dtype} here"]
    return []


# -------------------------------------------------------------------- states built like those there are


def unlike(
    here: Any, there: Any, where: str, *, whole: tuple[str, ...] | None = None, least: float | None = None
) -> list[str]:
    """Where a saved state is not built like the present one: keys, lengths, kinds of values.

    Numbers of the names ``whole`` (all, if None) that are whole here must be so there; none may be below ``least``.
    """
    if isinstance(here, dict):
        if not isinstance(there, dict):
            return [f"{where} is {kind_of(there)}, not a dict"]
        if all(isinstance(key, str) for key in here) and here.keys() != there.keys():
            odd = sorted(map(str, here.keys() ^ there.keys()))
            return [f"{where} has other keys than here: {', '.join(odd[:5])}"]
        pairs = [(here.get(key, 0), there[key], f"{where}.{key}") for key in there]
        return [problem for a, b, at in pairs for problem in unlike(a, b, at, whole=whole, least=least)]
    if isinstance(here, (list, tuple)):
        if not isinstance(there, (list, tuple)) or len(here) != len(there):
            return [f"{where} is {kind_of(there)}, not a list of {len(here)}"]
        pairs = zip(here, there, range(len(here)), strict=True)
        return [problem for a, b, i in pairs for problem in unlike(a, b, f"{where}.{i}", whole=whole, least=least)]
    if isinstance(here, Tensor):
        fits = isinstance(there, Tensor) and (there.shape, there.dtype) == (here.shape, here.dtype)
        return [] if fits else [f"{where} is {kind_of(there)}, not {kind_of(here)}"]
    if isinstance(here, (int, float)) and not isinstance(here, bool):
        strict = isinstance(here, int) and (whole is None or where.rpartition(".")[2] in whole)
        return _number_problems(here, there, where, strict, least)
    return [] if type(here) is type(there) else [f"{where} is {kind_of(there)}, not {kind_of(here)}"]


def _number_problems(here: float, there: Any, where: str, strict: bool, least: float | None) -> list[str]:
    if not isinstance(there, int if strict else (int, float)) or isinstance(there, bool):
        return [f"{where} is {kind_of(there)}, not a {'whole ' if strict else ''}number"]
    if there != there and here == here:
        return [f"{where} is not a number"]
    low = least if least is not None else -1 if strict else -math.inf
    return [f"{where} is {there}, below {low}"] if there < low else []


def kind_of(value: Any) -> str:
    """A value in words, its content left out."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


# -------------------------------------------------------------------- torch's random state


def random_problems(state: Any) -> list[str]:
    """Whether generators take these states, tried on one that nobody uses."""
    if not isinstance(state, dict) or state.keys() != {"torch", "cuda"} or not isinstance(state["cuda"], list):
        return ["the random state is no state of torch's generators"]
    mine = torch.get_rng_state()
    if not isinstance(state["torch"], Tensor) or (state["torch"].shape, state["torch"].dtype) != (
        mine.shape,
        mine.dtype,
    ):
        return [f"the random state is {kind_of(state['torch'])}, not {kind_of(mine)}"]
    bad = [t for t in state["cuda"] if not isinstance(t, Tensor) or t.dtype != torch.uint8 or t.dim() != 1]
    if bad:
        return [f"a random state of a GPU is {kind_of(bad[0])}"]
    try:
        torch.Generator().set_state(state["torch"])
        if devices(state["cuda"]):
            for i, t in enumerate(state["cuda"]):
                torch.Generator(f"cuda:{i}").set_state(t)
    except RuntimeError as error:
        return [f"no generator takes the random state: {error}"]
    return []


def devices(states: list[Any]) -> int:
    """How many GPUs take these states: all there are, or none."""
    return len(states) if states and torch.cuda.is_available() and len(states) == torch.cuda.device_count() else 0
