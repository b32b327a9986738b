"""Sparse layers, and the way from a dense model to a sparse one and back."""

import copy
import math
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import CONVS, FLAT, IMAGES, convnet, generator, mlp, same_state, table
from gossamer.layouts import gather


def linear(density: float = 0.3, seed: int = 0, **options) -> gs.SparseLinear:
    return gs.SparseLinear(11, 7, density=density, rng=generator(seed), dtype=torch.float64, **options)


def image_layer(layout: str, seed: int = 0) -> gs.SparseConv2d:
    options = {"density": 0.3, "layout": layout, "rng": generator(seed), "dtype": torch.float64}
    return gs.SparseConv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), **options)


LAYERS = {
    "linear csr": (lambda seed: linear(seed=seed), (4, 11)),
    "linear masked": (lambda seed: linear(seed=seed, layout="masked"), (4, 11)),
    "linear tiles": (lambda seed: linear(seed=seed, block=(2, 3)), (4, 11)),
    "linear masked tiles": (lambda seed: linear(seed=seed, block=(2, 3), layout="masked"), (4, 11)),
    "linear without bias": (lambda seed: linear(seed=seed, bias=False), (4, 11)),
    "conv csr": (lambda seed: image_layer("csr", seed), (2, 3, 7, 6)),
    "conv masked": (lambda seed: image_layer("masked", seed), (2, 3, 7, 6)),
}


def inputs(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=generator(5), dtype=torch.float64)


# ---------------------------------------------------------------- one layer


@table(LAYERS)
def test_a_layer_is_its_dense_twin(case):
    """Output, input gradient and bias gradient; the gradient of the values is that of the dense weight on the
    support."""
    make, shape = case
    layer = make(0)
    x, dense, bias = inputs(shape).requires_grad_(), layer.to_dense().requires_grad_(), layer.bias
    y = layer(x)
    grads = torch.autograd.grad(y.sin().sum(), [x, layer.values, *([] if bias is None else [bias])])
    x2, bias2 = inputs(shape).requires_grad_(), None if bias is None else bias.detach().clone().requires_grad_()
    g = layer.geometry
    y2 = F.linear(x2, dense, bias2) if g is None else F.conv2d(x2, dense, bias2, g.stride, g.padding, g.dilation)
    grads2 = torch.autograd.grad(y2.sin().sum(), [x2, dense, *([] if bias2 is None else [bias2])])
    assert torch.allclose(y, y2) and torch.allclose(grads[0], grads2[0])
    assert torch.allclose(
        layer.layout.compact(grads[1], layer.support), gather(grads2[1].reshape(layer.support.shape), layer.support)
    )
    assert bias is None or torch.allclose(grads[2], grads2[2])


@table(LAYERS)
def test_the_dense_weight_holds_the_values_and_exact_zeros(case):
    layer = case[0](0)
    dense = layer.to_dense()
    assert dense.shape == layer.dense_shape == layer.weight.shape
    mask = layer.support.mask().view(layer.dense_shape)
    assert (dense[~mask] == 0).all() and (dense[mask] != 0).all()
    assert layer.density == mask.double().mean().item() == pytest.approx(layer.support.weights / mask.numel())
    assert torch.autograd.grad(layer.weight.sum(), layer.values)[0].sum() == mask.sum()


@table(LAYERS)
@pytest.mark.parametrize(
    "way",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), lambda layer: layer.to("cpu")],
    ids=["deepcopy", "pickle", "to"],
)
def test_copies_are_equal_and_apart(case, way):
    make, shape = case
    layer = make(0)
    x, before = inputs(shape), make(0)
    other = way(layer)
    assert same_state(other, before) and torch.equal(other(x), before(x)) and repr(other) == repr(before)
    if other is not layer:
        gs.set_support_(other, gs.Support.random(layer.support.shape, layer.support.n, layer.block, generator(9)))
        assert same_state(layer, before)
        other.load_state_dict(layer.state_dict())  # the hook that reads an index came along
        assert torch.equal(other(x), before(x))


def test_to_another_dtype():
    layer = gs.SparseLinear(11, 7, density=0.3, rng=generator())
    x = inputs((4, 11))
    before = layer(x.float())
    assert layer.to(torch.float64)(x).dtype == torch.float64 and torch.allclose(layer(x).float(), before, atol=1e-5)
    assert all(
        t.dtype == torch.int32
        for t in (layer.crow, layer.col, layer.support.ccol, layer.support.row, layer.support.perm)
    )


