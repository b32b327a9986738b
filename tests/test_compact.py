"""Compaction beyond its law: random networks, every operation that is followed, reasons, and what can be done with the
smaller model."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from cases import FLAT, SGD, generator, mlp, table, train


def agree(model: nn.Module, made: nn.Module, x: Tensor, tolerance: float = 1e-12) -> None:
    """Equal outputs in eval mode."""
    with torch.no_grad():
        expected, got = copy.deepcopy(model).eval()(x), copy.deepcopy(made).eval()(x)
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * (1 + float(expected.abs().max()))


def sizes(model: nn.Module) -> list[tuple[int, ...]]:
    """The dense shapes of all layers."""
    return [row.after[:2] for row in model.compaction_report.rows]


def dead(t: Tensor, *where: int, dim: int = 0, to: float = 0.0) -> None:
    with torch.no_grad():
        t.index_fill_(dim, torch.tensor(where), to)


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic from a generator, away from zero, in float64."""
    rng, model = generator(seed), model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=rng)
        for name, b in model.named_buffers():
            if b.is_floating_point():
                b.uniform_(0.5, 1.5, generator=rng) if "running" in name else None
    return model


# -------------------------------------------------------------------- random networks

ACTS = (nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU, nn.Sigmoid, lambda: nn.ReLU(inplace=True), nn.Identity, nn.Dropout)


def random_network(seed: int) -> nn.Sequential:
    """Convolutions, then linear layers, with whatever stands between them; rows, columns and scales zero at random."""
    rng = generator(seed)

    def pick(*options):
        return options[int(torch.randint(len(options), (1,), generator=rng))]

    channels, side, layers = 3, 12, []
    for _ in range(pick(1, 2, 3)):
        out, k, padding = pick(2, 5, 6), pick(1, 3) if side > 2 else 1, pick(0, 0, 1)
        layers.append(nn.Conv2d(channels, out, k, padding=padding, bias=pick(True, False)))
        channels, side = out, side + 2 * padding - k + 1
        layers += [nn.BatchNorm2d(out, affine=pick(True, False))] if pick(True, False) else []
        layers.append(pick(*ACTS)())
        if side > 3 and pick(True, False):
            layers.append(
                pick(nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2), nn.MaxPool2d(2))
            )
            padded = layers[-1].padding
            side = (side + 2 * padded - 2) // 2 + 1
    if pick(True, False):
        layers.append(nn.AdaptiveAvgPool2d(2))
        side = 2
    layers.append(nn.Flatten())
    features = channels * side * side
    for _ in range(pick(1, 2)):
        out = pick(4, 7)
        layers.append(nn.Linear(features, out, bias=pick(True, False)))
        layers += [nn.BatchNorm1d(out)] if pick(True, False) else []
        layers.append(pick(*ACTS)())
        features = out
    model = drawn(nn.Sequential(*layers, nn.Linear(features, 3)), seed)
    with torch.no_grad():
        for m in model:
            weight = getattr(m, "weight", None)
            if weight is None:
                continue
            for dim in range(min(2, weight.dim())):
                keep = torch.rand(weight.shape[dim], generator=rng) > 0.3
                weight.mul_(keep.double().view(*(-1 if d == dim else 1 for d in range(weight.dim()))))
    return model


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_stay_the_same_function(seed):
    model, x = random_network(seed), torch.randn(3, 3, 12, 12, generator=generator(seed), dtype=torch.float64)
    made = gs.compact(model)
    agree(model, made, x)
    report = made.compaction_report
    assert report.parameters_after == sum(p.numel() for p in made.parameters()) <= report.parameters_before


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("layout", gs.LAYOUTS)
def test_random_sparse_networks_stay_the_same_function(seed, layout):
    x = torch.randn(3, 3, 12, 12, generator=generator(seed), dtype=torch.float64)
    block = ((1, 1), (2, 1), (1, 3), (4, 4))[seed % 4] if layout != "shadow" else (1, 1)
    model = gs.sparsify(random_network(seed), 0.3, init="magnitude", layout=layout, block=block, rng=generator())
    made = gs.compact(model)
    agree(model, made, x)
    for name, layer in gs.sparse_layers(made).items():
        assert layer.block == block and layer.layout.name == layout
        assert layer.support.n <= model.get_submodule(name).support.n


# -------------------------------------------------------------------- operations


