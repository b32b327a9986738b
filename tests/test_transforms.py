"""Transforms of torch.

Each gives the dense network's numbers on a sparse one, or refuses it with a sentence.
"""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func, nn
from torch.nn import functional as F

import gossamer as gs
from cases import CONVS, SUPPORTS, generator, table
from gossamer import laws
from gossamer._backend.dispatch import choose
from gossamer.products.linear import op as linear

UNUSUAL = {
    **{
        name: (SUPPORTS[name], None)
        for name in ("one of one", "full", "tiles taller than the matrix", "row tiles", "column tiles")
    },
    **{
        name: (CONVS[name].support, CONVS[name].g)
        for name in ("1x1", "strided", "padding beyond the kernel", "ragged tiles")
    },
}


@pytest.mark.parametrize("layout", gs.LAYOUTS.values(), ids=gs.LAYOUTS.keys())
def test_no_layout_refuses_a_transform(layout):
    assert laws.check_transforms(layout) == []


@table(UNUSUAL)
def test_unusual_supports(case):
    assert laws.check_transforms(gs.CSR, *case) == []


def test_shadow_layers_that_multiply_densely():
    """Above the density at which the dense kernels take over."""
    for case in ((SUPPORTS["all but one"], None), (CONVS["3x3"].support, CONVS["3x3"].g)):
        assert laws.check_transforms(gs.SHADOW, *case) == []


@pytest.mark.parametrize(("layout", "batch_last"), [("csr", None), ("csr", False), ("masked", True), ("shadow", None)])
def test_every_module_means_what_it_meant(layout, batch_last):
    laws.check_meaning(lambda model: gs.sparsify(model, 0.4, layout=layout, batch_last=batch_last, rng=generator()))


def test_densifying_leaves_the_meaning_too():
    laws.check_meaning(lambda model: gs.densify(gs.sparsify(model, 1.0, budget="uniform", init="keep", fuse=True)))


# ---------------------------------------------------------------- the cases of the issue


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    )


def test_a_normalisation_gives_its_own_output():
    net, x, seen = gs.sparsify(small(), 0.3), torch.randn(4, 3, 8, 8), []
    net[1].register_forward_hook(lambda _m, _x, y: seen.append(y))
    net(x)
    assert bool((seen[0] < 0).any()) and bool((nn.Sequential(*list(net)[:2])(x) < 0).any())
    net[2] = nn.GELU()
    assert torch.allclose(nn.Sequential(*list(net)[:3])(x), F.gelu(nn.Sequential(*list(net)[:2])(x)), atol=1e-6)


def test_fusing_is_asked_for_and_shown():
    net = gs.sparsify(small(), 0.3, fuse=True)
    assert net.sparsity_report.fused == ("1", "4") and "fused with the ReLU that follows: 1, 4" in str(
        net.sparsity_report
    )
    assert repr(net).count("relu=True") == repr(net).count("done by the normalisation") == 2
    assert not bool((nn.Sequential(*list(net)[:2])(torch.randn(4, 3, 8, 8)) < 0).any())
    assert repr(gs.densify(net)) == repr(small())
    plain = gs.sparsify(small(), 0.3)
    assert (
        plain.sparsity_report.fused == () and "fused" not in str(plain.sparsity_report) and "relu=" not in repr(plain)
    )
    assert (
        gs.sparsify(small(), 0.3, layout="masked", fuse=True).sparsity_report.fused == ()
    )  # no counterparts, so nothing to fuse
    with pytest.raises(gs.UsageError, match="batch_last=False makes none"):
        gs.sparsify(small(), 0.3, fuse=True, batch_last=False)


def test_a_pair_with_hooks_is_not_fused():
    net, seen = small(), []
    net[1].register_forward_hook(lambda _m, _x, y: seen.append(y))
    assert gs.sparsify(net, 0.3, fuse=True).sparsity_report.fused == ("4",)
    net(torch.randn(4, 3, 8, 8))
    assert bool((seen[0] < 0).any())


# ---------------------------------------------------------------- whole networks


def network(layout: str, training: bool, fuse: bool = False) -> tuple[nn.Module, nn.Module, Tensor]:
    """A sparse network, with counterparts of everything, its dense copy, and a batch."""
    layers = (
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 7, 1),
        nn.BatchNorm2d(7, momentum=None),
    )
    head = (
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(7, 11),
        nn.BatchNorm1d(11),
        nn.Tanh(),
        nn.Linear(11, 3),
    )
    model = nn.Sequential(*layers, *head).double()
    model = gs.sparsify(model, 0.4, layout=layout, fuse=fuse, exclude=["12"], rng=generator()).train(training)
    return model, gs.densify(copy.deepcopy(model)), torch.randn(4, 3, 8, 8, generator=generator(1), dtype=torch.float64)


