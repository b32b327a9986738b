"""Multilevel linearised Bregman iterations (Lunk, Scott, Bungert 2026, "Sparse Training of Neural Networks based on
Multilevel Mirror Descent", arXiv 2602.03535): mirror descent that alternates between a frozen and a moving support.

With S the support of w and v the mirror variable:

    m times, coarse    g = dL/dw on S;            v_S <- v_S - s g;   w_S <- prox_{delta J}(delta v_S)
    once, fine         g = dL/dw everywhere;      v <- v - s g;       w <- prox_{delta J}(delta v);   S <- supp w

A coarse step computes only on S. A fine step computes the dense gradient, a slice of rows at a time.

The penalty is separable, so the coarse problem is the fine problem restricted to S, and no correction term is needed.
A weight of S that becomes zero in a coarse phase stays in S until the fine step, and may change again. v off S does
not change in a coarse phase.

State: values are compact (layout ``csr``), so w exists on S only. v, and m or q where the rule has them, have the
dense size. They are in cold storage, whose entries off S are read and written once in m + 1 steps. m = 0 is plain
``LinBreg`` or ``AdaBreg``.
"""

# pyright: strict

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UsageError, check_at_least, check_count
from ..indexed import Indexed
from ..layers import sparse_layers
from ..observe import Seen, operands
from ..rules.checks import Group
from ..rules.latent import reduced_to_zero
from ..rules.optimizer import SparseOptimizer
from ..rules.rule import MirrorRule
from ..support import Support
from ..surgery import set_support_
from ..topology import Sensing
from .cold_storage import ColdStorage
from .events import Diverged, Event
from .fine_step import Pairs, fine_step, gradient_is_finite, slice_bytes
from .multilevel_checks import checked_optimizer, group_of, state_problems
from .ownership import Ownership
from .ranks import agreed