class Between(nn.Module):
    """Two convolutions with something between them, the first with a dead filter that is constant -1, 0 or 1, and one
    that is not read."""

    def __init__(self, between: Callable[[Tensor], Tensor], image: bool = True, constant: float = -1.0):
        super().__init__()
        self.between, self.a = between, nn.Conv2d(2, 4, 3)
        self.b = nn.Conv2d(4, 3, 2) if image else nn.LazyLinear(3)
        with torch.no_grad():
            self(torch.zeros(1, 2, 8, 8))
        drawn(self)
        dead(self.a.weight, 1)
        dead(self.a.bias, 1, to=constant)
        dead(self.b.weight, *self.columns(2), dim=1)

    def columns(self, c: int) -> range:
        each = self.b.weight.shape[1] // 4
        return range(c * each, (c + 1) * each)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


FOLLOWED = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x, inplace=True),
    "torch.relu_": torch.relu_,
    "method": lambda x: x.tanh(),
    "method in place": lambda x: x.relu_(),
    "options": lambda x: F.leaky_relu(x, 0.3),
    "clamp": lambda x: x.clamp(min=-0.5),
    "threshold": nn.Threshold(0.1, 20.0),
    "numbers": lambda x: 2 * x - 0.5,
    "numbers in place": lambda x: x.mul_(3).add_(1),
    "a sum with itself": lambda x: x + x.abs(),
    "a product": lambda x: x * torch.sigmoid(x),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "pools": lambda x: F.avg_pool2d(F.max_pool2d(x, 2, padding=1), 2),
    "copies": lambda x: x.contiguous().clone(),
}
FLATTENED = {
    "nn.Flatten": nn.Flatten(),
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "start_dim": lambda x: torch.flatten(x, start_dim=1),
    "flatten": lambda x: x.flatten(1),
    "view, size": lambda x: x.view(x.size(0), -1),
    "view, shape": lambda x: x.view(x.shape[0], -1),
    "reshape, size()": lambda x: x.reshape(x.size()[0], -1),
    "mean": lambda x: x.mean((2, 3)),
    "mean, from behind": lambda x: x.mean(dim=[-1, -2]),
    "mean with dimensions": lambda x: x.mean((2, 3), keepdim=True).flatten(1),
    "twice": lambda x: x.flatten(1).flatten(1),
}
X = torch.randn(4, 2, 8, 8, generator=generator(), dtype=torch.float64)


@table(FOLLOWED)
@pytest.mark.parametrize("constant", [-1.0, 0.0, 1.0])
def test_operations_on_images_are_followed(case, constant):
    model = Between(case, constant=constant)
    made = gs.compact(model)
    agree(model, made, X)
    assert sizes(made) == [(2, 2), (3, 2)], made.compaction_report


@table(FLATTENED)
def test_flattening_is_followed(case):
    model = Between(case, image=False)
    made = gs.compact(model)
    agree(model, made, X)
    assert sizes(made)[0] == (2, 2) and sizes(made)[1][1] == model.b.weight.shape[1] // 2, made.compaction_report


NOT_FOLLOWED = {
    "softmax": (lambda x: torch.softmax(x, 1), "softmax"),
    "cat": (lambda x: torch.cat([x[:, :2], x[:, 2:]], 1), "getitem"),
    "a sum with fewer channels": (lambda x: x + x.mean(1, keepdim=True), "mean"),
    "another flattening": (lambda x: x.view(-1, 4, 6, 6), "view"),
    "normalisation over channels": (nn.LayerNorm((4, 6, 6), dtype=torch.float64), "LayerNorm"),
    "prelu by channel": (nn.PReLU(4), "PReLU"),
    "channel numbers": (lambda x: x * x.shape[1], "getattr"),
    "a dropout that is always active": (lambda x: F.dropout(x, 0.0, training=True), "dropout"),
}


@table(NOT_FOLLOWED)
def test_what_is_not_followed_keeps_its_channels(case):
    between, name = case
    if isinstance(between, nn.LayerNorm):
        between = between.float()
    model = Between(between)
    made = gs.compact(model)
    agree(model, made, X)
    assert sizes(made) == [(4, 2), (3, 4)]
    assert name in made.compaction_report.rows[0].reason


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2, divisor_override=3)], ids=str)
@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_an_average_that_counts_zeros_lets_only_zeros_through(pool, constant):
    model = Between(pool, constant=constant)
    made = gs.compact(model)
    agree(model, made, X)
    assert sizes(made)[0] == ((2, 2) if constant == 0 else (3, 2))


# -------------------------------------------------------------------- whole networks


