"""The one exception: what it says, and that it survives what exceptions go through."""

import copy
import pickle
import re

import pytest
import torch

import gossamer as gs
from cases import table
from gossamer._errors import call_problem, check_at_least, check_density, check_fraction, nearest
from gossamer.training.events import Diverged


def test_it_says_who_what_got_why_and_what_to_do():
    error = gs.UsageError(
        "sparsify", "no layer fits", got=3, reasons=["a: it is dense", "b: it is lazy"], remedy="another model"
    )
    assert (
        str(error)
        == "sparsify: no layer fits (got 3)\n  - a: it is dense\n  - b: it is lazy\n  To fix it: another model"
    )
    assert isinstance(error, ValueError)
    assert (error.who, error.what, error.got, error.reasons, error.remedy) == (
        "sparsify", "no layer fits", 3, ("a: it is dense", "b: it is lazy"), "another model",
    )  # fmt: skip


def test_the_short_form():
    assert str(gs.UsageError("x", "is wrong")) == "x: is wrong"


ERRORS = {
    "UsageError": gs.UsageError("x", "y", got=[1], reasons=["z"], remedy="w"),
    "Diverged": Diverged(7, float("inf")),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_errors_survive_pickling_and_copying(error):
    """As they must on their way out of a worker process."""
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error) and str(other) == str(error) and vars(other) == vars(error)


def test_diverged_says_the_step_and_what_to_do():
    error = Diverged(12, float("nan"))
    assert (
        error.step == 12
        and "the loss is nan at step 12; nothing was changed" in str(error)
        and "smaller learning rate" in str(error)
    )


def test_the_nearest_name():
    assert nearest("RigLe", ["SET", "RigL"]) == "; did you mean 'RigL'?"
    assert nearest("entirely other", ["set", "rigl"]) == ""
    assert nearest("x", []) == ""


@pytest.mark.parametrize("density", [0.5, 1, 1.0, 1e-9])
def test_densities_that_are_one(density):
    assert check_density("x", density) == float(density)


def test_bounds():
    check_at_least("x", "y", 1, 1)
    check_fraction("x", "y", 0.0), check_fraction("x", "y", 1.0)
    for refused in (lambda: check_at_least("x", "steps", 0, 1), lambda: check_at_least("x", "steps", float("nan"), 1)):
        with pytest.raises(gs.UsageError, match="x: steps must be at least 1"):
            refused()
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(gs.UsageError, match=r"x: rate is a fraction, a number in \[0, 1\]"):
            check_fraction("x", "rate", value)


# ---------------------------------------------------------------- what others write


class Penalised:
    """A rule that lacks a method, a flag, and takes too few arguments in a third place."""

    penalty, needs_dense = gs.L1(0.1), True

    def init(self, w, strength=1.0):
        return {}

    def update_(self, w, g, state):
        pass

    def schedules(self):
        return {}


class Whole(Penalised):
    zeros_follow_state = False

    def update_(self, w, g, state, step):
        pass

    def zero_thresholds(self, w, state, step):
        return []


class Half:
    """A penalty with two of its members."""

    convex = True

    def value(self, w):
        return w.sum()

    def prox(self, u):
        return u


def whole(**members):
    return type("Mine", (Whole,), members)()


WEIGHTS = [torch.nn.Parameter(torch.ones(3, 3))]
MISFITS = {
    "of a rule": (
        Penalised(),
        [r"no zero_thresholds\(w, state, step\)", "no zeros_follow_state",
         r"update_ must take \(w, g, state, step\), but it takes \(w, g"],
    ),
    "no rule at all": (3, [r"it has no init\(w, strength\)", "it has no penalty", "it has no needs_dense"]),
    "its class": (gs.LinBreg, [r"LinBreg is a class; give an instance, LinBreg\(\.\.\.\)"]),
    "a number for a method": (whole(zero_thresholds=3), [r"zero_thresholds must take \(w, state, step\), but it is 3"]),
    "its penalty": (
        whole(penalty=Half()),
        ["its penalty: it has no adaptive", r"no subgradient\(w\)", r"prox must take \(u, tau\)"],
    ),
    "no penalty": (whole(penalty=None), [r"its penalty: it has no value\(w\)"]),
}  # fmt: skip


@table(MISFITS)
def test_a_rule_is_told_every_member_that_it_lacks(case):
    rule, sentences = case
    for make in (
        lambda: gs.SparseOptimizer(WEIGHTS, rule),
        lambda: gs.SparseOptimizer([{"params": WEIGHTS, "rule": rule}], Whole()),
    ):
        with pytest.raises(gs.UsageError, match="must be a rule") as caught:
            make()
        assert all(re.search(sentence, str(caught.value)) for sentence in sentences), str(caught.value)


def test_a_penalty_is_told_every_member_that_it_lacks():
    with pytest.raises(
        gs.UsageError,
        match=r"(?s)this is not a penalty.*it has no adaptive.*prox must take \(u, tau\).*no zero_threshold\(u, tau\)",
    ):
        gs.ProxSGD(Half())


def test_a_rule_that_fits_is_taken():
    assert gs.SparseOptimizer(WEIGHTS, Whole(), lr=0.1).rule is not None


def test_what_cannot_say_its_arguments_is_taken_as_it_is():
    assert (
        call_problem("drop_score", min, ["layer"]) is None
        and call_problem("drop_score", lambda *a: 0, ["layer"]) is None
    )
    assert call_problem("when", lambda t, *, more: 0, ["t"]) == "when must take (t), but it takes (t, *, more)"


@pytest.mark.parametrize(
    "call", [lambda m: gs.sparsify(m, 0.1), gs.compact, gs.densify], ids=["sparsify", "compact", "densify"]
)
@pytest.mark.parametrize("model", [3, None, [torch.nn.Linear(2, 2)], torch.nn.Linear])
def test_what_is_not_a_model_is_refused(call, model):
    with pytest.raises(gs.UsageError, match="the model must be a torch.nn.Module"):
        call(model)
