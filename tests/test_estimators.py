"""scikit-learn's own checks, without exclusions, and what its users do: pipelines, grid search, clones, pickles."""

import pickle
import sys
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import load_iris, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import gossamer as gs
from gossamer import recover
from gossamer.recover import SparseLinearRecovery, SparseReLUClassifier, SparseReLURegressor


@parametrize_with_checks([SparseLinearRecovery(), SparseReLURegressor(max_iter=8), SparseReLUClassifier(max_iter=120)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def regression(seed=0):
    X, y, w = make_regression(120, 30, n_informative=4, coef=True, bias=7.0, random_state=seed)
    return X * np.linspace(0.1, 50, 30) + 3.0, y, w


@pytest.mark.parametrize("solver", ["niht", "htp", "cosamp", "aiht", "omp"])
def test_linear_recovery_finds_the_coefficients_at_any_scale(solver):
    X, y, w = regression()
    model = SparseLinearRecovery(4, solver=solver).fit(X, y)
    assert np.array_equal(model.support_, np.nonzero(w)[0]) and model.converged_
    np.testing.assert_allclose(model.coef_, w / np.linspace(0.1, 50, 30), atol=1e-6)
    np.testing.assert_allclose(model.predict(X), y, atol=1e-4)


def test_constant_features_are_never_chosen():
    X, y, _ = regression()
    X[:, 2] = 1e6
    assert 2 not in SparseLinearRecovery(5).fit(X, y).support_


def test_a_fit_that_does_not_converge_warns():
    X, y, _ = regression()
    with pytest.warns(ConvergenceWarning, match="iterations were used"):
        SparseLinearRecovery(4, max_iter=1).fit(X, y)


def test_regressor_in_a_pipeline_and_a_grid():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6))
    y = np.maximum(X[:, 0] - 0.3, 0) - 2 * np.maximum(X[:, 1], 0)
    pipe = make_pipeline(StandardScaler(), SparseReLURegressor(6, n_neurons=8, max_iter=20, random_state=0))
    assert cross_val_score(pipe, X, y, cv=3).min() > 0.9
    grid = GridSearchCV(SparseReLURegressor(n_neurons=8, max_iter=10, random_state=0), {"n_nonzero": [1, 6]}, cv=3).fit(
        X, y
    )
    assert grid.best_params_ == {"n_nonzero": 6} and grid.best_estimator_.n_nonzero_ <= 6


@pytest.mark.parametrize("make", [
    lambda: SparseReLURegressor(10, n_neurons=6, max_iter=5, random_state=0),
    lambda: SparseReLUClassifier(20, n_neurons=6, max_iter=20, random_state=0),
])  # fmt: skip
def test_modules_predict_the_same_on_raw_inputs(make):
    X, y = load_iris(return_X_y=True)
    model = make().fit(X, y)
    outputs = model.to_torch()(torch.tensor(X)).detach().numpy()
    expected = model.predict(X)
    np.testing.assert_allclose(outputs[:, 0] if outputs.shape[1] == 1 else model.classes_[outputs.argmax(1)], expected)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), expected)
    np.testing.assert_array_equal(clone(model).fit(X, y).predict(X), expected)


def test_classifier_learns_names_and_probabilities():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = SparseReLUClassifier(40, n_neurons=12, max_iter=300, random_state=0).fit(X, names)
    assert model.score(X, names) > 0.93 and model.n_nonzero_ <= 40
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1)
    assert np.array_equal(model.classes_[p.argmax(1)], model.predict(X))
    assert model.decision_function(X).shape == (150, 3)
    assert SparseReLUClassifier(max_iter=5).fit(X[:100], y[:100]).decision_function(X).shape == (150,)


def test_several_targets():
    X = np.random.default_rng(1).normal(size=(200, 5))
    Y = np.stack([np.maximum(X[:, 0], 0) + 5, -np.maximum(X[:, 1], 0)], 1)
    model = SparseReLURegressor(10, n_neurons=10, max_iter=200, learning_rate=0.03, random_state=0).fit(X, Y)
    assert model.predict(X).shape == (200, 2) and model.score(X, Y) > 0.9


def test_data_frames_keep_their_names():
    pd = pytest.importorskip("pandas")
    X, y, _ = regression()
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(30)])
    for model in (SparseLinearRecovery(4), SparseReLURegressor(6, max_iter=3), SparseReLUClassifier(40, max_iter=5)):
        target = pd.Series(y > 0, name="up") if isinstance(model, SparseReLUClassifier) else pd.Series(y)
        model.fit(frame, target)
        assert list(model.feature_names_in_) == list(frame.columns) and model.predict(frame).shape == (120,)
        with pytest.raises(ValueError, match="feature names"):
            model.predict(frame[frame.columns[::-1]])