class Block(nn.Module):
    """A residual block as in ResNet, its normalisations and in-place operations included."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.relu, self.down = nn.ReLU(inplace=True), None
        if channels != out:
            self.down = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


def resnet(seed: int = 0) -> nn.Sequential:
    """Three blocks, with dead channels inside and across the sums."""
    stem = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    model = drawn(nn.Sequential(*stem, Block(8, 8), Block(8, 12), Block(12, 12), *head), seed)
    for block in (model[3], model[4], model[5]):
        dead(block.conv2.weight, 0, 5, dim=1)  # not read
        dead(block.bn1.weight, 3)
        dead(block.bn1.bias, 3)  # the constant 0
    dead(model[8].weight, 7, dim=1)  # read by the last block too
    dead(model[5].conv1.weight, 7, 9, dim=1)  # read by the head too, and not
    return model


def test_a_residual_network():
    model, x = resnet(), torch.randn(2, 3, 8, 8, generator=generator(), dtype=torch.float64)
    made = gs.compact(model)
    agree(model, made, x)
    after = {row.name: row.after[:2] for row in made.compaction_report.rows}
    assert after["3.conv1"] == (5, 8) and after["3.conv2"] == (8, 5) and after["5.conv1"] == (9, 11)
    assert after["4.conv2"] == (11, 9) and after["4.down.0"] == (11, 8) and after["8"] == (4, 11)
    assert (made[5].bn1.num_features, made[5].bn2.num_features) == (9, 11)


@pytest.mark.parametrize("fuse", [False, True])
def test_a_network_that_is_kept_batch_last(fuse):
    model = gs.sparsify(random_network(3), 0.3, init="magnitude", budget="pooled", batch_last=True, fuse=fuse)
    made = gs.compact(model)
    agree(model, made, torch.randn(3, 3, 12, 12, generator=generator(), dtype=torch.float64))
    assert [type(m) for m in made] == [type(m) for m in model]
    assert not hasattr(made, "sparsity_report") and hasattr(model, "sparsity_report")


class LeNet5(nn.Module):
    """20-50-500, as in the pruning literature, on 16 x 16 images."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 3)
        self.fc1, self.fc2 = nn.Linear(50 * 2 * 2, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


def test_lenet_after_training_with_a_penalty_on_filters():
    """GroupL1 makes rows exactly zero; TargetDensity steers how many; compaction removes them. In float32, to 1e-6."""
    torch.manual_seed(0)
    model, steps = LeNet5(), 60
    filters = {"params": [model.conv1.weight, model.conv2.weight], "rule": gs.ProxSGD(gs.GroupL1(1e-2, "channel"))}
    rest = [p for p in model.parameters() if p.dim() != 4]
    opt = gs.SparseOptimizer([filters, {"params": rest}], gs.ProxSGD(gs.GroupL1(1e-2, "row")), lr=0.05)
    target = gs.TargetDensity(opt, 0.3, steps, every=5)
    rng = generator()
    for _ in range(steps):
        y = torch.randint(10, (16,), generator=rng)
        x = torch.randn(16, 1, 16, 16, generator=rng) + y.view(-1, 1, 1, 1) / 3
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
        target.step()
    rows = {name: int((p.flatten(1) != 0).any(1).sum()) for name, p in model.named_parameters() if p.dim() > 1}
    made = gs.compact(model)
    agree(model, made, torch.randn(64, 1, 16, 16, generator=rng), 1e-6)
    assert rows["fc1.weight"] < 500 and made.fc1.out_features <= rows["fc1.weight"]
    assert (
        made.conv2.out_channels <= max(1, rows["conv2.weight"]) and made.fc1.in_features == 4 * made.conv2.out_channels
    )
    report = made.compaction_report
    assert report.parameters_after < 0.5 * report.parameters_before, report


# -------------------------------------------------------------------- reasons


def test_reasons_are_given():
    hooked, grouped, shared = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    last = nn.Linear(4, 4)
    last.weight = shared.weight
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), hooked, grouped, nn.ReLU(), shared, last)
    text = str(gs.compact(model).compaction_report)
    for reason in (
        "its output goes into 2 (Linear), which must not change",
        "it has hooks",
        "its output goes into 5 (Linear), which must not change",
        "it shares a parameter with another module",
    ):
        assert reason in text
    assert len(text.splitlines()) == 7