def test_values_in_half_precision_are_refused_with_a_reason():
    with pytest.raises(gs.UsageError, match="must be float32 or float64, not torch.float16"):
        gs.SparseLinear(11, 7, density=0.3).to(torch.float16)(torch.zeros(2, 11, dtype=torch.float16))


def test_repr_says_what_the_layer_is():
    assert repr(
        linear(0.3, block=(2, 3), bias=False)
    ) == "SparseLinear(7, 11, density=0.2727, n=4, layout=csr, block=(2, 3), bias=False)" or (
        repr(linear(0.3, block=(2, 3), bias=False)).startswith("SparseLinear(7, 11, density=0.")
    )
    assert "layout=masked" in repr(image_layer("masked")) and "5, 3, 3, 2" in repr(image_layer("masked"))


def test_kernels_say_when_sparsity_is_simulated():
    assert set(linear().kernels) == {"forward", "input_gradient", "weight_gradient"}
    assert set(image_layer("csr").kernels) == set(linear().kernels)
    for kernel in (*linear().kernels.values(), *image_layer("csr").kernels.values()):
        assert "simulated" not in kernel
    assert set(linear(layout="masked").kernels.values()) == {"dense (simulated)"}


@pytest.mark.parametrize("density", [1.0, 0.25, 0.05])
def test_initial_values_have_the_variance_of_kaiming_with_the_fan_in_scaled(density):
    layer = gs.SparseLinear(400, 500, density=density, rng=generator())
    expected = math.sqrt(2 / (density * 400))
    values, bias = layer.values.detach(), layer.bias.detach()
    assert float(values.std()) == pytest.approx(expected, rel=0.03) and abs(float(values.mean())) < expected / 20
    assert float(bias.abs().max()) <= 1 / math.sqrt(400)
    conv = gs.SparseConv2d(40, 50, 3, density=density, rng=generator())
    assert float(conv.values.detach().std()) == pytest.approx(math.sqrt(2 / (density * 360)), rel=0.05)