def loss(m: Callable) -> Callable:
    return lambda x: m(x).square().sum()


def traced(m: nn.Module, x: Tensor) -> Tensor:
    """Under no_grad, on another batch, from the file."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(m, x[:2], check_trace=False), file)
        file.seek(0)
        program: Any = torch.jit.load(file)
        return program(x)


def penalty(m: nn.Module, x: Tensor) -> list[Tensor]:
    """Of a gradient's size, as for a Wasserstein critic, in the biases and the input."""
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
    biases = [p for name, p in m.named_parameters() if name.endswith("bias")]
    return list(torch.autograd.grad(g.square().sum(), [x, *biases], allow_unused=True, materialize_grads=True))


def batched(m: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = m(x)
    return torch.autograd.grad(y, x, torch.stack([y.detach(), y.detach().cos()]), is_grads_batched=True)[0]


MODULES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda m, x: func.grad(loss(m))(x),
    "jvp": lambda m, x: func.jvp(m, (x,), (x.sin(),)),
    "jvp of grad": lambda m, x: func.jvp(func.grad(loss(m)), (x,), (x.sin(),)),
    "jacrev": lambda m, x: func.jacrev(m)(x),
    "functional.jacobian": lambda m, x: torch.autograd.functional.jacobian(m, x, vectorize=True),
    "functional.vhp": lambda m, x: torch.autograd.functional.vhp(loss(m), x, x.sin()),
    "gradient penalty": penalty,
    "batched gradients": batched,
    "trace": traced,
    "vmap": lambda m, x: func.vmap(lambda image: m(image[None])[0])(x),
}
IN_TRAINING = {
    "functional.jacobian",
    "functional.vhp",
    "gradient penalty",
    "batched gradients",
}  # torch.func refuses moving statistics


@pytest.mark.parametrize(
    ("name", "training"), [*((name, False) for name in MODULES), *((name, True) for name in sorted(IN_TRAINING))]
)
@pytest.mark.parametrize(("layout", "fuse"), [("csr", False), ("csr", True), ("masked", False), ("shadow", False)])
def test_networks(layout, fuse, name, training):
    model, dense, x = network(layout, training, fuse)
    mine, theirs = ([r] if isinstance(r, Tensor) else list(r) for r in (MODULES[name](m, x) for m in (model, dense)))
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-9) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("layout", "strict"), [("csr", False), ("csr", True), ("masked", False)])
def test_exported_programs_hold_torchs_operations_alone(layout, strict):
    """So they run, and are transformed, where there is no gossamer; their batch is free."""
    model, dense, x = network(layout, training=False, fuse=True)
    program = torch.export.export(
        model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), strict=strict
    )
    assert "gossamer" not in str(program.graph)
    assert torch.allclose(program.module()(x), dense(x))
    assert torch.allclose(func.jvp(program.module(), (x,), (x.sin(),))[1], func.jvp(dense, (x,), (x.sin(),))[1])


@pytest.mark.parametrize("inside", ["jvp", "grad", "vmap"])
def test_transforms_inside_compiled_functions(inside):
    layer = gs.SparseLinear(7, 5, density=0.4, rng=generator(), dtype=torch.float64)
    dense, x = gs.densify(nn.Sequential(copy.deepcopy(layer))), torch.randn(4, 7, dtype=torch.float64)
    transform = {name: MODULES[name] for name in ("jvp", "grad")}.get(inside, lambda m, x: func.vmap(m)(x))
    torch._dynamo.reset()
    mine = torch.compile(lambda x: transform(layer, x), backend="aot_eager", fullgraph=True)(x)
    theirs = transform(dense, x)
    assert all(torch.allclose(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.filterwarnings("ignore")
def test_onnx(dynamo, tmp_path):
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed")
    reference = pytest.importorskip("onnx.reference")
    model, dense, x = network("csr", training=False)
    model, dense, x = model.float(), dense.float(), x.float()
    torch.onnx.export(model, (x,), str(tmp_path / "a.onnx"), dynamo=dynamo, input_names=["x"], opset_version=18)
    (y,) = reference.ReferenceEvaluator(str(tmp_path / "a.onnx")).run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(y), dense(x), atol=1e-5)


@pytest.mark.parametrize("fuse", [False, True])
def test_scripting_is_refused_and_changes_nothing(fuse):
    """Torch would exchange modules in the model itself."""
    _, dense, x = network("csr", training=False)
    model = gs.batch_last.keep_batch_last(copy.deepcopy(dense), fuse=fuse)
    before = list(model.modules())
    with pytest.raises(gs.UsageError, match="densify"):
        torch.jit.script(model)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))
    program: Any = torch.jit.script(gs.densify(copy.deepcopy(model)))
    assert torch.allclose(program(x), dense(x))


