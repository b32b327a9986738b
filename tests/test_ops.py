"""Operations: every kernel of every operation on every hard case, torch's own checks of the operators, and sensing."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import CONVS, SUPPORTS, generator, table
from gossamer import laws
from gossamer._backend import dispatch as kernels
from gossamer._backend import private_torch
from gossamer._backend.dispatch import Kernel, always, choose, full_precision, why
from gossamer.layouts import gather, scatter
from gossamer.products.conv2d import op as csr_conv2d
from gossamer.products.conv2d.reference import Geometry
from gossamer.products.linear import op as csr_linear
from gossamer.products.sense import op as csr_sense
from gossamer.products.sense import reference as sense
from gossamer.support import Support

LINEAR, CONV2D = csr_linear.KERNELS._asdict(), csr_conv2d.KERNELS._asdict()
SENSE = {"sampled": csr_sense.SAMPLED, "strongest": csr_sense.STRONGEST}


def registered(operations: dict[str, list[Kernel]], family: str) -> list:
    return [
        pytest.param(f"{family}.{name}", k, id=f"{name}-{k.name}") for name, found in operations.items() for k in found
    ]


@table(SUPPORTS)
@pytest.mark.parametrize(("operation", "kernel"), registered(LINEAR, "csr_linear") + registered(SENSE, "csr_sense"))
def test_linear_kernels(operation, kernel, case):
    for batch in (1, 7):
        laws.check_kernel(operation, kernel, case, batch=batch)
    laws.check_kernel(operation, kernel, case, dtype=torch.float32)


@table(CONVS)
@pytest.mark.parametrize(("operation", "kernel"), registered(CONV2D, "csr_conv2d") + registered(SENSE, "csr_sense"))
def test_convolution_kernels(operation, kernel, case):
    for batch in (1, 3):
        laws.check_kernel(operation, kernel, case.support, case.g, batch=batch, size=case.size)


@pytest.mark.parametrize("layout", gs.LAYOUTS.values(), ids=gs.LAYOUTS.keys())
@table(SUPPORTS)
def test_layouts_on_linear_layers(layout, case):
    for batch in (1, 7):
        laws.check_layout(layout, case, batch=batch)


@pytest.mark.parametrize("layout", gs.LAYOUTS.values(), ids=gs.LAYOUTS.keys())
@table(CONVS)
def test_layouts_on_convolutions(layout, case):
    laws.check_layout(layout, case.support, case.g, size=case.size)


def test_convolution_in_parts_of_the_batch(monkeypatch):
    """The unfolded images are limited: a batch in several parts gives what it gives in one."""
    from gossamer.products.conv2d import reference

    monkeypatch.setattr(reference, "UNFOLDED_NUMBERS", 2000)
    case = CONVS["padded"]
    for name, found in CONV2D.items():
        assert laws.check_kernel(f"csr_conv2d.{name}", found[-1], case.support, case.g, batch=7, size=case.size)


def test_tiles_in_chunks(monkeypatch):
    from gossamer.products.linear import reference

    monkeypatch.setattr(reference, "TILE_NUMBERS", 64)
    for name, found in LINEAR.items():
        assert laws.check_kernel(f"csr_linear.{name}", found[-1], SUPPORTS["ragged tiles"])


# ---------------------------------------------------------------- the operators


def linear_arguments(name: str, batch: int = 4, dtype: torch.dtype = torch.float64):
    s = SUPPORTS[name]
    x = torch.randn(batch, s.shape[1], generator=generator(), dtype=torch.float64).to(dtype).requires_grad_()
    values = gather(torch.randn(s.shape, generator=generator(1), dtype=torch.float64), s).to(dtype).requires_grad_()
    return x, values, s


def conv_arguments(name: str, batch: int = 2):
    case, s = CONVS[name], CONVS[name].support
    x = torch.randn(batch, case.channels, *case.size, generator=generator(), dtype=torch.float64, requires_grad=True)
    values = gather(torch.randn(s.shape, generator=generator(1), dtype=torch.float64), s).requires_grad_()
    return x, values, s, case.g


def flat(s: Support, g: Geometry | None = None) -> tuple:
    """A support and a geometry as an operator takes them."""
    return s.crow, s.col, s.ccol, s.row, s.perm, *s.shape, *s.block, [v for pair in g or () for v in pair]


@pytest.mark.parametrize("name", ["primes", "ragged tiles"])
def test_opcheck_linear(name):
    x, values, s = linear_arguments(name)
    torch.library.opcheck(torch.ops.gossamer.csr_linear.default, (x, values, *flat(s)))
    dy = torch.randn(4, s.shape[0], dtype=torch.float64)
    for op, arguments in (
        (torch.ops.gossamer.csr_linear_dx, (dy, values.detach(), *flat(s), [])),
        (torch.ops.gossamer.csr_linear_dw, (dy, x.detach(), values.detach(), *flat(s))),
        (torch.ops.gossamer.csr_linear_backward, (dy, x.detach(), values.detach(), *flat(s))),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["all unlike", "ragged tiles"])
def test_opcheck_conv2d(name):
    x, values, s, g = conv_arguments(name)
    torch.library.opcheck(torch.ops.gossamer.csr_conv2d.default, (x, values, *flat(s, g)))
    dy = torch.randn(2, s.shape[0], *g.out(*x.shape[2:]), dtype=torch.float64)
    tests = ("test_schema", "test_faketensor")
    dx = (dy, values.detach(), *flat(s, g), list(x.shape[2:]))
    torch.library.opcheck(torch.ops.gossamer.csr_conv2d_dx.default, dx, test_utils=tests)
    both = (dy, x.detach(), values.detach(), *flat(s, g))
    torch.library.opcheck(torch.ops.gossamer.csr_conv2d_dw.default, both, test_utils=tests)
    torch.library.opcheck(torch.ops.gossamer.csr_conv2d_backward.default, both, test_utils=tests)


@pytest.mark.parametrize("name", ["primes", "empty rows and columns", "tiles", "ragged corner only"])
def test_gradcheck_linear(name):
    x, values, s = linear_arguments(name, batch=3)
    inside = (
        values if s.block == (1, 1) else gather(torch.ones(s.shape, dtype=torch.float64), s) * values
    )  # the overhang has no meaning
    assert torch.autograd.gradcheck(lambda x, v: csr_linear.csr_linear(x, v, s), (x, inside.detach().requires_grad_()))


@pytest.mark.parametrize("name", ["all unlike", "strided", "ragged tiles"])
def test_gradcheck_conv2d(name):
    x, values, s, g = conv_arguments(name, batch=1)
    assert torch.autograd.gradcheck(lambda x, v: csr_conv2d.csr_conv2d(x, v, s, g), (x, values))


@pytest.mark.parametrize("name", ["primes", "ragged tiles"])
def test_leading_dimensions_are_a_batch(name):
    """(..., cols) -> (..., rows): no, one, two leading dimensions, an empty batch, inputs that are not contiguous."""
    _, values, s = linear_arguments(name)
    dense = scatter(values, s)
    for shape in ((s.shape[1],), (4, s.shape[1]), (2, 3, s.shape[1]), (0, s.shape[1])):
        x = torch.randn(shape, generator=generator(), dtype=torch.float64)
        y = csr_linear.csr_linear(x, values, s)
        assert y.shape == (*shape[:-1], s.shape[0]) and torch.allclose(y, F.linear(x, dense))
    x = torch.randn(s.shape[1], 5, generator=generator(), dtype=torch.float64)
    assert torch.allclose(csr_linear.csr_linear(x.t(), values, s), F.linear(x.t(), dense))


def test_outputs_have_the_batch_innermost():
    x, values, s = linear_arguments("primes")
    y = csr_linear.csr_linear(x, values, s)
    assert y.stride() == (1, x.shape[0])
    assert torch.autograd.grad(y.sum(), x)[0].stride() == (1, x.shape[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_the_dtype_of_the_values(dtype):
    """Output and input gradient in the input's dtype, the weight gradient in float32, as if the input had been rounded
    first."""
    x, values, s = linear_arguments("primes", dtype=torch.float32)
    half = x.detach().to(dtype).requires_grad_()
    y = csr_linear.csr_linear(half, values, s)
    dx, dw = torch.autograd.grad(y.float().sum(), (half, values))
    assert y.dtype == dx.dtype == dtype and dw.dtype == torch.float32
    exact = csr_linear.csr_linear(half.detach().float(), values, s)
    assert torch.equal(y, exact.to(dtype))


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], torch.Tensor]:
    case = CONVS["padded"]
    return lambda: csr_conv2d.csr_conv2d(torch.zeros(shape, dtype=dtype), torch.zeros(case.n), case.support, case.g)


def vectors(
    *shape: int, dtype: torch.dtype = torch.float32, values: torch.dtype = torch.float32
) -> Callable[[], torch.Tensor]:
    return lambda: csr_linear.csr_linear(
        torch.zeros(shape, dtype=dtype), torch.zeros(31, dtype=values), SUPPORTS["primes"]
    )


REFUSALS = {
    "long input": (vectors(2, 7, dtype=torch.int64), "floating"),
    "half values": (vectors(2, 7, values=torch.float16), "float32 or float64"),
    "long image": (image(1, 3, 5, 5, dtype=torch.int64), "floating"),
    "channels": (image(1, 2, 5, 5), r"\(batch, 3,"),
    "no batch": (image(3, 5, 5), r"\(batch, 3,"),
    "features": (vectors(2, 6), r"\(..., 7\)"),
    "features of a single vector": (vectors(14), r"\(..., 7\)"),
}


@table(REFUSALS)
def test_bad_operands_are_refused(case):
    call, reason = case
    with pytest.raises(gs.UsageError, match=reason):
        call()


# ---------------------------------------------------------------- dispatch

PICKY = Kernel("picky", lambda x: "picky", lambda x: [] if x > 0 else ["x is not positive"])
PLAIN = Kernel("plain", lambda x: "plain", always)


def test_the_first_kernel_without_objection_runs(monkeypatch):
    monkeypatch.delenv(kernels.ENVIRONMENT, raising=False)
    assert choose([PICKY, PLAIN], 1).name == "picky" and choose([PICKY, PLAIN], -1).name == "plain"
    assert why([PICKY, PLAIN], -1) == [("picky", ["x is not positive"]), ("plain", [])]


def test_no_kernel_left_says_why(monkeypatch):
    monkeypatch.delenv(kernels.ENVIRONMENT, raising=False)
    with pytest.raises(gs.UsageError, match="x is not positive"):
        choose([PICKY], -1)


def test_the_environment_forces_a_kernel(monkeypatch):
    """By name; a forced kernel that cannot run is refused with its reasons, an unknown name with the nearest."""
    monkeypatch.setenv(kernels.ENVIRONMENT, "plain")
    assert choose([PICKY, PLAIN], 1).name == "plain"
    monkeypatch.setenv(kernels.ENVIRONMENT, "picky")
    with pytest.raises(gs.UsageError, match="x is not positive"):
        choose([PICKY, PLAIN], -1)
    monkeypatch.setenv(kernels.ENVIRONMENT, "pickx")
    with pytest.raises(gs.UsageError, match="did you mean 'picky'"):
        choose([PICKY, PLAIN], 1)


def test_full_precision_objects_to_half():
    assert full_precision(torch.zeros(1)) == full_precision(torch.zeros(1).double()) == []
    assert "torch.float16" in full_precision(torch.zeros(1).half())[0]


# ---------------------------------------------------------------- sensing


def operands(case, batch: int = 6):
    """(dy, x), support, geometry of a linear or convolutional case."""
    s, g, size = (case, None, (0, 0)) if isinstance(case, Support) else (case.support, case.g, case.size)
    rng = generator(4)
    if g is None:
        shapes = (batch, s.shape[0]), (batch, s.shape[1])
    else:
        shapes = (batch, s.shape[0], *g.out(*size)), (batch, case.channels, *size)
    dy, x = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes)
    return (dy, x), s, g


SENSED = {
    "linear": SUPPORTS["primes"],
    "tiles": SUPPORTS["ragged tiles"],
    "conv": CONVS["all unlike"],
    "conv tiles": CONVS["ragged tiles"],
}


@table(SENSED)
@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_streamed_strongest_is_the_dense_top_k(case, block, monkeypatch):
    """However small the row blocks, and for two micro-batches as for one."""
    monkeypatch.setattr(sense, "SLAB_NUMBERS", block)
    (dy, x), s, g = operands(case)
    zeros = s.outside(torch.arange(s.total - s.n))
    everything = sense.sampled(dy, x, zeros, s.shape, s.block, g)
    norms = everything.abs() if s.block == (1, 1) else everything.flatten(1).norm(dim=1)
    for k in (0, 1, zeros.numel() // 2, zeros.numel()):
        best = torch.tensor(
            sorted(sorted(range(zeros.numel()), key=lambda i: (-float(norms[i]), i))[:k]), dtype=torch.int64
        )
        ids, tiles = sense.strongest([(dy, x)], s, k, g)
        assert torch.equal(ids, zeros[best]) and torch.allclose(tiles, everything[best])
        halves = sense.strongest([(dy[:3], x[:3]), (dy[3:], x[3:])], s, k, g)
        assert torch.equal(halves[0], ids) and torch.allclose(halves[1], tiles)


@pytest.mark.parametrize("block", [1, 30, 1 << 22])
def test_streamed_ties_go_to_the_lower_id(block, monkeypatch):
    """Gradients of few levels, across block borders: dense top-k by (-score, id)."""
    monkeypatch.setattr(sense, "SLAB_NUMBERS", block)
    s = SUPPORTS["primes"]
    dy, x = (
        torch.randint(0, 2, (1, 13), generator=generator()).double(),
        torch.randint(-1, 2, (1, 7), generator=generator(1)).double(),
    )
    score = (dy.t() @ x).abs().flatten()
    zeros = s.outside(torch.arange(s.total - s.n)).tolist()
    for k in range(len(zeros) + 1):
        expected = sorted(sorted(zeros, key=lambda i: (-float(score[i]), i))[:k])
        assert sense.strongest([(dy, x)], s, k)[0].tolist() == expected


def test_strongest_reduces_every_block(monkeypatch):
    """``reduce`` sees each block of the dense gradient once, in place: how the mean over ranks is taken."""
    monkeypatch.setattr(sense, "SLAB_NUMBERS", 14)
    (dy, x), s, _ = operands(SUPPORTS["primes"])
    seen = []

    def halve(block):
        seen.append(block.shape)
        block.div_(2)

    ids, g = sense.strongest([(dy, x)], s, 5, reduce=halve)
    plain_ids, plain = sense.strongest([(dy, x)], s, 5)
    assert sum(rows for rows, _ in seen) == 13 and torch.equal(ids, plain_ids) and torch.allclose(2 * g, plain)


def test_top_k_by_hand():
    score = torch.tensor([1.0, 3.0, 1.0, 3.0, 2.0, 3.0])
    assert [sense.top_k(score, k).tolist() for k in range(7)] == [
        [], [1], [1, 3], [1, 3, 5], [1, 3, 4, 5], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5],
    ]  # fmt: skip


def test_top_k_takes_nan_last_and_never_fewer():
    score = torch.tensor([float("nan"), 1.0, float("-inf"), float("inf"), float("nan")])
    assert sense.top_k(score, 2).tolist() == [1, 3]
    assert all(sense.top_k(score, k).numel() == k for k in range(6))


def test_a_column_of_nan_is_never_preferred():
    """An input feature that is NaN spoils the gradient of its column; the strongest others win, and as many as asked
    for."""
    (dy, x), s, _ = operands(SUPPORTS["primes"])
    x = x.clone()
    x[:, 2] = float("nan")
    ids, g = sense.strongest([(dy, x)], s, 5)
    assert ids.numel() == 5 and not (ids % 7 == 2).any() and g.isfinite().all()


@pytest.mark.parametrize("name", ["linear", "tiles", "conv", "conv tiles"])
def test_sensed_gradient_by_finite_differences(name):
    """The gradient at a block off the support is what the loss does when that weight moves away from 0."""
    case = SENSED[name]
    (_, x), s, g = operands(case, batch=2)
    target = torch.randn(s.shape, generator=generator(8), dtype=torch.float64)

    def loss(dense):
        if g is None:
            y = F.linear(x, dense)
        else:
            y = F.conv2d(x, dense.view(s.shape[0], x.shape[1], *g.kernel), None, g.stride, g.padding, g.dilation)
        return y.sin().sum(), y

    dense = scatter(gather(target, s), s)
    dy = loss(dense)[1].cos()
    ids = s.sample_outside(min(4, s.total - s.n), generator())
    sensed = sense.sampled(dy, x, ids, s.shape, s.block, g)
    spots, h = Support.from_ids(ids, s.shape, s.block), 1e-6
    for k in range(sensed.numel()):
        direction = torch.zeros(sensed.numel(), dtype=torch.float64)
        direction[k] = h
        step = scatter(direction.view(sensed.shape), spots)
        slope = (loss(dense + step)[0] - loss(dense - step)[0]) / (2 * h)
        assert float(sensed.flatten()[k]) == pytest.approx(float(slope), rel=1e-5, abs=1e-6)


# ---------------------------------------------------------------- private names of torch

# Private by their spelling, but read by many libraries for years and without a public equal. All other names that torch
# spells with one leading underscore belong into private_torch.py.
IN_GENERAL_USE = {"_version", "_base", "_parameters", "_buffers", "_modules"}
OBJECTS = (
    nn.Linear(1, 1),
    torch.optim.SGD([torch.zeros(1)]),
    torch.zeros(1),
    torch.autograd.Function,
    torch.Generator(),
)
OF_OBJECTS = {name for thing in OBJECTS for name in dir(thing) if name[0] == "_" != name[1]}


def is_private(name: str) -> bool:
    in_general_use = name in IN_GENERAL_USE or name.endswith("_hooks") or name.startswith("_foreach_")
    return name.startswith("_") and not name.startswith("__") and not in_general_use


def path_of(node: ast.expr) -> list[str]:
    """a.b.c as [a, b, c]; what is no such chain begins with an empty name."""
    if isinstance(node, ast.Attribute):
        return [*path_of(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def private_names(source: str) -> Iterator[str]:
    """Private names of torch that a file imports or reads.

    That is below torch and what is imported from it, of any object but ``self``, or as the string of a ``getattr``.
    """
    nodes, from_torch = list(ast.walk(ast.parse(source))), {"torch"}
    for node in nodes:
        if isinstance(node, ast.Import):
            paths = [(alias.name, alias.asname) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            paths = [(f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names]
        else:
            continue
        for path, name in paths:
            if path.split(".")[0] == "torch":
                from_torch.add(name or "torch")
                if any(map(is_private, path.split("."))):
                    yield path
    for node in nodes:
        if isinstance(node, ast.Attribute):
            *above, name = path_of(node)
        elif (
            isinstance(node, ast.Call) and path_of(node.func) == ["getattr"] and isinstance(node.args[1], ast.Constant)
        ):
            above, name = path_of(node.args[0]), str(node.args[1].value)
        else:
            continue
        if is_private(name) and (above[0] in from_torch or (name in OF_OBJECTS and above != ["self"])):
            yield ".".join([*above, name])


def test_private_names_of_torch_are_in_one_file():
    package = Path(gs.__file__).parent
    files = [p for p in package.rglob("*.py") if p != Path(private_torch.__file__)]
    found = {str(p.relative_to(package)): list(private_names(p.read_text())) for p in files}
    assert {p: names for p, names in found.items() if names} == {}
    assert list(private_names(Path(private_torch.__file__).read_text()))


def test_each_private_name_has_a_purpose():
    """The table of the file lists what the file offers."""
    table = [
        line.split()[0] for line in private_torch.__doc__.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert sorted(table[2:]) == sorted(private_torch.__all__)


@pytest.mark.parametrize(
    "source",
    [
        "import torch._C",
        "from torch._C import _len_torch_dispatch_stack as modes",
        "from torch._C._functorch import TransformType",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "import torch\nn = torch._C._current_graph_task_id()",
        "import torch as t\nn = t._C",
        "from torch.autograd import forward_ad\nlevel = forward_ad._current_level",
        "def f(t): return t._is_view()",
        "def f(m): return m.layers[0]._get_name()",
        "import torch\nc = getattr(torch, '_C')",
    ],
)
def test_a_private_name_is_noticed(source):
    assert len(set(private_names(source))) >= 1


def test_names_in_general_use_are_free():
    names = (
        "torch._foreach_add(a, b), t._version, m._buffers, m._forward_hooks, self._values, t.__class__, row._replace()"
    )
    source = f"import torch\nx = {names}"
    assert list(private_names(source)) == []
