"""The batch-last memory format: it is what it says, counterparts are their torch modules and keep it, and whole
networks learn the same in it."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from cases import generator, same_state, table
from gossamer import batch_last as counterparts
from gossamer._backend.dispatch import Kernel
from gossamer._backend.memory import from_rows, rows
from gossamer.batch_last import is_batch_last, keep_batch_last, plain_modules, to_batch_last
from gossamer.cli.models import ResNet
from gossamer.products.norm import op, reference

DTYPES = (torch.float64, torch.float32)
TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 1e-4, "atol": 1e-4}}


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def close(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, **TOLERANCE[a.dtype])


# ---------------------------------------------------------------- the format

SHAPES = {
    "matrix": (7, 5),
    "sequence": (7, 5, 3),
    "images": (7, 5, 3, 2),
    "volumes": (3, 2, 2, 3, 2),
    "large batch": (128, 3, 2, 2),
    "one image": (1, 5, 3, 2),
    "one channel": (7, 1, 3, 2),
    "one pixel": (7, 5, 1, 1),
    "one row": (7, 5, 1, 4),
    "one number": (1, 1, 1, 1),
    "one channel of one pixel": (7, 1, 1, 1),
    "no image": (0, 5, 3, 2),
    "no channel": (7, 0, 3, 2),
}


def lies_batch_last(x: Tensor) -> bool:
    """By the definition: every number where it would lie in a contiguous (C, H, W, N)."""
    places = torch.arange(x.numel()).view(*x.shape[1:], x.shape[0]).movedim(-1, 0)
    offsets = torch.zeros_like(places)
    for d, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        offsets += stride * torch.arange(size).view(-1, *[1] * (x.dim() - 1 - d))
    return torch.equal(places, offsets)


@table(SHAPES)
def test_the_batch_is_innermost(case):
    """Same numbers, and a copy only where one is needed: one image and an empty batch are in both formats at once."""
    x = numbers(*case)
    y = to_batch_last(x)
    assert torch.equal(x, y) and lies_batch_last(y) and is_batch_last(y) and to_batch_last(y) is y
    assert is_batch_last(x) == lies_batch_last(x) and (y is x) == lies_batch_last(x)
    assert is_batch_last(y.relu() + y) and is_batch_last(y.flatten(1)) and y.flatten(1).data_ptr() == y.data_ptr()


@table({name: shape for name, shape in SHAPES.items() if math.prod(shape)})
def test_rows_are_a_view_and_come_back(case):
    y = to_batch_last(numbers(*case))
    matrix = rows(y)
    assert (
        matrix.shape == (case[1], y.numel() // case[1]) and matrix.is_contiguous() and matrix.data_ptr() == y.data_ptr()
    )
    assert torch.allclose(matrix.sum(1), y.transpose(0, 1).flatten(1).sum(1))
    back = from_rows(matrix, y.shape)
    assert torch.equal(back, y) and is_batch_last(back) and back.data_ptr() == y.data_ptr()


OTHER_FORMATS = {
    "contiguous": lambda: numbers(7, 5, 3, 2),
    "channels last": lambda: numbers(7, 5, 3, 2).contiguous(memory_format=torch.channels_last),
    "channels outermost": lambda: numbers(5, 7, 3, 2).transpose(0, 1),
    "with gaps": lambda: to_batch_last(numbers(8, 5, 3, 2))[:7],
    "a slice of channels": lambda: to_batch_last(numbers(7, 5, 3, 2))[:, ::2],
    "expanded": lambda: numbers(7, 5, 1, 1).expand(7, 5, 3, 2),
    "turned": lambda: to_batch_last(numbers(7, 5, 2, 3)).transpose(2, 3),
    "vector": lambda: numbers(7),
}


@table(OTHER_FORMATS)
def test_other_formats_are_told_apart_and_converted(case):
    x = case()
    assert not is_batch_last(x)
    if x.dim() > 1:
        y = to_batch_last(x.requires_grad_())
        assert torch.equal(x, y) and lies_batch_last(y)
        assert torch.equal(torch.autograd.grad(y, x, 2 * x.detach())[0], 2 * x)


# ---------------------------------------------------------------- what keeps the format by itself

ALONE = {
    type(m).__name__: m
    for m in (
        nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.ELU(), nn.SELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(),
        nn.Hardtanh(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.PReLU(), nn.Dropout(0.3), nn.Dropout2d(0.3),
        nn.Identity(), nn.Flatten(), nn.Flatten(2),
    )
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 7])
@table(ALONE)
def test_element_by_element_the_format_stays(case, batch):
    """Forward and backward; if this fails for a new torch, the module wants a counterpart."""
    x = to_batch_last(numbers(batch, 5, 3, 2, dtype=torch.float32)).requires_grad_()
    y = case(x)
    (dx,) = torch.autograd.grad(y, x, to_batch_last(numbers(*y.shape, dtype=torch.float32)))
    assert (
        is_batch_last(y)
        and is_batch_last(dx)
        and keep_batch_last(case) is case
        and type(case).__module__.startswith("torch.nn")
    )


# ---------------------------------------------------------------- the kernels of batch normalisation


class Norm(NamedTuple):
    """Shape, and what the numbers are."""

    shape: tuple[int, ...]
    affine: bool = True
    mean: float = 0.5
    deviation: float = 2.0
    eps: float = 1e-5


NORMS = {
    "matrix": Norm((7, 5)),
    "one channel": Norm((11, 1, 2, 3)),
    "primes": Norm((7, 5, 3, 11)),
    "one image": Norm((1, 3, 5, 7)),
    "two numbers": Norm((2, 3)),
    "a full vector and one": Norm((129, 2, 1, 3)),
    "large batch": Norm((128, 3, 4, 4)),
    "more than one batch of it": Norm((257, 17)),
    "without weight": Norm((13, 5, 2, 2), affine=False),
    "large eps": Norm((13, 5, 2, 2), eps=0.3),
    "far from zero": Norm((128, 5, 2, 2), mean=1000.0, deviation=0.5),
    "constant": Norm((13, 5, 2, 2), deviation=0.0),
}


def equations(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, mean, 1 / standard deviation, line by line in torch's elementwise operations, differentiable."""
    others, shape = [d for d in range(x.dim()) if d != 1], (1, -1, *[1] * (x.dim() - 2))
    mean = x.mean(others)
    centred = x - mean.view(shape)
    invstd = 1 / (centred.square().mean(others) + eps).sqrt()
    z = centred * invstd.view(shape)
    z = z if weight is None or bias is None else z * weight.view(shape) + bias.view(shape)
    return (z * (z > 0) if relu else z), mean, invstd


