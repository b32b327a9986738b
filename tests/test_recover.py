"""Recovery: operators and solvers under their laws, transcriptions of papers, other libraries, acceptance numbers."""

import math
import weakref

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse import linalg

import gossamer as gs
from cases import EXACT, OPERATORS, gaussian_problem, generator, normal, table
from gossamer import laws, recover
from gossamer.recover import basis_pursuit, gates, theory
from gossamer.recover.operators import gated_relu
from gossamer.recover.solvers import thresholding
from gossamer.recover.solvers.aiht import refined

# ---------------------------------------------------------------- operators


@table(OPERATORS)
def test_operators_obey_the_law(case):
    laws.check_operator(case())


@table(OPERATORS)
def test_operators_go_to_scipy_and_back(case):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    A = case()
    there = recover.to_scipy(A)
    assert isinstance(there, linalg.LinearOperator) and there.shape == A.shape
    x, r = normal(A.shape[1]).to(A.dtype), normal(A.shape[0]).to(A.dtype)
    np.testing.assert_allclose(there @ x.numpy(), A.matvec(x).numpy())
    np.testing.assert_allclose(there.rmatvec(r.numpy()), A.rmatvec(r).numpy())
    back = recover.operator(there)
    torch.testing.assert_close(back.matvec(x), A.matvec(x))
    if A.dtype == torch.float64:
        laws.check_operator(back)


def test_gates_are_bits_of_the_generators():
    X, h = normal(21, 4), normal(9, 4, seed=1)
    A = recover.GatedReLU(X, h)
    assert A.bits.shape == (9, 3) and A.bits.dtype == torch.uint8
    assert torch.equal(A.gates(slice(None)), (X @ h.T > 0).T)
    w = normal(36, seed=2)
    expected = sum((X @ h[j] > 0).double() * (X @ w.view(9, 4)[j]) for j in range(9))
    torch.testing.assert_close(A.matvec(w), expected)


def test_blocks_give_what_the_whole_gives(monkeypatch):
    X, h = normal(21, 4), normal(70, 4, seed=1)
    whole, r = recover.GatedReLU(X, h), normal(21, seed=2)
    seeded = recover.GatedReLU.random(X, 200, seed=3)
    monkeypatch.setattr(gated_relu, "BLOCK_NUMBERS", 60)
    parts = recover.GatedReLU(X, h)
    assert torch.equal(parts.bits, whole.bits) and len(list(parts.adjoint(r))) > 10
    torch.testing.assert_close(parts.rmatvec(r), whole.rmatvec(r))
    assert torch.equal(recover.GatedReLU.random(X, 200, seed=3).bits, seeded.bits)
    assert torch.equal(
        recover.niht(parts, X[:, 0], 5, steps=3).support,
        recover.niht(whole, X[:, 0], 5, steps=3).support,
    )


def test_generators_are_the_same_in_any_block():
    some = gates.random_generators(7, range(60, 75), 3)
    assert torch.equal(some, gates.random_generators(7, range(200), 3)[60:75])
    assert not torch.equal(some, gates.random_generators(8, range(60, 75), 3))


def test_gates_are_idempotent():
    A = recover.GatedReLU(normal(9, 3), normal(2, 3, seed=1))
    gates = A.gates(slice(None)).double()
    assert torch.equal(gates * gates, gates)


@pytest.mark.parametrize(
    "make",
    [
        lambda: recover.Dense(torch.ones(2, 2, dtype=torch.int64)),
        lambda: recover.Gaussian(0, 3),
        lambda: recover.SubsampledDCT(4, 3),
        lambda: recover.GatedReLU(normal(3, 2), normal(2, 3)),
        lambda: recover.GatedReLU.random(normal(3, 2), 0),
        lambda: recover.Stacked(recover.Dense(normal(2, 2)), 0),
        lambda: recover.operator("matrix"),
    ],
)
def test_bad_operators_are_refused(make):
    with pytest.raises(gs.UsageError):
        make()


