"""Multilevel linearised Bregman iterations (arXiv 2602.03535): mirror descent that alternates between a frozen and a moving support. With S
the support of w and v the mirror variable:

    m times     g = dL/dw on S;                       v_S <- v_S - s g;   w_S <- prox_{delta J}(delta v_S)      coarse: all of it sparse
    once        g = dL/dw everywhere, a block of rows at a time; v <- v - s g;  w <- prox_{delta J}(delta v);  S <- supp w     fine

The coarse problem is the fine one restricted to S (the penalty is separable), so no correction term is needed. A weight of S that reaches
zero in a coarse phase stays in S until the fine step and may return; v off S does not move meanwhile.

Values are compact (layout ``csr``): w exists on S only. What has the dense size is v, and with momentum or Adam their moments: cold
storage, read and written off S once in m + 1 steps. m = 0 is plain ``LinBreg`` or ``AdaBreg``.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UsageError, check_at_least, check_count
from ..indexed import Indexed
from ..keeper import keeper_of
from ..layers import SparseLayer, sparse_layers
from ..observe import Observer, Seen, operands
from ..products.sense import op as sense_op
from ..rules.adabreg import AdaBreg
from ..rules.latent import drawn_back
from ..rules.linbreg import LinBreg
from ..rules.rule import SparseOptimizer, StepInfo
from ..support import Support
from ..surgery import set_support_
from ..topology import Topology, Update
from .events import Diverged, Event
from .ranks import agreed, mean_over_ranks

BLOCK_NUMBERS = 1 << 22  # numbers of the dense gradient made at a time
ALMOST = 1 - 1e-5  # of the strength: what a rounded level may miss


class Multilevel:
    """Coarse steps on the frozen support, and a fine step that changes it: call :meth:`step` where you would call ``optimizer.step()``.

    Args:
        model: a model with ``csr`` layers of single weights.
        optimizer: ``SparseOptimizer(gs.parameter_groups(model), rule, lr, allow_compact=True)``; the rule is ``LinBreg`` or ``AdaBreg`` with a
            penalty of single weights (``L1``, ``NonNegativeL1``).
        coarse: m, coarse steps before each fine one.
        fine_lr_scale: factor on the fine step of the weights that are off the support. Those move only once in m + 1 steps, so they enter
            m + 1 times as slowly; up to m + 1 makes up for it, and makes what enters noisier.

    A gradient that is clipped or scaled is so on the support only: clip per value, or not at all. Gradients of several backward passes add
    up, and over the ranks of a distributed run the fine gradient is averaged.
    """

    def __init__(self, model: nn.Module, optimizer: SparseOptimizer, coarse: int = 99, *, fine_lr_scale: float = 1.0):
        check_count("Multilevel", "coarse", coarse, 0)
        check_at_least("Multilevel", "fine_lr_scale", fine_lr_scale, 0.0)
        self.layers = {name: layer for name, layer in sparse_layers(model).items() if layer.values.requires_grad}
        self.optimizer, self.coarse, self.fine_lr_scale = optimizer, coarse, fine_lr_scale
        _check(self.layers, optimizer)
        self.topology = Topology("multilevel", when=Fine(coarse + 1))
        self.t = 0
        self.last: Event | None = None
        self._cold: dict[str, dict[str, Tensor]] = {}
        self._loaded: dict[
            str, int
        ] = {}  # tags of the supports that load_state_dict brought, until the layers are used
        self._attach()
        self._arm()

    @property
    def sensing(self) -> dict[str, int]:
        """Weights off the support whose gradient the step in progress measures, per layer; empty in a coarse phase."""
        return {name: self.layers[name].support.total - self.layers[name].support.n for name in self._fine_layers}

    @property
    def sensing_bytes(self) -> int:
        """Bytes of cold storage, of what fine steps keep of their backward pass, and of one block of the gradient."""
        held = sum(t.numel() * t.element_size() for state in self._cold.values() for t in state.values())
        held += sum(observer.bytes for observer in self._observers.values())
        blocks = [
            2 * min(BLOCK_NUMBERS, layer.dense_shape.numel()) * layer.values.element_size()
            for layer in self.layers.values()
        ]
        return held + (max(blocks) if self._fine_layers else 0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step: coarse, or fine if it is the last of m + 1. A fine gradient that is not finite moves nothing.

        Raises: Diverged where a fine step meets weights that are NaN or infinite, before anything moves.
        """
        if closure is not None:
            raise UsageError(
                "Multilevel.step",
                "a closure has no single gradient to take the fine step by",
                remedy="backward() before step()",
            )
        self._look_at_all()
        for name in self._fine_layers:
            if not bool(self.layers[name].values.detach().isfinite().all()):
                raise Diverged(self.t + 1, layer=name)
        self.t += 1
        fine, self.last = self._fine_layers, None
        pairs = {name: self._operands(name) for name in fine}
        finite = agreed(all(self._is_finite(name, pairs[name]) for name in fine), [])[0]
        for name in fine:
            self.layers[name].values.grad = None  # the optimizer moves the rest
        result = self.optimizer.step()
        if fine:
            n = {name: layer.support.n for name, layer in self.layers.items()}
            kept = {**n, **{name: self._fine(name, pairs[name]) for name in fine if finite}}
            now = {name: layer.support.n for name, layer in self.layers.items()}
            gone, come = ({name: m[name] - kept[name] for name in n} for m in (n, now))
            self.last = Event(self.t, gone, come, now, {})
        self._arm()
        return result

    def discard(self) -> None:
        """Forgets the backward passes since the last step. Dropping their gradients (``zero_grad``) is enough."""
        for observer in self._observers.values():
            observer.forget()

    def release(self) -> None:
        """Lets go of the layers: nothing is observed any more."""
        for observer in self._observers.values():
            observer.stop()

    @torch.no_grad()
    def zero_thresholds(self) -> list[Tensor]:
        """For every weight, on the support and off it, the strength from which it would be zero by its mirror variable, per layer."""
        found = []
        for name, layer in self.layers.items():
            rule, group = self._rule(name)
            hot, cold = (
                self.optimizer.state_of(rule, layer.values, self.optimizer.now(group))["v"],
                self._cold.get(name),
            )
            if cold is not None:
                cold["v"].view(-1)[layer.support.ids()] = hot
            found.append(
                rule.penalty.zero_threshold(hot if cold is None else cold["v"], 1.0)
            )  # off the support v is 0 before the first fine step
        return found

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume bit for bit, beside the model's and the optimizer's own states."""
        self._look_at_all()
        cold = {name: dict(self._cold[name]) if name in self._cold else None for name in self.layers}
        supports = {name: layer.support.tag for name, layer in self.layers.items()}
        state = {"t": self.t, "topology": self.topology.name, "settings": self._settings(), "supports": supports}
        return {**state, "cold": cold, "has_cold": {name: name in self._cold for name in self.layers}}

    def problems(self, state: Any) -> list[str]:
        """Why a saved state cannot be taken over, in sentences; [] if it may go on."""
        keys = ("t", "topology", "settings", "supports", "cold", "has_cold")
        if (
            not isinstance(state, dict)
            or not set(keys) <= set(state)
            or not all(isinstance(state[key], dict) for key in keys[2:])
        ):
            return [f"a state of Multilevel has {', '.join(keys)}"]
        if state["topology"] != self.topology.name or type(state["t"]) is not int or state["t"] < 0:
            return [f"it is of topology {state['topology']!r} at step {state['t']!r}, not {self.topology.name!r}"]
        here, there = self._settings(), state["settings"]
        problems = [
            f"{key} was {there.get(key)}, is {here[key]}" for key in here if repr(here[key]) != repr(there.get(key))
        ]
        if list(state["supports"]) != list(self.layers) or list(state["cold"]) != list(self.layers):
            return [*problems, f"it is of layers {list(state['supports'])}, not {list(self.layers)}"]
        if not all(type(tag) is int for tag in state["supports"].values()):
            problems.append("supports are told by whole numbers")
        if {name: cold is not None for name, cold in state["cold"].items()} != state["has_cold"]:
            return [*problems, "cold and has_cold do not agree on which layers have cold storage"]
        if not all(type(has) is bool for has in state["has_cold"].values()):
            problems.append("has_cold tells of every layer whether it has cold storage")
        for name, cold in state["cold"].items():
            layer = self.layers[name]
            expected = set(self._rule(name)[0].init(layer.values))
            shape = layer.support.shape
            if cold is None:
                continue  # no fine step yet
            fits = isinstance(cold, dict) and set(cold) == expected
            if not fits or not all(
                torch.is_tensor(t) and t.shape == shape and t.dtype == layer.values.dtype for t in cold.values()
            ):
                problems.append(
                    f"{name}: cold storage has {', '.join(sorted(expected))}, each of shape {shape} and {layer.values.dtype}"
                )
        return problems

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state; refuses one of other layers or settings."""
        problems = self.problems(state)
        if problems:
            raise UsageError(
                "Multilevel",
                "this state was saved under other rules",
                reasons=problems,
                remedy="what it was saved with",
            )
        self.t, self.last = int(state["t"]), None
        self._cold = {
            name: {key: t.to(self.layers[name].values.device).clone() for key, t in saved.items()}
            for name, saved in state["cold"].items()
            if saved is not None
        }
        self._loaded = dict(state["supports"])
        self._arm()

    # ---------------------------------------------------------------- whose layers they are

    def _attach(self) -> None:
        reference = weakref.ref(self)

        def look() -> None:
            if (living := reference()) is not None:
                living._look_at_all()

        keeper_of(self.optimizer).add(self.layers.values())
        self._observers = {}
        for name, layer in self.layers.items():
            layer.give_to(self)
            keep = partial(_operands_of, layer.values.dtype)
            self._observers[name] = Observer(layer, name or type(layer).__name__, keep, look)
        self._known = {name: layer.support for name, layer in self.layers.items()}

    def __getstate__(self) -> dict[str, Any]:
        """A copy takes charge of the copied layers; what the step in progress has seen is not copied, as its gradients are not."""
        self._look_at_all()
        return {**vars(self), "_observers": {}, "_known": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._attach()
        self._arm()

    def notice(self, layer: Indexed) -> None:
        """A layer has been loaded: what belongs to it goes along now, unless more is being loaded that may belong to it."""
        if not self._loaded and not any(
            keeper_of(self.optimizer).is_loading(one) for one in self.layers.values() if one is layer
        ):
            self._look_at_all()

    @torch.no_grad()
    def _look_at_all(self) -> None:
        """Notices that a layer has another support than when it was last looked at: the optimizer's state follows, through cold storage."""
        for name, layer in self.layers.items():
            s, known, tag = layer.support, self._known[name], self._loaded.get(name)
            if tag is not None and tag != s.tag:
                what = f"the state that was loaded belongs to another support than layer {name!r} has"
                raise UsageError("Multilevel", what, remedy="load the model, the optimizer and this of the same step")
            if s is not known:
                self._known[name] = s
                if tag is None and not s.same(known):
                    self._thaw(name, known, s)
                keeper_of(self.optimizer).follow(layer)
            self._loaded.pop(name, None)

    def _thaw(self, name: str, old: Support, new: Support) -> None:
        """Weights were loaded on another support: their state comes from cold storage, and that of those that left goes there."""
        layer, keeper = self.layers[name], keeper_of(self.optimizer)
        state = self.optimizer.state.get(layer.values)
        if not state or keeper.held.get(id(layer.values)) is not old:
            return  # the optimizer has been loaded too
        rule, group = self._rule(name)
        cold = self._cold.setdefault(name, {key: t.new_zeros(new.shape) for key, t in state.items()})
        for key, t in state.items():
            cold[key].view(-1)[old.ids()] = t
            state[key] = cold[key].view(-1)[new.ids()]
        left = old.ids()[new.find(old.ids()) < 0]  # zero now, so their mirror variable shows zero
        v = cold["v"].view(-1)[left]
        cold["v"].view(-1)[left] = drawn_back(v, rule.penalty.zero_threshold(v, 1.0), group["strength"])
        keeper.moved(layer)

    # ---------------------------------------------------------------- details

    def _settings(self) -> dict[str, Any]:
        return {"coarse": int(self.coarse), "fine_lr_scale": float(self.fine_lr_scale)}

    def _arm(self) -> None:
        """Tells the layers to keep the operands of the weight gradient, if step t + 1 is fine."""
        self._fine_layers = list(self.layers) if self.topology.when(self.t + 1) else []
        for name, observer in self._observers.items():
            observer.start() if name in self._fine_layers else observer.stop()

    def _operands(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """What the fine gradient is made of: a pair (dy, x) for each pass whose gradient is in ``values.grad``."""
        observer = self._observers[name]
        seen = observer.seen()
        return [] if seen is None else [pair.checked(observer.who) for pair in seen.operands]

    def _is_finite(self, name: str, pairs: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether the fine gradient is finite: by a bound from its operands, and where that says nothing by a look at all of it."""
        bound = sum(
            float(dy.abs().max()) * float(x.abs().max()) * dy.numel() for dy, x in pairs if dy.numel() and x.numel()
        )
        if bound < torch.finfo(self.layers[name].values.dtype).max:
            return True
        if not all(bool(t.isfinite().all()) for pair in pairs for t in pair):
            return False
        layer = self.layers[name]
        return all(
            bool(sense_op.gradient_rows(pairs, part, layer.support, layer.geometry).isfinite().all())
            for part in _blocks(layer)
        )

    def _rule(self, name: str) -> tuple[LinBreg | AdaBreg, dict[str, Any]]:
        """The rule and the group of a layer's values."""
        values, groups = self.layers[name].values, self.optimizer.param_groups
        at = next(i for i, group in enumerate(groups) if any(p is values for p in group["params"]))
        rule = self.optimizer.rules[at]
        assert isinstance(rule, (LinBreg, AdaBreg))  # as was checked
        return rule, groups[at]

    @torch.no_grad()
    def _fine(self, name: str, operands: list[tuple[Tensor, Tensor]]) -> int:
        """The fine step of a layer; how many weights of its support stay in it."""
        layer = self.layers[name]
        if not operands:
            return layer.support.n  # it took no part in the forward pass
        rule, group = self._rule(name)
        now, s = self.optimizer.now(group), layer.support
        ids, (rows, cols) = s.ids(), s.shape
        hot = self.optimizer.state_of(rule, layer.values, now)
        cold = self._cold.setdefault(name, {key: t.new_zeros(rows, cols) for key, t in hot.items()})
        for key, t in hot.items():
            cold[key].view(-1)[ids] = t  # write back
        alive, shown, kept = [], [], 0
        for part in _blocks(layer):
            top = part.start
            first, last = int(s.crow[part.start]), int(s.crow[part.stop])
            mine = ids[first:last] - top * cols  # blocks of the support in this block
            g = mean_over_ranks(sense_op.gradient_rows(operands, part, s, layer.geometry))
            if group["weight_decay"]:
                g.view(-1)[mine] += group["weight_decay"] * layer.values[first:last]
            state = {key: [t[part]] for key, t in cold.items()}
            old = state["v"][0].clone() if self.fine_lr_scale != 1.0 else None
            rule.descend_([g], state, now)
            if old is not None:
                _stretch(state["v"][0], old, mine, self.fine_lr_scale)
            here = (
                (rule.zero_thresholds([g], state, now)[0] > ALMOST * now.strength).view(-1).nonzero().flatten()
            )  # w is zero elsewhere
            w, stay = (_shown(rule, state["v"][0].view(-1)[at], now) for at in (here, mine))
            here, w = here[w != 0], w[w != 0]
            kept += int(stay.count_nonzero())
            alive.append(here + top * cols)
            shown.append(w)
        ids = torch.cat(alive)
        set_support_(layer, Support.from_ids(ids, s.shape), self.optimizer)
        layer.values.copy_(torch.cat(shown))
        state = self.optimizer.state[layer.values]
        for key, t in cold.items():
            state[key].copy_(t.view(-1)[ids])  # restrict
        self._known[name] = layer.support
        self.optimizer.wrote([layer.values])
        return kept


@dataclass(frozen=True)
class Fine:
    """Every ``every``-th step is fine."""

    every: int

    def __call__(self, t: int) -> Update | None:
        return Update(interval=self.every) if t % self.every == 0 else None


def _operands_of(dtype: torch.dtype, dy: Tensor, x: Tensor) -> Seen:
    return Seen(operands=[operands(dy, x, dtype)])


def _blocks(layer: SparseLayer) -> list[slice]:
    """Rows of a layer's matrix, so many at a time that a block of the gradient has BLOCK_NUMBERS numbers or one row."""
    rows, cols = layer.support.shape
    step = max(1, BLOCK_NUMBERS // cols)
    return [slice(top, min(top + step, rows)) for top in range(0, rows, step)]


def _shown(rule: LinBreg | AdaBreg, v: Tensor, now: StepInfo) -> Tensor:
    """The weights that belong to entries of the mirror variable."""
    w = torch.empty_like(v)
    rule.show_([w], {"v": [v]}, now)
    return w


def _stretch(v: Tensor, old: Tensor, on: Tensor, scale: float) -> None:
    """v <- old + scale (v - old) except at the flat indices ``on``."""
    moved = v.view(-1)[on].clone()
    v.sub_(old).mul_(scale).add_(old)
    v.view(-1)[on] = moved


def _check(layers: dict[str, SparseLayer], optimizer: object) -> None:
    who = "Multilevel"
    if not layers:
        raise UsageError(who, "the model has no sparse layer", remedy="gs.sparsify(model, density=...) first")
    if len({id(layer.values) for layer in layers.values()}) < len(layers):
        raise UsageError(
            who,
            "two sparse layers hold the same values, and each has a support of its own",
            remedy="use one layer in both places",
        )
    if not isinstance(optimizer, SparseOptimizer):
        raise UsageError(who, "the optimizer must be a SparseOptimizer", got=type(optimizer).__name__)
    reasons = [
        f"{name}: layout {layer.layout.name}" for name, layer in layers.items() if layer.layout.storage != "compact"
    ]
    reasons += [f"{name}: blocks of {layer.block}" for name, layer in layers.items() if layer.block != (1, 1)]
    if reasons:
        raise UsageError(
            who, "coarse steps want compact layers of single weights", reasons=reasons, remedy='sparsify(layout="csr")'
        )
    places = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for name, layer in layers.items():
        i = places.get(id(layer.values))
        if i is None:
            reasons.append(f"{name}.values is not in the optimizer: make it after sparsify")
        elif not isinstance(optimizer.rules[i], (LinBreg, AdaBreg)):
            reasons.append(f"{name} moves by {type(optimizer.rules[i]).__name__}, which has no mirror variable")
        elif not optimizer.param_groups[i]["penalised"]:
            reasons.append(
                f"{name} is not penalised: nothing would ever be zero (gs.parameter_groups(model) says what is)"
            )
    if reasons:
        raise UsageError(
            who, "the optimizer does not go with these layers", reasons=reasons, remedy="a LinBreg or AdaBreg rule"
        )