def check_norm(forward: Callable, backward: Callable, case: Norm, relu: bool, dtype: torch.dtype) -> None:
    """The law of the kernels: output, statistics and gradients are those of the equations, in float64; all are
    batch-last."""
    channels = case.shape[1]
    x = to_batch_last((numbers(*case.shape) * case.deviation + case.mean).to(dtype))
    weight, bias = (numbers(channels, seed=s, dtype=dtype) if case.affine else None for s in (1, 2))
    y, mean, invstd = forward(x, weight, bias, case.eps, relu)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    z, *numbers_per_channel = equations(*exact, case.eps, relu)
    plain = equations(*exact, case.eps, False)[0]
    dy = to_batch_last(numbers(*case.shape, seed=3) * (plain.abs() > 1e-2)).to(
        dtype
    )  # near 0 rounding decides whether a ReLU lets through
    wanted = [t for t in exact if t is not None]
    grads = iter(torch.autograd.grad(z, wanted, dy.double()))
    expected = [next(grads) if t is not None else None for t in exact]
    tolerance = {"rtol": 1e-9, "atol": 1e-8} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-3}
    got = backward(dy, x, weight, bias, *(t.detach().to(dtype) for t in numbers_per_channel), relu)
    scale = float(invstd.double().max())  # what the input's gradient is multiplied by
    for name, a, b in (
        *zip(
            ("y", "mean", "invstd"),
            (y, mean, invstd / scale),
            (z, numbers_per_channel[0], numbers_per_channel[1] / scale),
            strict=True,
        ),
        *zip(("dx", "dweight", "dbias"), (got[0] / scale, *got[1:]), (expected[0] / scale, *expected[1:]), strict=True),
    ):
        if b is not None:
            assert a.dtype == dtype and torch.allclose(a.double(), b, **tolerance), (
                name,
                float((a - b.detach()).abs().max()),
            )
    assert is_batch_last(y) and is_batch_last(got[0]) and not (relu and (y < 0).any())


