"""Laws: what supports, kernels, layouts, surgery, penalties, rules, topologies, checkpoints, operators and solvers obey, as functions.

    from gossamer import laws
    laws.check_layout(MY_LAYOUT)
    laws.check_kernel("csr_linear.forward", MY_KERNEL, some_support)
    laws.check_topology(my_topology(stop=40), gs.Rewirer)

Each raises AssertionError with one sentence: which law is broken, and where. Each is itself tested against mutants, objects broken on
purpose that it must reject. Everything is tiny, in float64, and draws from its own generators; new memory is filled with NaN.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoint
from .convert import sparsify
from .errors import Unfit
from .layers import SparseLinear, sparse_layers
from .layouts import Layout, gather, scatter
from .ops.csr_conv2d.reference import Geometry
from .ops.kernels import Kernel
from .penalties import Penalty
from .recover.operators import Dense, Operator
from .recover.recovery import Recovery
from .rules.rule import Rule, SparseOptimizer
from .support import INT, Support, index_problems
from .surgery import set_support_
from .topology import topology as topologies
from .topology.topology import Topology

Optimizers = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2, torch.int64: 0.0}  # of kernels' results


def nesterov(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that laws use unless told otherwise: SGD with Nesterov momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


# -------------------------------------------------------------------- supports


def check_support(s: Support, *, draws: int = 200) -> None:
    """The index is valid and both its orders say the same; ids, ranks and positions invert each other; sampling is uniform.

    Args:
        draws: samples of the uniformity test (chi-square over all zeros, 6 sigma, a fixed seed).
    """
    who = f"support {s.shape} in units of {s.unit}, n={s.n}"
    _demand(all(t.dtype == INT for t in (s.crow, s.col, s.ccol, s.row, s.perm)), f"{who}: every index tensor must be int32")
    problems = index_problems(s.crow, s.col, s.shape, s.unit)
    _demand(not problems, f"{who}: not a CSR index: {'; '.join(problems)}")
    ids, everything = s.ids(), torch.arange(s.total)
    kept = torch.zeros(s.total, dtype=torch.bool)
    kept[ids] = True
    _demand(int(kept.sum()) == s.n == ids.numel() and bool((ids.diff() > 0).all()), f"{who}: ids must be sorted and distinct")

    by_column = torch.sort(s.col, stable=True)[1]
    _demand(torch.equal(s.perm.long(), by_column), f"{who}: perm must list the units column by column")
    _demand(torch.equal(s.row, s.rows()[by_column]), f"{who}: row must be the unit rows in column order")
    counts = torch.bincount(s.col.long(), minlength=s.grid[1])
    _demand(torch.equal(s.ccol.diff().long(), counts) and int(s.ccol[0]) == 0, f"{who}: ccol must point at the unit columns")

    zeros = everything[~kept]
    _demand(torch.equal(s.find(ids), torch.arange(s.n)), f"{who}: find must give the position of every kept id")
    _demand(bool((s.find(zeros) == -1).all()), f"{who}: find must give -1 for an id that is not kept")
    _demand(torch.equal(s.outside(torch.arange(zeros.numel())), zeros), f"{who}: outside(rank) must be the rank-th id that is not kept")
    _demand(Support.from_ids(ids.flip(0), s.shape, s.unit).same(s), f"{who}: from_ids of the ids must give the support back")
    _demand(Support.from_index(s.crow, s.col, s.shape, s.unit).same(s), f"{who}: from_index of the index must give the support back")

    mask = s.mask()
    tiles = kept.view(s.grid).repeat_interleave(s.unit[0], 0).repeat_interleave(s.unit[1], 1)[: s.shape[0], : s.shape[1]]
    _demand(torch.equal(mask, tiles), f"{who}: mask must hold exactly the kept units")
    _demand(s.weights == int(mask.sum()), f"{who}: weights must count the scalars of the kept units inside the matrix")
    _check_sampling(s, zeros, who, draws)


def _check_sampling(s: Support, zeros: Tensor, who: str, draws: int) -> None:
    before = torch.get_rng_state()
    m, counts = -(-zeros.numel() // 3), torch.zeros(s.total)
    for seed in range(draws):
        drawn = s.sample_outside(m, torch.Generator().manual_seed(seed))
        _demand(drawn.shape == (m,) and bool((drawn.diff() > 0).all()), f"{who}: a sample must be sorted and without replacement")
        _demand(bool((s.find(drawn) == -1).all()), f"{who}: a sample of the zeros must hold no kept unit")
        counts[drawn] += 1
    again = s.sample_outside(m, torch.Generator().manual_seed(0))
    _demand(torch.equal(again, s.sample_outside(m, torch.Generator().manual_seed(0))), f"{who}: a sample must follow from its generator")
    _demand(torch.equal(torch.get_rng_state(), before), f"{who}: sampling with a generator must leave torch's own alone")
    _demand(torch.equal(s.sample_outside(zeros.numel(), torch.Generator()), zeros), f"{who}: a sample of all zeros must be all of them")
    if draws and zeros.numel() > m:
        p, z = m / zeros.numel(), zeros.numel()
        chi2 = float(((counts[zeros] - draws * p) ** 2).sum()) / (draws * p * (1 - p)) * (z - 1) / z
        sigmas = (chi2 - (z - 1)) / math.sqrt(2 * (z - 1))
        _demand(sigmas < 6, f"{who}: samples must be uniform (chi-square {chi2:.0f} for {z - 1} degrees of freedom, {sigmas:.0f} sigma)")


def check_rewire(rewire: Callable[..., Support] = topologies.rewire, *, trials: int = 60) -> None:
    """Drops the lowest scores, grows the highest, ties to the lower id, kept and grown disjoint, every row its ``min_fan_in``."""
    rng = torch.Generator().manual_seed(0)
    for trial in range(trials):
        rows, cols = 3 + trial % 5, 4 + trial % 7
        fan_in = trial % 3
        s = Support.random((rows, cols), max(rows * fan_in, rows * cols // 2), rng=rng, min_fan_in=fan_in)
        drop_score = torch.randint(4, (s.n,), generator=rng).double()  # few levels: many ties
        droppable = s.n - fan_in * rows
        drop = int(torch.randint(droppable + 1, (), generator=rng)) if droppable else 0
        stay = _expected_survivors(s, drop_score.tolist(), drop, fan_in)
        born = torch.tensor([i for i in range(s.total) if i not in stay])[torch.randperm(s.total - len(stay), generator=rng)]
        born_score = torch.randint(3, (born.numel(),), generator=rng).double()
        grow = int(torch.randint(born.numel() + 1, (), generator=rng))
        best = sorted(zip((-born_score).tolist(), born.tolist(), strict=True))[:grow]
        expected = sorted(stay | {i for _, i in best})
        try:
            got = rewire(s, drop_score, born, born_score, drop, grow, fan_in).ids().tolist()
        except Unfit as refusal:
            raise AssertionError(f"rewire: trial {trial}: grew what it kept: {refusal}") from refusal
        where = f"rewire: trial {trial}, {s.n} kept, drop {drop}, grow {grow}, min_fan_in {fan_in}"
        _demand(len(got) == s.n - drop + grow, f"{where}: n must become {s.n - drop + grow}, not {len(got)}")
        _demand(got == expected, f"{where}: must keep and grow the highest scores, the lower id among equals")


def _expected_survivors(s: Support, score: list[float], drop: int, fan_in: int) -> set[int]:
    best_first = sorted(zip((-v for v in score), s.ids().tolist(), strict=True))
    protected: set[int] = set()
    for row in range(s.grid[0]):
        protected |= {i for _, i in [pair for pair in best_first if pair[1] // s.grid[1] == row][:fan_in]}
    order = sorted(protected) + [i for _, i in best_first if i not in protected]
    return set(order[: s.n - drop])


# -------------------------------------------------------------------- kernels and layouts


def check_kernel(
    operation: str,
    kernel: Kernel,
    s: Support,
    g: Geometry | None = None,
    *,
    batch: int = 5,
    size: tuple[int, int] = (7, 6),
    dtype: torch.dtype = torch.float64,
    biased: bool = False,
    strange: bool = False,
) -> bool:
    """One kernel on one support: the dense product's numbers, whatever the memory order of its inputs, which it leaves alone, twice alike.

    Args:
        operation: ``csr_linear.`` or ``csr_conv2d.`` and ``forward``, ``backward``, ``input_gradient`` or ``weight_gradient``;
            ``csr_sense.sampled`` or ``csr_sense.strongest``.
        g: the convolution's geometry; None is a linear layer.
        batch, size: of the inputs; height and width matter to convolutions only.
        dtype: of the activations. With bfloat16 the values are float32, and float32 must be what is computed in: the numbers of the
            float32 product of the rounded activations, rounded once where they are activations.
        biased: give ``forward`` a bias.
        strange: besides contiguous and batch-last inputs also channels-last ones and views with gaps.

    Returns: False if the kernel said (``unfit``) that it cannot run here, which breaks no law.
    """
    where = f"{operation} by {kernel.name!r} on {s.shape} in units of {s.unit}, n={s.n}" + (f", {g}, {size}" if g else "")
    where = f"{where}, batch {batch}, {dtype}"
    x, dy, values = _operands(s, g, batch, size, dtype)
    bias = _bias(s, values.dtype) if biased else None
    expected = _expected(operation, x.to(values.dtype), dy.to(values.dtype), values, s, g, bias)
    for order in (torch.Tensor.contiguous, _batch_last, *((_channels_last, _gapped) if strange else ())):
        arguments = _arguments(operation, order(x), order(dy), values, s, g, size, bias)
        reasons = kernel.unfit(*arguments)
        _demand(all(isinstance(reason, str) for reason in reasons), f"{where}: unfit must give sentences")
        if reasons:
            return False
        kept = copy.deepcopy([a for a in arguments if isinstance(a, Tensor)])
        with poisoned_memory():
            got, again = kernel.run(*arguments), kernel.run(*arguments)
        unchanged = all(torch.equal(a, b) for a, b in zip(kept, (a for a in arguments if isinstance(a, Tensor)), strict=True))
        _demand(unchanged, f"{where}: the inputs must not change")
        got, again = (r if isinstance(r, tuple) else (r,) for r in (got, again))
        for a, b, (exact, activations) in zip(got, again, expected, strict=True):
            exact = exact.to(dtype) if activations else exact
            _demand(a.shape == exact.shape, f"{where}: shape {tuple(a.shape)}, must be {tuple(exact.shape)}")
            _demand(a.dtype == exact.dtype, f"{where}: dtype {a.dtype}, must be {exact.dtype}")
            _demand(not bool(a.isnan().any()), f"{where}: some of the output was never written")
            _close(a, exact, f"{where}: must be the dense product's", TOLERANCE[a.dtype])
            _demand(torch.equal(a, b), f"{where}: two runs must give the same bits")
    return True


def check_layout(
    layout: Layout, s: Support | None = None, g: Geometry | None = None, *, batch: int = 5, size: tuple[int, int] = (7, 6)
) -> None:
    """One layout on one support (None: a few hard ones): stores without loss, multiplies as the dense weight does, forward and backward,
    and neither reads nor gives a gradient to anything off the support. One that follows its values gives all of them their gradient.
    """
    if s is None:
        for case, geometry in _hard_supports():
            check_layout(layout, case, geometry, batch=batch, size=size)
        return
    where = f"layout {layout.name!r} on {s.shape} in units of {s.unit}, n={s.n}" + (f", {g}" if g else "")
    _demand(layout.storage in ("dense", "compact"), f"{where}: storage must be 'dense' or 'compact'")
    x, dy, values = _operands(s, g, batch, size)
    shape = torch.Size(s.shape if g is None else (s.shape[0], x.shape[1], *g.kernel))
    stored = layout.stored(values, s, shape)
    _demand(layout.storage == "compact" or stored.shape == shape, f"{where}: dense storage must have the weight's shape")
    _demand(torch.equal(layout.compact(stored, s), values), f"{where}: compact(stored(values)) must be the values")

    if layout.storage == "dense" and not layout.follows:
        stored = torch.where(scatter(torch.ones_like(values), s).view(shape) > 0, stored, 7.0)  # what is off the support must not be read
    stored.requires_grad_()
    x.requires_grad_()
    dense, x2 = scatter(values, s).requires_grad_(), x.detach().clone().requires_grad_()
    expected = F.linear(x2, dense) if g is None else F.conv2d(x2, dense.view(shape), None, g.stride, g.padding, g.dilation)
    dx2, dense_grad = torch.autograd.grad(expected, (x2, dense), dy)
    with poisoned_memory():
        y = layout.linear(x, stored, s) if g is None else layout.conv2d(x, stored, s, g)
        _demand(y.shape == expected.shape, f"{where}: output of shape {tuple(y.shape)}, must be {tuple(expected.shape)}")
        _close(y, expected, f"{where}: the output must be the dense layer's")
        dx, dw = torch.autograd.grad(y, (x, stored), dy)
    _close(dx, dx2, f"{where}: the input's gradient must be the dense layer's")
    _demand(dw.shape == stored.shape, f"{where}: the gradient must have the parameter's shape")
    _close(layout.compact(dw, s), gather(dense_grad, s), f"{where}: the gradient on the support must be the dense weight's, there")
    if layout.follows:
        _close(dw.view(s.shape), dense_grad, f"{where}: the gradient must be the dense weight's, on the support and off it")
    elif layout.storage == "dense":
        _demand(bool((dw.view(s.shape)[~s.mask()] == 0).all()), f"{where}: the gradient must be 0 off the support")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory is filled with NaN in here, so that what a kernel forgets to write shows."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


def _hard_supports() -> Iterator[tuple[Support, Geometry | None]]:
    rng = torch.Generator().manual_seed(0)
    conv = Geometry((3, 2), (2, 1), (1, 2), (1, 2))
    yield Support.random((7, 11), 30, rng=rng), None
    yield Support.from_ids(torch.tensor([12, 14, 40]), (7, 11)), None  # empty rows and columns
    yield Support.from_ids(torch.empty(0, dtype=torch.int64), (3, 2)), None
    yield Support.full((3, 5)), None
    yield Support.random((7, 11), 5, (3, 4), rng), None  # tiles that hang over the edge
    yield Support.random((5, 18), 40, rng=rng), conv
    yield Support.random((5, 18), 7, (2, 4), rng), conv


def _operands(
    s: Support, g: Geometry | None, batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, output gradient and values (0 where a tile hangs over the edge), which are float32 at least."""
    rng = torch.Generator().manual_seed(1)
    dense = torch.randn(s.shape, generator=rng, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    if g is None:
        shapes = (batch, s.shape[1]), (batch, s.shape[0])
    else:
        channels = s.shape[1] // math.prod(g.kernel)
        shapes = (batch, channels, *size), (batch, s.shape[0], *g.out(*size))
    x, dy = (torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, dy, gather(dense, s)


def _bias(s: Support, dtype: torch.dtype) -> Tensor:
    return torch.randn(s.shape[0], generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def _arguments(
    operation: str, x: Tensor, dy: Tensor, values: Tensor, s: Support, g: Geometry | None, size: tuple[int, int], bias: Tensor | None
) -> tuple[Any, ...]:
    conv = () if g is None else (g,)
    table: dict[str, tuple[Any, ...]] = {
        "forward": (x, values, s, *conv, *(() if bias is None else (bias,))),
        "backward": (dy, x, values, s, *conv),
        "input_gradient": (dy, values, s, *conv, *(() if g is None else (size,))),
        "weight_gradient": (dy, x, s, *conv),
        "sampled": (dy, x, _some_zeros(s), s.shape, s.unit, g),
        "strongest": ([(dy, x), (dy, 0.5 * x)], s, (s.total - s.n + 1) // 2, g),
    }
    return table[operation.split(".")[1]]


def _expected(
    operation: str, x: Tensor, dy: Tensor, values: Tensor, s: Support, g: Geometry | None, bias: Tensor | None
) -> list[tuple[Tensor, bool]]:
    """What the dense layer computes, and whether that is activations (or their gradient)."""
    dense, x = scatter(values, s).requires_grad_(), x.detach().clone().requires_grad_()
    shape = s.shape if g is None else (s.shape[0], x.shape[1], *g.kernel)
    y = F.linear(x, dense, bias) if g is None else F.conv2d(x, dense.view(shape), bias, g.stride, g.padding, g.dilation)
    dx, dw = torch.autograd.grad(y, (x, dense), dy)
    what = operation.split(".")[1]
    if what == "sampled":
        return [(gather(dw, Support.from_ids(_some_zeros(s), s.shape, s.unit)), False)]
    if what == "strongest":
        zeros = Support.from_ids(s.outside(torch.arange(s.total - s.n)), s.shape, s.unit)
        tiles = 1.5 * gather(dw, zeros)
        ranked = sorted(zip((-topologies.norm(tiles)).tolist(), range(zeros.n), strict=True))[: (s.total - s.n + 1) // 2]
        at = torch.tensor(sorted(i for _, i in ranked), dtype=torch.int64)
        return [(zeros.ids()[at], False), (tiles[at], False)]
    forward, of_x, of_w = (y.detach(), True), (dx, True), (gather(dw, s), False)
    return {"forward": [forward], "backward": [of_x, of_w], "input_gradient": [of_x], "weight_gradient": [of_w]}[what]


def _some_zeros(s: Support) -> Tensor:
    return s.sample_outside((s.total - s.n + 1) // 2, torch.Generator().manual_seed(2))


def _batch_last(t: Tensor) -> Tensor:
    return t.permute(*range(1, t.dim()), 0).contiguous().permute(-1, *range(t.dim() - 1))


def _channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def _gapped(t: Tensor) -> Tensor:
    return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]


# -------------------------------------------------------------------- surgery


def check_surgery(
    set_support: Callable[..., None] = set_support_,
    *,
    layout: str | Layout = "csr",
    unit: tuple[int, int] = (1, 1),
    optimizer: Optimizers = nesterov,
) -> None:
    """A layer that gets another support keeps value and optimizer state of the units in both; what is born has value 0 and state 0.

    Also: the parameter stays the same object, and where n stays the same all its storage stays in place; the bias is not touched.
    """
    where = f"surgery on layout {layout if isinstance(layout, str) else layout.name!r} in units of {unit}"
    rng = torch.Generator().manual_seed(0)
    for change in ("same", "fewer", "more", "same"):
        s = Support.random((7, 11), 9, unit, rng) if unit == (1, 1) else Support.random((7, 11), 4, unit, rng)
        layer, ids = SparseLinear(11, 7, support=s, layout=layout, rng=rng, dtype=torch.float64), s.ids()
        opt = optimizer(layer.parameters())
        for _ in range(3):
            layer(torch.randn(5, 11, generator=rng, dtype=torch.float64)).square().sum().backward()
            opt.step()
        n = {"same": s.n, "fewer": s.n // 2, "more": s.n + 2}[change]
        keep = s.ids()[: max(1, n // 2)]
        rest = Support.from_ids(keep, s.shape, s.unit)
        new = Support.from_ids(torch.cat([keep, rest.sample_outside(n - keep.numel(), rng)]), s.shape, s.unit)
        parameter, bias = layer.values, copy.deepcopy(layer.bias)
        before = {key: _dense(t, layer.layout, s) for key, t in _state(layer, opt).items()}
        places = _places(layer, opt)
        set_support(layer, new, opt)

        _demand(layer.support.same(new), f"{where}, {change} n: the layer must hold the new support")
        check_support(layer.support, draws=0)
        _demand(torch.equal(s.ids(), ids), f"{where}, {change} n: a Support that somebody holds must not change")
        leaf = layer.values is parameter and parameter.is_leaf and parameter.requires_grad
        _demand(leaf, f"{where}: the parameter must stay the same leaf")
        _demand(layer.values.grad is None, f"{where}: the gradient of the old support must go")
        _demand(_same(bias, layer.bias), f"{where}: the bias must not change")
        after = _state(layer, opt)
        _demand(after.keys() == before.keys(), f"{where}, {change} n: the optimizer's state must keep its entries")
        both = s.mask() & new.mask()
        for key, t in after.items():
            _demand(t.shape == layer.values.shape, f"{where}, {change} n: {key} must have the parameter's shape")
            now = _dense(t, layer.layout, new)
            _demand(bool((now[~both] == 0).all()), f"{where}, {change} n: {key} of a born unit must be 0")
            _demand(torch.equal(now[both], before[key][both]), f"{where}, {change} n: {key} of a unit that stays must be carried")
            if layer.layout.storage == "dense":
                _demand(bool((t.view(s.shape)[~new.mask()] == 0).all()), f"{where}, {change} n: {key} must be 0 off the support")
        if change == "same":
            _demand(_places(layer, opt) == places, f"{where}: where n stays the same, all storage must stay in place")
        layer(torch.randn(5, 11, generator=rng, dtype=torch.float64)).square().sum().backward()
        opt.step()
        _demand(bool(layer.values.isfinite().all()), f"{where}, {change} n: training must go on")


def _state(layer: SparseLinear, opt: torch.optim.Optimizer) -> dict[str, Tensor]:
    entries = {key: t for key, t in opt.state[layer.values].items() if torch.is_tensor(t) and t.dim() > 0}
    return {"values": layer.values.detach(), **entries}


def _dense(t: Tensor, layout: Layout, s: Support) -> Tensor:
    return scatter(layout.compact(t, s), s).clone()


def _places(layer: SparseLinear, opt: torch.optim.Optimizer) -> dict[str, int]:
    return {key: t.data_ptr() for key, t in _state(layer, opt).items()}


# -------------------------------------------------------------------- penalties

SHAPES = ((7,), (5, 7), (3, 4, 3, 2))


def check_penalty(penalty: Penalty, *, shapes: Sequence[tuple[int, ...]] = SHAPES) -> None:
    """``prox`` is the argmin it is called after; with tau = 0 it is the identity, at 0 too; convex ones do not expand, and their
    subgradient supports them; ``proxes`` is ``prox`` many times; nothing given is changed. An adaptive penalty is held to its majoriser.
    """
    fitting = [shape for shape in shapes if not penalty.problems(shape)]
    _demand(bool(fitting), f"{penalty} fits none of {shapes}")
    rng = torch.Generator().manual_seed(0)
    us, taus = [], []
    for shape in fitting:
        for scale in (1.0, 0.1):
            u = torch.randn(shape, generator=rng, dtype=torch.float64) * scale
            tau: Any = 0.3
            if penalty.adaptive:
                adaptive: Any = penalty
                tau = torch.rand(adaptive.magnitudes(u).shape, generator=rng, dtype=torch.float64)
            where = f"{penalty} on {shape}"
            _check_prox(penalty, u, tau, rng, where)
            us.append(u)
            taus.append(tau)
            if penalty.convex:
                _check_convex(penalty, u, rng, where)
    together = penalty.proxes([u.clone() for u in us], taus if penalty.adaptive else 0.3)
    same = all(torch.equal(p, penalty.prox(u, tau)) for p, u, tau in zip(together, us, taus, strict=True))
    _demand(same, f"{penalty}: proxes must be prox of each tensor")


def _check_prox(penalty: Penalty, u: Tensor, tau: Any, rng: torch.Generator, where: str) -> None:
    def objective(w: Tensor) -> float:
        adaptive: Any = penalty
        value = adaptive.majoriser(w, tau) if penalty.adaptive else tau * penalty.value(w)
        return float(value + (w - u).square().sum() / 2)

    before = u.clone()
    p = penalty.prox(u, tau)
    _demand(torch.equal(u, before), f"{where}: prox must leave its argument alone")
    _demand(p.shape == u.shape and p.dtype == u.dtype and bool(p.isfinite().all()), f"{where}: prox must be finite and shaped as u")
    _demand(p.data_ptr() != u.data_ptr(), f"{where}: prox must be a new tensor")
    best = objective(p)
    steps = [
        torch.zeros_like(u).view(-1).index_fill(0, torch.tensor(i), h).view(u.shape)
        for i in range(u.numel())
        for h in (1e-4, -1e-4, 0.05, -0.05)
    ]
    steps += [torch.randn(u.shape, generator=rng, dtype=u.dtype) * h for h in (1e-4, 1e-2, 1.0) for _ in range(20)]
    others = [p + step for step in steps] + [torch.zeros_like(u), u, *(p * f for f in (0.9, 1.1))]
    others += [torch.where(u.abs() >= v, u, 0.0) for v in u.abs().flatten()]
    others += [torch.where(u == v, v, p) for v in u.flatten()] + [torch.where(p == v, 0.0, p) for v in p.flatten()]
    least = min(objective(w) for w in others)
    _demand(
        best <= least + 1e-12, f"{where}: prox must be the argmin of tau R(w) + |w - u|^2 / 2 (another w is lower by {best - least:.3g})"
    )
    zero, none = torch.zeros_like(u), tau * 0.0
    _demand(torch.equal(penalty.prox(zero, tau), zero), f"{where}: prox of 0 must be 0")
    _demand(torch.equal(penalty.prox(zero, none), zero), f"{where}: prox with tau = 0 must be the identity, at 0 too")
    inside = u if penalty.value(u).isfinite() else u.abs()
    if penalty.value(inside).isfinite():
        _demand(torch.equal(penalty.prox(inside, none), inside), f"{where}: prox with tau = 0 must be the identity")


def _check_convex(penalty: Penalty, u: Tensor, rng: torch.Generator, where: str) -> None:
    v = u + torch.randn(u.shape, generator=rng, dtype=u.dtype)
    moved = float((penalty.prox(u, 0.3) - penalty.prox(v, 0.3)).norm())
    _demand(moved <= float((u - v).norm()) + 1e-12, f"{where}: the prox of a convex penalty must not expand distances")
    w = penalty.prox(u, 0.3)  # in the domain, with zeros
    p = penalty.subgradient(w)
    _demand(bool((p[w == 0] == 0).all()), f"{where}: the subgradient must be 0 where w is")
    for scale in (0.01, 0.3, 3.0):
        z = penalty.prox(w + scale * torch.randn(u.shape, generator=rng, dtype=u.dtype), 0.0)
        below = float(penalty.value(w) + (p * (z - w)).sum())
        _demand(float(penalty.value(z)) >= below - 1e-12, f"{where}: the subgradient must support the penalty from below")


# -------------------------------------------------------------------- rules


def check_rule(rule: Rule, *, lr: float = 0.05, shell: Callable[..., Any] = SparseOptimizer, steps: int = 12) -> None:
    """One rule in the one optimizer: gradients and places in memory stay, a step of size 0 changes nothing, tensors do not see each other,
    nothing is read by the host, what is all zero stays finite, strength 0 is no penalty, and a resumed run goes on bit for bit.

    Args:
        lr: step size of the tiny run.
        shell: what takes (parameters, rule, lr): ``SparseOptimizer``, or anything with its signature and methods.
    """
    where = repr(rule)
    both = [shape for shape in ((5, 7), (3, 4, 3, 2)) if not rule.penalty.problems(shape)]
    _demand(bool(both), f"{where}: its penalty fits neither a matrix nor a kernel")
    shapes = [*both, *both, (5,)]

    params = _tensors(shapes)
    optimizer, grads = shell(params, rule, lr), [_gradients(shapes, t) for t in range(1, steps + 1)]
    places, snapshot = [p.data_ptr() for p in params], None
    for t, given in enumerate(grads, 1):
        _give(params, given)
        optimizer.step()
        _demand(all(_same(p.grad, g) for p, g in zip(params, given, strict=True)), f"{where}: a step must not change a gradient")
        if t == steps // 2:
            snapshot = copy.deepcopy(([p.detach() for p in params], optimizer.state_dict()))
    _demand([p.data_ptr() for p in params] == places, f"{where}: parameters must stay where they are in memory")
    _demand(all(bool(p.isfinite().all()) for p in params), f"{where}: weights must stay finite")

    assert snapshot is not None
    again = _tensors(shapes, snapshot[0])
    resumed = shell(again, rule, lr)
    resumed.load_state_dict(snapshot[1])
    _drive(resumed, again, grads[steps // 2 :])
    _demand(_same([p.detach() for p in again], [p.detach() for p in params]), f"{where}: a resumed run must go on bit for bit")

    for i, shape in enumerate(both):
        alone = _tensors([shape], [_tensors(shapes)[i].detach()])
        _drive(shell(alone, rule, lr), alone, [given[i : i + 1] for given in grads])
        _demand(torch.equal(alone[0], params[i]), f"{where}: a tensor must move as if it were alone")

    still = _tensors(both, [rule.penalty.prox(p.detach(), 1.0) for p in _tensors(both)])
    before = [p.detach().clone() for p in still]
    _drive(shell(still, rule, 0.0), still, [_gradients(both, 1)])
    for a, b in zip(still, before, strict=True):
        _close(a, b, f"{where}: a step of size 0 must change nothing", 1e-12)

    if not _constrains(rule.penalty, both[0]):
        free, plain = _tensors(both), _tensors(both)
        _drive(shell([{"params": free, "strength": 0.0}], rule, lr), free, [given[: len(both)] for given in grads])
        beside = {"params": _tensors(both[:1])}  # an optimizer penalises something
        _drive(shell([{"params": plain, "penalised": False}, beside], rule, lr), plain, [given[: len(both)] for given in grads])
        for a, b in zip(free, plain, strict=True):
            _close(a, b, f"{where}: with strength 0 weights must move as those without a penalty", 1e-12)

    dead = _tensors(both, [torch.zeros(shape, dtype=torch.float64) for shape in both])
    _drive(shell(dead, rule, lr), dead, [_gradients(both, t) for t in (1, 2, 3)])
    _demand(all(bool(p.isfinite().all()) for p in dead), f"{where}: tensors that are all zero must stay finite")

    ghosts = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    optimizer = shell(ghosts, rule, lr)
    for _ in range(2):
        for p in ghosts:
            p.grad = torch.empty_like(p)
        try:
            optimizer.step()
        except (RuntimeError, NotImplementedError) as error:
            raise AssertionError(f"{where}: a step must read no tensor's value (on tensors without data: {error})") from error


def _constrains(penalty: Penalty, shape: tuple[int, ...]) -> bool:
    """Whether the penalty of some weights is infinite: then strength 0 does not mean no penalty."""
    return not bool(penalty.value(-torch.ones(shape, dtype=torch.float64)).isfinite())


def _tensors(shapes: Sequence[tuple[int, ...]], values: Sequence[Tensor] | None = None) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    return [nn.Parameter(v.clone()) for v in (drawn if values is None else values)]


def _gradients(shapes: Sequence[tuple[int, ...]], t: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(t)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def _give(params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()


def _drive(optimizer: Any, params: Sequence[Tensor], grads: Sequence[Sequence[Tensor]]) -> None:
    for given in grads:
        _give(params, given)
        optimizer.step()


# -------------------------------------------------------------------- topologies


class _Run:
    """A tiny training run that a law can drive, copy and compare."""

    def __init__(
        self, topology: Topology, rewirer: Callable[..., Any], layout: str | Layout, unit: tuple[int, int], optimizer: Optimizers, seed: int
    ):
        rng = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            model = nn.Sequential(nn.Linear(9, 11), nn.Tanh(), nn.Linear(11, 6)).double()
        for p in model.parameters():  # biases too must differ between seeds, and not depend on torch's own generator
            nn.init.normal_(p, 0.0, 0.3, generator=rng)
        fan_in = max(1, topology.min_fan_in)
        self.model = sparsify(model, 0.4, budget="pooled", layout=layout, unit=unit, min_fan_in=fan_in, rng=rng)
        self.optimizer = optimizer(self.model.parameters())
        self.rewirer = rewirer(self.model, self.optimizer, topology, rng=torch.Generator().manual_seed(seed))
        self.layers = sparse_layers(self.model)

    def backward(self, t: int) -> None:
        rng = torch.Generator().manual_seed(1000 + t)
        x, y = (torch.randn(4, n, generator=rng, dtype=torch.float64) for n in (9, 6))
        self.optimizer.zero_grad(set_to_none=True)
        F.mse_loss(self.model(x), y).backward()

    def snapshot(self) -> tuple[Any, Any, Any]:
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict(), self.rewirer.state_dict()))

    def restore(self, snapshot: tuple[Any, Any, Any]) -> None:
        for part, state in zip((self.model, self.optimizer, self.rewirer), snapshot, strict=True):
            part.load_state_dict(copy.deepcopy(state))


def check_topology(
    topology: Topology,
    rewirer: Callable[..., Any],
    *,
    steps: int | None = None,
    layout: str | Layout = "csr",
    unit: tuple[int, int] = (1, 1),
    optimizer: Optimizers = nesterov,
) -> None:
    """One topology on a tiny run: sizes, survivors, births, sensing, places in memory, hidden randomness, the end, and resuming.

    Args:
        rewirer: what trains by the topology: ``gossamer.Rewirer``, or anything with its signature and methods.
        steps: how many (default: a few more than ``topology.stop``).
    """
    steps = topology.stop + 3 if steps is None else steps
    run = _Run(topology, rewirer, layout, unit, optimizer, seed=0)
    start = {name: layer.support.n for name, layer in run.layers.items()}
    cuts: dict[str, tuple[int, tuple[Any, Any, Any]]] = {}
    try:
        for t in range(1, steps + 1):
            changed = _checked_step(run, topology, t, start)
            label = "just after an event" if changed else "in the middle of a window" if _in_window(topology, t) else "on a plain step"
            if label not in cuts and t < steps:
                cuts[label] = (t, run.snapshot())
    except Unfit as refusal:
        raise AssertionError(f"topology {topology.name!r}: must not fail in the middle of training: {refusal}") from refusal
    late = [t for t in range(topology.stop + 1, steps + 1) if topology.when(t) is not None]
    _demand(not late, f"topology {topology.name!r}: no event after step {topology.stop}, but at {late}")
    end = run.snapshot()
    for label, (t, snapshot) in cuts.items():
        other = _Run(topology, rewirer, layout, unit, optimizer, seed=1)
        other.restore(snapshot)
        for later in range(t + 1, steps + 1):
            other.backward(later)
            other.rewirer.step()
        where = f"topology {topology.name!r}: a run resumed {label} (step {t})"
        _demand(_same(other.snapshot(), end), f"{where} must end with the same bits as one that was not interrupted")


def _checked_step(run: _Run, topology: Topology, t: int, start: dict[str, int]) -> bool:
    """One step, all laws of one step checked; whether it had an event."""
    where = f"topology {topology.name!r}, step {t}"
    change, asked = topology.when(t), topology.sense(t)
    _check_sensing(run, asked, where)
    before = {name: layer.support for name, layer in run.layers.items()}
    places = {name: layer.values.data_ptr() for name, layer in run.layers.items()}
    run.backward(t)
    moved, moved_optimizer = copy.deepcopy((run.model, run.optimizer))  # the same step without the event
    for mine, twin in zip(run.model.parameters(), moved.parameters(), strict=True):
        twin.grad = mine.grad  # deepcopy leaves gradients behind
    if change is None or change.move:
        moved_optimizer.step()
    state = torch.get_rng_state()
    run.rewirer.step()
    _demand(torch.equal(state, torch.get_rng_state()), f"{where}: random choices must come from the rewirer's generator, not torch's own")

    last = run.rewirer.last
    _demand((last is None) == (change is None), f"{where}: an event must take place exactly where `when` says so")
    for (name, layer), twin in zip(run.layers.items(), sparse_layers(moved).values(), strict=True):
        old, new, here = before[name], layer.support, f"{where}, layer {name}"
        if change is None:
            _demand(new.same(old), f"{here}: the support must not change without an event")
        else:
            check_support(new, draws=0)
        both, ids = new.find(old.ids()) >= 0, new.ids()
        born = old.find(ids) < 0
        states = {"values": (layer.values, twin.values), **_pairs(run.optimizer, layer.values, moved_optimizer, twin.values)}
        for key, (mine, shadow) in states.items():
            mine, shadow = layer.layout.compact(mine.detach(), new), layer.layout.compact(shadow.detach(), old)
            _demand(bool((mine[born] == 0).all()), f"{here}: {key} of a born unit must be 0")
            _demand(torch.equal(mine[~born], shadow[both]), f"{here}: {key} of a unit that stays must be what the optimizer made it")
        if new.n == old.n:
            _demand(layer.values.data_ptr() == places[name], f"{here}: where n stays the same, the values must stay in place")
        if last is not None:
            dropped, grown = last.dropped[name], last.grown[name]
            _demand(new.n == old.n - dropped + grown == last.n[name], f"{here}: n must become {old.n} - {dropped} + {grown}, not {new.n}")
            _demand(int(born.sum()) <= grown and int((~both).sum()) <= dropped, f"{here}: the event's record must count its changes")
        least = topology.min_fan_in
        _demand(bool((new.crow.diff() >= least).all()), f"{here}: every output unit must keep {least} incoming units")
    if change is not None:
        _check_sizes(run, topology, t, start, where)
    return change is not None


def _check_sensing(run: _Run, asked: Any, where: str) -> None:
    sensing, probes = run.rewirer.sensing, run.rewirer.state_dict()["probes"]
    for name, layer in run.layers.items():
        s, zeros = layer.support, layer.support.total - layer.support.n
        m = 0
        if asked is not None:
            m = zeros if asked.stream else round(asked.fraction * zeros) if asked.count is None else min(asked.count, zeros)
        _demand(sensing.get(name, 0) == m, f"{where}, layer {name}: must sense {m} units, not {sensing.get(name, 0)}")
        if name in probes:
            ids = probes[name]["ids"]
            fine = bool((s.find(ids) == -1).all()) and bool((ids.diff() > 0).all())
            _demand(fine, f"{where}, layer {name}: sensed units must be distinct zeros")


def _check_sizes(run: _Run, topology: Topology, t: int, start: dict[str, int], where: str) -> None:
    final = run.rewirer.final
    due = {name: _due(t, start[name], final[name], topology.stop) for name in start}
    now = {name: layer.support.n for name, layer in run.layers.items()}
    if topology.share is topologies.fixed:
        for name in now:
            over = now[name] - due[name]
            fine = over == 0 or (topology.merge and over > 0 and t < topology.stop)
            _demand(fine, f"{where}, layer {name}: n must be {due[name]}, not {now[name]}")
    else:
        total, held = sum(due.values()), sum(now.values())
        _demand(held == total, f"{where}: the layers together must hold {total} units, not {held}")
        _demand(min(now.values()) >= 1, f"{where}: no layer may lose its last unit")


def _due(t: int, start: int, final: int, stop: int) -> int:
    """Zhu & Gupta's cubic, written out."""
    if start == final:
        return start
    return final if t >= stop else round(final + (start - final) * (1 - t / stop) ** 3)


def _in_window(topology: Topology, t: int) -> bool:
    asked = topology.sense(t + 1)
    return asked is not None and not asked.fresh


def _pairs(a: torch.optim.Optimizer, p: Tensor, b: torch.optim.Optimizer, q: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    mine, theirs = a.state.get(p, {}), b.state.get(q, {})
    return {key: (t, theirs[key]) for key, t in mine.items() if torch.is_tensor(t) and t.dim() > 0}


def _same(a: Any, b: Any) -> bool:
    """Equal bit for bit, in nested states."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# -------------------------------------------------------------------- checkpoints


def check_checkpoint(
    topology: Topology,
    rewirer: Callable[..., Any],
    *,
    save: Callable[..., None] = checkpoint.save,
    load: Callable[..., dict[str, Any]] = checkpoint.load,
    steps: int = 7,
    layout: str | Layout = "csr",
    unit: tuple[int, int] = (1, 1),
    optimizer: Optimizers = nesterov,
) -> None:
    """A saved run comes back bit for bit, torch's random state too; a file that does not fit is refused, and nothing has changed then; a
    save that fails leaves the old file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        run = _Run(topology, rewirer, layout, unit, optimizer, seed=0)
        for t in range(1, steps + 1):
            run.backward(t)
            run.rewirer.step()
        parts = {"optimizer": run.optimizer, "rewirer": run.rewirer}
        before = torch.get_rng_state()
        save(path, run.model, **parts, extra={"epoch": 3})
        saved = run.snapshot()

        other = _Run(topology, rewirer, layout, unit, optimizer, seed=1)
        torch.manual_seed(12345)
        extra = load(path, other.model, optimizer=other.optimizer, rewirer=other.rewirer)
        _demand(extra == {"epoch": 3}, "checkpoint: load must return the extra that was saved")
        for what, mine, theirs in zip(("model", "optimizer", "rewirer"), other.snapshot(), saved, strict=True):
            _demand(_same(mine, theirs), f"checkpoint: the {what} must come back bit for bit")
        _demand(torch.equal(torch.get_rng_state(), before), "checkpoint: torch's random state must come back")

        content = path.read_bytes()
        try:
            save(path, run.model, **parts, extra={"not JSON": object()})
        except (Unfit, TypeError):
            _demand(path.read_bytes() == content, "checkpoint: a save that fails must leave the old file")
        else:
            raise AssertionError("checkpoint: a state that is neither tensor nor JSON must be refused")
        _demand([p.name for p in path.parent.iterdir()] == [path.name], "checkpoint: a save must leave nothing behind but its file")

        for what, spoil in _SPOILERS.items():
            bad = Path(folder) / "bad.safetensors"
            bad.write_bytes(content)
            spoil(bad)
            victim = _Run(topology, rewirer, layout, unit, optimizer, seed=1)
            untouched, random = victim.snapshot(), torch.get_rng_state()
            try:
                load(bad, victim.model, optimizer=victim.optimizer, rewirer=victim.rewirer)
            except Unfit:
                pass
            except Exception as error:
                raise AssertionError(f"checkpoint: {what} must be refused with Unfit, not with {type(error).__name__}") from error
            else:
                raise AssertionError(f"checkpoint: {what} must be refused")
            unchanged = _same(victim.snapshot(), untouched) and torch.equal(torch.get_rng_state(), random)
            _demand(unchanged, f"checkpoint: after {what} was refused, nothing may have changed")


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def _edited(edit: "Edit") -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with safe_open(str(path), "pt") as file:  # pyright: ignore[reportGeneralTypeIssues]
            header, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}
        edit(tensors, header)
        save_file(tensors, str(path), metadata=header)

    return spoil


def _index(tensors: dict[str, Tensor]) -> str:
    return next(key for key in tensors if key.endswith(".col"))


def _moved_unit(tensors: dict[str, Tensor], _header: dict[str, str]) -> None:
    """Another valid index of the same size: one unit moves to a free column of its row."""
    key = _index(tensors)
    crow, col = tensors[key.removesuffix("col") + "crow"].long(), tensors[key]
    width = int(col.max()) + 1
    for first, last in zip(crow[:-1].tolist(), crow[1:].tolist(), strict=True):
        free = sorted(set(range(width)) - set(col[first:last].tolist()))
        if last > first and free:
            col[first:last] = torch.tensor(sorted([*col[first : last - 1].tolist(), free[0]]), dtype=col.dtype)
            return


Edit = Callable[[dict[str, Tensor], dict[str, str]], None]  # of a file's tensors and header


def _set(key: Callable[[dict[str, Tensor]], str], change: Callable[[Tensor], Tensor]) -> Edit:
    def edit(tensors: dict[str, Tensor], _header: dict[str, str]) -> None:
        tensors[key(tensors)] = change(tensors[key(tensors)]).contiguous()

    return edit


def _values(tensors: dict[str, Tensor]) -> str:
    return next(key for key in tensors if key.startswith("model.") and key.endswith(".values"))


_SPOILERS: dict[str, Callable[[Path], None]] = {
    "a file that was cut off": _cut,
    "a file of noise": lambda path: None if path.write_bytes(bytes(range(256)) * 8) else None,
    "a safetensors file of somebody else": _edited(lambda _tensors, header: header.clear()),
    "a file of a newer version": _edited(lambda _tensors, header: header.update(version="999")),
    "a file without values": _edited(lambda tensors, _header: tensors.__delitem__(_values(tensors))),
    "a file without an index": _edited(lambda tensors, _header: tensors.__delitem__(_index(tensors))),
    "an index that is not sorted": _edited(_set(_index, lambda t: t.flip(0))),
    "an index out of range": _edited(_set(_index, lambda t: t + 1000)),
    "a floating index": _edited(_set(_index, lambda t: t.double())),
    "an index that its values were not saved with": _edited(_moved_unit),
    "values of another length": _edited(_set(_values, lambda t: t[:-1])),
    "values of another dtype": _edited(_set(_values, lambda t: t.float())),
}


# -------------------------------------------------------------------- details


# -------------------------------------------------------------------- recovery


def check_operator(A: Operator, *, tolerance: float | None = None) -> None:
    """Products agree with the columns, blocks of the adjoint come in order and cover everything, norms are norms, and every call of a
    seeded operator sees the same matrix."""
    who, (m, d), rng = f"{A}", A.shape, torch.Generator().manual_seed(3)
    tolerance = TOLERANCE[A.dtype] if tolerance is None else tolerance
    before = torch.get_rng_state()
    M = A.columns(torch.arange(d, device=A.device))
    _demand(M.shape == (m, d) and M.dtype == A.dtype, f"{who}: columns(all ids) must be the matrix, in the operator's precision")
    x = torch.randn(d, generator=rng, dtype=torch.float64).to(A.device, A.dtype)
    r = torch.randn(m, generator=rng, dtype=torch.float64).to(A.device, A.dtype)
    sparse = torch.zeros_like(x)
    sparse[d // 2] = 2.0
    for what, vector in (("x", x), ("a sparse x", sparse), ("zero", torch.zeros_like(x))):
        y = A.matvec(vector)
        _demand(y.shape == (m,) and y.dtype == A.dtype, f"{who}: matvec must give (rows,) in the operator's precision")
        _close(y, M @ vector, f"{who}: matvec of {what} must be the columns' combination", tolerance)
    end = 0
    for first, block in A.adjoint(r):
        _demand(first == end and block.dim() == 1, f"{who}: blocks of the adjoint must follow each other from column 0")
        _close(block, M[:, first : first + block.numel()].T @ r, f"{who}: a block of the adjoint must be A^T r there", tolerance)
        end += block.numel()
    _demand(end == d, f"{who}: blocks of the adjoint must cover all columns")
    _close(A.rmatvec(r), M.T @ r, f"{who}: rmatvec must be A^T r", tolerance)
    some = torch.tensor([d - 1, 0, d // 2, 0], device=A.device)
    _close(A.columns(some), M[:, some], f"{who}: columns must come as asked, in any order and repeated", tolerance)
    _demand(A.columns(some[:0]).shape == (m, 0), f"{who}: no ids must give no columns")
    _close(A.norms(), M.norm(dim=0), f"{who}: norms must be the columns' norms", tolerance)
    _demand(torch.equal(A.columns(some), A.columns(some)), f"{who}: two looks must see the same matrix")
    _demand(torch.equal(torch.get_rng_state(), before), f"{who}: must leave torch's random state alone")


def check_solver(solve: Callable[[Any, Tensor, int], Recovery], *, s: int = 3, name: str = "solver") -> None:
    """Finds easy signals exactly; counts, orders and reports honestly; breaks ties to the lowest index; never takes a zero column."""
    rng = torch.Generator().manual_seed(5)
    m, d = 60, 80
    A = torch.randn(m, d, generator=rng, dtype=torch.float64) / m**0.5
    A[:, 7] = 0.0
    x = torch.zeros(d, dtype=torch.float64)
    x[[3, 40, 79][:s]] = torch.tensor([1.0, -2.0, 1.5], dtype=torch.float64)[:s]
    noise = torch.randn(m, generator=rng, dtype=torch.float64)
    found = solve(A, A @ x, s)
    _recovery_makes_sense(found, A, A @ x, s, name)
    _close(found.dense(), x, f"{name}: {s} of {d} must be found exactly from {m} measurements", 1e-5)
    _demand(found.converged and bool(found.reason), f"{name}: a solved problem must be called converged, with a sentence")
    noisy = solve(A, A @ x + 0.01 * noise, s)
    _recovery_makes_sense(noisy, A, A @ x + 0.01 * noise, s, name)
    _demand(float((noisy.dense() - x).norm()) <= 0.05 * float(noise.norm()), f"{name}: the error must be of the order of the noise")
    hopeless = solve(A, noise, s)
    _recovery_makes_sense(hopeless, A, noise, s, name)
    again, lazy = solve(A, noise, s), solve(Dense(A), noise, s)
    for other, why in ((again, "the same call twice"), (lazy, "a matrix and its operator")):
        _demand(torch.equal(other.dense(), hopeless.dense()), f"{name}: {why} must give the same bits")
    none = solve(A, noise, 0)
    _demand(none.support.numel() == 0 and not bool(none.dense().any()), f"{name}: s = 0 must give x = 0")
    twice = torch.eye(8, dtype=torch.float64).repeat(1, 2)
    tie = solve(twice, 3 * twice[:, 5], 1)
    _demand(tie.support.tolist() == [5], f"{name}: of two equal columns the one of lower index must be taken")
    wrong: tuple[tuple[str, Any, Tensor, int], ...] = (
        ("NaN in y", A, noise.clone().index_fill_(0, torch.tensor([1]), math.nan), s),
        ("infinity in A", A.clone().index_fill_(0, torch.tensor([1]), math.inf), noise, s),
        ("more non-zeros than coefficients", A, noise, d + 1),
        ("a negative count", A, noise, -1),
        ("y of another length", A, noise[1:], s),
        ("y of another precision", A, noise.float(), s),
    )
    for what, matrix, y, count in wrong:
        try:
            solve(matrix, y, count)
        except Unfit:
            continue
        raise AssertionError(f"{name}: {what} must be refused with Unfit")


def _recovery_makes_sense(found: Recovery, A: Tensor, y: Tensor, s: int, name: str) -> None:
    support = found.support
    _demand(support.dtype == torch.int64 and support.shape == found.values.shape, f"{name}: support and values must belong together")
    _demand(support.numel() <= s, f"{name}: at most {s} entries may be non-zero, not {support.numel()}")
    _demand(bool((support.diff() > 0).all()), f"{name}: the support must be sorted")
    _demand(7 not in support.tolist(), f"{name}: a zero column must never be chosen")
    _demand(found.size == A.shape[1] and found.dense().shape == (A.shape[1],), f"{name}: x must have as many entries as A has columns")
    last = torch.tensor(found.residuals[-1], dtype=y.dtype)
    _close(last, (y - A @ found.dense()).norm(), f"{name}: the last residual must be that of the x returned", 1e-8)


def _demand(true: bool, sentence: str) -> None:
    if not true:
        raise AssertionError(sentence)


def _close(a: Tensor, b: Tensor, sentence: str, tolerance: float = 1e-10) -> None:
    a, b = a.detach(), b.detach()
    scale, error = (float(t.abs().max()) if t.numel() else 0.0 for t in (b, a - b))
    _demand(error <= tolerance * (1 + scale), f"{sentence} (off by {error:.3g})")  # NaN is not <= anything


__all__: Sequence[str] = (
    "check_checkpoint",
    "check_kernel",
    "check_layout",
    "check_operator",
    "check_penalty",
    "check_rewire",
    "check_rule",
    "check_solver",
    "check_support",
    "check_surgery",
    "check_topology",
    "nesterov",
    "poisoned_memory",
)
