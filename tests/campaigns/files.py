"""Damaged checkpoints: single flipped bits, and structures that are not what they should be. None may load, none may
change anything.

Structures are damaged in three ways: in the file as it is; in the file, whose digest is then made to fit; in a state
    before it is saved, so
that the file itself is faultless and the state is not.
"""

import copy
import json
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from campaigns.tally import Tally, told
from gossamer import checkpoint
from gossamer.checkpoint.file import seal
from gossamer.laws.details import same

Parts = dict[str, Any]
OPAQUE: tuple[str, ...] = ()  # parts whose states their own problems() cannot judge
STEPS = 9  # into a window of sensing, behind two events


class Subject:
    """A small run with everything that a checkpoint holds."""

    def __init__(self, kind: str, seed: int):
        rng = torch.Generator().manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(13, 17), nn.BatchNorm1d(17), nn.Tanh(), nn.Linear(17, 11), nn.Tanh(), nn.Linear(11, 5)
        )
        self.model = gs.sparsify(net, 0.3, layout="shadow" if kind == "rule" else "csr", rng=rng)
        self.parts = MAKERS[kind](self.model, rng)
        self.parts["ledger"] = gs.Ledger(
            self.model, torch.randn(2, 13, generator=rng), optimizer=self.parts["optimizer"]
        )

    def train(self, steps: int) -> "Subject":
        """A few steps on noise."""
        for t in range(steps):
            rng = torch.Generator().manual_seed(1000 + t)
            F.cross_entropy(
                self.model(torch.randn(8, 13, generator=rng)), torch.randint(5, (8,), generator=rng)
            ).backward()
            self.parts["ledger"].step(8, self.parts.get("rewirer"))
            self.parts.get("rewirer", self.parts["optimizer"]).step()
            for name in ("target", "scheduler"):
                if name in self.parts:
                    self.parts[name].step()
            self.parts["optimizer"].zero_grad()
        return self

    def state(self) -> Parts:
        """All of it, copied."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return copy.deepcopy({"model": self.model.state_dict(), **parts, "torch": torch.get_rng_state()})


def _torch_optimizer(
    kind: Callable[..., torch.optim.Optimizer], topology: gs.Topology, **options: Any
) -> Callable[..., Parts]:
    def make(model: nn.Module, rng: torch.Generator) -> Parts:
        optimizer = kind(gs.parameter_groups(model, lr=0.05), **options)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        return {
            "optimizer": optimizer,
            "scheduler": scheduler,
            "rewirer": gs.Rewirer(model, optimizer, topology, rng=rng),
        }

    return make


def _rule(model: nn.Module, _rng: torch.Generator) -> Parts:
    optimizer = gs.SparseOptimizer(gs.parameter_groups(model), gs.LinBreg(gs.L1(0.05), momentum=0.5), lr=0.2)
    return {"optimizer": optimizer, "target": gs.TargetDensity(optimizer, density=0.2, steps=40, every=2)}


def _multilevel(model: nn.Module, _rng: torch.Generator) -> Parts:
    optimizer = gs.SparseOptimizer(gs.parameter_groups(model), gs.AdaBreg(gs.L1(0.05)), lr=0.02, allow_compact=True)
    return {"optimizer": optimizer, "rewirer": gs.Multilevel(model, optimizer, 3)}


MAKERS: dict[str, Callable[..., Parts]] = {
    "sgd": _torch_optimizer(torch.optim.SGD, gs.CSST(40, 4, 8, window=3, fraction=0.5), momentum=0.9, nesterov=True),
    "adamw": _torch_optimizer(torch.optim.AdamW, gs.RigL(40, 4), amsgrad=True),
    "rule": _rule,
    "multilevel": _multilevel,
}


class Target:
    """A saved subject, and a victim that damaged files are loaded into."""

    def __init__(self, kind: str, folder: Path):
        self.saved = Subject(kind, 0).train(STEPS)
        self.path, self.bad = folder / f"{kind}.safetensors", folder / f"{kind}-bad.safetensors"
        checkpoint.save(self.path, self.saved.model, **self.saved.parts, extra={"epoch": 1})
        self.content = self.path.read_bytes()
        self.kind = kind
        self._new_victim()

    def _new_victim(self) -> None:
        self.victim = Subject(self.kind, 1).train(3)
        self.before = self.victim.state()

    def attack(self, tally: Tally, what: str) -> None:
        """Loads the bad file; counts what must not happen."""
        tally.cases += 1
        try:
            checkpoint.load(self.bad, self.victim.model, **self.victim.parts)
        except gs.UsageError:
            pass
        except BaseException as error:
            tally.add("foreign", f"{what}: {told(error)}")
        else:
            tally.add("loaded", what)
            self._new_victim()
            return
        if not same(self.victim.state(), self.before):
            tally.add("changed", what)
            self._new_victim()


def flips(cases: int, rng: random.Random) -> list[Tally]:
    """Single flipped bits anywhere in the file."""
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in MAKERS:
            target, tally = Target(kind, Path(folder)), Tally(f"flipped bits, {kind}")
            for _ in range(cases // len(MAKERS)):
                at, bit = rng.randrange(len(target.content)), rng.randrange(8)
                content = bytearray(target.content)
                content[at] ^= 1 << bit
                target.bad.write_bytes(content)
                target.attack(tally, f"bit {bit} of byte {at}")
            tallies.append(tally)
    return tallies


def mutations(cases: int, rng: random.Random) -> list[Tally]:
    """Damaged structures, in the three ways."""
    tallies = []
    ways = {"in the file": _in_file(False), "in the file, resealed": _in_file(True), "in a state, saved so": _in_state}
    with tempfile.TemporaryDirectory() as folder:
        for kind in MAKERS:
            target = Target(kind, Path(folder))
            for way, damage in ways.items():
                tally = Tally(f"mutations {way}, {kind}")
                while tally.cases < cases // (len(MAKERS) * len(ways)):
                    if what := damage(target, rng):
                        target.attack(tally, what)
                tallies.append(tally)
    return tallies


# -------------------------------------------------------------------- damage to files


def _in_file(sealed: bool) -> Callable[[Target, random.Random], str]:
    def damage(target: Target, rng: random.Random) -> str:
        with safe_open(str(target.path), "pt") as file:
            header, tensors = dict(file.metadata()), {key: file.get_tensor(key).clone() for key in file.keys()}
        meta = json.loads(header["json"])
        if rng.random() < 0.6:
            what = rng.choice(TENSORS)(tensors, rng)
        else:
            tree = {key: value for key, value in meta.items() if key != "extra"}  # that is the user's: anything goes
            what = mutated(tree, rng, packed=True)
            meta = {**tree, "extra": meta["extra"]}
        if not what:
            return ""
        header["json"] = json.dumps(meta)
        save_file(tensors, str(target.bad), metadata=header)
        if sealed:
            seal(target.bad)
        return what

    return damage


def _drop(tensors: dict[str, Tensor], rng: random.Random) -> str:
    key = rng.choice(sorted(tensors))
    del tensors[key]
    return f"without {key}"


def _more(tensors: dict[str, Tensor], rng: random.Random) -> str:
    key = rng.choice(["x", "model.x", "model.0.values2", "optimizer.more", "rng.cuda.0"])
    tensors[key] = torch.ones(3)
    return f"with a tensor {key} more"


def _swap(tensors: dict[str, Tensor], rng: random.Random) -> str:
    a, b = rng.sample(sorted(key for key in tensors if not key.startswith(OPAQUE)), 2)
    if (tensors[a].shape, tensors[a].dtype) == (tensors[b].shape, tensors[b].dtype):
        return ""
    tensors[a], tensors[b] = tensors[b], tensors[a]
    return f"{a} and {b} exchanged"


def _rename(tensors: dict[str, Tensor], rng: random.Random) -> str:
    key = rng.choice(sorted(tensors))
    tensors[key + rng.choice(["x", ".0", "'"])] = tensors.pop(key)
    return f"{key} renamed"


def _other(tensors: dict[str, Tensor], rng: random.Random) -> str:
    key = rng.choice(sorted(key for key in tensors if not key.startswith(OPAQUE)))
    what, tensors[key] = other_tensor(tensors[key], rng)
    return f"{key} {what}"


TENSORS = (_drop, _more, _swap, _rename, _other, _other, _other)


DTYPES = (torch.float32, torch.float64, torch.float16, torch.int32, torch.int64, torch.uint8, torch.bool)


def other_tensor(t: Tensor, rng: random.Random) -> tuple[str, Tensor]:
    """A tensor of another type or another shape."""
    if rng.random() < 0.5:
        dtype = rng.choice([dtype for dtype in DTYPES if dtype != t.dtype])
        return f"as {dtype}", t.to(dtype)
    shapes = {
        "longer": lambda: torch.cat([t.reshape(-1), t.reshape(-1)[:1], t.new_zeros(1)]),
        "nested": lambda: t.unsqueeze(0).repeat(2, *[1] * t.dim()),
        "empty": lambda: t.new_zeros(0, 3),
        "of seven dimensions": lambda: t.reshape(1, 1, 1, 1, 1, 1, -1),
    }
    if t.dim() and t.shape[0] > 1:
        shapes["shorter"] = lambda: t[:-1]
    if t.dim():
        shapes["a number"] = lambda: t.new_zeros(())
    name = rng.choice(sorted(shapes))
    return name, shapes[name]().contiguous().clone()


# -------------------------------------------------------------------- damage to nests


def _in_state(target: Target, rng: random.Random) -> str:
    name = rng.choice(sorted(name for name in target.saved.parts if name not in OPAQUE))
    state = copy.deepcopy(target.saved.parts[name].state_dict())
    what = mutated(state, rng, packed=False)
    if not what:
        return ""
    parts = {**target.saved.parts, name: Lying(state)}
    try:
        checkpoint.save(target.bad, target.saved.model, **parts, extra={"epoch": 1})
    except gs.UsageError:
        return ""
    return f"{name}: {what}"


class Lying:
    """A part whose state is another's, damaged."""

    def __init__(self, state: Any):
        self.state = state

    def state_dict(self) -> Any:
        """The damaged state."""
        return self.state