PAIRS = {f"{f.name}, {b.name}": (f, b) for f, b in zip(op.FORWARD, op.BACKWARD, strict=True)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["alone", "relu"])
@pytest.mark.parametrize("norm", NORMS)
@table(PAIRS)
def test_kernels_of_batch_normalisation(case, norm, relu, dtype):
    forward, backward = case
    x = to_batch_last(numbers(*NORMS[norm].shape, dtype=dtype))
    if forward.reasons_against(x, None, None, 1e-5, relu):
        pytest.skip("; ".join(forward.reasons_against(x, None, None, 1e-5, relu)))
    check_norm(forward.run, backward.run, NORMS[norm], relu, dtype)


def _one_pass(x, weight, bias, eps, relu):
    """The variance as mean of squares less square of mean."""
    flat = rows(x)
    invstd = (flat.square().mean(1) - flat.mean(1).square() + eps).rsqrt()
    return reference.forward(x, weight, bias, eps, relu)[0], flat.mean(1), invstd


def _unbiased(x, weight, bias, eps, relu):
    y, mean, _ = reference.forward(x, weight, bias, eps, relu)
    return y, mean, (rows(x).var(1) + eps).rsqrt()


def _mean_only(dy, x, weight, bias, mean, invstd, relu):
    """Forgets that the variance depends on x."""
    dx, dweight, dbias = reference.backward(dy, x, weight, bias, mean, invstd, relu)
    xhat = (rows(x) - mean[:, None]) * invstd[:, None]
    return (
        dx + from_rows((invstd * (1 if weight is None else weight) * dweight)[:, None] * xhat / xhat.shape[1], x.shape),
        dweight,
        dbias,
    )


BROKEN = {
    "the variance in one pass": ({"forward": _one_pass}, "far from zero", False),
    "the unbiased variance": ({"forward": _unbiased}, "two numbers", False),
    "the ReLU forgotten": ({"forward": lambda *a: reference.forward(*a[:4], False)}, "primes", True),
    "the ReLU's mask forgotten": ({"backward": lambda *a: reference.backward(*a[:6], False)}, "primes", True),
    "a ReLU nobody asked for": ({"forward": lambda *a: reference.forward(*a[:4], True)}, "primes", False),
    "the variance taken for constant": ({"backward": _mean_only}, "matrix", False),
    "another format": (
        {"forward": lambda *a: (reference.forward(*a)[0].contiguous(), *reference.forward(*a)[1:])},
        "primes",
        False,
    ),
}


@table(BROKEN)
def test_broken_kernels_are_noticed(case):
    broken, norm, relu = case
    with pytest.raises(AssertionError):
        check_norm(
            *(broken.get(name, getattr(reference, name)) for name in ("forward", "backward")),
            NORMS[norm],
            relu,
            torch.float32,
        )


@pytest.mark.parametrize("relu", [False, True], ids=["alone", "relu"])
def test_gradients_and_their_gradients(relu):
    x = to_batch_last(numbers(3, 2, 2, 1)).requires_grad_()
    weight, bias = (numbers(2, seed=s).requires_grad_() for s in (1, 2))
    torch.autograd.gradcheck(lambda *a: op.batch_norm(*a, 1e-3, relu), (x, weight, bias))
    torch.autograd.gradgradcheck(lambda *a: op.batch_norm(*a, 1e-3, relu), (x, weight, bias))
    torch.autograd.gradgradcheck(lambda t: op.batch_norm(t, None, None, 1e-3, relu), (x,))


def test_the_first_kernel_that_fits_runs(monkeypatch):
    ran = []

    def told(name: str) -> Callable:
        return lambda *args: ran.append(name) or getattr(reference, name)(*args)

    for name in ("forward", "backward"):
        never = Kernel("never", told("never"), lambda *_: ["it never fits"])
        monkeypatch.setattr(op, name.upper(), [never, Kernel("mine", told(name), lambda *_: [])])
    op.batch_norm(to_batch_last(numbers(7, 3)).requires_grad_(), None, None, 1e-5).sum().backward()
    assert ran == ["forward", "backward"]


