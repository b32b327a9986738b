"""The optimizer's state of a newborn connection. It has learned nothing yet, as a new parameter.

    zero      zero state, with the step count T of the layer's parameter. Adam then treats m / (1 - beta1^T) as a mean
              of T steps, but it is a mean of few: first steps are up to 3 lr ("cold start"). The step size of Rprop
              stays 0. Adagrad loses its initial sum.
    fresh     the state and the step count of a new parameter
    sensed    fresh; the gradient that was sensed at birth is the first step's gradient, but moves nothing
    auto      zero where the step count matters (Adam and similar: measured, docs/methods/newborn.md); else fresh

If the step count does not matter (:class:`Trial` finds out), setting the initial state is enough. Otherwise the newborn
blocks of an event are separate parameters for AGE steps: after each step of the optimizer, a counterpart with the same
settings moves them. Then they join the layer's parameter. Each entry of their state is multiplied by the ratio of its
values after T and after AGE steps with a constant gradient: for Adam (1 - beta^T) / (1 - beta^AGE). So the next move is
the same as if they had stayed separate.

Cost: one step of the counterpart, O(blocks born in the last AGE steps).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import check_choice
from ..layers import SparseLayer
from ..topology import LayerState
from .saved_state import is_ids
from .states import is_dict, is_sequence
from .trial import HORIZON, YOUNG, State, Trial, compact_parameter, copied, is_elementwise

NEWBORN = ("auto", "fresh", "zero", "sensed")
AGE = YOUNG  # steps for which newborn blocks have a separate step count


@dataclass
class Cohort:
    """The blocks of one layer that were born at the same event."""

    name: str  # of the layer
    ids: Tensor  # (k,) int64, sorted
    values: nn.Parameter  # (k, *tile)
    age: int = 0


class Newborn:
    """Gives newborn connections the optimizer's state of a new parameter.

    Args:
        optimizer: any torch optimizer.
        layers: the sparse layers by name; the optimizer holds their values.
        mode: ``"auto"``, ``"fresh"``, ``"zero"`` or ``"sensed"``.

    Raises: UsageError if the optimizer cannot move a scratch parameter.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, layers: Mapping[str, SparseLayer], mode: str):
        check_choice("Rewirer", "newborn", mode, NEWBORN)
        self.optimizer, self.layers, self.mode = optimizer, layers, mode
        self.trial = Trial(optimizer, layers)
        self.cohorts: list[Cohort] = []
        self._state: dict[nn.Parameter, State] = {}  # of the cohorts' values
        for name, layer in layers.items():
            if layer.values.requires_grad:
                self.initial(name)

    def initial(self, name: str) -> dict[str, Tensor] | None:
        """The state of a block of this layer before its first step, by entry, first dimension 1; None means zeros."""
        if self.mode == "zero" or self.trial.needs_closure():
            return None
        initial = self.trial.initial(name)
        return None if self.mode == "auto" and self.counts(name) else initial

    def counts(self, name: str) -> bool:
        """Whether a block's first steps depend on the parameter's step count."""
        return self.trial.counts(name)

    # ---------------------------------------------------------------- from birth to joining

    def sensed_at(self, layer: LayerState, ids: Tensor) -> Tensor | None:
        """The sensed gradients at these blocks, (k, *tile), in mode ``"sensed"``; None if one of them is not known."""
        if self.mode != "sensed":
            return None
        known, h = (layer.ids, layer.h) if layer.strongest is None else layer.strongest(ids.numel(), layer.ties)
        at = torch.searchsorted(known, ids)
        if not known.numel() or not bool((known[at.clamp(max=known.numel() - 1)] == ids).all()):
            return None
        return h[at]

    @torch.no_grad()
    def born(self, name: str, ids: Tensor, sensed: Tensor | None) -> None:
        """Adds the newborn blocks ``ids`` of a layer. ``sensed``: their gradients (k, *tile): :meth:`sensed_at`."""
        if not ids.numel() or self.initial(name) is None or not self.counts(name):
            return
        cohort = self._cohort(name, ids)
        self.cohorts.append(cohort)
        if sensed is not None:
            cohort.values.grad = sensed.to(cohort.values.dtype).clone()
            self._step([cohort])
            cohort.values.zero_()
            cohort.age = 1

    @torch.no_grad()
    def moved(self, name: str) -> None:
        """Removes newborn blocks that are no longer in the layer's support, after it has changed."""
        s = self.layers[name].support
        for cohort in [c for c in self.cohorts if c.name == name]:
            stay = s.find(cohort.ids) >= 0
            if bool(stay.all()):
                continue
            state = self._state.pop(cohort.values, {})
            kept = {key: t[stay] if is_elementwise(t, cohort.values) else t for key, t in state.items()}
            cohort.ids, cohort.values = cohort.ids[stay], compact_parameter(cohort.values.detach()[stay])
            if kept:
                self._state[cohort.values] = kept
        self.cohorts = [c for c in self.cohorts if c.ids.numel()]

    @torch.no_grad()
    def before_step(self) -> None:
        """Runs before the optimizer steps: saves the values of the newborn blocks, which the optimizer moves too."""
        for cohort in self.cohorts:
            layer = self.layers[cohort.name]
            cohort.values.copy_(self._read(layer, layer.values, self._places(cohort)))

    @torch.no_grad()
    def after_step(self) -> None:
        """Runs after the optimizer has stepped: the counterpart moves the newborn blocks from their saved values."""
        skipped = vars(self.optimizer).get("found_inf")  # set by a GradScaler: a fused optimizer then skips the step
        if skipped is not None and bool(skipped):
            return
        for cohort in self.cohorts:
            layer = self.layers[cohort.name]
            if (grad := layer.values.grad) is not None:
                cohort.values.grad = self._read(layer, grad, self._places(cohort)).clone()
        alive = [cohort for cohort in self.cohorts if cohort.values.grad is not None]
        if not alive:
            return
        self._step(alive)
        for cohort in alive:
            layer = self.layers[cohort.name]
            self._write(layer, layer.values, self._places(cohort), cohort.values.detach())
            cohort.values.grad = None
            cohort.age += 1
            if cohort.age >= AGE:
                self._join(cohort)

    def _step(self, cohorts: list[Cohort]) -> None:
        members: dict[str, list[nn.Parameter]] = {}
        for cohort in cohorts:
            members.setdefault(cohort.name, []).append(cohort.values)
        counterpart = self.trial.counterpart(members, self._state)
        with torch.enable_grad():
            counterpart.step()
        self._state = {c.values: counterpart.state[c.values] for c in self.cohorts if counterpart.state.get(c.values)}

    def _join(self, cohort: Cohort) -> None:
        """Moves the state of a cohort into the state of the layer's parameter, scaled to its step count."""
        self.cohorts = [c for c in self.cohorts if c is not cohort]
        state, layer = self._state.pop(cohort.values, {}), self.layers[cohort.name]
        joined: State = self.optimizer.state.get(layer.values, {})
        places = self._places(cohort)
        scales = self.trial.scales(cohort.name, cohort.age, int(float(joined.get("step", HORIZON))))
        for key, t in state.items():
            entry = joined.get(key)
            if isinstance(entry, Tensor) and is_elementwise(t, cohort.values):
                self._write(layer, entry, places, t * scales.get(key, 1.0))

    # ---------------------------------------------------------------- saving and loading

    def state_dict(self) -> list[dict[str, Any]]:
        """All that is needed to resume bit for bit."""
        return [
            {"layer": c.name, "ids": c.ids, "age": c.age, "state": dict(self._state.get(c.values, {}))}
            for c in self.cohorts
        ]

    def problems(self, state: object) -> list[str]:
        """Why a saved ``{"mode", "cohorts"}`` cannot be loaded, in sentences; [] if it can."""
        if not is_dict(state) or set(state) != {"mode", "cohorts"} or not is_sequence(state["cohorts"]):
            return ["newborn must be a mode and a list of cohorts"]
        if state["mode"] != self.mode:
            return [f"newborn was {state['mode']!r}, but is now {self.mode!r}"]
        for saved in state["cohorts"]:
            if problem := self._cohort_problem(saved):
                return [problem]
        return []

    def _cohort_problem(self, saved: object) -> str | None:
        keys = {"layer", "ids", "age", "state"}
        if not is_dict(saved) or set(saved) != keys or saved["layer"] not in self.layers:
            return "a cohort must have the name of a layer, ids, an age and a state"
        s, ids, age = self.layers[saved["layer"]].support, saved["ids"], saved["age"]
        if not is_ids(ids) or not ids.numel():
            return "the ids of a cohort must be a vector of int64"
        if int(ids.min()) < 0 or int(ids.max()) >= s.total or bool((ids.diff() <= 0).any()):
            return f"the ids of a cohort must lie in [0, {s.total}) and increase"
        if type(age) is not int or not 0 <= age < AGE:
            return f"the age of a cohort must be a whole number in [0, {AGE})"
        if bool(age) != bool(saved["state"]) or not self._is_state(saved["layer"], ids.numel(), saved["state"]):
            kind = type(self.optimizer).__name__
            return f"the state of a cohort is not a state of {kind} for {ids.numel()} connections"
        return None

    def _is_state(self, name: str, k: int, state: object) -> bool:
        """Whether ``state`` has the form of the optimizer's state of k blocks; it is empty before the first step."""
        expected = self.trial.course(name, 1)[0]
        if not is_dict(state) or (state and state.keys() != expected.keys()):
            return False
        for key, entry in state.items():
            like = expected[key]
            if not isinstance(like, Tensor):
                if type(entry) is not type(like):
                    return False
                continue
            shape = (k, *like.shape[1:]) if like.dim() else ()
            if not isinstance(entry, Tensor) or (entry.dtype, tuple(entry.shape)) != (like.dtype, shape):
                return False
            if bool(entry.isnan().any()):
                return False
        return True

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Loads a state that :meth:`problems` has accepted."""
        self.cohorts, self._state = [], {}
        for saved in state:
            cohort = self._cohort(saved["layer"], saved["ids"].clone(), int(saved["age"]))
            self.cohorts.append(cohort)
            if saved["state"]:
                self._state[cohort.values] = {key: copied(entry) for key, entry in saved["state"].items()}

    def _cohort(self, name: str, ids: Tensor, age: int = 0) -> Cohort:
        values = self.layers[name].values.detach().new_zeros(ids.numel(), *self.trial.tile(name))
        return Cohort(name, ids, compact_parameter(values), age)

    # ---------------------------------------------------------------- positions in the layer

    def _places(self, cohort: Cohort) -> Tensor:
        """Positions of a cohort: in compact storage of blocks in the support, (k,); in dense storage of single weights,
        (k,) or (k, h, w), -1 beyond the edge."""
        layer = self.layers[cohort.name]
        s = layer.support
        if layer.layout.storage == "compact":
            return s.find(cohort.ids)
        at = s.places(cohort.ids)
        return at.flatten() if s.block == (1, 1) else at

    def _read(self, layer: SparseLayer, stored: Tensor, at: Tensor) -> Tensor:
        if layer.layout.storage == "compact":
            return stored[at]
        return torch.where(at >= 0, stored.reshape(-1)[at.clamp(min=0)], 0.0)

    def _write(self, layer: SparseLayer, stored: Tensor, at: Tensor, data: Tensor) -> None:
        if layer.layout.storage == "compact":
            if stored.dim() > 0 and stored.shape[0] == layer.support.n:
                stored[at] = data.to(stored.dtype)
        elif stored.shape == layer.dense_shape and data.shape == at.shape:
            stored.view(-1)[at[at >= 0]] = data[at >= 0].to(stored.dtype)