# ---------------------------------------------------------------- solvers: the law


@pytest.mark.parametrize("name", recover.GREEDY)
def test_solvers_obey_the_law(name):
    laws.check_solver(recover.GREEDY[name], name=name)


@pytest.mark.parametrize("name", [n for n in recover.GREEDY if n != "omp"])
def test_inflated_solvers_return_s(name):
    A, x, y = gaussian_problem(60, 100, 6, 0)
    found = recover.GREEDY[name](A, y, 6, s_tilde=12)
    assert found.support.numel() == 6
    torch.testing.assert_close(found.dense(), x, atol=1e-5, rtol=0)


def test_the_threshold_counts_exactly_and_prefers_low_ids():
    z = torch.tensor([1.0, -1.0, 0.0, 1.0, 0.5, -1.0])
    for s, expected in ((0, []), (1, [0]), (3, [0, 1, 3]), (4, [0, 1, 3, 5]), (6, [0, 1, 3, 4, 5])):
        assert thresholding.hard(torch.arange(6), z, s)[0].tolist() == expected
    stream = thresholding.Largest(3, z)
    for first in range(0, 6, 2):
        stream.offer(first, z[first : first + 2])
    assert stream.ids.tolist() == [0, 1, 3]


@pytest.mark.parametrize("blocks", [1, 3, 20])
def test_streamed_sensing_is_the_exact_top(blocks):
    g = torch.randint(-4, 5, (20,), generator=generator(1)).double()  # many ties
    A = recover.Dense(torch.eye(20, dtype=torch.float64))
    width = 20 // blocks
    A.adjoint = lambda r: ((i * width, part) for i, part in enumerate(r.split(width)))  # type: ignore[method-assign]
    S = torch.tensor([2, 11, 19])
    ids, values = thresholding.sense(A, g, S, 4)
    off = sorted((i for i in range(20) if i not in S and g[i] != 0), key=lambda i: (-abs(float(g[i])), i))[:4]
    assert ids.tolist() == sorted([*S.tolist(), *off]) and torch.equal(values, g[ids])


# ---------------------------------------------------------------- solvers: transcriptions, dense and plain


def top(z: torch.Tensor, s: int) -> torch.Tensor:
    keep = sorted(range(len(z)), key=lambda i: (-abs(float(z[i])), i))[:s]
    return torch.tensor(sorted(keep))