class Multilevel:
    """Coarse steps on the frozen support, and a fine step that changes it.

    Call :meth:`step` in place of ``optimizer.step()``.

    Args:
        model: a model with ``csr`` layers of single weights.
        optimizer: ``SparseOptimizer(gs.parameter_groups(model), rule, lr, allow_compact=True)``; the rule is
            ``LinBreg`` or ``AdaBreg`` with a penalty of single weights (``L1``, ``NonNegativeL1``).
        coarse: m, the number of coarse steps before each fine step.
        fine_lr_scale: factor on the fine step of the weights off the support. These change only once in m + 1 steps,
            so they enter the support m + 1 times more slowly. A factor of up to m + 1 compensates for this, but makes
            the choice of the entering weights noisier.

    Clipping or scaling changes the gradient on the support only, not the fine gradient: clip per value, or not at all.
    Gradients of several backward passes add up. In a distributed run the fine gradient is averaged over the ranks.

    Raises: UsageError where model, optimizer and settings do not fit together.
    """

    def __init__(self, model: nn.Module, optimizer: SparseOptimizer, coarse: int = 99, *, fine_lr_scale: float = 1.0):
        check_count("Multilevel", "coarse", coarse, 0)
        check_at_least("Multilevel", "fine_lr_scale", fine_lr_scale, 0.0)
        self.layers = {name: layer for name, layer in sparse_layers(model).items() if layer.values.requires_grad}
        self.optimizer = checked_optimizer(self.layers, optimizer)
        self.coarse, self.fine_lr_scale = coarse, fine_lr_scale
        self.t = 0
        self.last: Event | None = None
        self._cold = ColdStorage()
        self._attach()
        self._arm()

    @property
    def sensing(self) -> dict[str, int]:
        """Weights off the support whose gradient the step in progress measures, per layer; empty in a coarse phase."""
        return {name: self.layers[name].support.total - self.layers[name].support.n for name in self._fine_layers}

    @property
    def sensing_bytes(self) -> int:
        """Bytes of cold storage, of the operands kept for a fine step, and of one slice of the gradient."""
        held = self._cold.bytes + sum(observer.bytes for observer in self._own.observers.values())
        slices = [slice_bytes(layer) for layer in self.layers.values()]
        return held + (max(slices) if self._fine_layers else 0)

    def is_event(self, t: int) -> bool:
        """Whether step t = 1, 2, ... is fine."""
        return t % (self.coarse + 1) == 0

    def sense(self, t: int) -> Sensing | None:
        """What the backward pass of step t measures off the support: everything on a fine step, else None."""
        return Sensing() if self.is_event(t) else None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step: fine if it is the last of m + 1, else coarse. Returns the result of the optimizer.

        If a fine gradient is not finite, no layer takes its fine step.

        Raises: Diverged if weights are NaN or infinite at a fine step, before anything changes.
        """
        if closure is not None:
            what = "a closure has no single gradient, and the fine step needs one"
            raise UsageError("Multilevel.step", what, remedy="backward() before step(), and no closure")
        self._look_at_all()
        for name in self._fine_layers:
            if not bool(self.layers[name].values.detach().isfinite().all()):
                raise Diverged(self.t + 1, layer=name)
        self.t += 1
        fine, self.last = self._fine_layers, None
        pairs = {name: self._pairs(name) for name in fine}
        finite = agreed(all(gradient_is_finite(self.layers[name], pairs[name]) for name in fine), [])[0]
        for name in fine:
            self.layers[name].values.grad = None  # the optimizer steps the other parameters
        result = self.optimizer.step()
        if fine:
            before = {name: layer.support.n for name, layer in self.layers.items()}
            kept = {**before, **{name: self._step_fine(name, pairs[name]) for name in fine if finite}}
            after = {name: layer.support.n for name, layer in self.layers.items()}
            dropped, grown = ({name: n[name] - kept[name] for name in n} for n in (before, after))
            self.last = Event(self.t, dropped, grown, after, {})
        self._arm()
        return result

    def discard(self) -> None:
        """Forgets the backward passes since the last step. ``zero_grad`` has the same effect."""
        self._own.forget()

    def release(self) -> None:
        """Stops observing the layers. The next owner of the layers calls this."""
        self._own.release()

    @torch.no_grad()
    def zero_thresholds(self) -> list[Tensor]:
        """Per layer, the smallest strength at which each weight would be zero now, on the support and off it."""
        found: list[Tensor] = []
        for name, layer in self.layers.items():
            rule, group = self._rule(name)
            v = self.optimizer.state_of(rule, layer.values, self.optimizer.step_info(group))["v"]
            if name in self._cold.layers:  # before the first fine step v is 0 off the support
                v = self._cold.write_back(name, layer.support, {"v": v})["v"]
            found.append(rule.penalty.zero_threshold(v, 1.0))
        return found

    # ---------------------------------------------------------------- the fine step

    @torch.no_grad()
    def _step_fine(self, name: str, pairs: Pairs) -> int:
        """The fine step of a layer. Returns the number of weights that stay in its support."""
        layer = self.layers[name]
        if not pairs:
            return layer.support.n  # the layer has no gradient
        rule, group = self._rule(name)
        step, decay = self.optimizer.step_info(group), group["weight_decay"]
        cold = self._cold.write_back(name, layer.support, self.optimizer.state_of(rule, layer.values, step))
        shown = fine_step(layer, rule, cold, pairs, step, weight_decay=decay, scale=self.fine_lr_scale)
        set_support_(layer, Support.from_ids(shown.ids, layer.support.shape), self.optimizer)
        layer.values.copy_(shown.w)
        hot: dict[str, Tensor] = self.optimizer.state[layer.values]
        for key, t in self._cold.restricted(name, layer.support).items():
            hot[key].copy_(t)
        self._own.know(name)
        self.optimizer.remember([layer.values])
        return shown.kept

    def _pairs(self, name: str) -> Pairs:
        """The operands of the fine gradient: (dy, x) of each pass whose gradient is in ``values.grad``."""
        observer = self._own.observers[name]
        seen = observer.seen()
        return [] if seen is None else [pair.checked(observer.who) for pair in seen.operands]

    def _rule(self, name: str) -> tuple[MirrorRule, Group]:
        """The rule and the group of a layer's values."""
        at = group_of(self.layers[name], self.optimizer)
        assert at is not None  # checked at construction
        rule = self.optimizer.rules[at]
        assert isinstance(rule, MirrorRule)
        return rule, self.optimizer.param_groups[at]

    def _arm(self) -> None:
        """Makes the layers keep the operands of the weight gradient, if step t + 1 is fine."""
        self._fine_layers = list(self.layers) if self.is_event(self.t + 1) else []
        for name, observer in self._own.observers.items():
            observer.start() if name in self._fine_layers else observer.stop()

    # ---------------------------------------------------------------- states and supports that other code loads

    def _settings(self) -> dict[str, Any]:
        return {"coarse": int(self.coarse), "fine_lr_scale": float(self.fine_lr_scale)}

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume bit for bit, together with the states of the model and the optimizer."""
        self._look_at_all()
        has_cold = {name: name in self._cold.layers for name in self.layers}
        cold = {name: dict(self._cold.layers[name]) if has else None for name, has in has_cold.items()}
        supports = {name: layer.support.tag for name, layer in self.layers.items()}
        return {"t": self.t, "settings": self._settings(), "supports": supports, "cold": cold, "has_cold": has_cold}

    def problems(self, state: Any) -> list[str]:
        """Sentences that say why a saved state cannot be loaded; [] if it can."""
        expected = {name: set(self._rule(name)[0].init(layer.values)) for name, layer in self.layers.items()}
        return state_problems(state, self._settings(), expected, self.layers)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a state. Raises UsageError where it belongs to other layers or settings."""
        problems = self.problems(state)
        if problems:
            what = "this state was saved with other settings or layers"
            raise UsageError("Multilevel", what, reasons=problems, remedy="the settings and layers it was saved with")
        self.t, self.last = int(state["t"]), None
        saved: dict[str, dict[str, Tensor] | None] = state["cold"]
        devices = {name: layer.values.device for name, layer in self.layers.items()}
        self._cold = ColdStorage(
            {
                name: {key: t.to(devices[name]).clone() for key, t in entries.items()}
                for name, entries in saved.items()
                if entries is not None
            }
        )
        self._own.awaited = dict(state["supports"])
        self._arm()

    def _attach(self) -> None:
        """Becomes the owner of the layers."""
        self._own = Ownership(
            self,
            self.layers,
            self.optimizer,
            measure=lambda multilevel, name, dy, x: multilevel._measure(name, dy, x),
            look=lambda multilevel, _name: multilevel._look_at_all(),
        )

    def _measure(self, name: str, dy: Tensor, x: Tensor) -> Seen:
        """The operands of a backward pass, which a fine step needs."""
        return Seen(operands=[operands(dy, x, self.layers[name].values.dtype)])

    def __getstate__(self) -> dict[str, Any]:
        """A copy owns the copied layers. Copies have no gradients, so the step in progress is left out."""
        self._look_at_all()
        return {**vars(self), "_own": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._attach()
        self._arm()

    def notice(self, layer: Indexed) -> None:
        """After a layer was loaded: its state follows at once, unless another part may still be loaded for it."""
        loading = any(self._own.is_loading(name) for name, one in self.layers.items() if one is layer)
        if not self._own.awaited and not loading:
            self._look_at_all()

    @torch.no_grad()
    def _look_at_all(self) -> None:
        """Finds layers whose support has changed since the last look, and moves the optimizer's state to it."""
        for name, layer in self.layers.items():
            if not self._own.has_changed(name):
                continue
            before, was_loaded = self._own.known[name], self._own.was_awaited("Multilevel", name)
            s = self._own.know(name)
            if s is before:
                continue
            if not was_loaded and not s.same(before):
                self._follow(name, before, s)
            for keeper in self._own.keepers:
                keeper.follow(layer)

    def _follow(self, name: str, old: Support, new: Support) -> None:
        """After weights were loaded on another support: takes their state from cold storage, and stores the old."""
        layer, keeper = self.layers[name], self._own.keepers[0]
        hot: dict[str, Tensor] | None = self.optimizer.state.get(layer.values)
        if not hot or keeper.held.get(id(layer.values)) is not old:
            return  # the optimizer was loaded too
        rule, group = self._rule(name)
        v = self._cold.write_back(name, old, hot)["v"].view(-1)
        hot.update(self._cold.restricted(name, new))
        dropped = old.ids()[new.find(old.ids()) < 0]  # these are zero now, so v must be below the threshold
        v[dropped] = reduced_to_zero(v[dropped], rule.penalty.zero_threshold(v[dropped], 1.0), group["strength"])
        keeper.moved(layer)
