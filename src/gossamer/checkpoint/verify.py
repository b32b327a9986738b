"""Checks whether saved states can be loaded into the present objects. The functions return problems as sentences, [] if
there are none. They change nothing.

model               names, shapes, types; every index is valid, and is the index its values were saved with
optimizer           groups and options as at present; each parameter's state has the shape, type and keys of its peers
scheduler, ledger   the same structure as their present state
random state        a generator accepts it
all other parts     their own ``problems(state)``
"""

# pyright: strict

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .._errors import nearest
from ..layers import SparseLayer, sparse_layers
from ..support import index_digest, index_problems
from ..training.states import is_dict, is_list, is_sequence

# errors that a part may raise on a state that is not its own
FOREIGN = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError, ArithmeticError)
COUNTS = ("last_epoch", "_step_count")  # of a scheduler: whole numbers
SIZES = ("lr", "weight_decay", "strength", "t")  # options of a group that must not be negative


@runtime_checkable
class Verifying(Protocol):
    """A part that checks a state itself."""

    def problems(self, state: Any) -> list[str]:
        """Why it cannot load the state, in sentences; [] if it can."""
        ...


def own_problems(part: object, state: Any) -> list[str]:
    """The result of the part's ``problems(state)``; [] if it has no such method. An error in it is a problem too."""
    if not isinstance(part, Verifying):
        return []
    try:
        return list(part.problems(state))
    except FOREIGN as error:
        return [f"it cannot be read: {type(error).__name__} {error}"]


# -------------------------------------------------------------------- the model


def name_problems(model: nn.Module, saved: Mapping[str, Tensor]) -> list[str]:
    """The tensors that are only in the model, or only in the file."""
    mine = model.state_dict()
    reasons = [f"only the model has {key!r}, not the file{nearest(key, saved)}" for key in mine if key not in saved]
    more = [key for key in saved if key not in mine]
    return reasons + [f"only the file has {key!r}, not the model{nearest(key, mine)}" for key in more]


def model_problems(model: nn.Module, saved: Mapping[str, Tensor], supports: Mapping[str, Any]) -> list[str]:
    """All that could go wrong in ``model.load_state_dict``, for a file that has the names of the model."""
    mine, layers = model.state_dict(), sparse_layers(model)
    reasons: list[str] = []
    indexed = {f"{name}.{part}" if name else part for name in layers for part in ("values", "crow", "col")}
    for name, layer in layers.items():
        found = _layer_problems(layer, saved, f"{name}." if name else "", supports.get(name))
        reasons += [f"{name}: {problem}" for problem in found]
    more = [name for name in supports if name not in layers]
    reasons += [f"{name}: the file describes it as a sparse layer, but in the model it is not one" for name in more]
    for key, t in mine.items():
        there = saved[key]
        if key not in indexed and (t.shape != there.shape or t.dtype != there.dtype):
            in_file = f"{tuple(there.shape)} of {there.dtype} in the file"
            reasons.append(f"{key}: {in_file}, {tuple(t.shape)} of {t.dtype} here")
    return reasons


def _layer_problems(layer: SparseLayer, saved: Mapping[str, Tensor], prefix: str, described: Any) -> list[str]:
    if not is_dict(described):
        return ["the file does not describe its support"]
    s, (values, crow, col) = layer.support, (saved[prefix + part] for part in ("values", "crow", "col"))
    here = {"shape": list(layer.dense_shape), "block": list(layer.block), "layout": layer.layout.name}
    other = [key for key in here if repr(here[key]) != repr(described.get(key))]  # as text: True equals 1
    if other:
        return [f"{key} is {here[key]} here, {described.get(key)} in the file" for key in other]
    if crow.dtype != torch.int32 or col.dtype != torch.int32:
        return [f"the index has dtypes {crow.dtype} and {col.dtype}, not int32"]
    if wrong := index_problems(crow, col, s.shape, s.block):
        return wrong
    if index_digest(crow, col) != described.get("sha256") or repr(described.get("n")) != repr(col.numel()):
        return ["the index is not the index that its values were saved with (SHA-256 differs)"]
    expected = (col.numel(), *layer.values.shape[1:]) if layer.layout.storage == "compact" else tuple(layer.dense_shape)
    if tuple(values.shape) != expected:
        return [f"values have shape {tuple(values.shape)}, but {col.numel()} blocks are kept"]
    if values.dtype != layer.values.dtype:
        return [f"values are {values.dtype} in the file, {layer.values.dtype} here"]
    return []