# ---------------------------------------------------------------- counterparts


class Counterpart(NamedTuple):
    """A torch module and the shapes of the inputs it is tried on."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]


def changed(m: nn.Module, **changes: object) -> nn.Module:
    for name, value in changes.items():
        setattr(m, name, value)
    return m


MATRICES, IMAGES = ((7, 5), (128, 5)), ((7, 5, 11, 7), (1, 5, 6, 7), (128, 5, 4, 4))
SEQUENCES = ((7, 5, 3), (1, 5, 3))
COUNTERPARTS = {
    "BatchNorm1d": Counterpart(lambda: nn.BatchNorm1d(5), (*MATRICES, *SEQUENCES)),
    "BatchNorm1d bare": Counterpart(
        lambda: nn.BatchNorm1d(5, affine=False, track_running_stats=False), (*MATRICES, *SEQUENCES)
    ),
    "BatchNorm2d": Counterpart(lambda: nn.BatchNorm2d(5), (*IMAGES, (7, 5, 1, 1))),
    "BatchNorm2d options": Counterpart(lambda: nn.BatchNorm2d(5, eps=0.1, momentum=0.37), IMAGES),
    "BatchNorm2d without weight": Counterpart(lambda: nn.BatchNorm2d(5, affine=False), IMAGES),
    "BatchNorm2d without bias": Counterpart(lambda: changed(nn.BatchNorm2d(5), bias=None), IMAGES),
    "BatchNorm2d mean of all batches": Counterpart(lambda: nn.BatchNorm2d(5, momentum=None), IMAGES),
    "BatchNorm2d without momentum": Counterpart(lambda: nn.BatchNorm2d(5, momentum=0.0), IMAGES),
    "BatchNorm2d by the batch": Counterpart(lambda: nn.BatchNorm2d(5, track_running_stats=False), IMAGES),
    "BatchNorm2d stats held": Counterpart(lambda: changed(nn.BatchNorm2d(5), track_running_stats=False), IMAGES),
    "BatchNorm2d frozen": Counterpart(lambda: nn.BatchNorm2d(5).requires_grad_(False), IMAGES),
    "MaxPool2d": Counterpart(lambda: nn.MaxPool2d(2), IMAGES),
    "MaxPool2d options": Counterpart(lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True), IMAGES),
    "MaxPool2d dilated": Counterpart(lambda: nn.MaxPool2d(2, 1, dilation=(2, 1)), IMAGES),
    "AvgPool2d": Counterpart(lambda: nn.AvgPool2d(2), IMAGES),
    "AvgPool2d options": Counterpart(
        lambda: nn.AvgPool2d((3, 2), (2, 1), 1, ceil_mode=True, count_include_pad=False), IMAGES
    ),
    "AvgPool2d divided": Counterpart(lambda: nn.AvgPool2d(2, padding=1, divisor_override=3), IMAGES),
    "AvgPool2d every other": Counterpart(lambda: nn.AvgPool2d(1, 2), IMAGES),
    "AdaptiveAvgPool2d to one": Counterpart(lambda: nn.AdaptiveAvgPool2d(1), (*IMAGES, (7, 5, 1, 1))),
    "AdaptiveAvgPool2d to one by one": Counterpart(lambda: nn.AdaptiveAvgPool2d((1, 1)), IMAGES),
    "AdaptiveAvgPool2d": Counterpart(lambda: nn.AdaptiveAvgPool2d((3, None)), IMAGES),
    "AdaptiveMaxPool2d": Counterpart(lambda: nn.AdaptiveMaxPool2d((2, 3)), IMAGES),
    "BatchNorm1d and ReLU": Counterpart(lambda: nn.Sequential(nn.BatchNorm1d(5), nn.ReLU()), (*MATRICES, *SEQUENCES)),
    "BatchNorm2d and ReLU": Counterpart(lambda: nn.Sequential(nn.BatchNorm2d(5), nn.ReLU(inplace=True)), IMAGES),
    "BatchNorm2d bare and ReLU": Counterpart(lambda: nn.Sequential(nn.BatchNorm2d(5, affine=False), nn.ReLU()), IMAGES),
    "BatchNorm2d by the batch and ReLU": Counterpart(
        lambda: nn.Sequential(nn.BatchNorm2d(5, track_running_stats=False), nn.ReLU()), IMAGES
    ),
}


def two(case: Counterpart, dtype: torch.dtype = torch.float64, fuse: bool = True) -> tuple[nn.Module, nn.Module]:
    """The torch module, its parameters drawn, and the counterpart of a copy."""
    plain = case.make().to(dtype)
    with torch.no_grad():
        for seed, p in enumerate(plain.parameters()):
            p.copy_(numbers(*p.shape, seed=20 + seed))
    return plain, keep_batch_last(copy.deepcopy(plain), fuse=fuse)


def outcome(m: nn.Module, x: Tensor, dy_seed: int) -> list[Tensor]:
    """Output, and gradients of the input and of all parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = m(x)
    wanted = [x, *(p for p in m.parameters() if p.requires_grad)]
    return [y, *torch.autograd.grad(y, wanted, to_batch_last(numbers(*y.shape, seed=dy_seed, dtype=y.dtype)))]


