"""What keeps a saved state of a torch optimizer from being loaded, whatever its class. No list of classes: a state is held against the
groups there are, and the state of each parameter against that of its peers (parameters of as many dimensions, in the file and here).

    options     every option of a group here is in the file, of the same kind
    entry       of the parameter's shape, or that shape with ones (a factored moment), or a scalar; of its type, or the type of its peers
    keys        what all peers have, each has
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..keeper import TAG
from .verify import SIZES, kind_of

Entry = dict[str, Any]
CHOSEN = ("foreach", "fused")  # options that torch chooses where nobody has


class Member(NamedTuple):
    """The state of one parameter, in the file or here."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    state: Entry
    saved: bool


def optimizer_problems(
    optimizer: torch.optim.Optimizer, state: Any, model: nn.Module, saved: Mapping[str, Tensor]
) -> list[str]:
    """Sentences; ``saved`` holds the model's tensors in the file."""
    here = optimizer.state_dict()
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("state"), dict)
        or not isinstance(state.get("param_groups"), list)
    ):
        return ["it is no state of an optimizer: it lacks a dict 'state' or a list 'param_groups'"]
    groups = state["param_groups"]
    if found := _group_problems(here["param_groups"], groups):
        return found
    order = [p for group in optimizer.param_groups for p in group["params"]]
    ids = [i for group in groups for i in group["params"]]
    others = {key for key in here["state"] if type(key) is not int}  # what an optimizer holds beside its parameters
    strange = [key for key in state["state"] if not (key in ids if type(key) is int else key in others)]
    wrong = [key for key, entry in state["state"].items() if not isinstance(entry, dict) and key in ids]
    if strange or wrong:
        return [f"it holds a state of {key!r}, which is none of its parameters" for key in strange] + [
            f"the state of parameter {key} is {kind_of(state['state'][key])}, not a dict" for key in wrong
        ]
    mine = [i for group in here["param_groups"] for i in group["params"]]
    names = [
        {id(p): name for name, p in model.named_parameters()}.get(id(p), f"parameter {i}")
        for p, i in zip(order, mine, strict=True)
    ]
    shapes = [saved[name].shape if name in saved else p.shape for name, p in zip(names, order, strict=True)]
    members = [
        Member(name, shape, p.dtype, state["state"][i], True)
        for name, shape, p, i in zip(names, shapes, order, ids, strict=True)
        if state["state"].get(i)
    ]
    members += [
        Member(name, p.shape, p.dtype, here["state"][i], False)
        for name, p, i in zip(names, order, mine, strict=True)
        if here["state"].get(i)
    ]
    by_rank: dict[int, list[Member]] = {}
    for member in members:
        by_rank.setdefault(len(member.shape), []).append(member)
    return _tag_problems(members) + [problem for peers in by_rank.values() for problem in _peer_problems(peers)]


# -------------------------------------------------------------------- groups


def _group_problems(here: list[Entry], there: list[Any]) -> list[str]:
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in there):
        return ["a parameter group is no dict with a list 'params'"]
    sizes = [[len(group["params"]) for group in groups] for groups in (here, there)]
    if sizes[0] != sizes[1]:
        return [f"saved with parameter groups of sizes {sizes[1]}, not {sizes[0]}"]
    ids = [i for group in there for i in group["params"]]
    if [type(i) for i in ids] != [int] * len(ids) or len(set(ids)) != len(
        {i for group in here for i in group["params"]}
    ):
        return ["its parameters are not numbered as those here"]
    absent = sorted({key for mine, theirs in zip(here, there, strict=True) for key in mine if key not in theirs})
    if absent:
        return [f"saved with another kind of optimizer: its groups have no {', '.join(map(str, absent))}"]
    found = []
    for i, (mine, theirs) in enumerate(zip(here, there, strict=True)):
        for key, value in mine.items():
            if key != "params" and (problem := _option_problem(key, value, theirs[key])):
                found.append(f"group {i}: {key} {problem}")
    return found


