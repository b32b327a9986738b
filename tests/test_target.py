"""TargetDensity: runs end at the density asked for, whatever the rule and the first guess of lam."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import generator, table

STEPS = 300
MAKE = {
    "prox-SGD": (lambda lam: gs.ProxSGD(gs.L1(lam), 0.9), 0.3),
    "xRDA": (lambda lam: gs.XRDA(gs.LogL1(lam)), 0.3),
    "LinBreg": (lambda lam: gs.LinBreg(gs.L1(lam), momentum=0.9), 0.1),
    "AdaBreg": (lambda lam: gs.AdaBreg(gs.L1(lam)), 0.005),
    "RDA": (lambda lam: gs.RDA(gs.L1(lam)), 0.1),
}


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, nn.Module]:
    rng = generator(seed)
    x = torch.randn(512, 30, generator=rng)
    net = nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 3))
    for p in net.parameters():
        nn.init.normal_(p, 0.0, 0.2, generator=rng)
    return x, (x[:, :3] + 0.5 * x[:, 3:6]).argmax(1), net


def run(rule, lr, density, steps=STEPS, seed=0, stop=None, resume=None, **options):
    x, y, net = problem(seed)
    opt = gs.SparseOptimizer(net.parameters(), rule, gs.cosine(lr, steps))
    target = gs.TargetDensity(opt, density, steps, **options)
    if resume is not None:
        net.load_state_dict(resume[0])
        opt.load_state_dict(resume[1])
        target.load_state_dict(resume[2])
    for t in range(target.t, stop or steps):
        batch = torch.randint(512, (32,), generator=generator(t))
        opt.zero_grad()
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        opt.step()
        target.step()
    return net, opt, target


@table(MAKE)
@pytest.mark.parametrize("density", [0.1, 0.02])
@pytest.mark.parametrize("guess", [1e-5, 1e-2])
def test_runs_end_where_they_are_asked_to(case, density, guess):
    make, lr = case
    _, _, target = run(make(guess), lr, density)
    assert abs(target.measure() - density) <= 0.005


@pytest.mark.parametrize(("lam", "density"), [(3e-3, 0.1), (3e-3, 0.05), (1e-2, 0.1), (1e-2, 0.05)])
def test_plain_prox_sgd_lands_although_zeros_have_no_memory(lam, density):
    """Without momentum a zero is known by its next step only, of which the last gradient tells: to a few weights."""
    _, _, target = run(gs.ProxSGD(gs.L1(lam)), 0.3, density)
    assert abs(target.measure() - density) <= 0.006  # of 1,980 weights


def test_weights_that_do_not_train_are_not_counted():
    x, y, net = problem()
    net[0].weight.requires_grad_(False)
    opt = gs.SparseOptimizer(net.parameters(), gs.LinBreg(gs.L1(0.1), momentum=0.9), gs.cosine(0.1, STEPS))
    target = gs.TargetDensity(opt, 0.3, STEPS)
    assert target.total == net[2].weight.numel()
    for t in range(STEPS):
        batch = torch.randint(512, (32,), generator=generator(t))
        opt.zero_grad()
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        opt.step()
        target.step()
    assert abs(float(net[2].weight.count_nonzero()) / target.total - 0.3) < 0.01


def test_a_schedule_that_ends_before_the_run_is_refused():
    _, _, net = problem()
    opt = gs.SparseOptimizer(net.parameters(), gs.LinBreg(gs.L1(0.1)), gs.cosine(0.1, 100))
    with pytest.raises(gs.UsageError, match="ends at step 100"):
        gs.TargetDensity(opt, 0.1, 300)


def test_the_log_says_what_was_measured_and_done():
    _, opt, target = run(gs.LinBreg(gs.L1(0.1)), 0.1, 0.1, every=20, landing=0)
    assert [line.t for line in target.log] == list(range(20, STEPS + 1, 20))
    assert target.log[-1].target == pytest.approx(0.1) and target.log[-1].strength == opt.param_groups[0]["strength"]
    assert all(0 < line.density <= 1 for line in target.log) and opt.param_groups[1]["strength"] == 1.0


@pytest.mark.parametrize("name", ["prox-SGD", "LinBreg"])
def test_a_resumed_run_goes_on_bit_for_bit(name):
    make, lr = MAKE[name]
    net, opt, target = run(make(1e-3), lr, 0.1, stop=155)
    state = copy.deepcopy((net.state_dict(), opt.state_dict(), target.state_dict()))
    resumed = run(make(1e-3), lr, 0.1, resume=state)
    whole = run(make(1e-3), lr, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(resumed[0].parameters(), whole[0].parameters(), strict=True))
    assert resumed[2].log == whole[2].log


def test_a_strength_set_by_hand_is_where_it_goes_on():
    """A reset in the middle of a run: it ends where it was asked to nevertheless."""
    x, y, net = problem()
    opt = gs.SparseOptimizer(net.parameters(), gs.LinBreg(gs.L1(0.05)), 0.1)
    target = gs.TargetDensity(opt, 0.1, STEPS)
    for t in range(STEPS):
        if t == 200:
            opt.param_groups[0]["strength"] = 1.0
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
        target.step()
    assert abs(target.measure() - 0.1) <= 0.005


def test_compact_values_are_counted_over_the_dense_weights():
    x, y, net = problem()
    net = gs.sparsify(net, 0.1, rng=generator(), budget="pooled")
    opt = gs.SparseOptimizer(gs.parameter_groups(net), gs.LinBreg(gs.L1(0.02)), 0.1, allow_compact=True)
    multilevel = gs.Multilevel(net, opt, 4)
    target = gs.TargetDensity(opt, 0.2, STEPS, multilevel=multilevel, every=5)
    for _ in range(STEPS):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        multilevel.step()
        target.step()
    assert target.measure() == pytest.approx(
        sum(int((layer.values != 0).sum()) for layer in gs.sparse_layers(net).values()) / 1980
    )
    assert abs(target.measure() - 0.2) <= 0.005


def optimizer(rule=None, **group):
    return gs.SparseOptimizer(
        [{"params": [nn.Parameter(torch.ones(3, 4))], **group}], rule or gs.ProxSGD(gs.L1(0.1)), 0.1
    )


def compact():
    net = gs.sparsify(problem()[2], 0.2)
    return gs.SparseOptimizer(gs.parameter_groups(net), gs.LinBreg(gs.L1(0.1)), 0.1, allow_compact=True)


REFUSALS = {
    "an optimizer of torch": (
        lambda: gs.TargetDensity(torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1), 0.1, 100),
        "SparseOptimizer",
    ),
    "density of zero": (lambda: gs.TargetDensity(optimizer(), 0.0, 100), "density"),
    "too few measurements": (lambda: gs.TargetDensity(optimizer(), 0.1, 50), "too few measurements"),
    "nothing to steer": (lambda: gs.TargetDensity(optimizer(gs.ProxSGD(gs.TopK(3))), 0.1, 100), "no strength"),
    "lambda of zero": (lambda: gs.TargetDensity(optimizer(gs.ProxSGD(gs.L1(0.0))), 0.1, 100), "no strength"),
    "strength of zero": (lambda: gs.TargetDensity(optimizer(strength=0.0), 0.1, 100), "strength of 0"),
    "reach of zero": (lambda: gs.TargetDensity(optimizer(), 0.1, 100, reach=0.0), "reach"),
    "no gain": (lambda: gs.TargetDensity(optimizer(), 0.1, 100, gain=0.0), "gain"),
    "compact values alone": (lambda: gs.TargetDensity(compact(), 0.1, 100), "compact"),
}


@table(REFUSALS)
def test_misuse_is_refused(case):
    make, words = case
    with pytest.raises(gs.UsageError, match=words):
        make()