def test_a_generator_decides_everything():
    state = torch.get_rng_state()
    a, b, c = linear(seed=3), linear(seed=3), linear(seed=4)
    assert same_state(a, b) and not same_state(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_a_given_support():
    s = gs.Support.from_ids(torch.tensor([3, 40, 76]), (7, 11))
    layer = gs.SparseLinear(11, 7, support=s)
    assert layer.support.same(s) and layer.values.shape == (3,)


def test_layers_may_share_a_support_and_then_part():
    s = gs.Support.random((7, 11), 20, rng=generator())
    ids = s.ids()
    a, b = (gs.SparseLinear(11, 7, support=s, rng=generator()) for _ in range(2))
    gs.set_support_(a, gs.Support.random((7, 11), 20, rng=generator(1)))
    assert torch.equal(s.ids(), ids) and b.support.same(s) and not a.support.same(s)


@pytest.mark.parametrize(("padding", "expected"), [("valid", (0, 0)), ("same", (2, 1)), (1, (1, 1)), ((0, 3), (0, 3))])
def test_paddings(padding, expected):
    layer = gs.SparseConv2d(2, 3, (5, 3), padding=padding, density=0.5, dtype=torch.float64)
    dense = nn.Conv2d(2, 3, (5, 3), padding=padding, dtype=torch.float64)
    x = inputs((2, 2, 8, 9))
    assert layer.padding == expected and layer(x).shape == dense(x).shape


def test_empty_batches():
    assert linear()(torch.zeros(0, 11, dtype=torch.float64)).shape == (0, 7)
    assert (
        image_layer("csr")(torch.zeros(0, 3, 7, 6, dtype=torch.float64)).shape
        == image_layer("masked")(torch.zeros(0, 3, 7, 6).double()).shape
    )


def test_nothing_is_sensed_without_a_gradient():
    layer, told = linear(), []
    layer.observe(lambda dy, x: told.append((dy, x))).open()
    with torch.no_grad():
        layer(inputs((4, 11)))
    assert not told
    layer(inputs((4, 11))).sum().backward()
    ((dy, x),) = told
    assert (
        torch.equal(x, inputs((4, 11)))
        and torch.equal(dy, torch.ones(4, 7, dtype=torch.float64))
        and not dy.requires_grad
    )


def test_a_layer_used_twice_senses_twice():
    """The gradient at a coordinate is the sum over the uses, as it is on the support."""
    layer = gs.SparseLinear(7, 7, density=0.3, rng=generator(), dtype=torch.float64)
    ids, sensed = layer.support.outside(torch.arange(5)), []
    layer.observe(lambda dy, x: sensed.append(layer.sensed(dy, x, ids))).open()
    x, dense = inputs((4, 7)), layer.to_dense().requires_grad_()
    layer(layer(x).tanh()).square().sum().backward()
    F.linear(F.linear(x, dense, layer.bias).tanh(), dense, layer.bias).square().sum().backward()
    assert len(sensed) == 2 and torch.allclose(sum(sensed), dense.grad.flatten()[ids])


@table(LAYERS)
def test_flow_is_the_sum_of_squares_by_row_and_column(case):
    """Of the output's gradient per block row and of the input per block column (a convolution's taps share their
    channel's)."""
    make, shape = case
    layer, x = make(0), inputs(shape)
    dy = torch.randn(layer(x).shape, generator=generator(6), dtype=torch.float64)
    rows, cols = (t.transpose(0, 1).flatten(1).square().sum(1).tolist() for t in (dy, x))
    taps = math.prod(layer.dense_shape[2:])
    cols = [c for c in cols for _ in range(taps)]
    h, w = layer.block
    expected = [[sum(t[i : i + size]) for i in range(0, len(t), size)] for t, size in ((rows, h), (cols, w))]
    for got, by_hand in zip(layer.flow(dy, x), expected, strict=True):
        assert got.tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("layout", gs.LAYOUTS)
def test_autocast_multiplies_in_half_and_keeps_the_values(layout):
    layer = gs.SparseLinear(11, 7, density=0.3, layout=layout, rng=generator())
    conv = gs.SparseConv2d(3, 5, 3, density=0.3, layout=layout, rng=generator())
    for module, x in ((layer, torch.randn(4, 11)), (conv, torch.randn(2, 3, 5, 5))):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        y.float().square().sum().backward()
        assert y.dtype == torch.bfloat16 and module.values.dtype == module.values.grad.dtype == torch.float32
        assert torch.allclose(y.float(), module(x), atol=0.1)


@pytest.mark.parametrize("layout", ["masked", "csr"])  # shadow looks its support up between graphs
def test_compiles_in_one_graph(layout):
    """Plain steps, before and after the support has changed."""
    model = gs.sparsify(mlp(), 0.3, layout=layout, rng=generator())
    plain = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for t in range(2):
        x, y = FLAT.batch(t)
        losses = [F.cross_entropy(m(x), y) for m in (compiled, plain)]
        for loss in losses:
            loss.backward()
        assert torch.allclose(*losses)
        for m in (model, plain):
            for layer in gs.sparse_layers(m).values():
                gs.set_support_(
                    layer, gs.Support.random(layer.support.shape, layer.support.n, rng=generator(t))
                ) if t == 0 else None
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad)


LAYER_REFUSALS = {
    "neither": (lambda: gs.SparseLinear(3, 4), "either density or support"),
    "both": (lambda: gs.SparseLinear(3, 4, density=0.5, support=gs.Support.full((4, 3))), "either density or support"),
    "support of another shape": (lambda: gs.SparseLinear(3, 4, support=gs.Support.full((3, 4))), "4 x 3 matrix"),
    "density": (lambda: gs.SparseLinear(3, 4, density=0.0), "fraction of the weights"),
    "sparsity instead of density": (lambda: gs.SparseConv2d(3, 4, 3, density=95), "95 % zeros is density=0.05"),
    "layout": (lambda: gs.SparseLinear(3, 4, density=0.5, layout="crs"), "did you mean 'csr'"),
    "block": (lambda: gs.SparseLinear(3, 4, density=0.5, block=(0, 1)), "block must be two positive"),
    "no outputs": (lambda: gs.SparseLinear(3, 0, density=0.5), "shape must be two positive"),
    "fan-in": (lambda: gs.SparseLinear(3, 4, density=0.2, min_fan_in=1), "cannot give each of 4"),
    "kernel size": (lambda: gs.SparseConv2d(3, 4, (3, 3, 3), density=0.5), "one whole number, or a pair"),
    "same with stride": (
        lambda: gs.SparseConv2d(3, 4, 3, stride=2, padding="same", density=0.5),
        "padding must be one or two",
    ),
    "same with even kernel": (
        lambda: gs.SparseConv2d(3, 4, 2, padding="same", density=0.5),
        "padding must be one or two",
    ),
    "padding's name": (lambda: gs.SparseConv2d(3, 4, 3, padding="sane", density=0.5), "padding must be one or two"),
    "features": (lambda: linear()(torch.zeros(2, 10).double()), "last dimension of the input must be 11"),
    "channels": (lambda: image_layer("csr")(torch.zeros(2, 4, 5, 5).double()), r"\(batch, 3, height, width\)"),
    "support of another layer": (
        lambda: gs.set_support_(linear(), gs.Support.full((3, 4))),
        r"must have shape \(7, 11\)",
    ),
}