def check_counterpart(plain: nn.Module, counterpart: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The law: three steps and an evaluation give the same outputs, gradients and states; what comes batch-last stays
    so, both ways."""
    for step in range(4):
        if step == 3:
            plain, counterpart = plain.eval(), counterpart.eval()
        x = numbers(*shape, seed=step, dtype=dtype) + 0.1 * step
        mine, theirs = outcome(counterpart, to_batch_last(x), step), outcome(plain, x, step)
        assert all(close(a, b) for a, b in zip(mine, theirs, strict=True))
        assert is_batch_last(mine[0]) and is_batch_last(mine[1])
        with torch.no_grad():
            assert close(copy.deepcopy(counterpart)(to_batch_last(x)), copy.deepcopy(plain)(x))
        states = counterpart.state_dict(), plain.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(close(a.to(dtype), b.to(dtype)) for a, b in zip(states[0].values(), states[1].values(), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@table(COUNTERPARTS)
def test_a_counterpart_is_its_torch_module(case, dtype):
    for shape in case.shapes:
        for fuse in (False, True) if isinstance(case.make(), nn.Sequential) else (False,):
            plain, counterpart = two(case, dtype, fuse)
            check_counterpart(plain, counterpart, shape, dtype)


WRONG_COUNTERPARTS = {
    "another eps": lambda m: changed(m, eps=1e-2),
    "another momentum": lambda m: changed(m, momentum=0.2),
    "a ReLU": lambda m: changed(m, relu=True),
    "running statistics held": lambda m: changed(m, track_running_stats=False),
    "torch's own module": plain_modules,
}


@table(WRONG_COUNTERPARTS)
def test_wrong_counterparts_are_noticed(case):
    plain, counterpart = two(COUNTERPARTS["BatchNorm2d"])
    with pytest.raises(AssertionError):
        check_counterpart(plain, case(counterpart), (7, 5, 3, 2), torch.float64)


@table(COUNTERPARTS)
def test_other_formats_go_torchs_own_way(case):
    """Bit for bit, strides included."""
    for shape in case.shapes:
        formats = [torch.contiguous_format, *([torch.channels_last] if len(shape) == 4 else [])]
        for x in (numbers(*shape).contiguous(memory_format=f) for f in formats):
            plain, counterpart = two(case)
            mine, theirs = counterpart(x), plain(x)
            if is_batch_last(x):  # one image, or one pixel
                assert close(mine, theirs)
            else:
                assert torch.equal(mine, theirs) and mine.stride() == theirs.stride() and same_state(plain, counterpart)


@table(COUNTERPARTS)
def test_there_and_back(case):
    """Same objects, keys, modes; twice is once; the way back leads to torch's modules, with the same results all
    along."""
    plain = case.make().double()
    m, shape = copy.deepcopy(plain), case.shapes[0]
    objects = list(m.modules())
    names = [type(c).__name__ for c in objects]
    x = to_batch_last(numbers(*shape))
    before = copy.deepcopy(m)(x)
    assert keep_batch_last(keep_batch_last(m, fuse=True), fuse=True) is m and same_state(m, plain)
    assert all(a is b for a, b in zip(m.modules(), objects, strict=True))
    assert [type(c).__name__ for c in m.modules()] == names
    assert all(isinstance(a, type(b)) for a, b in zip(m.modules(), plain.modules(), strict=True))
    assert (
        repr(m).count("relu=True")
        == repr(m).count("done by")
        == len(counterparts.fused(m))
        == isinstance(m, nn.Sequential)
    )
    for way in (copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))):
        assert close(way(m)(x), before) and repr(way(m)) == repr(m)
    other = keep_batch_last(case.make().double())
    other.load_state_dict(plain.state_dict())
    back = case.make().double()
    back.load_state_dict(m.state_dict())
    assert same_state(other, back) and same_state(back, plain)
    assert plain_modules(m) is m and repr(m) == repr(plain)
    assert [vars(c).keys() for c in m.modules()] == [vars(c).keys() for c in plain.modules()]
    assert torch.equal(m(x), before) and all(type(c).__module__.startswith("torch.nn") for c in m.modules())


ERRORS = {
    "one number per channel": (lambda: nn.BatchNorm1d(5), (1, 5)),
    "one pixel of one image": (lambda: nn.BatchNorm2d(5), (1, 5, 1, 1)),
    "other channels": (lambda: nn.BatchNorm2d(5), (7, 3, 2, 2)),
    "a matrix for images": (lambda: nn.BatchNorm2d(5), (7, 5)),
    "images for a matrix": (lambda: nn.BatchNorm1d(5), (7, 5, 2, 2)),
    "no eps": (lambda: nn.BatchNorm2d(5, eps=0.0), (7, 5, 2, 2)),
    "volumes": (lambda: nn.MaxPool2d(2), (7, 5, 2, 2, 2)),
}


@table(ERRORS)
def test_misuse_is_torchs_error(case):
    make, shape = case
    errors = []
    for m in (make(), keep_batch_last(make())):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            m(to_batch_last(numbers(*shape, dtype=torch.float32)))
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


def test_an_empty_batch():
    for m in (nn.BatchNorm2d(5).eval(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)):
        assert keep_batch_last(copy.deepcopy(m))(torch.zeros(0, 5, 4, 4)).shape == m(torch.zeros(0, 5, 4, 4)).shape


def test_one_unbatched_image_and_indices_go_torchs_own_way():
    x = numbers(5, 4, 4)
    for make in (lambda: nn.MaxPool2d(2), lambda: nn.AdaptiveAvgPool2d(1), lambda: nn.AvgPool2d(2)):
        assert torch.equal(keep_batch_last(make())(x), make()(x))
    for make in (lambda: nn.MaxPool2d(2, return_indices=True), lambda: nn.AdaptiveMaxPool2d(2, return_indices=True)):
        for mine, theirs in zip(
            keep_batch_last(make())(to_batch_last(numbers(7, 5, 4, 4))), make()(numbers(7, 5, 4, 4)), strict=True
        ):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_mixed_precision_goes_torchs_own_way(kind, training):
    """Parameters in float32, input in another dtype: what torch makes of it, also where that is a refusal."""
    plain, counterpart = two(COUNTERPARTS["BatchNorm2d and ReLU"], torch.float32)
    x, results = to_batch_last(numbers(7, 5, 3, 2, dtype=kind)), []
    for m in (plain, counterpart):
        try:
            results.append(m.train(training)(x))
        except RuntimeError as error:
            results.append(str(error))
    assert str(results[0]) == str(results[1]) or torch.allclose(*results, rtol=1e-5, atol=1e-5)


def test_inplace_work_on_the_output():
    """A ReLU in place after a normalisation that has a hook, or is called by hand, as torchvision's residual blocks
    do."""
    for training in (True, False):
        plain, counterpart = two(COUNTERPARTS["BatchNorm2d"])
        mine, theirs = (
            outcome(nn.Sequential(m.train(training), nn.ReLU(inplace=True)), x, 3)
            for m, x in ((counterpart, to_batch_last(numbers(7, 5, 3, 2))), (plain, numbers(7, 5, 3, 2)))
        )
        assert all(close(a, b) for a, b in zip(mine, theirs, strict=True))


# ---------------------------------------------------------------- which modules


class Own(nn.BatchNorm2d):
    pass


class Reordered(nn.Sequential):
    def forward(self, x):
        return self[0](self[1](x))


class Block(nn.Sequential):
    pass


def hooked(m: nn.Module) -> nn.Module:
    m.register_forward_hook(lambda *_: None)
    return m


def twice() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(norm, nn.ReLU(), norm, nn.Tanh())


def one_act() -> nn.Module:
    act = nn.ReLU(inplace=True)
    return nn.Sequential(nn.BatchNorm2d(3), act, nn.Conv2d(3, 3, 1), act, nn.BatchNorm2d(3), act)


def shared_pair() -> nn.Module:
    pair = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    return nn.Sequential(pair, nn.Conv2d(3, 3, 1), pair)


FUSED = {
    "a pair": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), 1),
    "in a network": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(True), nn.MaxPool2d(1), nn.BatchNorm2d(3)),
        1,
    ),
    "in a container's subclass": (lambda: Block(nn.BatchNorm2d(3), nn.ReLU()), 1),
    "not in another order": (lambda: Reordered(nn.BatchNorm2d(3), nn.ReLU()), 0),
    "not backwards": (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), 0),
    "not at a distance": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Identity(), nn.ReLU()), 0),
    "not another activation": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU6()), 0),
    "not a subclass": (lambda: nn.Sequential(Own(3), nn.ReLU()), 0),
    "not a hooked normalisation": (lambda: nn.Sequential(hooked(nn.BatchNorm2d(3)), nn.ReLU()), 0),
    "not a hooked ReLU": (lambda: nn.Sequential(nn.BatchNorm2d(3), hooked(nn.ReLU())), 0),
    "not a normalisation used elsewhere": (twice, 0),
    "a ReLU used elsewhere": (one_act, 2),
    "a pair used twice": (shared_pair, 1),
    "not without a container": (lambda: nn.ModuleList([nn.BatchNorm2d(3), nn.ReLU()]), 0),
}


@table(FUSED)
def test_which_pairs_are_fused(case):
    make, pairs = case
    plain = make().double()
    assert counterparts.fused(keep_batch_last(copy.deepcopy(plain))) == []
    model = keep_batch_last(copy.deepcopy(plain), fuse=True)
    assert sum(getattr(m, "relu", False) for m in model.modules()) == pairs
    assert sum(type(m) is counterparts.ReLU for m in model.modules()) == pairs and same_state(model, plain)
    assert [type(m).__name__ for m in keep_batch_last(model, fuse=True).modules()] == [
        type(m).__name__ for m in model.modules()
    ]
    if not isinstance(model, nn.ModuleList):
        x = numbers(7, 3, 2, 2)
        mine, theirs = (outcome(m, t, 1) for m, t in ((model, to_batch_last(x)), (plain, x)))
        assert all(close(a, b) for a, b in zip(mine, theirs, strict=True))
        assert close(plain_modules(model).eval()(x), plain.eval()(x))


def test_only_torchs_own_types_become_counterparts():
    others = [
        Own(3),
        nn.SyncBatchNorm(3),
        nn.BatchNorm3d(3),
        nn.LazyBatchNorm2d(),
        nn.GroupNorm(3, 3),
        nn.LayerNorm(3),
        nn.MaxPool1d(2),
    ]
    kinds = [type(m) for m in others]
    assert [type(m) for m in keep_batch_last(nn.ModuleList(others))] == kinds


def test_hooks_handles_modes_and_places_stay():
    seen, norm, pool = [], nn.BatchNorm2d(3).eval(), nn.MaxPool2d(2)
    model = nn.Sequential(norm, pool, nn.Sequential(norm, pool))
    handle = norm.register_forward_hook(lambda *_: seen.append("norm"))
    pool.register_full_backward_hook(lambda *_: seen.append("pool"))
    weight = norm.weight
    keep_batch_last(model)
    assert model[0] is model[2][0] is norm and model[1] is model[2][1] is pool and norm.weight is weight
    assert (
        type(norm) is counterparts.BatchNorm2d
        and type(pool) is counterparts.MaxPool2d
        and not norm.training
        and pool.training
    )
    model(to_batch_last(numbers(7, 3, 4, 4, dtype=torch.float32))).sum().backward()
    handle.remove()
    model(to_batch_last(numbers(7, 3, 4, 4, dtype=torch.float32)))
    assert sorted(seen) == ["norm"] * 2 + ["pool"] * 2


# ---------------------------------------------------------------- whole networks


class LastConv2d(nn.Conv2d):
    """A dense convolution that makes the batch-last format, forward and backward, as sparse ones do."""

    def forward(self, input: Tensor) -> Tensor:
        return to_batch_last(super().forward(gradient_last(input)))


class LastLinear(nn.Linear):
    """The same of a dense linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        return to_batch_last(super().forward(gradient_last(input)))


def gradient_last(x: Tensor) -> Tensor:
    x = x.view_as(x)
    if x.requires_grad and not torch.compiler.is_compiling():
        x.register_hook(to_batch_last)
    return x


def small_vgg() -> nn.Module:
    def stage(before, width):
        return nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    features = (*stage(3, 5), *stage(5, 7), nn.MaxPool2d(2), *stage(7, 11), nn.MaxPool2d(2), nn.Dropout(0.0))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(11, 13), nn.BatchNorm1d(13), nn.ReLU(), nn.Linear(13, 5))
    return nn.Sequential(*features, *head)