# ---------------------------------------------------------------- parameters, precision, sensing


def test_gradients_of_each_sample_in_the_parameters():
    """As optimizers with differential privacy take them: values, bias, through a whole network."""
    net = gs.sparsify(nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3)).double(), 0.4, rng=generator())
    x, y = torch.randn(5, 7, dtype=torch.float64), torch.arange(5) % 3
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def sample_loss(p: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(func.functional_call(net, p, (a[None],)), b[None])

    grads = func.vmap(func.grad(sample_loss), (None, 0, 0))(parameters, x, y)
    for k in range(5):
        net.zero_grad()
        F.cross_entropy(net(x[k : k + 1]), y[k : k + 1]).backward()
        assert all(torch.allclose(grads[name][k], p.grad) for name, p in net.named_parameters())


def test_ensembles_share_a_support_or_are_refused():
    nets = [gs.sparsify(nn.Sequential(nn.Linear(7, 5)), 0.4, rng=generator(k)) for k in range(2)]
    x = torch.randn(3, 7)
    stacked = func.stack_module_state(nets)
    with pytest.raises(gs.UsageError, match="cannot follow the index of a support"):
        func.vmap(lambda p, b: func.functional_call(nets[0], (p, b), (x,)))(*stacked)
    one = func.vmap(lambda p: func.functional_call(nets[0], p, (x,)))(
        {k: torch.stack([v, 2 * v]) for k, v in nets[0].named_parameters()}
    )
    assert torch.allclose(one[0], nets[0](x)) and torch.allclose(one[1], 2 * nets[0](x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_low_precision_activations(dtype):
    """Derivatives in the dtype of what they are derivatives of, computed in that of the values."""
    layer = gs.SparseLinear(7, 5, density=0.4, rng=generator())
    x = torch.randn(4, 7, generator=generator()).to(dtype)
    y, tangent = func.jvp(layer, (x,), (x,))
    assert y.dtype == tangent.dtype == dtype and torch.allclose(
        y, layer(x), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
    )
    g = func.grad(lambda v: func.functional_call(layer, {"values": v}, (x,)).float().square().sum())(
        layer.values.detach()
    )
    (expected,) = torch.autograd.grad(layer(x).float().square().sum(), layer.values)
    assert g.dtype == torch.float32 and torch.allclose(
        g, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3
    )


def test_autocast():
    layer = gs.SparseConv2d(3, 5, 3, density=0.4, rng=generator())
    x = torch.randn(2, 3, 6, 6, generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        y, tangent = func.jvp(layer, (x,), (x,))
        assert y.dtype == tangent.dtype == torch.bfloat16 and torch.allclose(y, layer(x), rtol=2e-2, atol=1e-2)


def test_kernels_refuse_what_they_cannot_see():
    """Kernels that are called directly refuse; so does sensing, which measures no gradient of torch.func."""
    s, seen = SUPPORTS["primes"], []
    layer = gs.SparseLinear(7, 13, support=s, dtype=torch.float64)
    layer.observe(lambda dy, x: seen.append(layer.sensed(dy, x, s.outside(torch.arange(3))))).open()
    x = torch.randn(4, 7, dtype=torch.float64)
    with pytest.raises(gs.UsageError, match="cannot read the tensors of torch.func or tangents"):
        func.grad(loss(layer))(x)
    assert seen == []
    layer(x).square().sum().backward()
    assert len(seen) == 1 and seen[0].shape == (3,)
    with pytest.raises(gs.UsageError, match="densify"):
        func.vmap(lambda v: choose(linear.FORWARD, v, layer.values, s).run(v, layer.values, s))(x[None])


def test_a_traced_network_shares_what_it_was_made_of():
    """Values are the layer's own, so training goes on through a trace; a trace of a copy stands still."""
    layer = gs.SparseLinear(7, 5, density=0.4, rng=generator())
    x = torch.randn(4, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shared: Any = torch.jit.trace(layer, x, check_trace=False)
        apart: Any = torch.jit.trace(copy.deepcopy(layer), x, check_trace=False)
    shared(x).sum().backward()
    assert layer.values.grad is not None
    before = layer(x)
    with torch.no_grad():
        layer.values.mul_(2)
    assert torch.allclose(shared(x), layer(x)) and torch.allclose(apart(x), before)
