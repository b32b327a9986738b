"""Rewirers that start the state of newborn blocks wrongly."""

from collections.abc import Callable
from typing import Any

import torch

import gossamer as gs
from cases import OPTIMIZERS
from gossamer import laws

ADAMW = OPTIMIZERS["adamw"]


def _newborn(optimizer: Callable, rewirer: Callable = gs.Rewirer, **options: Any) -> Callable[[], None]:
    return lambda: laws.check_newborn(rewirer, optimizer, **options)


class _NoCountOfTheirOwn(gs.Rewirer):
    def _attach(self):
        super()._attach()
        self.newborn.counts = lambda name: False  # type: ignore[method-assign]


class _JoinsEarly(gs.Rewirer):
    def _attach(self):
        super()._attach()
        after = self.newborn.after_step

        def early():
            after()
            for cohort in self.newborn.cohorts:
                if cohort.age >= 2:
                    self.newborn._state.pop(cohort.values, None)
            self.newborn.cohorts = [c for c in self.newborn.cohorts if c.age < 2]

        self.newborn.after_step = early  # type: ignore[method-assign]


NEWBORN = {
    "Adam's newborn under its step count": _newborn(ADAMW, newborn="zero"),
    "Rprop's newborn with a step of 0": _newborn(lambda p: torch.optim.Rprop(p, lr=0.01), newborn="zero"),
    "Adagrad's newborn without its initial sum": _newborn(
        lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.3), newborn="zero"
    ),
    "Adafactor's newborn in tiles": _newborn(lambda p: torch.optim.Adafactor(p, lr=0.01), newborn="zero", block=(2, 2)),
    "no count of their own": _newborn(ADAMW, _NoCountOfTheirOwn),
    "they join after two steps": _newborn(ADAMW, _JoinsEarly),
}
