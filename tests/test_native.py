"""The native kernels.

Every build that can run here on every hard case; threads, forks, refusals; and what happens without the kernels.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import gossamer as gs
from cases import CONVS, SUPPORTS, Conv, generator, table
from gossamer import laws
from gossamer._backend import memory, native
from gossamer._backend.dispatch import Kernel
from gossamer._backend.index import native as index
from gossamer._backend.index import op as index_op
from gossamer.products.conv2d import native as conv2d
from gossamer.products.conv2d.reference import Geometry
from gossamer.products.linear import native as linear
from gossamer.products.norm import reference as norm
from gossamer.products.sense import native as sense
from gossamer.support import Support

ROOT = Path(__file__).resolve().parents[1]
ABSENT = pytest.mark.skipif(not native.BUILDS, reason=f"no native build runs here: {native.MISSING}")
BUILDS = [pytest.param(m, id=m.isa) for m in native.BUILDS] or [pytest.param(None, id="none", marks=ABSENT)]
every_build = pytest.mark.parametrize("m", BUILDS)

BATCHES = (1, 7, 8, 127, 128, 513)  # one, less than a vector, a vector, one short of many, many, one over
DTYPES = (torch.float64, torch.float32, torch.bfloat16)

LINEAR = {
    **SUPPORTS,
    "larger primes": gs.Support.random((61, 127), 997, rng=generator(5)),
    "a column longer than a segment": gs.Support.random((401, 3), 700, rng=generator(5)),
}
OUTGROWS_THE_CACHE = {
    "wide": gs.Support.random((7, 3001), 13_000, rng=generator(5)),
    "tall": gs.Support.random((3001, 7), 13_000, rng=generator(5)),
}


def _conv(channels: int, filters: int, g: Geometry, size: tuple[int, int], density: float = 0.4) -> Conv:
    return Conv(channels, filters, g, size, max(1, round(density * channels * filters * g.kernel[0] * g.kernel[1])))


CONVOLUTIONS = {
    **CONVS,
    "one pixel": _conv(5, 3, Geometry((1, 1)), (1, 1)),
    "one pixel, padded": _conv(3, 5, Geometry((3, 3), padding=(1, 1)), (1, 1)),
    "2x2, strided": _conv(3, 5, Geometry((3, 3), (2, 2), (1, 1)), (2, 2)),
    "5x7": _conv(3, 5, Geometry((3, 3), padding=(1, 1)), (5, 7)),
    "5x5 by 3": _conv(2, 3, Geometry((5, 5), (3, 3), (2, 2)), (5, 7)),
    "1x7": _conv(2, 3, Geometry((1, 7), (1, 2), (0, 3)), (5, 7)),
    "dilated, strided": _conv(2, 3, Geometry((3, 3), (2, 3), (2, 2), (2, 2)), (5, 7)),
    "stride beyond the kernel": _conv(3, 2, Geometry((1, 1), (3, 3), (0, 1)), (5, 7), 1.0),
    "padding far beyond the kernel": _conv(2, 3, Geometry((1, 1), (2, 1), (3, 4)), (2, 2), 1.0),
    "no block": Conv(3, 5, Geometry((3, 3), padding=(1, 1)), (5, 4), 0),
    "every block": _conv(3, 5, Geometry((3, 3), padding=(1, 1)), (5, 4), 1.0),
    "a row wider than the registers": _conv(2, 2, Geometry((3, 3), padding=(1, 1)), (2, 29)),
}
IN_BLOCKS = {
    "many channels": _conv(127, 3, Geometry((3, 3), padding=(1, 1)), (8, 7), 0.1),
    "many filters": _conv(3, 127, Geometry((3, 3), padding=(1, 1)), (8, 7), 0.1),
    "many, strided": _conv(67, 67, Geometry((3, 3), (2, 2), (1, 1)), (13, 13), 0.02),
}


def kernels_of(m: Any, g: Geometry | None) -> dict[str, Kernel]:
    """All operations of a build: name -> kernel."""
    family, found = ("csr_linear", linear.kernels(m)) if g is None else ("csr_conv2d", conv2d.kernels(m))
    sampled = {f"csr_sense.{name}": k for name, k in sense.kernels(m).items()}
    return {f"{family}.{name}": k for name, k in found.items()} | sampled


def check(m: Any, s: Support, g: Geometry | None = None, **options: Any) -> None:
    """The law, of all operations of a build on one support. None declines single weights."""
    for operation, kernel in kernels_of(m, g).items():
        if operation == "csr_sense.strongest" and options.get("dtype") is torch.bfloat16:
            continue  # a layer senses in the dtype of its values
        assert laws.check_kernel(operation, kernel, s, g, **options) or s.block != (1, 1)
        if operation.endswith("forward"):
            laws.check_kernel(operation, kernel, s, g, biased=True, **options)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That many threads of torch; the fixture of all tests sets one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -------------------------------------------------------------------- parity


@every_build
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@table(LINEAR)
def test_linear_products(m, dtype, case):
    for batch in BATCHES:
        check(m, case, batch=batch, dtype=dtype)


@every_build
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@table(CONVOLUTIONS)
def test_convolutions(m, dtype, case):
    for batch in BATCHES:
        check(m, case.support, case.g, batch=batch, size=case.size, dtype=dtype)


@every_build
@pytest.mark.parametrize("count", [1, 2])
@table(OUTGROWS_THE_CACHE)
def test_what_outgrows_the_cache_is_taken_in_blocks(m, count, case):
    with threads(count):
        for batch in (64, 129):
            check(m, case, batch=batch)


@every_build
@pytest.mark.parametrize("count", [1, 2])
@table(IN_BLOCKS)
def test_images_that_outgrow_the_cache_are_taken_in_blocks(m, count, case):
    with threads(count):
        check(m, case.support, case.g, batch=65, size=case.size)


@every_build
@pytest.mark.parametrize("batch", [3, 64])
def test_strange_memory_orders(m, batch):
    """Channels-last, views with gaps; what torch expands or transposes gives the bits of a plain copy."""
    s, case = SUPPORTS["primes"], CONVS["all unlike"]
    check(m, s, batch=batch, strange=True)
    check(m, case.support, case.g, batch=batch, size=case.size, strange=True)
    rng, k = generator(), linear.kernels(m)
    values = torch.randn(s.n, generator=rng)
    x, dy = torch.randn(batch, 7, generator=rng), torch.randn(batch, 13, generator=rng)
    strange = {
        "one sample for all": (x[:1].expand(batch, 7), dy[:1].expand(batch, 13)),
        "one number for all": (torch.ones(()).expand(batch, 7), torch.ones(()).expand(batch, 13)),
        "a slice": (torch.cat([x, dy], 1)[:, :7], torch.cat([x, dy], 1)[:, 7:]),
        "transposed": (x.t().contiguous().t(), dy.t().contiguous().t()),
        "backwards": (x.flip(0), dy.flip(1)),
        "part of a batch": (
            torch.cat([x, x]).t().contiguous().t()[:batch],
            torch.cat([dy, dy]).t().contiguous().t()[batch:],
        ),
    }
    for name, (a, b) in strange.items():
        copies = a.clone(memory_format=torch.contiguous_format), b.clone(memory_format=torch.contiguous_format)
        assert torch.equal(k["forward"].run(a, values, s), k["forward"].run(copies[0], values, s)), name
        for got, expected in zip(
            k["backward"].run(b, a, values, s), k["backward"].run(*copies[::-1], values, s), strict=True
        ):
            assert torch.equal(got, expected), name


@st.composite
def supports(draw: st.DrawFn, rows: int, cols: int) -> Support:
    ids = draw(st.sets(st.integers(0, rows * cols - 1), max_size=rows * cols))
    return Support.from_ids(torch.tensor(sorted(ids), dtype=torch.int64), (rows, cols))


quickly = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@every_build
@quickly
@given(
    data=st.data(), rows=st.integers(1, 23), cols=st.integers(1, 23), batch=st.integers(1, 40), count=st.integers(1, 3)
)
def test_any_index_of_a_matrix(m, data, rows, cols, batch, count):
    with threads(count):
        check(m, data.draw(supports(rows, cols)), batch=batch)


PAIRS = {
    name: st.tuples(*[st.integers(low, high)] * 2)
    for name, (low, high) in {"kernel": (1, 4), "few": (1, 3), "padding": (0, 4)}.items()
}


@every_build
@quickly
@given(
    data=st.data(),
    channels=st.integers(1, 4),
    filters=st.integers(1, 4),
    batch=st.integers(1, 20),
    count=st.integers(1, 2),
)
def test_any_convolution(m, data, channels, filters, batch, count):
    g = Geometry(*(data.draw(PAIRS[name]) for name in ("kernel", "few", "padding", "few")))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(g.kernel, g.padding, g.dilation, strict=True)]
    size = tuple(data.draw(st.integers(low, low + 6)) for low in least)
    with threads(count):
        check(m, data.draw(supports(filters, channels * g.kernel[0] * g.kernel[1])), g, batch=batch, size=size)


@every_build
def test_values_in_bfloat16(m):
    """They are read as float32, and their gradient comes back as they are."""
    s, case, rng = SUPPORTS["primes"], CONVS["padded"], generator()
    for g, k, support, shapes in (
        ((), linear.kernels(m), s, ((9, 7), (9, 13))),
        ((case.g,), conv2d.kernels(m), case.support, ((9, 3, 5, 5), (9, 5, 5, 5))),
    ):
        x, dy = (torch.randn(shape, generator=rng).bfloat16() for shape in shapes)
        values = torch.randn(support.n, generator=rng).bfloat16()
        assert torch.equal(k["forward"].run(x, values, support, *g), k["forward"].run(x, values.float(), support, *g))
        dx, dw = k["backward"].run(dy, x, values, support, *g)
        exact = k["backward"].run(dy, x, values.float(), support, *g)
        assert torch.equal(dx, exact[0]) and dw.dtype == torch.bfloat16 and torch.equal(dw, exact[1].bfloat16())


@every_build
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_memory_orders_are_turned(m, dtype, count):
    for shape in ((1, 1), (7, 3), (16, 16), (33, 129), (3, 2, 5, 7), (0, 4), (64, 3, 8, 8)):
        x = torch.randn(shape, generator=generator(), dtype=torch.float64).to(dtype)
        y = memory.new_batch_last(x, *shape).fill_(torch.nan)
        m.turn(x, y, count)
        assert torch.equal(y, x)


@every_build
@pytest.mark.parametrize("count", (1, 2, 5))
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_indices_of_matrices(m, dtype, count):
    """Empty rows and columns, nothing, everything, what is zero and what only looks like it."""
    some = torch.randn(23, 17, dtype=dtype, generator=generator()) * (torch.rand(23, 17, generator=generator()) < 0.2)
    some[3], some[:, 5], some[7, 7:9] = 0.0, 0.0, torch.tensor([-0.0, float("nan")], dtype=dtype)
    with threads(count):
        for w in (
            some,
            some[:1],
            some[:, 4:5].contiguous(),
            torch.zeros(3, 4, dtype=dtype),
            torch.ones(4, 3, dtype=dtype),
        ):
            laws.check_index(index.kernels(m), w)


def test_what_the_kernels_of_indices_decline():
    """Other dtypes, gaps in memory: the reference takes them, the result is the same."""
    w = torch.randn(6, 8, generator=generator()).relu()
    for other in (w.bfloat16(), w.bool(), w.t().contiguous().t()):
        assert not other.is_contiguous() or other.dtype is not torch.float32
        assert all(torch.equal(a, b) for a, b in zip(index_op.rows_of(other), index_op.rows_of(w), strict=True))


@every_build
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_row_sums(m, dtype):
    for shape in ((1, 1), (7, 3), (513, 5), (3, 2, 5, 7), (2, 3, 67, 71)):
        x = torch.randn(shape, generator=generator(), dtype=torch.float64).to(dtype)
        sums = torch.full((shape[1],), torch.nan, dtype=native.COMPUTED[dtype])
        m.row_sums(memory.fast_batch_last(x), sums, 1)
        assert torch.allclose(sums, x.double().sum([0, *range(2, x.dim())]).to(sums.dtype), rtol=1e-5, atol=1e-4)


@every_build
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_batch_normalisation(m, dtype, relu):
    """Forward and backward, with and without weight and bias, as the reference has it."""
    rng = generator()
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    for shape in ((2, 1), (7, 3), (513, 5), (3, 2, 5, 7), (2, 3, 67, 71)):
        x, dy = (memory.fast_batch_last(3 + torch.randn(shape, generator=rng, dtype=dtype)) for _ in range(2))
        for weight, bias in ((None, None), tuple(torch.randn(2, shape[1], generator=rng, dtype=dtype))):
            with laws.poisoned_memory():
                y, dx = torch.empty_like(x), torch.empty_like(x)
                mean, invstd, dweight, dbias = (torch.empty(shape[1], dtype=dtype) for _ in range(4))
            m.batch_norm_forward(x, weight, bias, 1e-5, relu, y, mean, invstd, 1)
            m.batch_norm_backward(dy, x, weight, bias, mean, invstd, relu, dx, dweight, dbias, 1)
            expected = (
                *norm.forward(x, weight, bias, 1e-5, relu),
                *norm.backward(dy, x, weight, bias, mean, invstd, relu),
            )
            for a, b in zip((y, mean, invstd, dx, dweight, dbias), expected, strict=True):
                assert torch.allclose(a, b, **tolerance)


@every_build
def test_what_is_not_finite_stays_where_it_is(m):
    """A NaN or an infinity in one sample spoils what that sample touches, and nothing else."""
    s, values, k = SUPPORTS["primes"], torch.ones(31), linear.kernels(m)
    for batch in (1, 7, 65):
        for bad in (torch.nan, torch.inf):
            x = torch.randn(batch, 7, generator=generator())
            clean = k["forward"].run(x, values, s)
            x[batch - 1, 2] = bad
            y = k["forward"].run(x, values, s)
            touched = s.mask()[:, 2]
            assert (
                not y[-1, touched].isfinite().any()
                and torch.equal(y[:-1], clean[:-1])
                and torch.equal(y[-1, ~touched], clean[-1, ~touched])
            )


# -------------------------------------------------------------------- threads

WORK = {
    "linear": (LINEAR["larger primes"], None, (0, 0)),
    "conv": (CONVOLUTIONS["5x7"].support, CONVOLUTIONS["5x7"].g, (5, 7)),
}


@every_build
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("work", WORK)
def test_the_same_bits_for_the_same_number_of_threads(m, work, count):
    """... which the law asks for; and the numbers of one thread within rounding, which its tolerance is."""
    s, g, size = WORK[work]
    with threads(count):
        for batch in BATCHES:
            check(m, s, g, batch=batch, size=size)


@every_build
@pytest.mark.parametrize("work", WORK)
def test_more_threads_than_there_is_work(m, work):
    s, g, size = WORK[work]
    with threads(16):
        for batch in (1, 33):
            check(m, s, g, batch=batch, size=size)


def python(code: str, *lines: str, timeout: float = 120, **variables: str) -> str:
    """What a fresh interpreter prints; its failure is this test's."""
    path = os.pathsep.join(filter(None, [str(Path(gs.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, **variables}
    script = PREAMBLE + dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *lines],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
        cwd=ROOT / "tests",
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


PREAMBLE = """
import os, re, sys, warnings
import torch
import gossamer as gs
from cases import CONVS, SUPPORTS
from gossamer._backend import memory, native
from gossamer.products.linear import native as linear
from gossamer.products.conv2d import native as conv2d

def products():
    '''Output and gradients of a linear layer and a convolution.

    The tensors are so small that torch uses one thread for them, even in a forked child.'''
    found = []
    for layer, shape in (
        (gs.SparseLinear(127, 61, density=0.1, rng=torch.Generator().manual_seed(0)), (129, 127)),
        (gs.SparseConv2d(3, 5, 3, padding=1, density=0.3, rng=torch.Generator().manual_seed(0)), (65, 3, 5, 7)),
    ):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found += [y.detach(), x.grad, layer.values.grad, layer.bias.grad]
    return found

def same(some, others):
    return all(map(torch.equal, some, others))

def close(some, others):
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(some, others))
"""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@ABSENT
def test_one_openmp_runtime_whose_threads_torch_counts():
    """The process has one OpenMP library, and the kernels start as many threads as torch is set to.

    Torch then starts none of its own. Set to one thread, the kernels do not wake the others.
    """
    said = python("""
        def tasks():
            return len(os.listdir("/proc/self/task"))

        def busy():
            "Threads that have run since they were last looked at, the one that asks excepted."
            ticks = {}
            for task in os.listdir("/proc/self/task"):
                if task != str(os.getpid()):
                    with open(f"/proc/self/task/{task}/schedstat") as file:
                        ticks[task] = file.read().split()[2]
            return ticks

        s, m = SUPPORTS["primes"], native.BEST
        x, values = torch.randn(7, 4000).t(), torch.randn(31)
        run = lambda: linear.kernels(m)["forward"].run(x, values, s)
        torch.set_num_threads(1)
        run()
        alone = tasks()
        torch.set_num_threads(3)
        run()
        print(tasks() - alone if m.openmp else 2)
        large = torch.randn(1 << 22)
        with_ours = tasks()
        large.exp()
        print(tasks() - with_ours)
        torch.set_num_threads(1)
        before = busy()
        run()
        print(sum(before[task] != ticks for task, ticks in busy().items() if task in before))
        with open("/proc/self/maps") as file:
            print(len({os.path.realpath(path) for path in re.findall(r"\\S+/lib(?:gomp|omp|iomp5)[^/\\s]*",
            file.read())}))
    """)
    assert said.split() == ["2", "0", "0", "1"]


@linux
@ABSENT
def test_a_forked_child_runs_the_kernels_on_one_thread():
    """It has none of its parent's OpenMP threads and would wait for them forever.

    Its numbers are those of one thread.
    """
    python("""
        import signal
        torch.set_num_threads(1)
        alone = products()
        torch.set_num_threads(2)
        together = products()
        assert close(together, alone)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # ends a child that waits forever
            os._exit(0 if same(products(), alone) else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert same(products(), together)
    """)


@linux
@ABSENT
def test_data_loader_workers_run_sparse_layers():
    python("""
        class Rows(torch.utils.data.Dataset):
            def __len__(self):
                return 6

            def __getitem__(self, i):
                return products()[i]

        torch.set_num_threads(2)
        here = products()
        for workers in (2, 2):
            loader = torch.utils.data.DataLoader(
                Rows(), batch_size=None, num_workers=workers, timeout=30, multiprocessing_context="fork"
            )
            assert close(list(loader), here[:6]) and same(products(), here)
    """)


@ABSENT
def test_python_threads_run_the_kernels_side_by_side():
    """The kernels let go of the interpreter's lock; what they keep from call to call belongs to one thread each."""
    from concurrent.futures import ThreadPoolExecutor

    s, k = LINEAR["larger primes"], linear.kernels(native.BEST)
    inputs = [torch.randn(200 + i, 127, generator=generator(i)) for i in range(8)]
    values = torch.randn(s.n, generator=generator())

    def both(x):
        torch.set_num_threads(2)
        dy = x[:, :61].contiguous()
        return k["forward"].run(x, values, s), *k["backward"].run(dy, x, values, s)

    expected = [both(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, wanted in zip(pool.map(both, inputs), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@ABSENT
def test_fewer_threads_than_asked_for():
    """OpenMP may give fewer threads than it is asked for: under a limit, or by its own judgement."""
    said = python(
        """
        from gossamer import laws
        torch.set_num_threads(3)
        for shape in ((61, 127), (401, 7)):
            s = gs.Support.random(shape, shape[0] * shape[1] // 3, rng=torch.Generator().manual_seed(0))
            for batch in (4, 5, 9, 10, 12, 17, 33, 64, 129):
                for name, kernel in linear.kernels(native.BEST).items():
                    assert laws.check_kernel(f"csr_linear.{name}", kernel, s, batch=batch)
        print(torch.get_num_threads())
        """,
        OMP_THREAD_LIMIT="2",
    )
    assert said.strip() == "3"


# -------------------------------------------------------------------- refusals


def calls() -> dict[str, tuple[Callable[[], Any], str]]:
    """Wrong calls of the bindings: what is wrong -> (call, word in the message)."""
    m, s, one = native.BEST, SUPPORTS["primes"], Support.from_ids(torch.tensor([3]), (1, 7))
    x, dy, y, dx = (torch.zeros(c, 5).t() for c in (7, 13, 13, 7))
    v, dw, b = torch.zeros(31), torch.zeros(31), torch.zeros(13)
    forward: tuple = (x, v, b, y, s.crow, s.col, 1)
    backward: tuple = (dy, x, v, dx, dw, s.ccol, s.row, s.perm, 1)
    c = CONVS["padded"]
    image, result = torch.zeros(3, 5, 5, 4).movedim(-1, 0), torch.zeros(5, 5, 5, 4).movedim(-1, 0)
    cs, cv, geometry = c.support, torch.zeros(40), [v for pair in c.g for v in pair]
    conv_forward: tuple = (image, cv, None, result, cs.crow, cs.col, geometry, 1)
    conv_backward: tuple = (result, image, cv, image.clone(), cv.clone(), cs.ccol, cs.row, cs.perm, geometry, 1)
    conv_weight: tuple = (result, image, cv, cs.crow, cs.col, geometry, 1)
    unpadded = [3, 3, 1, 1, 0, 0, 1, 1]
    c3 = torch.zeros(3)
    normal: tuple = (image, c3, c3, 1e-5, True, image.clone(), c3.clone(), c3.clone(), 1)
    back: tuple = (image, image, c3, c3, c3, c3, True, image.clone(), c3.clone(), c3.clone(), 1)

    def put(name: str, arguments: tuple, at: int, what: Any) -> Callable[[], Any]:
        return lambda: getattr(m, name)(*arguments[:at], what, *arguments[at + 1 :])

    wrong: dict[str, tuple[Callable[[], Any], str]] = {}
    for at, name in enumerate(("x", "values", "y", "crow", "col")):
        place = (0, 1, 3, 4, 5)[at]
        wrong[f"no {name}"] = put("linear_forward", forward, place, None), name
        wrong[f"no {name} of a convolution"] = put("conv_forward", conv_forward, place, None), name
    for at, name in enumerate(("dy", "x", "values", "dx", None, "crow", "col")):
        if name:
            if name != "dx":  # dw alone is a right thing to ask for
                wrong[f"no {name}, backward"] = put("linear_backward", backward, at, None), ""
            wrong[f"no {name} of a convolution, backward"] = put("conv_backward", conv_backward, at, None), ""
    wrong |= {
        "no operand but dy": (lambda: m.linear_backward(dy, None, None, None, None, s.ccol, s.row, None, 1), ""),
        "no perm": (put("linear_backward", backward, 7, None), "perm"),
        "no index for one block": (
            lambda: m.linear_forward(x, v[:1], None, torch.zeros(1, 5).t(), one.crow, None, 1),
            "col",
        ),
        "no dw of a convolution": (put("conv_weight", conv_weight, 2, None), "dw"),
        "no x, normalised": (put("batch_norm_forward", normal, 0, None), "x"),
        "no y, normalised": (put("batch_norm_forward", normal, 5, None), "y"),
        "no mean": (put("batch_norm_forward", normal, 6, None), "mean"),
        "no invstd": (put("batch_norm_forward", normal, 7, None), "invstd"),
        "no dy, normalised": (put("batch_norm_backward", back, 0, None), "dy"),
        "no x, normalised, backward": (put("batch_norm_backward", back, 1, None), ""),
        "no mean, backward": (put("batch_norm_backward", back, 4, None), "mean"),
        "no sums": (lambda: m.row_sums(image, None, 1), "out"),
        "nothing to turn": (lambda: m.turn(None, y, 1), "x"),
        "turned to nowhere": (lambda: m.turn(y.contiguous(), None, 1), "y"),
        "turned to another shape": (lambda: m.turn(x.contiguous(), y, 1), "shape"),
        "turned to where it is": (lambda: m.turn(y.contiguous(), y.contiguous(), 1), "innermost"),
        "turned from batch-last": (lambda: m.turn(y, y, 1), "contiguous"),
        "nothing to sum": (lambda: m.row_sums(None, c3, 1), "x"),
        "a list": (put("linear_forward", forward, 0, [1.0]), ""),
        "an array": (put("linear_forward", forward, 0, x.numpy()), ""),
        "a vector": (put("linear_forward", forward, 0, v), "batch"),
        "a number, backward": (put("linear_backward", backward, 0, torch.zeros(())), "batch"),
        "an image as a matrix": (put("linear_forward", forward, 0, image), ""),
        "a matrix as an image": (put("conv_forward", conv_forward, 0, x), "height"),
        "batch not innermost": (put("linear_forward", forward, 0, torch.zeros(5, 7)), "innermost"),
        "gaps": (put("linear_forward", forward, 0, torch.zeros(7, 10)[:, ::2].t()), "innermost"),
        "an expanded output": (put("linear_forward", forward, 3, torch.zeros(1, 5).expand(13, 5).t()), "dense"),
        "another batch": (put("linear_forward", forward, 3, torch.zeros(13, 6).t()), "shape"),
        "other features": (put("linear_forward", forward, 3, torch.zeros(12, 5).t()), "crow"),
        "half": (put("linear_forward", forward, 0, x.half()), "dtype"),
        "whole numbers": (put("linear_forward", forward, 0, x.int()), ""),
        "two dtypes": (put("linear_forward", forward, 3, y.double()), "dtype"),
        "values in another dtype": (put("linear_forward", forward, 1, v.double()), "dtype"),
        "too few values": (put("linear_forward", forward, 1, v[:-1]), "entries"),
        "values with gaps": (put("linear_forward", forward, 1, torch.zeros(62)[::2]), "contiguous"),
        "a short bias": (put("linear_forward", forward, 2, b[:-1]), "entries"),
        "an index of int64": (put("linear_forward", forward, 5, s.col.long()), ""),
        "an index with gaps": (put("linear_forward", forward, 5, s.col.repeat_interleave(2)[::2]), "contiguous"),
        "an index of another matrix": (put("linear_forward", forward, 4, s.crow[:-1]), "crow"),
        "pointers beyond the index": (put("linear_forward", forward, 4, s.crow + 1), "entries"),
        "a short perm": (put("linear_backward", backward, 7, s.perm[:-1]), "perm"),
        "on no device": (put("linear_forward", forward, 0, x.to("meta")), ""),
        "sparse": (put("linear_forward", forward, 0, torch.zeros(5, 7).to_sparse()), ""),
        "seven numbers of geometry": (put("conv_forward", conv_forward, 6, geometry[:-1]), "eight"),
        "a geometry of another size": (put("conv_forward", conv_forward, 6, unpadded), "geometry"),
        "stride 0": (put("conv_forward", conv_forward, 6, [3, 3, 0, 1, 1, 1, 1, 1]), "geometry"),
        "kernel 0": (put("conv_forward", conv_forward, 6, [0, 0, 1, 1, 0, 0, 1, 1]), "geometry"),
        "an empty image": (
            lambda: m.conv_forward(
                torch.zeros(4, 3, 0, 5), cv, None, torch.zeros(4, 5, 0, 5), cs.crow, cs.col, geometry, 1
            ),
            "",
        ),
        "an empty result": (
            lambda: m.conv_forward(
                torch.zeros(3, 2, 2, 4).movedim(-1, 0), cv, None, torch.zeros(4, 5, 0, 0), cs.crow, cs.col, unpadded, 1
            ),
            "",
        ),
        "sums of another length": (lambda: m.row_sums(image, torch.zeros(4), 1), "entries"),
        "sums in another dtype": (lambda: m.row_sums(image, c3.double(), 1), "dtype"),
    }
    return wrong


@ABSENT
def test_the_bindings_refuse_wrong_arguments():
    """With a ValueError that names the argument and not with a crash, which is why they are asked in a process of their
    own."""
    said = python("""
        from test_native import calls
        for what, (call, word) in calls().items():
            print(what, end=": ", flush=True)  # a crash leaves the name of its call
            try:
                call()
                print("accepted", flush=True)
            except ValueError as refusal:
                print("right" if word in str(refusal) else f"does not say {word!r}: {refusal}", flush=True)
            except Exception as error:
                print(f"{type(error).__name__}: {error}".splitlines()[0], flush=True)
    """)
    assert [line for line in said.splitlines() if not line.endswith(": right")] == []
    assert len(said.splitlines()) == len(calls())


HOSTILE = {
    "column out of range": (lambda crow, col: (crow, col + 1), "columns must lie in"),
    "negative column": (lambda crow, col: (crow, col - 1), "columns must lie in"),
    "huge column": (
        lambda crow, col: (crow, torch.where(col == col.max(), 2**31 - 1, col.long())),
        "columns must lie in",
    ),
    "columns unsorted": (lambda crow, col: (crow, col.flip(0)), "increase strictly"),
    "column twice": (lambda crow, col: (crow, torch.cat([col[:1], col[:-1]])), "increase strictly"),
    "pointers decrease": (lambda crow, col: (crow.flip(0), col), "crow must"),
    "pointers go beyond": (lambda crow, col: (crow + 1, col), "crow must run from 0"),
    "a pointer far beyond": (
        lambda crow, col: (torch.cat([crow[:3], crow[3:4] + 2**20, crow[4:]]), col),
        "crow must not decrease",
    ),
    "pointers missing": (lambda crow, col: (crow[:-1], col), "crow must have"),
    "columns missing": (lambda crow, col: (crow, col[:-1]), "crow must run from 0"),
    "fractions": (lambda crow, col: (crow, col + 0.5), "integers"),
}


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE.keys())
def hostile(request) -> tuple[Support, torch.Tensor, torch.Tensor, str]:
    """A support of which every kind of damage shows, its damaged index, and what is said of it."""
    s = Support.from_ids(torch.tensor([0, 5, 7, 10, 14, 20, 27, 34]), (5, 7))
    damage, reason = request.param
    return s, *damage(s.crow, s.col), reason


def test_a_hostile_index_reaches_no_kernel(hostile, tmp_path):
    """Refused as a support, in a state_dict and in a checkpoint, each time in Python; the layer is what it was and
    still runs."""
    s, crow, col, reason = hostile
    with pytest.raises(gs.UsageError, match=reason):
        Support.from_index(crow, col, s.shape)

    layer = gs.SparseLinear(7, 5, support=s, rng=generator())
    x = torch.randn(3, 7)
    before = layer(x)
    state = {**layer.state_dict(), "crow": crow, "col": col, "values": torch.zeros(col.numel())}
    for options in ({}, {"strict": False}, {"assign": True}):
        with pytest.raises(RuntimeError, match=reason):
            layer.load_state_dict(dict(state), **options)
        assert layer.support.same(s) and torch.equal(layer(x), before)

    net, file = torch.nn.Sequential(layer), tmp_path / "net.safetensors"
    gs.checkpoint.save(file, net)
    with safe_open(file, "pt") as f:
        header, tensors = f.metadata(), {key: f.get_tensor(key) for key in f.keys()}
    tensors |= {
        "model.0.crow": crow.contiguous(),
        "model.0.col": col.contiguous(),
        "model.0.values": torch.zeros(col.numel()),
    }
    save_file(tensors, file, header)
    with pytest.raises(gs.UsageError):
        gs.checkpoint.load(file, net)
    assert layer.support.same(s) and torch.equal(layer(x), before)


USERS_MISTAKES = {
    "an image smaller than the kernel": (3, 3, 2, 2),
    "an image one pixel too small": (3, 3, 2, 5),
    "an image without rows": (3, 3, 0, 5),
}


@table(USERS_MISTAKES)
def test_an_image_that_has_no_output_is_refused(case):
    """As torch does; in a process of its own, since a kernel that got it would divide by zero."""
    said = python(f"""
        try:
            gs.SparseConv2d(3, 5, 3, density=0.5)(torch.zeros({case}))
        except (ValueError, RuntimeError) as refusal:
            print("refused:", refusal)
    """)
    assert said.startswith("refused:")


# -------------------------------------------------------------------- which build runs, and life without one


@ABSENT
def test_the_environment_chooses_the_build():
    for m in native.BUILDS:
        assert python("print(native.BEST.isa)", GOSSAMER_ISA=m.isa).split() == [m.isa]


WITHOUT = """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        layer = gs.SparseLinear(7, 5, density=0.5)
        for _ in range(2):
            layer(torch.randn(3, 7, requires_grad=True)).sum().backward()
        print(layer.kernels["forward"], *(w.message for w in warned if "native" in str(w.message)), sep="; ")
"""


def test_without_a_build_the_reference_runs_and_says_so_once():
    said = python(WITHOUT, GOSSAMER_ISA="abacus").strip()
    assert said.startswith("reference; without its native kernels gossamer is slow: ") and said.count("slow") == 1
    assert "GOSSAMER_ISA=abacus" in said or not native.BUILDS
    assert (
        python(WITHOUT, GOSSAMER_ISA="abacus", GOSSAMER_BACKEND="reference").strip() == "reference"
    )  # asked for: nothing to warn of


def test_a_backend_that_is_missing_gives_the_reason():
    said = python(
        """
        try:
            gs.SparseLinear(7, 5, density=0.5)(torch.randn(3, 7))
        except gs.UsageError as refusal:
            print(refusal)
        """,
        GOSSAMER_ISA="abacus",
        GOSSAMER_BACKEND="native",
    )
    assert "the native kernels are missing" in said and ("GOSSAMER_ISA=abacus" in said or not native.BUILDS)


@ABSENT
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 16)], ids=str)
def test_tiles_run_on_native_kernels_too(block):
    linear, conv = (
        gs.SparseLinear(32, 32, density=0.5, block=block),
        gs.SparseConv2d(8, 16, 2, density=0.5, block=block),
    )
    for layer, x in ((linear, torch.randn(3, 32)), (conv, torch.randn(3, 8, 4, 4))):
        layer(x.requires_grad_()).sum().backward()
        assert set(layer.kernels.values()) == {"native"}


@ABSENT
def test_the_backend_is_what_the_environment_says(monkeypatch):
    layer = gs.SparseLinear(7, 5, density=0.5, rng=generator())
    conv = gs.SparseConv2d(3, 5, 3, density=0.5, rng=generator())
    for name in ("native", "reference"):
        monkeypatch.setenv("GOSSAMER_BACKEND", name)
        assert set(layer.kernels.values()) == set(conv.kernels.values()) == {name}
    monkeypatch.setenv("GOSSAMER_BACKEND", "native")
    with pytest.raises(gs.UsageError, match="float32, float64 or bfloat16"):
        layer.half()(torch.randn(3, 7).half())


@ABSENT
@pytest.mark.parametrize("case", ["linear", "conv"])
def test_native_and_reference_train_alike(case, monkeypatch):
    """The same layer, forward and backward in float64, on either kernel."""
    found = {}
    for name in ("native", "reference"):
        monkeypatch.setenv("GOSSAMER_BACKEND", name)
        if case == "linear":
            layer, x = (
                gs.SparseLinear(7, 13, density=0.3, rng=generator(), dtype=torch.float64),
                torch.randn(9, 7, generator=generator(1)),
            )
        else:
            layer = gs.SparseConv2d(3, 5, 3, stride=2, padding=1, density=0.3, rng=generator(), dtype=torch.float64)
            x = torch.randn(9, 3, 7, 8, generator=generator(1))
        x = x.double().requires_grad_()
        y = layer(x)
        y.sin().sum().backward()
        found[name] = [y.detach(), x.grad, layer.values.grad, layer.bias.grad]
    for a, b in zip(*found.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12) and a.stride() == b.stride()