def only(z: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(z).index_copy_(0, S, z[S])


def lsq(A: torch.Tensor, S: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.zeros(A.shape[1], dtype=y.dtype).index_copy_(0, S, torch.linalg.pinv(A[:, S]) @ y)


HARD = gaussian_problem(40, 80, 15, 3)  # too hard to be over after three steps


def test_iht_is_the_paper():
    A, _, y = HARD
    x = torch.zeros(80, dtype=torch.float64)
    for _ in range(4):
        z = x + 0.3 * A.T @ (y - A @ x)
        x = only(z, top(z, 11))
    torch.testing.assert_close(recover.iht(A, y, 11, mu=0.3, steps=4).dense(), x)


def test_niht_is_the_paper():
    A, _, y = HARD
    A = A * torch.linspace(0.5, 2.0, 80, dtype=torch.float64)  # steps must be cut at times
    x, S, cuts = torch.zeros(80, dtype=torch.float64), top(A.T @ y, 15), 0
    for _ in range(6):
        g = A.T @ (y - A @ x)
        mu = float(g[S].square().sum() / (A[:, S] @ g[S]).square().sum())
        while True:
            z = x + mu * g
            new, T = only(z, top(z, 15)), top(z, 15)
            if torch.equal(T, S) or mu <= 0.99 * float((new - x).square().sum() / (A @ (new - x)).square().sum()):
                break
            mu, cuts = mu / (2 * 0.99), cuts + 1
        x, S = new, T
    assert cuts
    torch.testing.assert_close(recover.niht(A, y, 15, steps=6).dense(), x)


def test_htp_is_the_paper():
    A, _, y = HARD
    S, residuals = top(A.T @ y, 15), []
    for _ in range(4):
        x = lsq(A, S, y)
        residuals.append(float((y - A @ x).norm()))
        S = top(x + 0.7 * A.T @ (y - A @ x), 15)
    found = recover.htp(A, y, 15, mu=0.7, steps=4)
    assert len(residuals) == 4 and residuals[-1] != residuals[0]
    np.testing.assert_allclose(found.residuals[:4], residuals)


@pytest.mark.parametrize("merge", [1, 2])
def test_cosamp_is_the_paper(merge):
    A, _, y = gaussian_problem(40, 80, 12, 3)
    y = y + 0.3 * normal(40, seed=8)
    r, residuals = y, []
    S = torch.empty(0, dtype=torch.int64)
    for _ in range(4):
        T = torch.cat([S, top(A.T @ r, merge * 12)]).unique()
        b = lsq(A, T, y)
        S = top(b, 12)
        fit = lsq(A, S, y)
        r = y - A @ (fit if merge == 1 else only(b, S))
        residuals.append(float((y - A @ fit).norm()))
    np.testing.assert_allclose(recover.cosamp(A, y, 12, merge=merge, steps=4).residuals[:4], residuals)


def test_aiht_is_the_paper_with_a_line_search_of_its_own():
    A, _, y = HARD
    S, x = top(A.T @ y, 15), torch.zeros(80, dtype=torch.float64)
    for _ in range(3):
        g = A.T @ (y - A @ x)
        z = x + float(g[S].square().sum() / (A[:, S] @ g[S]).square().sum()) * g
        S = top(z, 15)
        x = only(z, S)
        for _ in range(2):
            g = only(A.T @ (y - A @ x), S)
            eta = float(g.square().sum() / (A @ g).square().sum())
            assert (y - A @ (x + eta * g)).square().sum() <= (y - A @ x).square().sum() - 0.9 * eta * g.square().sum()
            x = x + eta * g
    torch.testing.assert_close(recover.aiht(A, y, 15, refine=2, steps=3).dense(), x)


def test_amp_is_the_paper():
    A, _, y = HARD
    x, z = torch.zeros(80, dtype=torch.float64), y
    for _ in range(4):
        u = x + A.T @ z
        x = u.sign() * (u.abs() - 1.1 * float(z.norm()) / math.sqrt(40)).clamp_min(0)
        z = y - A @ x + z * int(x.count_nonzero()) / 40
    torch.testing.assert_close(recover.amp(A, y, alpha=1.1, steps=4).dense(), x)


def test_refinement_never_raises_the_objective():
    A, _, y = HARD
    x, values = torch.zeros(15, dtype=torch.float64), []
    for _ in range(5):
        values.append(float((y - A[:, :15] @ x).norm()))
        x = refined(A[:, :15], y, x, 1)
    assert all(b < a for a, b in zip(values[:-1], values[1:], strict=True))


def test_orthonormal_columns_take_one_step():
    Q = torch.linalg.qr(normal(30, 20))[0]
    x = torch.zeros(20, dtype=torch.float64)
    x[[1, 7, 19]] = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for solve in (recover.niht, recover.htp, recover.cosamp, recover.aiht):
        found = solve(Q, Q @ x, 3)
        assert found.iterations == 1
        torch.testing.assert_close(found.dense(), x)


@pytest.mark.parametrize("name", ["htp", "niht", "aiht", "cosamp", "omp"])
def test_all_columns_give_least_squares(name):
    A = normal(30, 8)
    y = normal(30, seed=1)
    found = recover.GREEDY[name](A, y, 8)
    torch.testing.assert_close(found.dense(), torch.linalg.lstsq(A, y[:, None]).solution[:, 0], atol=1e-6, rtol=0)


# ---------------------------------------------------------------- parity with other libraries


def test_omp_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    for seed in range(5):
        A, _, y = gaussian_problem(50, 120, 20, seed)
        theirs = linear_model.orthogonal_mp(A.numpy(), y.numpy(), n_nonzero_coefs=12)
        np.testing.assert_allclose(recover.omp(A, y, 12).dense().numpy(), theirs, atol=1e-9)


@pytest.mark.parametrize("solve", [recover.fista, recover.ista])
def test_the_lasso_agrees_with_scikit_learn(solve):
    linear_model = pytest.importorskip("sklearn.linear_model")
    A, _, y = gaussian_problem(50, 80, 8, 1)
    y = y + 0.05 * normal(50, seed=9)
    for lam in (0.5, 0.1, 0.02):
        theirs = (
            linear_model.Lasso(alpha=lam / 50, fit_intercept=False, tol=1e-12, max_iter=100_000)
            .fit(A.numpy(), y.numpy())
            .coef_
        )
        found = solve(A, y, lam, steps=20_000, tolerance=1e-13)
        assert found.converged
        np.testing.assert_allclose(found.dense().numpy(), theirs, atol=1e-5)


def test_basis_pursuit_agrees_with_linear_programming():
    linprog = pytest.importorskip("scipy.optimize").linprog
    for seed, s in ((0, 5), (1, 12), (2, 25)):  # the last one is beyond the transition: dense solutions too must agree
        A, _, y = gaussian_problem(40, 80, s, seed)
        w = torch.rand(80, generator=generator(seed), dtype=torch.float64) + 0.5
        for weights in (None, w):
            c = np.tile(np.ones(80) if weights is None else weights.numpy(), 2)
            theirs = linprog(c, A_eq=np.hstack([A.numpy(), -A.numpy()]), b_eq=y.numpy(), bounds=(0, None))
            found = basis_pursuit(A, y, weights=weights)
            assert found.converged
            np.testing.assert_allclose(found.dense().numpy(), theirs.x[:80] - theirs.x[80:], atol=1e-5)


def test_reweighting_recovers_more():
    plain = reweighted = 0
    for seed in range(6):
        A, x, y = gaussian_problem(50, 100, 22, 10 * seed)
        plain += float((basis_pursuit(A, y).dense() - x).norm()) < 1e-3
        reweighted += float((recover.reweighted_l1(A, y).dense() - x).norm()) < 1e-3
    assert reweighted >= plain + 2


# ---------------------------------------------------------------- acceptance numbers


@pytest.mark.parametrize("signs", [False, True], ids=["gaussian", "signs"])
@pytest.mark.parametrize("name", ["niht", "htp", "cosamp", "aiht"])
def test_ten_of_two_hundred_are_exact_and_fifty_are_not(name, signs):
    """The fast form of 200 trials: experiments/recovery has those."""
    hits = {10: 0, 50: 0}
    for s in hits:
        for seed in range(6):
            A, x, y = gaussian_problem(100, 200, s, 100 * seed, signs)
            hits[s] += float((recover.GREEDY[name](A, y, s, steps=300).dense() - x).norm()) < 1e-3 * float(x.norm())
    assert hits[10] == 6 and hits[50] <= 3


def test_amp_and_l1_are_on_their_side_of_the_transition():
    for solve in (recover.amp, basis_pursuit):
        below, above = ((gaussian_problem(100, 200, s, 5)) for s in (27, 55))
        for (A, x, y), good in ((below, True), (above, False)):
            assert (float((solve(A, y).dense() - x).norm()) < 1e-2 * float(x.norm())) is good


CURVE = {.05: .1544, .1: .1894, .15: .2178, .2: .2433, .25: .2674, .3: .2908, .4: .3373, .5: .3857, .6: .4384,
         .7: .4988, .8: .5733, .9: .6782, .95: .7601}  # fmt: skip
POSITIVE = {.05: .1889, .1: .2410, .2: .3259, .5: .5582, .8: .8103, .95: .9507}  # fmt: skip


def test_closed_forms():
    assert all(abs(theory.donoho_tanner(delta) - rho) < 1e-4 for delta, rho in CURVE.items())
    assert all(abs(theory.donoho_tanner(delta, signed=False) - rho) < 1e-4 for delta, rho in POSITIVE.items())
    for delta, z in {0.05: 2.027, 0.2: 1.408, 0.5: 0.877, 0.9: 0.328}.items():
        assert abs(theory.minimax_threshold(delta) - z) < 2e-3
    assert [round(theory.edge_law(s, 256), 3) for s in (4, 8, 16, 32)] == [0.266, 0.385, 0.562, 0.832]
    assert round(theory.welch(256, 512), 3) == 0.044
    with pytest.raises(gs.UsageError):
        theory.donoho_tanner(1.0)


def test_the_population_gram_is_that_of_many_samples():
    h, X = normal(3, 4), normal(200_000, 4, seed=1)
    A = recover.GatedReLU(X, h)
    ids = torch.arange(12)
    G = theory.gated_gram(h, ids // 4, ids % 4)
    columns = A.columns(ids)
    torch.testing.assert_close(columns.T @ columns / len(X), G, atol=1e-2, rtol=0)
    torch.testing.assert_close(G.diagonal(), torch.full((12,), 0.5, dtype=torch.float64))
    same = theory.gated_gram(h[[0, 0]], torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 1, 2]))  # two neurons alike
    torch.testing.assert_close(same, 0.5 * torch.eye(2, dtype=torch.float64).repeat(2, 2))


# ---------------------------------------------------------------- what a user may get wrong


def test_a_solver_says_what_is_wrong():
    A, _, y = gaussian_problem(20, 40, 3, 0)
    with pytest.raises(gs.UsageError, match="40 coefficients, and cannot have 41 non-zeros"):
        recover.niht(A, y, 41)
    with pytest.raises(gs.UsageError, match="NaN or infinite"):
        recover.omp(A, y / 0, 3)
    with pytest.raises(gs.UsageError, match="s_tilde, which inflates"):
        recover.htp(A, y, 5, s_tilde=4)
    with pytest.raises(gs.UsageError, match="rows of A are linearly dependent"):
        basis_pursuit(torch.cat([A, A[:1]]), torch.cat([y, y[:1]]))
    with pytest.raises(gs.UsageError, match="lam must be positive"):
        recover.fista(A, y, -1.0)
    with pytest.raises(gs.UsageError, match="fewer rows than columns"):
        recover.amp(A.T.contiguous(), normal(40))


MISTAKES = {
    "no steps": (lambda A, y: recover.amp(A, y, steps=0), "steps"),
    "half a step": (lambda A, y: recover.htp(A, y, 3, steps=1.5), "steps"),
    "a step size below 0": (lambda A, y: recover.iht(A, y, 3, mu=-1.0), "positive"),
    "a step size that is none": (lambda A, y: recover.iht(A, y, 3, mu=math.nan), "positive"),
    "complex numbers": (lambda A, y: recover.niht(linalg.aslinearoperator(A.numpy() + 1j), y, 3), "complex"),
    "half a support": (lambda A, y: recover.niht(A, y, 3, s_tilde=6.5), "whole number"),
}


@table(MISTAKES)
def test_mistakes_are_refused_before_any_work(case):
    make, words = case
    A, _, y = gaussian_problem(20, 40, 3, 0)
    with pytest.raises(gs.UsageError, match=words):
        make(A, y)


@pytest.mark.parametrize("name", recover.GREEDY)
def test_whole_numbers_are_whole_numbers_of_any_type(name):
    A, x, y = gaussian_problem(20, 40, 3, 0)
    solve = recover.GREEDY[name]
    assert all(torch.equal(solve(A, y, s).dense(), solve(A, y, 3).dense()) for s in (np.int64(3), 3.0))
    assert recover.GatedReLU.random(A, np.int64(3)).neurons == 3


def test_sparse_matrices_of_scipy_are_taken():
    A, x, y = gaussian_problem(30, 40, 3, 0)
    assert torch.allclose(recover.htp(sparse.csr_array(A.numpy()), y, 3).dense(), x)


@pytest.mark.parametrize("name", recover.GREEDY)
def test_what_no_column_explains_is_left(name):
    A = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    found = recover.GREEDY[name](A, torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64), 1)
    assert found.dense().norm() < 1e-12 and found.residuals[-1] == pytest.approx(2.0) and found.reason


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["cosamp", "niht", "htp", "omp", "aiht"])
def test_of_equal_columns_the_first_is_taken(name, seed):
    B = normal(40, 20, seed=seed)
    found = recover.GREEDY[name](torch.cat([B, B], 1), 2 * B[:, 3], 1)
    assert found.support.tolist() == [3]