def mutated(tree: Any, rng: random.Random, packed: bool) -> str:
    """Damages a nest in one place; says where and how, or "" if the place drawn has nothing that can be wrong."""
    trail, holder, key = _place(tree, rng)
    value, where = holder[key], ".".join(map(str, trail))
    if where.startswith(tuple(f"{start}{name}" for name in OPAQUE for start in ("", "states."))) or _free(
        trail, holder, packed
    ):
        return ""
    if isinstance(holder, dict) and rng.random() < 0.3:
        if rng.random() < 0.5:
            del holder[key]
            return f"{where} gone"
        holder[f"{key}x"] = holder.pop(key)
        return f"{where} renamed"
    if isinstance(value, Tensor):
        what, holder[key] = other_tensor(value, rng)
        return f"{where} {what}"
    for _ in range(5):
        new = rng.choice(VALUES)(value)
        if _differs(value, new) and not (trail == ["state"] and new == {}):  # before the first step there is none
            holder[key] = new
            return f"{where} became {str(new)[:40]}"
    return ""


VALUES: tuple[Callable[[Any], Any], ...] = (
    lambda value: "text",
    lambda value: [value],
    lambda value: {"a": value},
    lambda value: [],
    lambda value: {},
    lambda value: math.nan,
    lambda value: True,
    lambda value: None,
    lambda value: 7,
    lambda value: [[[[[[value]]]]]],
)


