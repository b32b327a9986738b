"""Recovery in any unit: powers on A and y, settings with units, networks, diagnostics. Arrays in place of tensors."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse import linalg

import gossamer as gs
from cases import EVERY, EXACT, gaussian_problem, generator, normal, planted_network, table
from gossamer import laws, recover
from gossamer.recover import arrays, diagnose, theory, units
from gossamer.recover.operators import scaled
from gossamer.recover.solvers.niht import thresholded
from gossamer.recover.solvers.result import problem

FAR = (-100, 100)  # powers of two: about 1e-30 and 1e30
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}

# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("e", [-140, -126, -60, -1, 0, 1, 100, 127])
def test_units_are_taken_out_and_put_back_exactly(dtype, e):
    t = (
        torch.tensor([1.0, -1.5, 0.5], dtype=dtype)
        if dtype == torch.float64 or e > -126
        else torch.tensor([1.0, -1.0], dtype=dtype)
    )
    far = units.shifted(t, e)
    assert (
        units.exponent(far) == e and torch.equal(units.shifted(far, -e), t) and torch.equal(units.put_back(t, e), far)
    )


def test_exponents_of_nothing():
    for t in (torch.zeros(3), torch.empty(0), torch.tensor([math.inf]), torch.tensor([math.nan, 1.0])):
        assert units.exponent(t) == 0
    assert units.exponent(torch.tensor([-8.0, 1.0])) == 3 and units.exponent(torch.tensor([7.99])) == 2


@pytest.mark.parametrize(
    "dtype, e", [(torch.float32, 128), (torch.float32, -160), (torch.float64, 1100), (torch.float64, -1100)]
)
def test_what_a_precision_cannot_hold_is_not_put_back(dtype, e):
    assert units.put_back(torch.tensor([1.0, 2.0], dtype=dtype), e) is None
    assert units.put_back(torch.tensor([], dtype=dtype), e) is not None
    assert f"{str(dtype).removeprefix('torch.')} cannot hold" in units.beyond("x", torch.ones(1, dtype=dtype), e)
    assert units.times(1.5, 2000) == math.inf and units.times(-1.5, 2000) == -math.inf and units.times(1.5, -2000) == 0


def test_an_entry_that_vanishes_beside_larger_ones_is_no_loss():
    moved = units.put_back(torch.tensor([1.0, 1e-20]), -120)
    assert moved is not None and moved[0] == 2.0**-120 and moved[1] == 0
    assert units.put_back(torch.tensor([1.0, 1e-3]), -140) is None


@pytest.mark.parametrize("dtype, e", [
    *((torch.float32, e) for e in (-100, -50, -41, -3, 0, 7, 40, 41, 100, 120)),
    *((torch.float64, e) for e in (-900, -141, -41, 0, 100, 900)),
])  # fmt: skip
def test_a_scaled_operator_is_that_multiple(dtype, e):
    base = normal(11, 17).to(dtype)
    laws.check_operator(scaled.Scaled(recover.Dense(units.shifted(base, -e)), e))
    A, found = scaled.normalised("test", units.shifted(base, e))
    again, zero = scaled.normalised("test", base)
    assert found == zero + e and torch.equal(A.columns(torch.arange(17)), again.columns(torch.arange(17)))
    assert 0.1 < float(A.norms().max()) < 100


def test_a_matrix_that_is_zero_or_does_not_see_the_probe_has_units_too():
    A, e = scaled.normalised("test", torch.zeros(3, 4))
    assert e == 0 and not A.rmatvec(torch.ones(3)).any()
    assert scaled.normalised("test", torch.full((4, 3), 1e-45))[1] < -140
    assert scaled.normalised("test", torch.full((4, 3), 3e38))[1] > 120


# ---------------------------------------------------------------- solvers


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS.keys())
@table(EVERY)
def test_solvers_know_no_units(case, dtype):
    laws.check_units(case, dtype=dtype)


@pytest.mark.parametrize("power", range(-30, 31, 6))
def test_greedy_solvers_take_every_power_of_ten(power):
    A, x, y = gaussian_problem(40, 60, 3, 1)
    for dtype, (name, solve) in itertools.product((torch.float32, torch.float64), EXACT.items()):
        for a, b in ((0, power), (power, 0), (power, power)):
            found = solve(A.to(dtype) * 10.0**a, y.to(dtype) * 10.0**b, 3)
            assert found.converged, name
            close = float((found.dense().double() / 10.0 ** (b - a) - x).norm() / x.norm())
            assert close < (1e-3 if dtype == torch.float32 else 1e-7), (name, a, b)


def test_the_case_that_claimed_a_wrong_x():
    """y x 1e-23 in single precision."""
    A, x, y = gaussian_problem(40, 60, 3, 0)
    for name, solve in EXACT.items():
        found = solve(A.float(), y.float() * 1e-23, 3)
        assert float((found.dense().double() * 1e23 - x).norm()) < 1e-3 * float(x.norm()), name


CORNERS = {  # y and A by powers of two, and whether x can be held
    "x is too large for single precision": (torch.float32, 100, -100, False),
    "x is too small for single precision": (torch.float32, -100, 100, False),
    "x is among the largest numbers": (torch.float32, 60, -62, True),
    "x is among the smallest numbers": (torch.float32, -60, 60, True),
    "y is subnormal": (torch.float32, -135, -135, True),
    "y and A are nearly infinite": (torch.float32, 122, 122, True),
    "in double precision too": (torch.float64, 1000, -1000, False),
    "far out in double precision": (torch.float64, -900, -1000, True),
    "double precision holds it": (torch.float64, 400, -400, True),
}


@table(CORNERS)
@pytest.mark.parametrize("name", ["niht", "htp", "omp", "aiht", "cosamp"])
def test_the_ends_of_what_numbers_hold(name, case):
    dtype, b, a, held = case
    A, x, y = gaussian_problem(40, 60, 3, 2)
    x = x.sign() * x.abs().clamp_min(0.5)
    x[x.abs() < 0.6] = 0.0
    where = x.nonzero().flatten()
    A, y = units.shifted(A.to(dtype), a), units.shifted((A @ x).to(dtype), b)
    told: list[float] = []
    found = recover.GREEDY[name](A, y, where.numel(), on_step=lambda _, residual: told.append(residual), tolerance=1e-3)
    assert found.values.isfinite().all() and not any(math.isnan(r) for r in told + found.residuals)
    assert found.converged is held
    if held:
        assert float((units.shifted(found.dense(), a - b).double() - x).norm()) < 2e-2 * float(x.norm())
    else:
        assert (
            "cannot hold" in found.reason
            and not found.support.numel()
            and found.residuals[-1] == pytest.approx(units.times(float(units.shifted(y, -b).norm()), b))
        )


@pytest.mark.parametrize("b", FAR)
@pytest.mark.parametrize("a", FAR)
def test_settings_with_units_are_in_the_callers(a, b):
    A, _, y = gaussian_problem(30, 50, 4, 1)
    y = y + 0.1 * normal(30, seed=7)
    far, up, x_unit = 2.0**a * A, 2.0**b * y, 2.0 ** (b - a)
    for plain, moved in (
        (recover.iht(A, y, 4, mu=0.2, steps=7), recover.iht(far, up, 4, mu=0.2 * 4.0**-a, steps=7)),
        (recover.htp(A, y, 4, mu=0.6, steps=5), recover.htp(far, up, 4, mu=0.6 * 4.0**-a, steps=5)),
        (recover.fista(A, y, 0.1), recover.fista(far, up, 0.1 * 2.0 ** (a + b))),
        (recover.ista(A, y, 0.1, steps=50), recover.ista(far, up, 0.1 * 2.0 ** (a + b), steps=50)),
        (recover.reweighted_l1(A, y, eps=0.3, rounds=2), recover.reweighted_l1(far, up, eps=0.3 * x_unit, rounds=2)),
        (recover.amp(A, y, alpha=2.0, steps=9), recover.amp(far, up, alpha=2.0, steps=9)),
    ):
        torch.testing.assert_close(moved.dense() / x_unit, plain.dense(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(np.array(moved.residuals) / 2.0**b, plain.residuals, rtol=1e-6, atol=1e-9)
        assert moved.converged == plain.converged and moved.iterations == plain.iterations


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_weights_of_the_l1_norm_have_no_unit(scale):
    A, _, y = gaussian_problem(30, 50, 6, 1)
    w = torch.rand(50, generator=generator(3), dtype=torch.float64) + 0.5
    plain = recover.basis_pursuit(A, y, weights=w)
    torch.testing.assert_close(recover.basis_pursuit(A, y, weights=w * scale).dense(), plain.dense(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("b", [-77, 0, 100])
def test_who_watches_hears_the_units_of_y(b):
    A, _, y = gaussian_problem(30, 50, 3, 1)
    for name in ("niht", "fista"):
        told: list[float] = []
        solve = recover.SOLVERS[name]
        found = solve(A, 2.0**b * y, *([3] if name == "niht" else []), on_step=lambda _, r, told=told: told.append(r))
        assert told[-1] == found.residuals[-1] and max(told) < 2.0**b * 2 * float(y.norm())
        number = found.reason.split(" to " if name == "niht" else " within ")[1].split(" ")[0]
        power = b if name == "niht" else 2 * b
        assert 0 < float(number) < 2.0**power


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS.keys())
@pytest.mark.parametrize("a, b", [*itertools.product(FAR, FAR), (-77, 0), (0, -77)])
def test_operators_that_are_never_made_have_units(a, b, dtype):
    X, h = normal(60, 5).to(dtype), normal(4, 5, seed=1).to(dtype)
    A = recover.GatedReLU(X, h)
    x = torch.zeros(20, dtype=dtype)
    x[[1, 8, 19]] = torch.tensor([1.0, -2.0, 1.5], dtype=dtype)
    y = A.matvec(x)
    far = recover.GatedReLU(2.0**a * X, 2.0 ** min(-a, 90) * h)
    assert torch.equal(far.bits, A.bits)
    found = recover.htp(far, 2.0**b * y, 3)
    if dtype == torch.float32 and abs(b - a) > 120:
        assert not found.converged and "cannot hold" in found.reason
    else:
        assert found.converged
        torch.testing.assert_close(
            units.shifted(found.dense(), a - b), x, rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-8
        )


@pytest.mark.parametrize("scale", [1e-30, 1e-200, 1e200])
def test_gates_depend_on_directions_only(scale):
    X, h = normal(40, 5), normal(9, 5, seed=1)
    bits = recover.GatedReLU(X, h).bits
    assert torch.equal(recover.GatedReLU(X * scale, h).bits, bits) and torch.equal(
        recover.GatedReLU(X, h * scale).bits, bits
    )
    assert torch.equal(recover.GatedReLU(X * scale, h * scale).bits, bits)
    assert torch.equal(recover.GatedReLU.random(X * scale, 70, 3).bits, recover.GatedReLU.random(X, 70, 3).bits)


@pytest.mark.parametrize("power", [120, -130])
def test_gates_at_the_ends_of_single_precision(power):
    X, h = normal(40, 9).float(), normal(9, 9, seed=1).float()
    assert torch.equal(recover.GatedReLU(2.0**power * X, h).bits, recover.GatedReLU(X, h).bits)


# ---------------------------------------------------------------- NIHT's step and FISTA's gap, by hand


STEPS = {  # ||x' - x||^2 / ||A (x' - x)||^2 at the first trial -> steps cut; mu = 1 is accepted up to 0.99 of it
    "well within": (2.0, 0),
    "just within": (1.015, 0),
    "within but for c": (1.005, 1),
    "just beyond": (0.99, 1),
    "once is not enough": (0.3, 2),
    "three times": (0.13, 3),
}


@table(STEPS)
def test_niht_cuts_its_step_exactly_as_long_as_the_test_asks(case):
    """Two orthogonal columns; x = 0.1 on the first, the gradient on the second: the support changes, and mu is 1."""
    ratio, cuts = case
    p = problem("test", torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), 1)
    x1, g = 0.1, torch.tensor([1e-3, 1.0], dtype=torch.float64)
    second = (x1**2 + 1) / ratio - x1**2
    columns = torch.diag(torch.tensor([1.0, second**0.5], dtype=torch.float64))
    S, x = niht_step(p, g, torch.tensor([x1, 0.0], dtype=torch.float64), columns)
    assert S.tolist() == [1] and x.tolist() == pytest.approx([(1 / (2 * 0.99)) ** cuts])


def niht_step(p, g, before, columns):
    return thresholded(torch.arange(len(g)), g, before, columns, before.nonzero().flatten(), p.inflated)


def test_niht_tests_no_step_that_keeps_its_support():
    """The exact line search on the support is taken whole, however badly the other column is scaled."""
    p = problem("test", torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), 1)
    before, g = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 1e-3], dtype=torch.float64)
    S, x = niht_step(p, g, before, torch.diag(torch.tensor([0.5, 90.0], dtype=torch.float64)))
    assert S.tolist() == [0] and x.tolist() == [5.0]


def test_niht_cuts_a_step_back_to_its_support():
    """... where it then moves by what is left of the step, or not at all when nothing is."""
    p = problem("test", torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), 1)
    before, g = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([1e-2, 1.5], dtype=torch.float64)
    S, x = niht_step(p, g, before, torch.diag(torch.tensor([1.0, 40.0], dtype=torch.float64)))
    assert S.tolist() == [0] and x.tolist() == pytest.approx([1 + 1e-2 / 1.98])


def lasso_gap(A: torch.Tensor, y: torch.Tensor, x: torch.Tensor, lam: float) -> float:
    """Objective less dual objective, from the definitions."""
    r = y - A @ x
    u = r * min(1.0, lam / float((A.T @ r).abs().max()))
    return float(0.5 * r @ r + lam * x.abs().sum() - (0.5 * y @ y - 0.5 * (y - u) @ (y - u)))


@pytest.mark.parametrize("solve", [recover.fista, recover.ista])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-7])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_the_lasso_stops_at_the_first_look_whose_gap_is_small_enough(solve, tolerance, scale):
    """Neither ten iterations too early nor ten too late, and the gap is over 1/2 ||y||^2."""
    A, _, y = gaussian_problem(40, 80, 8, 1)
    y = scale * (y + 0.05 * normal(40, seed=9))
    lam, enough = 0.05 * scale, tolerance * 0.5 * float(y @ y)
    found = solve(A, y, lam, tolerance=tolerance)
    assert found.converged and found.iterations % 10 == 0 and lasso_gap(A, y, found.dense(), lam) <= enough * 1.001
    if found.iterations > 10:
        before = solve(A, y, lam, tolerance=tolerance, steps=found.iterations - 10)
        assert not before.converged and lasso_gap(A, y, before.dense(), lam) > enough * 0.999
    assert solve(A, y, lam, tolerance=tolerance / 100).iterations > found.iterations


def test_a_gap_of_nothing_is_never_reached():
    A, _, y = gaussian_problem(40, 80, 8, 1)
    found = recover.fista(A, y, 0.05, tolerance=-1.0, steps=300)
    assert not found.converged and found.iterations == 300 and "the duality gap is still" in found.reason


# ---------------------------------------------------------------- networks and estimators


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS.keys())
@pytest.mark.parametrize("a, b", [(0, 100), (0, -100), (100, 0), (-100, 0), (100, 100), (-100, -100), (-77, -26)])
def test_scalar_networks_are_found_in_any_unit(a, b, dtype):
    X, _, _, y = planted_network(8, 2, 4, 200, 3, mixed=True)
    X, y = X.to(dtype), y.to(dtype)
    told: list[float] = []
    settings = {"neurons": 3, "rounds": 4, "seed": 1, "tolerance": 1e-9}
    plain = recover.fit_scalar(X, y, 4, **settings)
    found = recover.fit_scalar(2.0**a * X, 2.0**b * y, 4, **settings, on_round=lambda _, loss: told.append(loss))
    assert found.converged == plain.converged and told == found.losses
    np.testing.assert_allclose(np.array(found.losses) / 4.0**b, plain.losses, rtol=1e-6)
    torch.testing.assert_close(found.network.predict(2.0**a * X) / 2.0**b, plain.network.predict(X))
    gated = recover.fit_gated(2.0**a * X, 2.0**b * y, 4, neurons=6)
    torch.testing.assert_close(gated.predict(2.0**a * X) / 2.0**b, recover.fit_gated(X, y, 4, neurons=6).predict(X))
    used, agree = gated.signs(2.0**a * X)
    assert used.numel() and bool((agree.abs() >= 0.5).all())


@pytest.mark.parametrize("a, b", [(-100, 100), (100, -100)])
def test_a_network_that_single_precision_cannot_hold_is_none(a, b):
    X, _, _, y = planted_network(8, 2, 4, 100, 3)
    X, y = X.float(), y.float()
    fit = recover.fit_scalar(2.0**a * X, 2.0**b * y, 4, neurons=3, rounds=3)
    assert not fit.converged and "the network is of the order of" in fit.reason and fit.network.nonzeros == 0
    assert not fit.network.predict(2.0**a * X).any()
    gated = recover.fit_gated(2.0**a * X, 2.0**b * y, 4, neurons=3)
    assert not gated.found.converged and "cannot hold" in gated.found.reason
    assert recover.fit_vector(2.0**a * X, 2.0**b * y, 4, neurons=3, steps=5).converged  # its two layers share the units


@pytest.mark.parametrize("a, b", [*itertools.product(FAR, FAR), (0, -100), (77, 0)])
def test_networks_of_several_outputs_train_in_any_unit(a, b):
    X = normal(400, 6).float()
    Y = torch.stack([X[:, 0].clamp_min(0), -2 * X[:, 1].clamp_min(0)], 1)
    far, up = 2.0**a * X, 2.0**b * Y
    told: list[float] = []
    fit = recover.fit_vector(
        far, up, 8, neurons=8, steps=150, batch=None, lr=0.05, bias=True, on_step=lambda _, loss: told.append(loss)
    )
    assert fit.converged and told == fit.losses
    out = (fit.network.predict(far) / 2.0**b).double()
    assert float((out - Y).square().mean()) < 0.1 * float(Y.double().var())
    labels = (X[:, 0] > 0).long()
    wise = recover.fit_vector(far, labels, 8, neurons=4, loss="cross_entropy", steps=80, lr=0.05)
    assert float((wise.network.predict(far).argmax(1) == labels).double().mean()) > 0.9


@pytest.mark.parametrize("a, b", [(100, -100), (-100, 100)])
def test_deep_networks_train_in_any_unit(a, b):
    X = normal(300, 6)
    y = (X[:, 0].clamp_min(0) + X[:, 1].clamp_min(0)) - 1.0
    fit = recover.fit_deep(2.0**a * X, 2.0**b * y, 40, [10, 6], steps=150, lr=0.03, batch=None)
    out = fit.network.predict(2.0**a * X)[:, 0] / 2.0**b
    assert float((out - y).square().mean()) < 0.5 * float(y.var())


@pytest.mark.parametrize("scale, dtype", [
    *itertools.product((1e-30, 1e-23, 1.0, 1e30), PRECISIONS.values()), (1e-200, torch.float64), (1e200, torch.float64)
])  # fmt: skip
def test_psnr_has_no_unit(scale, dtype):
    y = torch.tensor([0.0, 1.0, -2.0], dtype=dtype)
    assert recover.psnr((y + 0.02) * scale, y * scale) == pytest.approx(40, abs=1e-3)


def test_a_linear_model_is_in_the_units_of_its_data():
    model = pytest.importorskip("gossamer.recover.estimators").SparseLinearRecovery
    X = np.random.default_rng(0).normal(size=(60, 12)) + 1.0
    y = X[:, 2] - 3 * X[:, 7] + 5
    for solver in ("niht", "omp", "htp"):
        plain = model(2, solver=solver).fit(X, y)
        for a, b in itertools.product((1e-30, 1e30, 1e-200), (1e-30, 1e30)):
            far = model(2, solver=solver).fit(X * a, y * b)
            assert far.converged_ == plain.converged_ and far.support_.tolist() == [2, 7]
            np.testing.assert_allclose(far.coef_ / b * a, plain.coef_, rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(far.intercept_ / b, plain.intercept_, rtol=1e-6)


# ---------------------------------------------------------------- diagnostics


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS.keys())
@pytest.mark.parametrize("power", [-30, -23, 30])
def test_constants_of_matrices_follow_their_units(power, dtype, monkeypatch):
    A, scale = normal(20, 12).to(dtype), 10.0**power
    loose = 1e-9 if dtype == torch.float64 else 1e-3
    plain, far = diagnose.coherence(A), diagnose.coherence(A * scale)
    assert far.value == pytest.approx(plain.value, rel=loose) and sorted(far.pair) == sorted(plain.pair)
    for exact in (1 << 14, 0):
        monkeypatch.setattr(diagnose.matrices, "EXACT", exact)
        plain, far = (diagnose.isometry(a, 3, supports=50) for a in (A, A * scale))
        for name in ("mean", "sampled", "improved", "gershgorin"):
            assert getattr(far, name) == pytest.approx(getattr(plain, name), rel=loose)
        far = diagnose.isometry(A * scale, 3, normalise=False, supports=50)
        low, high = (diagnose.isometry(A * k, 3, normalise=False, supports=50).improved for k in (1e-9, 1e4))
        assert far.improved == pytest.approx(
            1.0 if power < 0 else high / 1e8 * scale**2, rel=max(loose, 1e-6)
        ) and low == pytest.approx(1)
    plain, far = diagnose.convexity(A, 3, supports=20), diagnose.convexity(A * scale, 3, supports=20)
    assert (far.alpha / scale**2, far.beta / scale**2) == pytest.approx((plain.alpha, plain.beta), rel=loose * 100)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_population_formula_knows_no_units_of_generators(scale):
    h, X = normal(6, 5), normal(2000, 5, seed=2)
    plain = diagnose.convexity(recover.GatedReLU(X, h), 4, generators=h, supports=5)
    far = diagnose.convexity(recover.GatedReLU(X, h * scale), 4, generators=h * scale, supports=5)
    assert far.population_alpha == pytest.approx(plain.population_alpha) and far.deviation == pytest.approx(
        plain.deviation
    )
    moved = diagnose.convexity(recover.GatedReLU(X * scale, h), 4, supports=5)
    assert moved.beta / scale**2 == pytest.approx(plain.beta)


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS.keys())
@pytest.mark.parametrize("a, b", [*itertools.product(FAR, FAR), (0, -77)])
def test_sensing_is_worth_the_same_in_any_unit(a, b, dtype):
    x = normal(64, 20).to(dtype)
    dy = (x @ normal(15, 20, seed=1).to(dtype).T ** 3 + 3 * normal(64, 15, seed=2).to(dtype)) / 64
    s = gs.Support.random((15, 20), 30, rng=generator())
    far = [(2.0**a * dy, 2.0**b * x)] * 3
    plain = diagnose.sensing([(dy, x)] * 3, s, n_grow=20, fraction=0.5)
    found = diagnose.sensing(far, s, n_grow=20, fraction=0.5)
    assert found.sentence == plain.sentence
    assert (found.recall, found.snr, found.conditioning) == pytest.approx(
        (plain.recall, plain.snr, plain.conditioning), rel=1e-3, abs=0.02
    )
    again = diagnose.measured_recall([(dy, x)] * 3, s, n_grow=20, fraction=0.5, trials=2)
    assert diagnose.measured_recall(far, s, n_grow=20, fraction=0.5, trials=2) == pytest.approx(again, abs=0.03)
    ids = s.sample_outside(9, generator(1))
    (g, v), (g0, v0) = (diagnose.gradient_and_noise(o, s, ids) for o in (far, [(dy, x)]))
    torch.testing.assert_close((g / 2.0 ** (a + b), v / 4.0 ** (a + b)), (g0, v0), rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- arrays in place of tensors


def frozen(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


ARRAYS = {
    "as they are": lambda a: a,
    "read-only": frozen,
    "turned round": lambda a: a[::-1].copy()[::-1],
    "column-major": np.asfortranarray,
    "big-endian": lambda a: a.astype(">f8"),
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
}


@table(ARRAYS)
def test_arrays_are_taken_wherever_tensors_are(case):
    A, x, y = gaussian_problem(30, 40, 3, 0)
    for name, solve in EVERY.items():
        found = solve(case(A.numpy()), case(y.numpy())).dense()
        torch.testing.assert_close(found, solve(A, y).dense(), rtol=0, atol=1e-7, msg=name)
    assert torch.equal(recover.niht(A, case(y.numpy()), 3).dense(), recover.niht(A, y, 3).dense())
    w = torch.linspace(1, 2, 40, dtype=torch.float64)
    assert torch.equal(
        recover.basis_pursuit(A, y, weights=case(w.numpy())).dense(), recover.basis_pursuit(A, y, weights=w).dense()
    )
    X, h = normal(40, 4), normal(6, 4, seed=1)
    assert torch.equal(recover.GatedReLU(case(X.numpy()), case(h.numpy())).bits, recover.GatedReLU(X, h).bits)
    assert torch.equal(recover.GatedReLU.random(case(X.numpy()), 5).bits, recover.GatedReLU.random(X, 5).bits)
    assert diagnose.coherence(case(A.numpy())).value == pytest.approx(diagnose.coherence(A).value)
    assert recover.psnr(case(y.numpy()), case(x[:30].numpy())) == recover.psnr(y, x[:30])


def test_networks_take_arrays():
    X, Y = normal(60, 4), normal(60, 2, seed=1)
    h, y = normal(6, 4, seed=2), X[:, 0].clamp_min(0)
    a, b = (recover.fit_gated(*data, 3, generators=g) for data, g in (((X, y), h), ((X.numpy(), y.numpy()), h.numpy())))
    assert torch.equal(a.predict(X), b.predict(X.numpy())) and torch.equal(a.signs(X)[1], b.signs(X.numpy())[1])
    column = sparse.csr_array(y.numpy()[:, None])
    a, b = (recover.fit_scalar(*data, 3, neurons=3, rounds=3).network for data in ((X, y), (X.numpy(), column)))
    assert torch.equal(a.predict(X), b.predict(X.numpy()))
    a, b = (
        recover.fit_vector(*data, 9, neurons=3, steps=9).network
        for data in ((X, Y), (sparse.csc_array(X.numpy()), Y.numpy()))
    )
    assert torch.equal(a.predict(X), b.predict(sparse.csr_array(X.numpy())))
    labels = (y > 0).long()
    a, b = (
        recover.fit_deep(*data, 9, [3], loss="cross_entropy", steps=9).network
        for data in ((X, labels), (X.numpy(), labels.numpy()))
    )
    assert torch.equal(a.predict(X), b.predict(X))


def test_diagnostics_take_arrays():
    A = normal(9, 6)
    assert (
        diagnose.isometry(A.numpy(), 2).improved
        == diagnose.isometry(sparse.csr_array(A.numpy()), 2).improved
        == pytest.approx(diagnose.isometry(A, 2).improved)
    )
    h = normal(2, 6, seed=1)
    gated = recover.GatedReLU(A, h)
    assert diagnose.convexity(gated, 2, generators=h.numpy(), supports=3) == diagnose.convexity(
        gated, 2, generators=h, supports=3
    )
    ids = torch.arange(4)
    assert torch.equal(
        theory.gated_gram(h.numpy(), (ids // 2).numpy(), (ids % 2).numpy()), theory.gated_gram(h, ids // 2, ids % 2)
    )
    s, pairs = gs.Support.random((4, 5), 5, rng=generator()), [(normal(8, 4), normal(8, 5, seed=1))]
    plain = [(dy.numpy(), x.numpy()) for dy, x in pairs]
    assert diagnose.sensing(plain, s, n_grow=2) == diagnose.sensing(pairs, s, n_grow=2)
    assert diagnose.measured_recall(plain, s, n_grow=2, fraction=0.5) == diagnose.measured_recall(
        pairs, s, n_grow=2, fraction=0.5
    )


@pytest.mark.parametrize("name", EVERY)
def test_scipy_is_taken_wherever_a_matrix_is(name):
    A, _, y = gaussian_problem(30, 40, 3, 0)
    right = EVERY[name](A, y).dense()
    column = sparse.csr_array(y.numpy()[:, None])
    for matrix in (
        sparse.csr_array(A.numpy()),
        sparse.coo_matrix(A.numpy()),
        linalg.aslinearoperator(A.numpy()),
        recover.to_scipy(A),
    ):
        for target in (y, y.numpy(), column, column.T):
            torch.testing.assert_close(EVERY[name](matrix, target).dense(), right, rtol=0, atol=1e-6)
    assert EVERY[name](sparse.csr_array(A.numpy().astype(np.float32)), y.float()).values.dtype == torch.float32


@pytest.mark.parametrize("power", [-30, 30])
def test_operators_of_scipy_have_units(power):
    A, x, y = gaussian_problem(30, 40, 3, 0)
    found = recover.htp(sparse.csr_array(A.numpy() * 10.0**power), y.numpy() * 10.0**power, 3)
    torch.testing.assert_close(found.dense(), x)
    stacked = recover.Stacked(sparse.csr_array(A.numpy() * 10.0**power), 2)
    assert recover.niht(stacked, torch.stack([y, -y], 1).flatten(), 6).converged


NOT_TAKEN = {
    "a list for y": (
        lambda A, y: recover.niht(A, y.tolist(), 3),
        "y must be a tensor, a NumPy array or a sparse matrix",
    ),
    "nothing for y": (lambda A, y: recover.niht(A, None, 3), "y must be a tensor"),
    "a list for A": (lambda A, y: recover.niht(A.tolist(), y, 3), "A must be a matrix"),
    "whole numbers in A": (lambda A, y: recover.niht(A.long().numpy(), y, 3), "float32 or float64"),
    "whole numbers in y": (lambda A, y: recover.niht(A, y.long().numpy(), 3), "precision of A"),
    "another precision": (lambda A, y: recover.niht(A.numpy(), y.numpy().astype(np.float32), 3), "precision of A"),
    "half precision": (lambda A, y: recover.niht(A.numpy().astype(np.float16), y.numpy(), 3), "float32 or float64"),
    "complex numbers": (lambda A, y: recover.niht(A.numpy() + 1j, y, 3), "float32 or float64"),
    "words": (lambda A, y: recover.niht(A, np.array(["a"] * 20), 3), "dtype that torch supports"),
    "objects": (lambda A, y: recover.niht(A, y.numpy().astype(object), 3), "dtype that torch supports"),
    "long doubles": (
        lambda A, y: recover.niht(A, y.numpy().astype(np.longdouble), 3),
        "dtype that torch supports|precision of A",
    ),
    "a mask": (lambda A, y: recover.niht(A, np.ma.masked_array(y.numpy(), y.numpy() > 0), 3), "masked array"),
    "a column": (lambda A, y: recover.niht(A, y.numpy()[:, None], 3), "y must be a vector with the 20 rows"),
    "a sparse matrix for y": (lambda A, y: recover.niht(A, sparse.csr_array(A.numpy()), 3), "y must be a vector"),
    "a sparse tensor": (lambda A, y: recover.niht(A.to_sparse(), y, 3), "sparse tensor"),
    "an operator for y": (lambda A, y: recover.niht(A, linalg.aslinearoperator(A.numpy()), 3), "y must be a tensor"),
    "an operator without an adjoint": (
        lambda A, y: recover.niht(linalg.LinearOperator((20, 40), matvec=lambda v: A.numpy() @ v, dtype=float), y, 3),
        "no rmatvec",
    ),
    "an operator for X": (
        lambda A, y: recover.fit_scalar(linalg.aslinearoperator(A.numpy()), y, 3),
        "X must be a tensor",
    ),
    "a list for X": (lambda A, y: recover.fit_vector(A.tolist(), y, 9), "X must be a tensor"),
    "a list for generators": (
        lambda A, y: recover.fit_gated(A, y, 3, generators=[[1.0]]),
        "generators must be a tensor",
    ),
    "negative weights": (lambda A, y: recover.basis_pursuit(A, y, weights=-np.ones(40)), "40 positive numbers"),
    "infinite weights": (lambda A, y: recover.basis_pursuit(A, y, weights=np.full(40, np.inf)), "40 positive numbers"),
    "a list for dy": (
        lambda A, y: diagnose.sensing([([1.0], A)], gs.Support.full((4, 40)), n_grow=1),
        "dy of batch 0 must be a tensor",
    ),
}


@table(NOT_TAKEN)
def test_what_is_not_taken_is_said_in_a_sentence(case):
    make, words = case
    A, _, y = gaussian_problem(20, 40, 3, 0)
    with pytest.raises(gs.UsageError, match=words):
        make(A, y)


def test_an_array_is_shared_where_torch_can_share_it():
    a = np.ones((3, 4))
    assert arrays.tensor("test", "a", a).data_ptr() == a.__array_interface__["data"][0]
    assert arrays.tensor("test", "a", np.ones((3, 4), dtype=">f8")).dtype == torch.float64
