"""Rules broken on purpose, and optimizers that apply a rule wrongly."""

from collections.abc import Callable
from typing import Any

import torch

import gossamer as gs
from gossamer import laws


def _rule(base: Any, *, shell: Callable = gs.SparseOptimizer, **methods: Callable) -> Callable[[], None]:
    """The law on a rule with some of its methods exchanged."""
    twisted = type("Twisted", (type(base),), methods)
    return lambda: laws.check_rule(twisted(**vars(base)), shell=shell)


def _eats_gradients(rule, w, g, state, now):
    torch._foreach_mul_(g, 0.5)
    gs.ProxSGD.update_(rule, w, g, state, now)


def _moves_house(rule, w, g, state, now):
    gs.ProxSGD.update_(rule, w, g, state, now)
    for p in w:
        p.data = p.data.clone()


class _Counts(gs.ProxSGD):
    """A rule with a state of its own, that no state_dict holds."""

    calls = [0]

    def update_(self, w, g, state, now):
        self.calls[0] += 1
        super().update_(w, g, state, now._replace(lr=now.lr / self.calls[0]))


class _ForgetsT(gs.SparseOptimizer):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        for group in self.param_groups:
            group["t"] = 0


class _ForgetsSums(gs.SparseOptimizer):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        for group in self.param_groups:
            group["sums"] = {}


class _PenalisesAll(gs.SparseOptimizer):
    def __init__(self, params, rule, lr):
        super().__init__(params, rule, lr)
        self.rules = [rule] * len(self.rules)


def _global_threshold(rule, w, g, state, now):
    size = sum(len(p) for p in w)
    gs.ProxSGD.update_(rule, w, g, state, now._replace(strength=now.strength * size))


def _reads_a_weight(rule, w, g, state, now):
    if float(w[0].sum()) > -1e9:
        gs.ProxSGD.update_(rule, w, g, state, now)


def _nan_where_zero(rule, w, g, state, now):
    gs.ProxSGD.update_(rule, w, [a * p.abs().max() / p.abs().max() for a, p in zip(g, w, strict=True)], state, now)


def _starts_at_zero(rule, w, strength=1.0):
    return {"v": torch.zeros_like(w)}


def _starts_without_subgradient(rule, w, strength=1.0):
    return {"v": w.detach() / rule.delta}


RULE = {
    "gradients are changed": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_eats_gradients),
    "parameters move in memory": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_moves_house),
    "remembers outside its state": lambda: laws.check_rule(_Counts(gs.L1(0.1))),
    "resume forgets the step count": lambda: laws.check_rule(gs.AdaBreg(gs.L1(0.1)), shell=_ForgetsT),
    "resume forgets the threshold": lambda: laws.check_rule(gs.RDA(gs.L1(0.01)), shell=_ForgetsSums),
    "penalises where nothing is to be": lambda: laws.check_rule(gs.ProxSGD(gs.L1(0.1)), shell=_PenalisesAll),
    "tensors see each other": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_global_threshold),
    "reads a weight": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_reads_a_weight),
    "0 / 0 where all is zero": _rule(gs.ProxSGD(gs.L1(0.1)), update_=_nan_where_zero),
    "the mirror variable starts at zero": _rule(gs.LinBreg(gs.L1(0.1)), init=_starts_at_zero),
    "the mirror variable starts without a subgradient": _rule(gs.LinBreg(gs.L1(0.1)), init=_starts_without_subgradient),
    "dual averaging starts at zero": _rule(
        gs.RDA(gs.L1(0.01)), init=lambda rule, w, strength=1.0: {"u": torch.zeros_like(w)}
    ),
    "the state is the weight itself": _rule(gs.RDA(gs.L1(0.01)), init=lambda rule, w, strength=1.0: {"u": w.detach()}),
}