def test_solvers_go_on_while_there_is_something_to_find():
    """d = 200, m = 100, s = 35: stopping where the residual first stagnates loses these (a third of CoSaMP's)."""
    solved = [recovered(recover.cosamp, gaussian_problem(100, 200, 35, seed)) for seed in range(8)]
    assert sum(solved) >= 7


def recovered(solve, problem) -> bool:
    A, x, y = problem
    return bool((solve(A, y, 35).dense() - x).norm() < 1e-3 * x.norm())


@pytest.mark.parametrize("solve", [recover.fista, recover.ista])
def test_single_precision_converges_too(solve):
    A, _, y = gaussian_problem(50, 80, 4, 0)
    assert solve(A.float(), y.float()).converged


def test_gates_are_packed_block_by_block():
    """No more than two blocks of unpacked gates are there at any time."""
    alive: list[weakref.ref] = []
    most = []

    def blocks():
        for k in range(6):
            block = normal(16, 5, seed=k) > 0
            alive.append(weakref.ref(block))
            most.append(sum(ref() is not None for ref in alive))
            yield block
            del block

    bits = gates.packed(blocks())
    assert bits.shape == (30, 2) and max(most) <= 2


def test_rank_deficient_columns_are_said_to_be_so():
    A = normal(20, 1).repeat(1, 6)
    A[:, 5] = normal(20, seed=1)
    found = recover.omp(A, normal(20, seed=2), 4)
    assert not found.converged and "rank deficient" in found.reason and found.support.numel() == 2
    for name, solve in EXACT.items():
        assert solve(A, A[:, 0], 3).residuals[-1] < 1e-6, name