def _place(tree: Any, rng: random.Random) -> tuple[list[Any], Any, Any]:
    """The way to a random place, what holds it, and its key there; every place of the nest is as likely."""
    places: list[tuple[list[Any], Any, Any]] = []

    def walk(holder: Any, trail: list[Any]) -> None:
        items = (
            list(holder.items())
            if isinstance(holder, dict)
            else list(enumerate(holder))
            if isinstance(holder, list)
            else []
        )
        for key, value in items:
            places.append(([*trail, key], holder, key))
            walk(value, [*trail, key])

    walk(tree, [])
    return rng.choice(places)


def _free(trail: list[Any], holder: Any, packed: bool) -> bool:
    """Whether an entry may be missing: a parameter that has had no gradient has no state, or an empty one."""
    of_parameter = len(trail) == 2 or (len(trail) == 3 and len(holder) == 1)
    return not packed and trail[0] == "state" and of_parameter


def _differs(old: Any, new: Any) -> bool:
    """Whether another value in this place is wrong for certain: of another kind, or no number."""
    numbers = [isinstance(v, (int, float)) and not isinstance(v, bool) for v in (old, new)]
    if all(numbers):
        return new != new and old == old
    if old is None:
        return isinstance(new, (str, list, dict))
    if isinstance(old, (list, tuple)) and isinstance(new, list) or isinstance(old, dict) and isinstance(new, dict):
        return len(old) > 0 and len(new) == 0
    return type(old) is not type(new)
