"""The one exception: what it says, and that it survives what exceptions go through."""

import copy
import pickle

import pytest

import gossamer as gs
from gossamer.errors import check_at_least, check_density, check_share, nearest
from gossamer.train import Diverged


def test_it_says_who_what_got_why_and_what_to_do():
    error = gs.Unfit("sparsify", "no layer fits", got=3, reasons=["a: it is dense", "b: it is lazy"], remedy="another model")
    assert str(error) == "sparsify: no layer fits (got 3)\n  - a: it is dense\n  - b: it is lazy\n  To fix it: another model"
    assert isinstance(error, ValueError)
    assert (error.who, error.what, error.got, error.reasons, error.remedy) == (
        "sparsify", "no layer fits", 3, ("a: it is dense", "b: it is lazy"), "another model",
    )  # fmt: skip


def test_the_short_form():
    assert str(gs.Unfit("x", "is wrong")) == "x: is wrong"


ERRORS = {"Unfit": gs.Unfit("x", "y", got=[1], reasons=["z"], remedy="w"), "Diverged": Diverged(7, float("inf"))}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_errors_survive_pickling_and_copying(error):
    """As they must on their way out of a worker process."""
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error) and str(other) == str(error) and vars(other) == vars(error)


def test_diverged_says_the_step_and_what_to_do():
    error = Diverged(12, float("nan"))
    assert error.step == 12 and "the loss is nan at step 12; nothing was changed" in str(error) and "smaller learning rate" in str(error)


def test_the_nearest_name():
    assert nearest("rigle", ["set", "rigl"]) == "; did you mean 'rigl'?"
    assert nearest("entirely other", ["set", "rigl"]) == ""
    assert nearest("x", []) == ""


@pytest.mark.parametrize("density", [0.5, 1, 1.0, 1e-9])
def test_densities_that_are_one(density):
    assert check_density("x", density) == float(density)


def test_bounds():
    check_at_least("x", "y", 1, 1)
    check_share("x", "y", 0.0), check_share("x", "y", 1.0)
    for refused in (lambda: check_at_least("x", "steps", 0, 1), lambda: check_at_least("x", "steps", float("nan"), 1)):
        with pytest.raises(gs.Unfit, match="x: steps must be at least 1"):
            refused()
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(gs.Unfit, match=r"x: share is a share, a number in \[0, 1\]"):
            check_share("x", "share", value)
