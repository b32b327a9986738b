"""Checks whether a saved state of a torch optimizer can be loaded, for every class of optimizer.

There is no list of classes. The groups of the state are compared with the present groups. The state of each parameter
is compared with the states of its peers: parameters with the same number of dimensions, in the file and in the present
optimizer.

    options     every option of a present group is in the file, and is of the same kind
    entry       has the parameter's shape, or that shape with ones (a factored moment), or is a scalar; its type is that
                of the parameter, or of the peers' entries
    keys        the state has every key that all peers have
"""

# pyright: strict

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..keeper import TAG
from ..training.states import is_dict, is_list, is_sequence
from .verify import SIZES, kind_of

Entry = dict[str, Any]
CHOSEN = ("foreach", "fused")  # options that torch sets if the user has not


class Member(NamedTuple):
    """The state of one parameter, in the file or in the present optimizer."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    state: Entry
    saved: bool  # whether it is in the file


def optimizer_problems(
    optimizer: torch.optim.Optimizer, state: Any, model: nn.Module, saved: Mapping[str, Tensor]
) -> list[str]:
    """Why the optimizer cannot load a state, in sentences; [] if it can.

    ``saved``: the model's tensors in the file.
    """
    here: dict[str, Any] = optimizer.state_dict()
    if not is_dict(state) or not is_dict(state.get("state")) or not is_list(state.get("param_groups")):
        return ["it is not the state of an optimizer: it has no dict 'state', or no list 'param_groups'"]
    groups: list[Any] = state["param_groups"]
    entries: dict[Any, Any] = state["state"]
    if found := _group_problems(here["param_groups"], groups):
        return found
    ids: list[int] = [i for group in groups for i in group["params"]]
    others = {key for key in here["state"] if type(key) is not int}  # entries that belong to no parameter
    unknown = [key for key in entries if not (key in ids if type(key) is int else key in others)]
    wrong = [key for key, entry in entries.items() if not is_dict(entry) and key in ids]
    if unknown or wrong:
        found = [f"it holds a state of {key!r}, which is not one of its parameters" for key in unknown]
        return found + [f"the state of parameter {key} is {kind_of(entries[key])}, not a dict" for key in wrong]
    members = _members(optimizer, here, entries, ids, model, saved)
    by_rank: dict[int, list[Member]] = {}
    for member in members:
        by_rank.setdefault(len(member.shape), []).append(member)
    return _tag_problems(members) + [problem for peers in by_rank.values() for problem in _peer_problems(peers)]


def _members(
    optimizer: torch.optim.Optimizer,
    here: Mapping[str, Any],
    there: Mapping[Any, Any],
    ids: Sequence[int],
    model: nn.Module,
    saved: Mapping[str, Tensor],
) -> list[Member]:
    """The parameters with a state in the file, then the parameters with a state in the present optimizer.

    ``ids``: the numbers of the parameters in the file.
    """
    order: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    mine: list[int] = [i for group in here["param_groups"] for i in group["params"]]
    known = {id(p): name for name, p in model.named_parameters()}
    names = [known.get(id(p), f"parameter {i}") for p, i in zip(order, mine, strict=True)]
    in_file = zip(names, order, ids, strict=True)
    members = [
        Member(name, saved[name].shape if name in saved else p.shape, p.dtype, there[i], True)
        for name, p, i in in_file
        if there.get(i)
    ]
    entries: Mapping[Any, Any] = here["state"]
    present = zip(names, order, mine, strict=True)
    return members + [Member(name, p.shape, p.dtype, entries[i], False) for name, p, i in present if entries.get(i)]


# -------------------------------------------------------------------- groups


def _group_problems(here: list[Entry], there: list[Any]) -> list[str]:
    if not all(is_dict(group) and is_list(group.get("params")) for group in there):
        return ["a parameter group is not a dict with a list 'params'"]
    sizes = [[len(group["params"]) for group in groups] for groups in (here, there)]
    if sizes[0] != sizes[1]:
        return [f"it was saved with parameter groups of sizes {sizes[1]}, not {sizes[0]}"]
    ids: list[Any] = [i for group in there for i in group["params"]]
    count = len({i for group in here for i in group["params"]})
    if any(type(i) is not int for i in ids) or len(set(ids)) != count:
        return ["its parameters are not numbered as the present parameters"]
    absent = sorted({key for mine, theirs in zip(here, there, strict=True) for key in mine if key not in theirs})
    if absent:
        return [f"it was saved with another kind of optimizer: its groups have no {', '.join(map(str, absent))}"]
    found: list[str] = []
    for i, (mine, theirs) in enumerate(zip(here, there, strict=True)):
        for key, value in mine.items():
            if key != "params" and (problem := _option_problem(key, value, theirs[key])):
                found.append(f"group {i}: {key} {problem}")
    return found


def _option_problem(key: str, here: Any, there: Any) -> str:
    """What is wrong with an option of a group; "" if it is valid."""
    if _is_number(here) and _is_number(there):
        low = 0.0 if key in SIZES else -math.inf
        fits = float(there) >= low and not (math.isinf(there) and math.isfinite(here))
        return "" if fits else f"is {float(there)}"
    if is_dict(here):
        fits = is_dict(there) and all(_is_number(v) and not math.isnan(v) for v in there.values())
    elif is_sequence(here):
        fits = is_sequence(there) and len(here) == len(there)
        fits = fits and not any(_option_problem(key, a, b) for a, b in zip(here, there, strict=True))
    elif here is None:
        fits = there is None or isinstance(there, bool) or _is_number(there)
    elif isinstance(here, bool):
        fits = isinstance(there, bool) or (there is None and key in CHOSEN)
    else:
        fits = type(here) is type(there) and not _is_number(here)
    return "" if fits else f"is {kind_of(there)}, not {kind_of(here)}"


def _is_number(value: object) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain or (isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point())


# -------------------------------------------------------------------- the state of parameters


def _peer_problems(peers: list[Member]) -> list[str]:
    """What is wrong with the saved members of one number of dimensions: missing keys, shapes or types of no peer."""
    found: list[str] = []
    for i, member in enumerate(peers):
        others = [peer for j, peer in enumerate(peers) if j != i and peer.state]
        if not member.saved:
            continue
        keys = [set(peer.state) for peer in others]
        lacking = keys[0].intersection(*keys) - {*member.state, TAG} if keys else set[str]()
        found += [f"the state of {member.name} has no {key!r}" for key in sorted(map(str, lacking))]
        for key, entry in member.state.items():
            kinds = [_kinds(peer.state[key], peer) for peer in others if peer.state.get(key) is not None]
            problems = _entry_problems(key, entry, member, kinds)
            found += [f"state {key!r} of {member.name} {problem}" for problem in problems]
    return found


def _tag_problems(members: list[Member]) -> list[str]:
    """Checks that the states of all values of sparse layers have the tag of their support, or none of them has."""
    sparse = [member for member in members if member.name.rpartition(".")[2] == "values"]
    if not any(TAG in member.state for member in sparse if member.saved):
        return []
    bad = [member.name for member in sparse if member.saved and type(member.state.get(TAG)) is not int]
    return [f"the state of {name} has no tag of the support to which it belongs" for name in bad]


def _entry_problems(key: str, entry: Any, member: Member, others: list[set[str]]) -> Iterator[str]:
    if entry is None:
        return
    kinds = _kinds(entry, member)
    same_rank = isinstance(entry, Tensor) and entry.dim() == len(member.shape) > 0
    if same_rank and not kinds & {"shape of the parameter", "shape with ones"}:
        yield f"has shape {tuple(entry.shape)}, but its parameter has {tuple(member.shape)}"
    elif others and not any(_agree(kinds, theirs) for theirs in others):
        yield f"is {kind_of(entry)}, unlike the same state of any other parameter"
    elif key == "step" and _is_number(entry) and not 0 <= float(entry) < math.inf:
        yield f"is {float(entry)}"


def _kinds(entry: Any, member: Member) -> set[str]:
    """Properties of an entry relative to its parameter: its type and its form."""
    if not isinstance(entry, Tensor):
        if _is_number(entry):
            return {"number", "type of numbers"}
        return {type(entry).__name__, f"type {type(entry).__name__}"}
    kinds = {f"type {entry.dtype}"} | ({"type of the parameter"} if entry.dtype == member.dtype else set[str]())
    if entry.dim() == 0:
        return kinds | {"scalar"}
    if entry.dim() != len(member.shape):
        return kinds | {f"{entry.dim()} dimensions"}
    if entry.shape == member.shape:
        kinds |= {"shape of the parameter"}
    if all(n in (1, m) for n, m in zip(entry.shape, member.shape, strict=True)):
        kinds |= {"shape with ones"}
    return kinds


def _agree(a: set[str], b: set[str]) -> bool:
    """Whether two entries are alike in form and in type."""
    common = a & b
    types = {kind for kind in common if kind.startswith("type")}
    return bool(types) and bool(common - types)