# -------------------------------------------------------------------- states with the structure of the present ones


def unlike(
    here: Any, there: Any, where: str, *, whole: tuple[str, ...] | None = None, least: float | None = None
) -> list[str]:
    """Differences in structure between a saved state and the present one: keys, lengths, kinds of values.

    Args:
        here: the present state.
        there: the saved state.
        where: the name of the state, for the sentences.
        whole: names of numbers that must be whole in the saved state if they are whole in the present one; None: all.
        least: the least value of every number.
    """
    if is_dict(here):
        if not is_dict(there):
            return [f"{where} is {kind_of(there)}, not a dict"]
        if all(isinstance(key, str) for key in here) and here.keys() != there.keys():
            odd = sorted(map(str, here.keys() ^ there.keys()))
            return [f"{where} has other keys than at present: {', '.join(odd[:5])}"]
        pairs = [(here.get(key, 0), there[key], f"{where}.{key}") for key in there]
    elif is_sequence(here):
        if not is_sequence(there) or len(here) != len(there):
            return [f"{where} is {kind_of(there)}, not a list of {len(here)}"]
        pairs = [(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(here, there, strict=True))]
    else:
        return _value_problems(here, there, where, whole, least)
    return [problem for a, b, at in pairs for problem in unlike(a, b, at, whole=whole, least=least)]


def _value_problems(
    here: object, there: Any, where: str, whole: tuple[str, ...] | None, least: float | None
) -> list[str]:
    if isinstance(here, Tensor):
        fits = isinstance(there, Tensor) and (there.shape, there.dtype) == (here.shape, here.dtype)
    elif isinstance(here, (int, float)) and not isinstance(here, bool):
        must_be_whole = isinstance(here, int) and (whole is None or where.rpartition(".")[2] in whole)
        return _number_problems(here, there, where, must_be_whole, least)
    else:
        fits = type(here) is type(there)
    return [] if fits else [f"{where} is {kind_of(there)}, not {kind_of(here)}"]


def _number_problems(here: float, there: Any, where: str, whole: bool, least: float | None) -> list[str]:
    if not isinstance(there, int if whole else (int, float)) or isinstance(there, bool):
        return [f"{where} is {kind_of(there)}, not a {'whole ' if whole else ''}number"]
    if there != there and here == here:  # math.isnan fails on very large ints
        return [f"{where} is not a number"]
    low = least if least is not None else -1 if whole else -math.inf
    return [f"{where} is {there}, below {low}"] if there < low else []


def kind_of(value: object) -> str:
    """A description of the type of a value, without its content."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if is_sequence(value):
        return f"a list of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


# -------------------------------------------------------------------- torch's random state


def random_problems(state: Any) -> list[str]:
    """Why torch's generators do not accept these states, in sentences; [] if they do. Unused generators try them."""
    if not is_dict(state) or state.keys() != {"torch", "cuda"} or not is_list(state["cuda"]):
        return ["the random state is not a state of torch's generators"]
    of_cpu: Any = state["torch"]
    of_gpus: list[Any] = state["cuda"]
    mine = torch.get_rng_state()
    if not isinstance(of_cpu, Tensor) or (of_cpu.shape, of_cpu.dtype) != (mine.shape, mine.dtype):
        return [f"the random state is {kind_of(of_cpu)}, not {kind_of(mine)}"]
    bad = [t for t in of_gpus if not isinstance(t, Tensor) or t.dtype != torch.uint8 or t.dim() != 1]
    if bad:
        return [f"a random state of a GPU is {kind_of(bad[0])}"]
    try:
        torch.Generator().set_state(of_cpu)
        if devices(of_gpus):
            for i, t in enumerate(of_gpus):
                torch.Generator(f"cuda:{i}").set_state(t)
    except RuntimeError as error:
        return [f"torch's generator does not accept the random state: {error}"]
    return []


def devices(states: Sequence[Any]) -> int:
    """The number of GPUs that can get these states: all, or none if the number of GPUs differs."""
    return len(states) if states and torch.cuda.is_available() and len(states) == torch.cuda.device_count() else 0