def _option_problem(key: str, here: Any, there: Any) -> str:
    """What is wrong with an option of a group; "" if nothing."""
    if _number(here) and _number(there):
        low = 0.0 if key in SIZES else -math.inf
        fits = float(there) >= low and not (math.isinf(there) and math.isfinite(here))
        return "" if fits else f"is {float(there)}"
    if isinstance(here, dict):
        fits = isinstance(there, dict) and all(_number(v) and not math.isnan(v) for v in there.values())
    elif isinstance(here, (list, tuple)):
        fits = isinstance(there, (list, tuple)) and len(here) == len(there)
        fits = fits and not any(_option_problem(key, a, b) for a, b in zip(here, there, strict=True))
    elif here is None:
        fits = there is None or isinstance(there, bool) or _number(there)
    elif isinstance(here, bool):
        fits = isinstance(there, bool) or (there is None and key in CHOSEN)
    else:
        fits = type(here) is type(there) and not _number(here)
    return "" if fits else f"is {kind_of(there)}, not {kind_of(here)}"


def _number(value: Any) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain or (isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point())


# -------------------------------------------------------------------- the state of parameters


def _peer_problems(peers: list[Member]) -> list[str]:
    """What is wrong with members of one rank: a key that all others have, a shape or a type that no other has."""
    found = []
    for i, member in enumerate(peers):
        others = [peer for j, peer in enumerate(peers) if j != i and peer.state]
        if not member.saved:
            continue
        lacking = set.intersection(*(set(peer.state) for peer in others)) - {*member.state, TAG} if others else set()
        found += [f"the state of {member.name} has no {key!r}" for key in sorted(map(str, lacking))]
        for key, entry in member.state.items():
            kinds = [_kinds(peer.state[key], peer) for peer in others if peer.state.get(key) is not None]
            found += [
                f"state {key!r} of {member.name} {problem}" for problem in _entry_problems(key, entry, member, kinds)
            ]
    return found


def _tag_problems(members: list[Member]) -> list[str]:
    """Values of sparse layers say which support their state belongs to, all of them or none."""
    sparse = [member for member in members if member.name.rpartition(".")[2] == "values"]
    if not any(TAG in member.state for member in sparse if member.saved):
        return []
    bad = [member.name for member in sparse if member.saved and type(member.state.get(TAG)) is not int]
    return [f"the state of {name} does not say which support it belongs to" for name in bad]


def _entry_problems(key: str, entry: Any, member: Member, others: list[set[str]]) -> Iterator[str]:
    if entry is None:
        return
    mine = _kinds(entry, member)
    if (
        isinstance(entry, Tensor)
        and entry.dim() == len(member.shape) > 0
        and not mine & {"shape of the parameter", "shape with ones"}
    ):
        yield f"has shape {tuple(entry.shape)}, its parameter {tuple(member.shape)}"
    elif others and not any(_agree(mine, theirs) for theirs in others):
        yield f"is {kind_of(entry)}: as in no other parameter"
    elif key == "step" and _number(entry) and not 0 <= float(entry) < math.inf:
        yield f"is {float(entry)}"


def _kinds(entry: Any, member: Member) -> set[str]:
    """All that can be said of an entry beside its parameter."""
    if not isinstance(entry, Tensor):
        return (
            {"number", "type of numbers"} if _number(entry) else {type(entry).__name__, f"type {type(entry).__name__}"}
        )
    said = {f"type {entry.dtype}"} | ({"type of the parameter"} if entry.dtype == member.dtype else set())
    if entry.dim() == 0:
        return said | {"scalar"}
    if entry.dim() != len(member.shape):
        return said | {f"{entry.dim()} dimensions"}
    if entry.shape == member.shape:
        said |= {"shape of the parameter"}
    if all(n in (1, m) for n, m in zip(entry.shape, member.shape, strict=True)):
        said |= {"shape with ones"}
    return said


def _agree(a: set[str], b: set[str]) -> bool:
    """Whether two entries are alike in form and in type."""
    common = a & b
    types = {kind for kind in common if kind.startswith("type")}
    return bool(types) and bool(common - types)