@pytest.mark.parametrize(
    "call, sentence",
    [
        (
            lambda X, y: SparseLinearRecovery(31).fit(X, y),
            "larger than the number of coefficients: 30 features have 30",
        ),
        (
            lambda X, y: SparseReLURegressor(10**6).fit(X, y),
            "larger than the number of coefficients: 32 neurons on 30 features have 992",
        ),
        (lambda X, y: SparseReLUClassifier(0).fit(X, y > 0), "at least 1"),
        (lambda X, y: SparseLinearRecovery(solver="nith").fit(X, y), "did you mean 'niht'"),
        (lambda X, y: SparseReLUClassifier().fit(X, y * 0), "one class only"),
        (lambda X, y: SparseReLUClassifier().fit(X, y), "Unknown label type"),
        (lambda X, y: SparseLinearRecovery().fit(X[:1], y[:1]), "minimum of 2 is required"),
        (lambda X, y: SparseReLURegressor().fit(X / 0, y), "infinity|NaN"),
        (lambda X, y: SparseReLURegressor(n_neurons=0).fit(X, y), "n_neurons must be at least 1"),
        (lambda X, y: SparseReLURegressor(n_neurons=2.5).fit(X, y), "n_neurons must be at least 1, a whole number"),
        (lambda X, y: SparseLinearRecovery(max_iter="many").fit(X, y), "max_iter must be at least 1"),
        (lambda X, y: SparseLinearRecovery(inflate=np.nan).fit(X, y), "inflate must be at least 1"),
        (lambda X, y: SparseLinearRecovery("few").fit(X, y), "n_nonzero must be a whole number"),
        (lambda X, y: SparseReLURegressor(1).fit(X, np.stack([y, y], 1)), "two layers needs at least one weight"),
        (lambda X, y: SparseReLUClassifier(1).fit(X, y > 0), "two layers needs at least one weight"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mistakes_are_value_errors_that_help(call, sentence):
    X, y, _ = regression()
    with pytest.raises(ValueError, match=sentence):
        call(X, y)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, np.int64(0)])
def test_batches_of_no_samples_are_refused(batch_size):
    X, y, _ = regression()
    for model, target in (
        (SparseReLURegressor, y),
        (SparseReLURegressor, np.stack([y, y], 1)),
        (SparseReLUClassifier, y > 0),
    ):
        with pytest.raises(ValueError, match="batch_size must be at least 1, a whole number"):
            model(batch_size=batch_size).fit(X, target)


def test_numbers_of_numpy_are_numbers():
    X, y, _ = regression()
    few = {"n_nonzero": np.arange(3, 5), "max_iter": np.arange(2, 4)}
    networks = {**few, "n_neurons": np.arange(3, 5), "batch_size": np.arange(40, 42)}
    for model, target, grid in (
        (SparseLinearRecovery(), y, {"n_nonzero": np.arange(3, 5), "max_iter": np.arange(500, 502)}),
        (SparseReLURegressor(random_state=0), y, networks),
        (SparseReLURegressor(random_state=0), np.stack([y, -y], 1), networks),
        (SparseReLUClassifier(random_state=0), y > 0, networks),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = GridSearchCV(model, grid, cv=2, error_score="raise").fit(X, target)
        assert type(found.best_estimator_.n_iter_) is int


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_any_unit_of_measurement_will_do(scale):
    X, y, w = regression()
    linear = SparseLinearRecovery(4).fit(X, y)
    np.testing.assert_allclose(SparseLinearRecovery(4).fit(X * scale, y).coef_ * scale, linear.coef_, rtol=1e-6)
    np.testing.assert_allclose(SparseLinearRecovery(4).fit(X, y * scale).coef_ / scale, linear.coef_, rtol=1e-6)
    apart = X.copy()
    apart[:, np.nonzero(w)[0][0]] *= scale
    assert np.array_equal(SparseLinearRecovery(4).fit(apart, y).support_, linear.support_)
    plain = SparseReLURegressor(6, n_neurons=4, max_iter=4, random_state=0)
    np.testing.assert_allclose(clone(plain).fit(X * scale, y).predict(X * scale), plain.fit(X, y).predict(X), rtol=1e-6)


@pytest.mark.parametrize("solver", ["niht", "htp", "cosamp", "aiht", "iht", "omp"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_features_that_tell_nothing_give_the_mean(solver):
    model = SparseLinearRecovery(solver=solver).fit(np.ones((10, 3)), np.arange(10))
    assert not model.coef_.any() and model.predict(np.ones((2, 3))).tolist() == [4.5, 4.5]


@pytest.mark.parametrize("solver", ["niht", "omp"])
def test_linear_progress(solver, capsys):
    X, y, _ = regression()
    model = SparseLinearRecovery(4, solver=solver, verbose=1).fit(X, y)
    said = capsys.readouterr().out
    assert f"SparseLinearRecovery: {model.n_iter_}/{4 if solver == 'omp' else 1000}  residual" in said
    SparseLinearRecovery(4, solver=solver).fit(X, y)
    assert not capsys.readouterr().out


def test_progress(capsys):
    X, y, _ = regression()
    SparseReLURegressor(5, n_neurons=3, max_iter=4, verbose=1, random_state=0).fit(X, y)
    assert "SparseReLURegressor: 4/4  loss" in capsys.readouterr().out


def test_zero_columns_and_more_features_than_samples():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 60))
    X[:, 5] = 0
    y = X[:, 7] - 2 * X[:, 11]
    assert SparseLinearRecovery(2).fit(X, y).support_.tolist() == [7, 11]
    for model in (SparseReLURegressor(4, max_iter=3), SparseReLUClassifier(10, max_iter=5)):
        assert np.isfinite(model.fit(X, y > 0).predict(X)).all()


def test_without_scikit_learn_one_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(recover, "find_spec", lambda name: None)
    for name in recover.ESTIMATORS:
        with pytest.raises(gs.UsageError, match=r'pip install "gossamer\[recover\]"'):
            getattr(recover, name)
    with pytest.raises(AttributeError):
        recover.no_such_thing  # noqa: B018


def test_everything_else_works_without_it():
    """In a process of its own: importing gossamer imports no scikit-learn."""
    import subprocess

    code = "import sys, gossamer; sys.exit('sklearn' in sys.modules or 'scipy' in sys.modules)"
    with warnings.catch_warnings():
        assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
