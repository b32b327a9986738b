"""Rules: each against an independent transcription of its equations, reductions of one to another, the optimizer."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs
from cases import FLAT, RULES, generator, mlp, table, train
from gossamer import laws
from gossamer._schedules import averaging, cosine, cosine_pair, end_of, halving, halving_pair, warm_up

SHAPES = ((5, 7), (3, 4, 3, 2))
STEPS = 10


def start(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape) * 0.3


def gradient(shape: tuple[int, ...], t: int) -> np.ndarray:
    return np.random.default_rng(t).normal(size=shape)


def driven(rule, shape, lr=0.1, steps=STEPS, **groups) -> list[np.ndarray]:
    """The weights after each step."""
    p = nn.Parameter(torch.from_numpy(start(shape)))
    optimizer = gs.SparseOptimizer([{"params": [p], **groups}], rule, lr)
    path = []
    for t in range(1, steps + 1):
        p.grad = torch.from_numpy(gradient(shape, t))
        optimizer.step()
        path.append(p.detach().numpy().copy())
    return path


def agree(a: list[np.ndarray], b: list[np.ndarray], tolerance: float = 1e-12) -> None:
    assert max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)) <= tolerance


@table(RULES)
def test_rules_obey_their_law(case):
    laws.check_rule(case)


# ---------------------------------------------------------------- transcriptions, in numpy, from the equations


def soft(u, tau):
    return np.sign(u) * np.maximum(np.abs(u) - tau, 0)


def group_shrink(u, tau, axes):
    norm = np.sqrt((u**2).sum(axis=axes, keepdims=True))
    return u * np.maximum(0, 1 - tau / norm)


PROX = {  # penalty by name: (ours, prox(u, tau) written out, a subgradient), for lam = 0.4
    "l1": (gs.L1(0.4), lambda u, tau: soft(u, 0.4 * tau), lambda w: 0.4 * np.sign(w)),
    "rows": (
        gs.GroupL1(0.4, "row"),
        lambda u, tau: group_shrink(u, 0.4 * tau * math.sqrt(7), 1),
        lambda w: 0.4 * math.sqrt(7) * w / np.sqrt((w**2).sum(1, keepdims=True)),
    ),
    "kernels": (
        gs.GroupL1(0.4, "kernel"),
        lambda u, tau: group_shrink(u, 0.4 * tau * math.sqrt(6), (2, 3)),
        lambda w: 0.4 * math.sqrt(6) * w / np.sqrt((w**2).sum((2, 3), keepdims=True)),
    ),
    "channels": (
        gs.GroupL1(0.4, "channel"),
        lambda u, tau: group_shrink(u, 0.4 * tau * math.sqrt(24), (1, 2, 3)),
        lambda w: 0.4 * math.sqrt(24) * w / np.sqrt((w**2).sum((1, 2, 3), keepdims=True)),
    ),
}
FITTING = [(name, shape) for name in PROX for shape in SHAPES if not PROX[name][0].problems(shape)]


@pytest.mark.parametrize(("name", "shape"), FITTING)
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_prox_sgd_is_its_equations(name, shape, mu):
    penalty, prox, _ = PROX[name]
    w, v, s, path = start(shape), 0.0, 0.1, []
    for t in range(1, STEPS + 1):
        v = mu * v + (1 - mu) * gradient(shape, t)
        w = prox(w - s * v, s)
        path.append(w)
    agree(driven(gs.ProxSGD(penalty, mu), shape), path)


@pytest.mark.parametrize("shape", SHAPES)
def test_iht_keeps_the_largest_of_a_gradient_step(shape):
    w, path, n = start(shape), [], 9
    for t in range(1, STEPS + 1):
        u = w - 0.1 * gradient(shape, t)
        w = np.where(np.abs(u) >= np.sort(np.abs(u).ravel())[-n], u, 0)
        path.append(w)
    agree(driven(gs.ProxSGD(gs.TopK(n)), shape), path)


@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_rda_is_its_equations(name, shape):
    penalty, prox, _ = PROX[name]
    u, S, path = start(shape), 0.0, []
    for t in range(1, STEPS + 1):
        u = u - 0.1 * gradient(shape, t)
        S += 0.1
        path.append(prox(u, S))
    agree(driven(gs.RDA(penalty), shape), path)


def adaptive(kind, shape, shrinking=False):
    """(magnitudes of w, spread over its entries; root of the group's size) as the authors' program has them."""
    if kind is None or len(shape) != 4:
        return (lambda w: np.abs(w)), 1.0
    axes = (2, 3) if kind == "kernel" else (1, 2, 3)
    size = math.prod(shape[axis] for axis in axes)
    mean = (
        (lambda w: np.sqrt((w**2).sum(axes, keepdims=True)))
        if shrinking
        else (lambda w: np.abs(w).mean(axes, keepdims=True))
    )
    return (lambda w: np.broadcast_to(mean(w), w.shape)), math.sqrt(size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [None, "kernel", "channel"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_xrda_is_the_authors_program_and_the_paper(shape, kind, accumulate):
    """Written from the order of the program's lines: decay, magnitudes, weight, backward step, averaging, momentum,
    step, threshold."""
    lam, F, Tm, Tb, wd, s0, N = 0.02, 30.0, 0.7, 0.4, 0.05, 0.3, 15
    mag, root = adaptive(kind, shape)
    p = start(shape)
    p_temp, v, running, backward, S, path = p.copy(), 0.0, 0.0, 0.0, 0.0, []
    for n in range(1, STEPS + 1):
        s, a = s0 / 2 * (1 + math.cos(math.pi * n / N)), 0.5 * (1 - math.cos(math.pi * n / N))
        g = gradient(shape, n) + wd * p
        running = math.exp(-s / Tb) * running + (1 - math.exp(-s / Tb)) * mag(p)
        weight = root * F / (1 + (F - 1) * running / running.max())
        backward = a * backward + s * weight
        S = a * S + s
        p_temp = a * p_temp + (1 - a) * p
        v = math.exp(-s / Tm) * v + (1 - math.exp(-s / Tm)) * g
        p_temp = p_temp - s * v
        tau = lam * (backward if accumulate else S * weight)
        p = np.maximum(p_temp - tau, 0) + np.minimum(p_temp + tau, 0)
        path.append(p)
    step, alpha = cosine_pair(s0, N)
    rule = gs.XRDA(gs.LogL1(lam, 1 / (F - 1), kind), alpha, Tm, Tb, wd, accumulate)
    agree(driven(rule, shape, step), path)
    assert 0.02 < (path[-1] == 0).mean() < 0.98


def test_xrda_with_group_shrinkage_is_the_early_program():
    """Its kernels pass the threshold by their norm, and its weights see norms."""
    lam, F, a, s, shape = 0.6, 30.0, 0.4, 0.1, SHAPES[1]
    norm, root = adaptive("kernel", shape, shrinking=True)
    p, u, r, S, path = start(shape), start(shape), 0.0, 0.0, []
    for t in range(1, STEPS + 1):
        e = math.exp(-s / 2.0)
        r = e * r + (1 - e) * norm(p)
        S = a * S + s * root * F / (1 + (F - 1) * r / r.max())
        u = a * u + (1 - a) * p - s * gradient(shape, t)
        p = u * np.maximum(0, 1 - lam * S / norm(u))
        path.append(p)
    rule = gs.XRDA(gs.LogL1(lam, 1 / (F - 1), "kernel", shrinking=True), a, None, 2.0)
    agree(driven(rule, shape), path)
    assert 0.02 < (path[-1] == 0).mean() < 0.98


@pytest.mark.parametrize(("name", "shape"), FITTING)
@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_linbreg_is_its_equations(name, shape, beta):
    penalty, prox, subgradient = PROX[name]
    delta, s, w = 1.7, 0.2, start(shape)
    v, m, path = w / delta + subgradient(w), 0.0, []
    for t in range(1, STEPS + 1):
        m = beta * m + (1 - beta) * s * gradient(shape, t)
        v = v - m
        path.append(prox(delta * v, delta))
    agree(driven(gs.LinBreg(penalty, delta, beta), shape, s), path)


@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_adabreg_is_its_equations(name, shape):
    penalty, prox, subgradient = PROX[name]
    (b1, b2), eps, delta, s, w = (0.8, 0.95), 1e-3, 0.6, 0.05, start(shape)
    v, m, q, path = w / delta + subgradient(w), 0.0, 0.0, []
    for t in range(1, STEPS + 1):
        g = gradient(shape, t)
        m, q = b1 * m + (1 - b1) * g, b2 * q + (1 - b2) * g**2
        v = v - s / (1 - b1**t) * m / (np.sqrt(q) / math.sqrt(1 - b2**t) + eps)
        path.append(prox(delta * v, delta))
    agree(driven(gs.AdaBreg(penalty, delta, (b1, b2), eps), shape, s), path)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_non_negative_penalty_in_mirror_descent(shape):
    w, path = np.abs(start(shape)), []
    v = w + 0.4
    for t in range(1, STEPS + 1):
        v = v - 0.2 * gradient(shape, t)
        path.append(np.maximum(v - 0.4, 0))
    p = nn.Parameter(torch.from_numpy(np.abs(start(shape))))
    optimizer = gs.SparseOptimizer([p], gs.LinBreg(gs.NonNegativeL1(0.4)), 0.2)
    for t in range(1, STEPS + 1):
        p.grad = torch.from_numpy(gradient(shape, t))
        optimizer.step()
        assert np.abs(p.detach().numpy() - path[t - 1]).max() <= 1e-12


# ---------------------------------------------------------------- what one is in terms of another


def torch_path(make, shape, lr=0.1) -> list[np.ndarray]:
    p = nn.Parameter(torch.from_numpy(start(shape)))
    optimizer = make([p], lr)
    path = []
    for t in range(1, STEPS + 1):
        p.grad = torch.from_numpy(gradient(shape, t))
        optimizer.step()
        path.append(p.detach().numpy().copy())
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, "paired", cosine(1.0, 20)], ids=str)
@pytest.mark.parametrize("penalty", [gs.L1(0.0), gs.LogL1(0.0)], ids=str)
def test_without_lambda_xrda_is_momentum_sgd_whatever_the_averaging(shape, alpha, penalty):
    mu = math.exp(-0.1 / 0.9)
    sgd = torch_path(lambda p, lr: torch.optim.SGD(p, lr * (1 - mu), momentum=mu), shape)
    agree(driven(gs.XRDA(penalty, alpha, 0.9), shape), sgd)


@pytest.mark.parametrize("shape", SHAPES)
def test_xrda_without_averaging_is_prox_sgd(shape):
    mu = math.exp(-0.1 / 0.9)
    agree(driven(gs.XRDA(gs.L1(0.4), 0.0, 0.9), shape), driven(gs.ProxSGD(gs.L1(0.4), mu), shape), 0.0)
    agree(driven(gs.XRDA(gs.L1(0.4), lambda t: 0.0, 0.9), shape), driven(gs.ProxSGD(gs.L1(0.4), mu), shape), 0.0)
    adaptive = [gs.XRDA(gs.LogL1(0.01, 0.1), 0.0, 0.9, accumulate=accumulate) for accumulate in (True, False)]
    agree(
        driven(adaptive[0], shape), driven(adaptive[1], shape), 1e-15
    )  # nothing is remembered, so nothing accumulates


@pytest.mark.parametrize("shape", SHAPES)
def test_xrda_with_full_averaging_is_rda(shape):
    agree(driven(gs.XRDA(gs.L1(0.4), 1.0, None), shape), driven(gs.RDA(gs.L1(0.4)), shape), 0.0)


@pytest.mark.parametrize("pair", [cosine_pair(0.5, 40), halving_pair(0.5, (5, 9, 21))], ids=["cosine", "halving"])
def test_paired_steps_keep_the_threshold(pair):
    """S_t = s_0 (1 - product of the alphas so far): s_0 from the first alpha of 0 on, and at once nearly so."""
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = gs.SparseOptimizer([p], gs.XRDA(gs.L1(1.0), pair[1]), pair[0], steps=40)
    product = 1.0
    for t in range(1, 40):
        p.grad = torch.ones(2, 2)
        optimizer.step()
        product *= pair[1](t)
        assert optimizer.param_groups[0]["sums"]["S"] == pytest.approx(0.5 * (1 - product), abs=1e-12)
    assert (
        optimizer.param_groups[0]["sums"]["S"] == pytest.approx(0.5, abs=1e-12)
        and optimizer.param_groups[0]["lr"] < 0.1
    )


def test_averaging_paired_with_a_torch_scheduler_keeps_the_threshold():
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = gs.SparseOptimizer([p], gs.XRDA(gs.L1(1.0)), 0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for _ in range(30):
        p.grad = torch.ones(2, 2)
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["sums"]["S"] == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_linbreg_without_a_penalty_is_sgd(shape):
    agree(driven(gs.LinBreg(gs.L1(0.0)), shape), torch_path(lambda p, lr: torch.optim.SGD(p, lr), shape), 1e-14)
    agree(
        driven(gs.LinBreg(gs.L1(0.0), 2.0), shape, 0.05), torch_path(lambda p, lr: torch.optim.SGD(p, lr), shape)
    )  # delta scales the step
    ema = torch_path(lambda p, lr: torch.optim.SGD(p, lr * 0.3, momentum=0.7), shape)
    agree(driven(gs.LinBreg(gs.L1(0.0), momentum=0.7), shape), ema)


@pytest.mark.parametrize("shape", SHAPES)
def test_adabreg_without_a_penalty_is_adam(shape):
    agree(driven(gs.AdaBreg(gs.L1(0.0)), shape), torch_path(lambda p, lr: torch.optim.Adam(p, lr), shape))


@pytest.mark.parametrize(
    "rule", [gs.LinBreg(gs.L1(0.4), 1.7, 0.5), gs.AdaBreg(gs.L1(0.4), 0.6)], ids=["LinBreg", "AdaBreg"]
)
def test_the_mirror_variable_says_which_weights_are_zero(rule):
    p = nn.Parameter(torch.from_numpy(start((20, 30))))
    optimizer = gs.SparseOptimizer([p], rule, 0.1)
    for t in range(1, 20):
        p.grad = torch.from_numpy(gradient((20, 30), t))
        optimizer.step()
        v, w = optimizer.state[p]["v"], p.detach()
        assert bool((v.abs()[w == 0] <= 0.4).all()) and bool((v.abs()[w != 0] > 0.4).all())
        assert float((v - w / rule.delta - 0.4 * w.sign())[w != 0].abs().max()) < 1e-12
    assert 0.05 < float((w == 0).double().mean()) < 0.95


# ---------------------------------------------------------------- the shell


def some(rule, lr=0.1, **options):
    params = [
        nn.Parameter(torch.randn(s, generator=generator(i), dtype=torch.float64))
        for i, s in enumerate([(4, 5), (5,), (3, 4)])
    ]
    return params, gs.SparseOptimizer(params, rule, lr, **options)


def test_weights_are_penalised_and_biases_are_not():
    params, optimizer = some(gs.ProxSGD(gs.L1(1e9)))
    assert [(group["penalised"], len(group["params"])) for group in optimizer.param_groups] == [(True, 2), (False, 1)]
    for p in params:
        p.grad = torch.ones_like(p)
    before = params[1].detach().clone()
    optimizer.step()
    assert not bool(params[0].any()) and torch.equal(params[1], before - 0.1)


def test_groups_with_rules_and_strengths_of_their_own():
    a, b, c = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    groups = [{"params": [a]}, {"params": [b], "strength": 2.0}, {"params": [c], "rule": gs.ProxSGD(gs.L1(0.3))}]
    optimizer = gs.SparseOptimizer(groups, gs.ProxSGD(gs.L1(1.0)), 0.1)
    for p in (a, b, c):
        p.grad = torch.zeros(2, 2)
    optimizer.step()
    assert [round(float(p[0, 0].detach()), 6) for p in (a, b, c)] == [0.9, 0.8, 0.97]


def test_parameter_groups_say_what_is_penalised():
    net = gs.sparsify(mlp(), 0.5, layout="shadow")
    groups = gs.parameter_groups(net)
    assert [group["penalised"] for group in groups] == [True, True, True, False]
    assert [group["penalised"] for group in gs.parameter_groups(mlp())] == [True, False]
    assert [group["compact"] for group in gs.parameter_groups(gs.sparsify(mlp(), 0.2))][:1] == [True]


def test_a_group_added_later_goes_on_with_the_schedule():
    step = cosine(0.1, 20)
    params, optimizer = some(gs.ProxSGD(gs.L1(0.1)), step)
    for _ in range(5):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    late = nn.Parameter(torch.ones(3, 3))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones_like(late)
    optimizer.step()
    assert {group["lr"] for group in optimizer.param_groups} == {step(6)}
    assert float(late[0, 0].detach()) == pytest.approx(1 - step(6) * 1.1)


def test_decay_is_the_groups_and_with_xrda_everybodys():
    w, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = gs.SparseOptimizer(
        [{"params": [w], "weight_decay": 0.5}, {"params": [b]}], gs.XRDA(gs.L1(0.0), 0.0, None, weight_decay=0.1), 1.0
    )
    w.grad, b.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert float(w[0, 0].detach()) == pytest.approx(0.4) and float(b[0].detach()) == pytest.approx(0.9)


def test_many_layers_that_step_alike_are_one_call():
    calls = []

    class Counted(gs.ProxSGD):
        def update_(self, w, g, state, now):
            calls.append(len(w))
            super().update_(w, g, state, now)

    net = gs.sparsify(mlp(), 1.0, layout="shadow")
    optimizer = gs.SparseOptimizer(gs.parameter_groups(net), Counted(gs.L1(0.1)), 0.1)
    train(net, optimizer, None, FLAT.batches(1))
    assert sorted(calls) == [3, 3]  # the weights, the biases


@table({"deepcopy": copy.deepcopy, "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer))})
def test_copies_keep_their_rule(case):
    _, optimizer = some(gs.LinBreg(gs.L1(0.1)))
    counterpart = case(optimizer)
    assert counterpart.rule == optimizer.rule and counterpart.rules == optimizer.rules
    for p in counterpart.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    counterpart.step()


def test_a_closure_is_evaluated():
    params, optimizer = some(gs.ProxSGD(gs.L1(0.1)))

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) > float(optimizer.step(closure).detach())


def test_another_rules_state_is_refused():
    _, optimizer = some(gs.LinBreg(gs.L1(0.1)))
    _, other = some(gs.LinBreg(gs.L1(0.2)))
    with pytest.raises(gs.UsageError, match="another rule"):
        other.load_state_dict(optimizer.state_dict())


def weight() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(3, 4))]


L1 = gs.L1(0.1)


def partly_sparse(**options) -> nn.Module:
    """One layer compact, the others plain."""
    return gs.sparsify(mlp(), 0.2, include="0", **options)


REFUSALS = {
    "a class in place of a penalty": (lambda: gs.ProxSGD(gs.L1), "this is not a penalty"),
    "an infinite delta": (lambda: gs.LinBreg(L1, delta=math.inf), "delta"),
    "words for numbers": (lambda: gs.XRDA(L1, time_scale="9"), "time_scale"),
    "a word for momentum": (lambda: gs.ProxSGD(L1, momentum="a"), "momentum"),
    "one beta": (lambda: gs.AdaBreg(L1, betas=0.9), "two numbers"),
    "compact values among dense ones": (
        lambda: gs.SparseOptimizer(partly_sparse().parameters(), gs.LinBreg(L1), 0.1),
        "stored compactly",
    ),
    "compact tiles": (
        lambda: gs.SparseOptimizer(partly_sparse(block=(2, 2)).parameters(), gs.LinBreg(L1), 0.1),
        "stored compactly",
    ),
    "compact values of a copy": (
        lambda: gs.SparseOptimizer(copy.deepcopy(partly_sparse()).parameters(), gs.LinBreg(L1), 0.1),
        "stored compactly",
    ),
    "compact values in a group made by hand": (
        lambda: gs.SparseOptimizer([{"params": [partly_sparse()[0].values], "penalised": True}], gs.LinBreg(L1), 0.1),
        "stored compactly",
    ),
    "a list of averagings shorter than the run": (
        lambda: gs.SparseOptimizer(weight(), gs.XRDA(L1, lambda t: ([0.1] * 10)[t - 1]), 0.1, steps=20),
        "no value at step 11",
    ),
    "no rule": (lambda: gs.SparseOptimizer(weight(), L1, 0.1), "rule must be"),
    "no penalty": (lambda: gs.ProxSGD(0.1), "this is not a penalty"),
    "averaging above 1": (lambda: gs.XRDA(L1, 1.5), "averaging"),
    "averaging below 0": (lambda: gs.XRDA(L1, -0.1), "averaging"),
    "an averaging schedule above 1": (
        lambda: gs.SparseOptimizer(weight(), gs.XRDA(L1, lambda t: t / 100), 0.1, steps=200),
        "at step 101",
    ),
    "an averaging schedule shorter than the run": (
        lambda: gs.SparseOptimizer(weight(), gs.XRDA(L1, cosine_pair(0.1, 50)[1]), 0.1, steps=60),
        "ends at step 50",
    ),
    "a step schedule shorter than the run": (
        lambda: gs.SparseOptimizer(weight(), gs.ProxSGD(L1), warm_up(cosine(0.1, 50), 5), steps=60),
        "ends at step 50",
    ),
    "time scale of zero": (lambda: gs.XRDA(L1, time_scale=0.0), "time_scale"),
    "negative decay": (lambda: gs.XRDA(L1, weight_decay=-1.0), "weight_decay"),
    "momentum of one": (lambda: gs.LinBreg(L1, momentum=1.0), "momentum"),
    "delta of zero": (lambda: gs.LinBreg(L1, delta=0.0), "delta"),
    "eps of zero": (lambda: gs.AdaBreg(L1, eps=0.0), "eps"),
    "a third beta": (lambda: gs.AdaBreg(L1, betas=(0.1, 0.2, 0.3)), "two numbers"),
    "a mirror map that is not convex": (lambda: gs.LinBreg(gs.LogL1(0.1)), "convex"),
    "hard thresholding by a mirror": (lambda: gs.AdaBreg(gs.TopK(3)), "convex"),
    "adaptive weights in prox-SGD": (lambda: gs.ProxSGD(gs.LogL1(0.1)), "XRDA"),
    "adaptive weights in RDA": (lambda: gs.RDA(gs.LogL1(0.1)), "XRDA"),
    "negative step": (lambda: gs.SparseOptimizer(weight(), gs.ProxSGD(L1), -0.1), "lr"),
    "negative strength": (
        lambda: gs.SparseOptimizer([{"params": weight(), "strength": -1.0}], gs.ProxSGD(L1), 0.1),
        "strength",
    ),
    "only biases": (
        lambda: gs.SparseOptimizer([nn.Parameter(torch.zeros(3))], gs.ProxSGD(L1), 0.1),
        "no parameter is penalised",
    ),
    "a kernel group for a matrix": (
        lambda: gs.SparseOptimizer(weight(), gs.ProxSGD(gs.GroupL1(0.1, "kernel")), 0.1),
        "4 dimensions",
    ),
    "compact values that could not come back": (
        lambda: gs.SparseOptimizer(gs.parameter_groups(gs.sparsify(mlp(), 0.2)), gs.LinBreg(L1), 0.1),
        "zero weights may become non-zero",
    ),
    "compact values unmarked": (
        lambda: gs.SparseOptimizer(gs.sparsify(mlp(), 0.2).parameters(), gs.LinBreg(L1), 0.1),
        "stored compactly",
    ),
    "a step of its own beside a schedule": (
        lambda: gs.SparseOptimizer([{"params": weight(), "lr": 0.1}], gs.ProxSGD(L1), cosine(0.1, 50)),
        "schedule",
    ),
    "halving backwards": (lambda: halving(0.1, (5, 3)), "increasing"),
    "averaging by a largest step of zero": (lambda: averaging(cosine(1.0, 5), 0.0), "positive"),
}


@table(REFUSALS)
def test_misuse_is_refused_before_the_first_step(case):
    make, words = case
    with pytest.raises(gs.UsageError, match=words):
        make()


def test_schedules_of_runs_of_unknown_length():
    """Lists go as far as they go; a step size that is none is refused when it comes, before anything has moved."""
    w = nn.Parameter(torch.ones(3, 4))
    optimizer = gs.SparseOptimizer([w], gs.XRDA(L1, lambda t: ([0.1] * 10)[t - 1]), lambda t: 0.1 * (1 - t / 8))
    for _ in range(8):
        w.grad = torch.ones(3, 4)
        optimizer.step()
    before = w.detach().clone()
    with pytest.raises(gs.UsageError, match="at step 9"):
        optimizer.step()
    assert torch.equal(w, before)


def test_a_group_that_comes_later_begins_at_its_own_first_step():
    """AdaBreg without penalty is Adam, whose bias correction counts the steps of the parameter."""
    first, late = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    optimizer = gs.SparseOptimizer([first], gs.AdaBreg(gs.L1(0.0)), 0.01)
    for _ in range(50):
        first.grad = torch.ones(2, 2)
        optimizer.step()
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.full((2, 2), 3.0)
    optimizer.step()
    assert torch.allclose(late, torch.tensor(-0.01))


def test_decay_of_the_optimizer_reaches_weights_and_not_biases():
    for make in (
        lambda groups: torch.optim.SGD(groups, 0.1, weight_decay=5e-4),
        lambda groups: gs.SparseOptimizer(groups, gs.ProxSGD(L1), 0.1, weight_decay=5e-4),
    ):
        net = gs.sparsify(mlp(), 0.2, layout="shadow")
        found = {group["name"]: group["weight_decay"] for group in make(gs.parameter_groups(net)).param_groups}
        assert found.pop("biases and normalisation") == 0.0 and set(found.values()) == {5e-4}


def test_numbers_of_numpy_and_empty_tensors_are_taken():
    w, empty = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.empty(0, 4))
    optimizer = gs.SparseOptimizer([w, empty], gs.XRDA(gs.LogL1(np.float32(0.1)), np.float64(0.5)), np.float32(0.1))
    w.grad, empty.grad = torch.ones(3, 4), torch.empty(0, 4)
    optimizer.step()
    assert bool((w < 1).all())
    assert gs.AdaBreg(L1, betas=[0.9, 0.99]) == gs.AdaBreg(L1, betas=(0.9, 0.99))


def test_schedules_of_xrda():
    step, alpha = cosine_pair(0.5, 40)
    assert [step(0), step(40), alpha(0), alpha(40)] == [0.5, 0.0, 0.0, 1.0] and alpha(10) == pytest.approx(
        1 - step(10) / 0.5
    )
    step, alpha = halving_pair(1.0, tuple(range(60, 421, 40)))
    assert [step(60), step(61), alpha(61)] == [1.0, 0.5, 0.5] and step(10**6) == 2**-10 and alpha(10**6) == 1 - 2**-10
    warm = warm_up(cosine(1.0, 10), 5)
    assert warm(1) == pytest.approx(cosine(1.0, 10)(1) / 5) and warm(7) == cosine(1.0, 10)(7)
    assert [end_of(s) for s in (step, warm, cosine_pair(1.0, 7)[1], lambda t: 1.0)] == [None, 10, 7, None]