def test_other_reasons():
    groups = gs.compact(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 3)))
    assert "2 groups" in groups.compaction_report.rows[1].reason
    mine = type("Mine", (nn.Linear,), {})
    assert "subclass" in gs.compact(nn.Sequential(mine(3, 4), nn.Linear(4, 2))).compaction_report.rows[0].reason
    assert gs.compact(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).compaction_report.rows[0].reason == (
        "no output channel is dead"
    )
    assert gs.compact(nn.Linear(3, 4)).compaction_report.rows[0].reason == "the model reads its parameters directly"

    class Branches(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    made = gs.compact(Branches(nn.Linear(3, 3)))
    assert "torch.fx cannot trace it" in made.compaction_report.reason and "TraceError" in str(made.compaction_report)


def test_a_layer_that_is_not_called_stays():
    model = Between(F.relu)
    model.spare = nn.Linear(3, 3)
    made = gs.compact(model)
    assert made.compaction_report.rows[-1].reason == "it is not called" and sizes(made)[-1] == (3, 3)


# -------------------------------------------------------------------- edges


def test_one_channel_stays():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    for layer in (model[0], model[2]):
        dead(layer.weight, *range(layer.out_features))
    for make in (lambda m: m, lambda m: gs.sparsify(m, 0.5, init="keep", rng=generator())):
        given = make(copy.deepcopy(model))
        made = gs.compact(given)
        agree(given, made, torch.randn(5, 3, dtype=torch.float64))
        assert sizes(made) == [(1, 3), (2, 1)]


def test_an_empty_support():
    first = gs.SparseLinear(5, 4, support=gs.Support.from_ids(torch.empty(0, dtype=torch.int64), (4, 5)))
    model = nn.Sequential(first, nn.Tanh(), gs.SparseLinear(4, 3, density=0.9, bias=False, rng=generator())).double()
    made = gs.compact(model)
    agree(model, made, torch.randn(2, 5, dtype=torch.float64))
    assert sizes(made) == [(1, 5), (3, 1)] and made[2].bias is not None


def test_a_bias_appears_only_where_a_constant_needs_one():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    dead(model[0].weight, 1)
    dead(model[0].bias, 1, to=-1.0)
    assert gs.compact(model)[2].bias is None
    dead(model[0].bias, 1, to=1.0)
    assert torch.equal(gs.compact(model)[2].bias, model[2].weight[:, 1])


def test_infinite_constants_stay():
    model = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)).double()
    dead(model[0].weight, 1)
    dead(model[0].bias, 1, to=math.inf)
    assert sizes(gs.compact(model))[0] == (4, 3)


def test_batch_statistics_are_no_constants():
    """A normalisation that keeps no running statistics uses those of the batch in eval mode too."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU(), nn.Linear(4, 2))
    drawn(model)
    dead(model[0].weight, 1)
    dead(model[3].weight, 2, dim=1)
    made = gs.compact(model)
    agree(model, made, torch.randn(5, 3, dtype=torch.float64))
    assert sizes(made) == [(3, 3), (2, 3)]


def test_random_numbers_are_left_alone():
    model = gs.sparsify(random_network(1), 0.3, init="magnitude", rng=generator())
    state = torch.get_rng_state()
    gs.compact(model)
    assert torch.equal(torch.get_rng_state(), state)


# -------------------------------------------------------------------- the smaller model is a model


def test_gradients_of_what_is_not_read_were_none():
    """Channels that are not read go without a trace in training mode, too: the others have the gradients that they
    had."""
    model = drawn(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)))
    dead(model[3].weight, 1, 4, dim=1)
    made, x = gs.compact(model), torch.randn(7, 3, generator=generator(), dtype=torch.float64)
    for m in (model, made):
        m(x).square().sum().backward()
    kept = [0, 2, 3, 5]
    for mine, theirs in ((made[0].weight.grad, model[0].weight.grad), (made[1].bias.grad, model[1].bias.grad)):
        assert torch.allclose(mine, theirs[kept], rtol=1e-12, atol=1e-14)


def test_a_compacted_model_trains_rewires_is_counted_and_saved(tmp_path):
    model = gs.sparsify(mlp(), 0.3, rng=generator())
    dead(model[2].values, *range(3))
    with torch.no_grad():
        layer = model[2]
        rows = layer.support.rows().long()
        layer.values[(rows == 1) | (rows == 4)] = 0
    made = gs.compact(model)
    assert made[2].out_features == 9 and made[4].in_features == 9
    agree(model, made, FLAT.batch(0)[0])
    ledger = gs.Ledger(made, FLAT.batch(0)[0])
    assert ledger.kept < gs.Ledger(model, FLAT.batch(0)[0]).kept
    opt = SGD(made.parameters(), lr=0.05, momentum=0.9)
    losses = train(made, opt, gs.Rewirer(made, opt, gs.SET(20, 4)), FLAT.batches(10))
    assert all(math.isfinite(loss) for loss in losses)
    again = copy.deepcopy(made)
    again.load_state_dict(made.state_dict())
    agree(made, again, FLAT.batch(0)[0])
    agree(made, gs.densify(copy.deepcopy(made)), FLAT.batch(0)[0])