@table(LAYER_REFUSALS)
def test_misuse_is_refused(case):
    call, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        call()


# ---------------------------------------------------------------- state_dict


@table(LAYERS)
def test_a_state_dict_brings_its_support(case):
    """Index and values are adopted together, also where n differs, and what was saved is not touched by later
    training."""
    make, shape = case
    mine, theirs = make(0), make(1)
    gs.set_support_(theirs, gs.Support.random(theirs.support.shape, theirs.support.n - 1, theirs.block, generator(2)))
    state = theirs.state_dict()
    assert set(state) <= {"values", "crow", "col", "bias"}
    mine.load_state_dict(state)
    assert (
        mine.support.same(theirs.support)
        and same_state(mine, theirs)
        and torch.equal(mine(inputs(shape)), theirs(inputs(shape)))
    )
    assert mine.values.requires_grad and mine.values.is_leaf
    saved = copy.deepcopy(state)
    gs.set_support_(mine, gs.Support.random(mine.support.shape, mine.support.n, mine.block, generator(7)))
    assert all(torch.equal(state[key], saved[key]) for key in state)


def bad_states(layer: gs.SparseLayer) -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    """State dicts that must not load, each with the reason."""

    def state(**changes):
        full = {**copy.deepcopy(layer.state_dict()), **changes}
        return {key: t for key, t in full.items() if t is not None}

    col, crow, values = layer.col.clone(), layer.crow.clone(), layer.values.detach()
    other = gs.Support.random(layer.support.shape, layer.support.n, rng=generator(77))
    return {
        "no index": (state(col=None, crow=None), "must be loaded together"),
        "half an index": (state(crow=None), "must be loaded together"),
        "unsorted": (state(col=col.flip(0)), "increase strictly|lie in"),
        "out of range": (state(col=col + 11), "columns must lie in"),
        "negative": (state(col=col - 11), "columns must lie in"),
        "float": (state(col=col.float()), "vector of integers"),
        "short column list": (state(col=col[:-1]), "crow must run from 0"),
        "short pointers": (state(crow=crow[:-1]), "crow must have 8 entries"),
        "short values": (state(values=values[:-1]), "23 kept blocks need"),
        "index of another support alone": (
            state(values=None, crow=other.crow, col=other.col),
            "its values are missing",
        ),
    }


@pytest.mark.parametrize("name", bad_states(linear()))
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_that_does_not_fit_is_refused(name, strict):
    """Also with strict=False; and the layer is what it was: torch would copy a hostile index of the right length over
    its own."""
    layer, before = linear(), linear()
    state, reason = bad_states(layer)[name]
    with pytest.raises(RuntimeError, match=reason):
        layer.load_state_dict(state, strict=strict)
    assert same_state(layer, before)


def test_loading_nothing_changes_nothing():
    layer, before = linear(), linear()
    layer.load_state_dict({}, strict=False)
    assert same_state(layer, before)


# ---------------------------------------------------------------- sparsify


def kinds(model: nn.Module) -> list[str]:
    return [type(m).__name__ for m in model.modules() if not list(m.children())]


def test_sparsify_replaces_linear_and_conv_in_place():
    model = convnet()
    norm, bias, order = model[1], model[0].bias, kinds(model)
    assert gs.sparsify(model, 0.3, rng=generator()) is model
    assert kinds(model) == [k.replace("Conv2d", "SparseConv2d").replace("Linear", "SparseLinear") for k in order]
    assert model[1] is norm and model[0].bias is bias  # the same parameters: an optimizer that holds them stays valid
    assert list(gs.sparse_layers(model)) == ["0", "3", "6"]
    assert model(IMAGES.batch(0)[0]).shape == (8, 5)