NETWORKS = {
    "vgg": (small_vgg, 4),
    "resnet": (lambda: ResNet(3, (4, 6), 2, 5, projection=True), 5),
    "resnet without projections": (lambda: ResNet(3, (4, 6), 2, 5, projection=False), 5),
}


def losses(model: nn.Module) -> list[float]:
    optimizer, values = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
    for step in range(3):
        x, y = numbers(7, 3, 8, 8, seed=step), torch.arange(7) % 5
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return [*values, model.eval()(numbers(7, 3, 8, 8, seed=9)).square().sum().item()]


@table(NETWORKS)
def test_networks_learn_the_same_and_stay_batch_last(case):
    """Three steps and an evaluation; the output and its gradient are batch-last behind every module from the first
    convolution on."""
    make, fused = case
    plain = make().double()
    model, lost = copy.deepcopy(plain), []
    for m in model.modules():
        m.__class__ = {nn.Conv2d: LastConv2d, nn.Linear: LastLinear}.get(type(m), type(m))
    keep_batch_last(model, fuse=True)
    assert sum(getattr(m, "relu", False) for m in model.modules()) == fused

    def look(name: str, y: Tensor) -> None:
        if not is_batch_last(y):
            lost.append(name)
        elif y.requires_grad and name != last:
            y.register_hook(lambda dy: None if is_batch_last(dy) else lost.append(f"gradient of {name}"))

    leaves = {name: m for name, m in model.named_modules() if not list(m.children())}
    last = list(leaves)[-1]  # its gradient is the loss's
    for name, m in leaves.items():
        m.register_forward_hook(lambda m, inputs, y, name=name: look(name, y))
    before = copy.deepcopy(plain)
    assert losses(model) == pytest.approx(losses(before), rel=1e-9) and lost == []
    assert all(close(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("layout", gs.LAYOUTS)
def test_a_sparse_network_learns_the_same(layout):
    model = gs.sparsify(small_vgg().double(), 0.4, layout=layout, rng=generator())
    plain = plain_modules(copy.deepcopy(model))
    keep_batch_last(model, fuse=True)
    assert losses(model) == pytest.approx(losses(plain), rel=1e-9)
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain_modules(gs.densify(model))
    assert repr(model) == repr(small_vgg())


def test_compiles_in_one_graph():
    model = nn.Sequential(
        LastConv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1)
    )
    model = keep_batch_last(model.double(), fuse=True)
    plain = plain_modules(copy.deepcopy(model))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in range(2):
        x = numbers(3, 2, 6, 6, seed=step)
        mine, theirs = outcome(compiled, x, step), outcome(plain, x, step)
        assert all(close(a, b) for a, b in zip(mine, theirs, strict=True))