def test_amp_says_when_it_diverges():
    A = normal(30, 60).abs() + 1.0  # entries of large mean
    found = recover.amp(A, A[:, :9].sum(1), steps=3000)
    assert not found.converged and not found.dense().any() and "diverged" in found.reason


def test_zero_measurements_have_the_zero_solution():
    A = normal(10, 20)
    y = torch.zeros(10, dtype=torch.float64)
    for solve in (*recover.GREEDY.values(), lambda A, y, s: basis_pursuit(A, y), lambda A, y, s: recover.amp(A, y)):
        found = solve(A, y, 3)
        assert found.converged and not found.support.numel()


def test_a_large_operator_is_never_made(monkeypatch):
    """NIHT on a seeded Gaussian asks for few columns at a time."""
    A = recover.Gaussian(60, 4000, seed=1)
    x = torch.zeros(4000, dtype=torch.float64)
    x[[5, 1000, 3999]] = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    most, real = [], recover.Gaussian.columns
    monkeypatch.setattr(recover.Gaussian, "columns", lambda self, ids: most.append(ids.numel()) or real(self, ids))
    torch.testing.assert_close(recover.niht(A, A.matvec(x), 3).dense(), x, atol=1e-6, rtol=0)
    assert max(most) <= 6


def test_no_module_hides_a_function():
    """``gossamer.recover.iht`` is the function, also after its module was imported."""
    assert all(callable(getattr(recover, name)) for name in recover.SOLVERS)
    assert all(hasattr(recover, name) for name in recover.__all__)
