"""Schedules: their endpoints, their formulas, and the steps of the events."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gossamer as gs
from cases import table
from gossamer._schedules import Events, constant, cosine, cubic, growing, regular


def test_constant():
    assert [constant(0.3)(t) for t in (0, 7, 10**9)] == [0.3] * 3


def test_cosine_falls_from_the_value_to_zero():
    s = cosine(0.3, 200)
    assert s(0) == 0.3 and s(100) == pytest.approx(0.15) and s(200) == s(10**6) == pytest.approx(0, abs=1e-16)
    assert s(50) == pytest.approx(0.15 * (1 + math.cos(math.pi / 4)))
    assert all(s(t) >= s(t + 1) for t in range(250))


def test_cubic_is_zhu_and_guptas():
    s = cubic(100, 10, 20, 60)
    assert s(0) == s(20) == 100 and s(60) == s(99) == 10
    assert s(40) == pytest.approx(10 + 90 * 0.5**3)
    assert all(s(t) >= s(t + 1) for t in range(80))


def test_events_know_the_next_and_the_gap():
    events = Events((4, 9, 20))
    assert [t for t in range(25) if t in events] == [4, 9, 20] and len(events) == 3
    assert [events.next(t) for t in (1, 4, 5, 20, 21)] == [4, 4, 9, 20, None]
    assert [events.gap(t) for t in (4, 9, 20)] == [4, 5, 11]


def test_the_published_count_of_events():
    """algorithms.md, A8: CIFAR-100, 200 epochs of 391 steps, stop at 75 %."""
    assert len(growing(100, 1000, 58650)) == 230
    assert len(growing(100, 4000, 58650)) == 156


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(0, 500), st.integers(1, 5000))
def test_events_start_at_every_and_gaps_never_shrink(every, more, stop):
    events = growing(every, every + more, stop).steps
    gaps = [b - a for a, b in zip((0, *events), events, strict=False)]
    assert all(a <= b for a, b in zip(gaps, gaps[1:], strict=False))
    assert all(t < stop for t in events) and (not events or events[0] == every)
    assert all(gap <= every + more for gap in gaps)
    assert not events or events[-1] + every + more >= stop  # and they go on to the end


def test_growing_follows_the_formula():
    """t' = t + round(I_0 (I_1 / I_0)^(t / stop)), written out for the first steps."""
    steps = growing(10, 40, 100).steps
    assert steps == (10, 21, 34, 50, 70, 96)


def test_regular_events():
    assert (
        regular(10, 41).steps == (10, 20, 30, 40)
        and regular(10, 40).steps == (10, 20, 30)
        and regular(10, 10).steps == ()
    )


REFUSALS = {
    "no step": (lambda: growing(0, 10, 100), "every counts optimizer steps"),
    "a fraction of a step": (lambda: growing(10, 20, 99.5), "stop counts optimizer steps"),
    "negative": (lambda: regular(10, -1), "stop counts optimizer steps"),
    "no number": (lambda: growing("x", 10, 99), "every counts optimizer steps"),
    "not a number": (lambda: growing(10, math.nan, 99), "last_every counts optimizer steps"),
    "last": (lambda: growing(10, 0.5, 99), "last_every counts optimizer steps"),
    "cosine over nothing": (lambda: cosine(0.3, 0), "stop must be at least 1"),
    **{
        f"neither a step nor a fraction: {stop!r}": (
            lambda stop=stop: gs.step_of("M", "stop", stop, 100),
            "fraction of the run",
        )
        for stop in (0, -1, 0.0, -0.5, 1.5, math.nan, math.inf, "x", None, True)
    },
    "cubic over nothing": (lambda: cubic(1.0, 0.1, 5, 5), "stop must be at least 6"),
}


@table(REFUSALS)
def test_bad_schedules_are_refused(case):
    make, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        make()