def test_the_report_says_what_and_why():
    model = gs.sparsify(convnet(), 0.3, exclude="6", rng=generator())
    report = model.sparsity_report
    rows = {row.name: row for row in report.rows}
    assert [rows[name].sparse for name in ("0", "1", "3", "6")] == [True, False, True, False]
    assert rows["6"].reason == "excluded" and "neither Linear nor Conv2d" in rows["1"].reason
    assert rows["0"].shape == (5, 2, 3, 3) and rows["0"].nonzeros == model[0].support.n
    assert report.density == pytest.approx(0.3, abs=0.005) and report.asked == 0.3
    text = str(report)
    assert (
        "5 x 2 x 3 x 3" in text
        and "dense: excluded" in text
        and text.splitlines()[0].split() == ["layer", "kind", "shape", "density", "non-zero"]
    )


def test_verbose_prints_the_report(capsys):
    model = gs.sparsify(mlp(), 0.3, verbose=True)
    assert capsys.readouterr().out == f"{model.sparsity_report}\n"


class Net(nn.Module):
    """Containers, nesting, names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.body = nn.ModuleList([nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2)])
        self.head = nn.ModuleDict({"fc": nn.Linear(8, 3), "fc2": nn.Linear(8, 3)})


PICKS = {
    "everything": ({}, ["stem", "body.0.0", "body.0.2", "body.1.0", "body.1.2", "head.fc", "head.fc2"]),
    "a name": ({"include": "head.fc"}, ["head.fc"]),
    "a container": ({"include": "body.1"}, ["body.1.0", "body.1.2"]),
    "several": ({"include": ["stem", "body.0"]}, ["stem", "body.0.0", "body.0.2"]),
    "a pattern": ({"include": r"re:^body\.\d\.0$"}, ["body.0.0", "body.1.0"]),
    "a compiled pattern": ({"include": re.compile("fc")}, ["head.fc", "head.fc2"]),
    "a type": ({"include": nn.Conv2d}, ["stem"]),
    "not a name": ({"exclude": ("stem", "head")}, ["body.0.0", "body.0.2", "body.1.0", "body.1.2"]),
    "not a type": ({"exclude": nn.Linear}, ["stem"]),
    "some but not all of them": ({"include": "body", "exclude": "re:2$"}, ["body.0.0", "body.1.0"]),
}


@table(PICKS)
def test_include_and_exclude(case):
    options, expected = case
    assert list(gs.sparse_layers(gs.sparsify(Net(), 0.5, budget="pooled", rng=generator(), **options))) == expected


class Special(nn.Linear):
    pass


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: None)
    return layer


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


DENSE_FOR_A_REASON = {
    "groups": (lambda: nn.Conv2d(4, 4, 3, groups=2), "0", "groups=2: "),
    "padding mode": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "0", "padding_mode='reflect'"),
    "asymmetric padding": (lambda: nn.Conv2d(4, 4, 2, padding="same"), "0", "not symmetric"),
    "hook": (hooked, "0", "hooks, which the conversion would remove"),
    "lazy": (lambda: nn.LazyLinear(4), "0", "run one batch"),
    "subclass": (lambda: Special(4, 4), "0", "Special is a subclass"),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "0",
        "ParametrizedLinear is a subclass",
    ),
    "other layer": (lambda: nn.Conv1d(4, 4, 3), "0", "Conv1d is neither"),
    "embedding": (lambda: nn.Embedding(5, 4), "0", "Embedding is neither"),
    "shared weight": (tied, "0.0", "shared with 0.1"),
    "attention": (lambda: nn.MultiheadAttention(8, 2), "0.out_proj", "NonDynamicallyQuantizableLinear is a subclass"),
    "attention's own weight": (lambda: nn.MultiheadAttention(8, 2), "0", "MultiheadAttention is neither"),
    "sparse already": (lambda: gs.SparseLinear(4, 4, density=0.5), "0", "sparse already"),
}


@table(DENSE_FOR_A_REASON)
def test_what_stays_dense_says_why(case):
    make, name, reason = case
    with torch.random.fork_rng():
        inner = make()
        model = nn.Sequential(inner, nn.Linear(6, 7))
        model = gs.sparsify(model, 0.3)
    rows = {row.name: row for row in model.sparsity_report.rows}
    assert reason in rows[name].reason and not rows[name].sparse
    assert rows["1"].sparse and model[0] is inner


def test_a_transformer_block_is_sparse_where_it_can_be():
    """The feed-forward matrices; attention stays dense. Torch's fused path in eval mode, which reads ``weight``,
    agrees with the layers."""
    block = gs.sparsify(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double(), 0.3, rng=generator()
    )
    assert list(gs.sparse_layers(block)) == ["linear1", "linear2"]
    x = torch.randn(2, 5, 8, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(block.train()(x), block.eval()(x))


def test_a_layer_with_budget_one_is_left_dense_unless_all_are():
    model = gs.sparsify(mlp(), 0.3, budget={"0": 1.0})
    assert (
        list(gs.sparse_layers(model)) == ["2", "4"]
        and model.sparsity_report.rows[0].reason == "its budget is density 1"
    )
    assert len(gs.sparse_layers(gs.sparsify(mlp(), 1.0))) == 3


def test_a_single_layer_is_returned_anew():
    layer = gs.sparsify(nn.Linear(6, 7), 0.3)
    assert isinstance(layer, gs.SparseLinear) and "(root)" in str(layer.sparsity_report)
    assert isinstance(gs.densify(layer), nn.Linear)


def test_a_module_in_two_places_stays_one():
    shared = nn.Linear(5, 5)
    model = gs.sparsify(nn.Sequential(shared, nn.ReLU(), shared), 0.3)
    assert isinstance(model[0], gs.SparseLinear) and model[0] is model[2]


@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
@pytest.mark.parametrize("init", ["keep", "magnitude"])
def test_initial_values_from_the_model(init, block):
    """keep: the model's weights on a random support; magnitude: its largest blocks."""
    for make in (mlp, convnet):
        model = gs.sparsify(make(), 0.3, init=init, block=block, rng=generator())
        dense = {name: m.weight.detach() for name, m in make().named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
        for name, layer in gs.sparse_layers(model).items():
            mask = layer.support.mask().view(layer.dense_shape)
            assert torch.equal(layer.to_dense(), torch.where(mask, dense[name], 0.0))
            if init == "magnitude" and block == (1, 1):
                assert dense[name][mask].abs().min() >= dense[name][~mask].abs().max()


def test_magnitude_with_a_fan_in_keeps_the_best_of_every_row():
    weight = torch.tensor([[9.0, 8.0, 7.0, 6.0], [0.1, 0.3, 0.2, 0.0], [5.0, 1.0, 1.0, 1.0]])
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(weight)
    layer = gs.sparsify(model, 0.5, init="magnitude", min_fan_in=1)
    assert layer.support.ids().tolist() == [0, 1, 2, 3, 5, 8]
    with pytest.raises(gs.UsageError, match="cannot give each of 3 output units"):
        gs.sparsify(nn.Linear(4, 3), 0.5, init="magnitude", min_fan_in=3)


def test_frozen_weights_stay_frozen():
    model = mlp()
    model[0].weight.requires_grad_(False)
    gs.sparsify(model, 0.3)
    assert [layer.values.requires_grad for layer in gs.sparse_layers(model).values()] == [False, True, True]
    gs.densify(model)
    assert [model[i].weight.requires_grad for i in (0, 2, 4)] == [False, True, True]


def test_mode_dtype_and_generator_are_kept():
    state = torch.get_rng_state()
    a, b = (gs.sparsify(mlp().eval(), 0.3, rng=generator(4)) for _ in range(2))
    assert same_state(a, b) and not a[0].training and a[0].values.dtype == torch.float64
    del state  # sparsify itself draws from its generator only; the dense model above did not


SPARSIFY_REFUSALS = {
    **{
        f"density {d}": ({"density": d}, "fraction of the weights")
        for d in (0.0, -1.0, 1.5, 95, float("nan"), "0.1", True, None)
    },
    "misspelt name": (
        {"exclude": "body.0.1x"},
        "exclude='body.0.1x' matches no module of the model; did you mean 'body.0.1'",
    ),
    "unknown name": ({"include": "encoder"}, "names: stem, body"),
    "pattern that matches nothing": ({"include": "re:^conv"}, "matches no module"),
    "broken pattern": ({"include": "re:("}, "is not a regular expression"),
    "type that is not there": ({"include": nn.Conv3d}, "include='Conv3d' matches no module"),
    "budget": ({"budget": "erck"}, "unknown budget 'erck'; did you mean"),
    "budget of an unknown layer": ({"budget": {"stm": 0.5}}, "did you mean 'stem'"),
    "layout": ({"layout": "maked"}, "did you mean 'masked'"),
    "init": ({"init": "magnitud"}, "did you mean 'magnitude'"),
    "block": ({"block": (2, 0)}, "block must be two positive"),
    "fan-in": ({"min_fan_in": 50}, "cannot give each of"),
    "nothing left": ({"exclude": [nn.Linear, nn.Conv2d]}, "no layer of this model can be made sparse"),
}


@table(SPARSIFY_REFUSALS)
def test_sparsify_refuses_before_it_changes_anything(case):
    options, reason = case
    model = Net()
    before, order = copy.deepcopy(model), kinds(model)
    with pytest.raises(gs.UsageError, match=re.escape(reason) if "(" not in reason else reason):
        gs.sparsify(model, **{"density": 0.3, **options})
    assert kinds(model) == order and same_state(model, before) and not hasattr(model, "sparsity_report")


def test_a_model_without_parameters_is_refused():
    with pytest.raises(gs.UsageError, match="the model has no parameters"):
        gs.sparsify(nn.ReLU(), 0.3)


# ---------------------------------------------------------------- densify and parameter groups


@pytest.mark.parametrize("layout", gs.LAYOUTS)
@pytest.mark.parametrize(("make", "data"), [(mlp, FLAT), (convnet, IMAGES)], ids=["mlp", "convnet"])
def test_densify_gives_plain_torch_back_with_the_same_outputs(make, data, layout):
    model = gs.sparsify(make(), 0.3, layout=layout, rng=generator()).eval()
    x = data.batch(0)[0]
    before, state = model(x), {name: layer.to_dense() for name, layer in gs.sparse_layers(model).items()}
    assert gs.densify(model) is model and kinds(model) == kinds(make()) and not hasattr(model, "sparsity_report")
    assert torch.allclose(model(x), before) and all(
        torch.equal(model.get_submodule(name).weight, w) for name, w in state.items()
    )
    assert set(model.state_dict()) == set(make().state_dict()) and not model[0].training


@table(CONVS)
def test_densify_keeps_the_geometry(case):
    layer = gs.SparseConv2d(
        case.channels, case.filters, *case.g, density=0.5, bias=False, dtype=torch.float64, rng=generator()
    )
    x = inputs((2, case.channels, *case.size))
    expected = layer(x)
    assert torch.allclose(gs.densify(layer)(x), expected)


def test_parameter_groups_scale_the_step_with_the_density():
    model = gs.sparsify(convnet(), 0.3, rng=generator(), exclude="6")
    groups = {g["name"]: g for g in gs.parameter_groups(model, lr=0.1, weight_decay=5e-4, density_exponent=0.5)}
    for name, layer in gs.sparse_layers(model).items():
        scale = layer.density**0.5
        assert groups[name]["lr"] == pytest.approx(0.1 / scale) and groups[name]["weight_decay"] == pytest.approx(
            5e-4 * scale
        )
        assert groups[name]["params"][0] is layer.values
    assert (groups["dense weights"]["lr"], groups["dense weights"]["weight_decay"]) == (0.1, 5e-4)
    assert groups["biases and normalisation"]["weight_decay"] == 0.0 and groups["biases and normalisation"]["lr"] == 0.1
    held = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())  # each once


def test_parameter_groups_without_an_exponent_are_one_step_for_all():
    model = gs.sparsify(mlp(), 0.3, rng=generator())
    groups = gs.parameter_groups(model, lr=0.1, weight_decay=1e-4)
    assert {g["lr"] for g in groups} == {0.1} and {g["weight_decay"] for g in groups} == {1e-4, 0.0}
    assert all("lr" not in g for g in gs.parameter_groups(model))
    torch.optim.AdamW(groups)
    with pytest.raises(gs.UsageError, match="needs lr"):
        gs.parameter_groups(model, density_exponent=0.25)


def test_frozen_parameters_are_in_no_group():
    model = gs.sparsify(mlp(), 0.3)
    model[0].values.requires_grad_(False)
    assert id(model[0].values) not in {id(p) for g in gs.parameter_groups(model, lr=0.1) for p in g["params"]}
