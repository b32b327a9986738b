"""Kernels of products broken on purpose."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from cases import CONVS, SUPPORTS
from gossamer import laws
from gossamer._backend.dispatch import Kernel, always
from gossamer.products.conv2d import reference as conv2d
from gossamer.products.linear import reference as linear
from gossamer.products.sense import reference as sense
from gossamer.support import Support


def _kernel(
    operation: str,
    run: Callable,
    case: str = "empty rows and columns",
    reasons_against: Callable = always,
    **options: Any,
) -> Callable[[], bool]:
    s, g = (SUPPORTS[case], None) if case in SUPPORTS else (CONVS[case].support, CONVS[case].g)
    size = CONVS[case].size if case in CONVS else (7, 6)
    return lambda: laws.check_kernel(operation, Kernel("mutant", run, reasons_against), s, g, size=size, **options)


def _only_rows_with_units(x, values, s):
    y = x.new_empty(x.shape[0], s.shape[0])
    rows = s.rows().unique().long()
    y[:, rows] = linear.forward(x, values, s)[:, rows]
    return y


def _scribbles(x, values, s):
    y = linear.forward(x, values, s)
    x.mul_(2)
    return y


class _Drifts:
    """Another answer at every call, by rounding."""

    calls = 0

    def __call__(self, x, values, s):
        self.calls += 1
        return linear.forward(x, values, s) * (1 + self.calls * 2.0**-50)


def _half_the_batch(dy, x, s, g):
    return conv2d.weight_gradient(dy[: dy.shape[0] // 2], x[: x.shape[0] // 2], s, g)


def _without_the_last(values):
    return torch.cat([values[:-1], torch.zeros_like(values[-1:])])


def _tail_unwritten(dy, x, values, s):
    dx, dw = linear.backward(dy, x, values, s)
    tail = torch.empty_like(dx)
    tail[: dx.shape[0] // 4 * 4] = dx[: dx.shape[0] // 4 * 4]
    return tail, dw


def _pads_with_the_border(x, values, s, g):
    high, wide = g.padding
    return conv2d.forward(F.pad(x, (wide, wide, high, high), mode="replicate"), values, s, g._replace(padding=(0, 0)))


def _twice(dx, dw):
    return dx, 2 * dw


class _Accumulates:
    """Adds the gradient to what it found before."""

    total = 0.0

    def __call__(self, dy, x, values, s):
        dx, dw = linear.backward(dy, x, values, s)
        self.total = self.total + dw
        return dx, self.total


def _in_bfloat16(dy, x, values, s):
    dx, dw = linear.backward(dy.float(), x.float(), values, s)
    return dx.bfloat16(), dw.bfloat16().float()


def _as_if_channels_first(x, values, s, g):
    return conv2d.forward(x if x.stride(1) != 1 else x.as_strided(x.shape, x.contiguous().stride()), values, s, g)


KERNEL = {
    "forgets the last entry": _kernel(
        "csr_linear.backward", lambda dy, x, v, s: linear.backward(dy, x, _without_the_last(v), s), "primes"
    ),
    "forgets the gradient of the last entry": _kernel(
        "csr_conv2d.weight_gradient",
        lambda dy, x, s, g: _without_the_last(conv2d.weight_gradient(dy, x, s, g)),
        "padded",
    ),
    "the tail of the batch unwritten": _kernel("csr_linear.backward", _tail_unwritten, "primes"),
    "padding is not zeros": _kernel("csr_conv2d.forward", _pads_with_the_border, "padded"),
    "the weights' gradient counted twice": _kernel(
        "csr_linear.backward", lambda *a: _twice(*linear.backward(*a)), "primes"
    ),
    "the weights' gradient on top of the last call's": _kernel("csr_linear.backward", _Accumulates(), "primes"),
    "bias forgotten": _kernel("csr_linear.forward", lambda x, v, s, b: linear.forward(x, v, s), biased=True),
    "bias in the dtype of activations": _kernel(
        "csr_linear.forward",
        lambda x, v, s, b: (linear.forward(x.float(), v, s).bfloat16() + b.bfloat16()).float(),
        biased=True,
        dtype=torch.bfloat16,
    ),
    "gradient rounded to the dtype of activations": _kernel(
        "csr_linear.backward", _in_bfloat16, "primes", dtype=torch.bfloat16
    ),
    "channels-last images read as channels-first": _kernel(
        "csr_conv2d.forward", _as_if_channels_first, "padded", strange=True
    ),
    "output never written where a row is empty": _kernel("csr_linear.forward", _only_rows_with_units),
    "computed in float32": _kernel(
        "csr_linear.forward", lambda x, v, s: linear.forward(x.float(), v.float(), s).double()
    ),
    "returned in float32": _kernel("csr_linear.forward", lambda x, v, s: linear.forward(x, v, s).float()),
    "reads memory as if it were contiguous": _kernel(
        "csr_linear.forward", lambda x, v, s: linear.forward(x.as_strided(x.shape, (x.shape[1], 1)), v, s)
    ),
    "overwrites its input": _kernel("csr_linear.forward", _scribbles),
    "other bits at every call": _kernel("csr_linear.forward", _Drifts()),
    "output transposed": _kernel("csr_linear.forward", lambda x, v, s: linear.forward(x, v, s).t()),
    "values in row order for columns": _kernel(
        "csr_linear.input_gradient", lambda dy, v, s: linear.input_gradient(dy, v[torch.argsort(s.perm)], s), "primes"
    ),
    "weight gradient in column order": _kernel(
        "csr_linear.weight_gradient", lambda dy, x, s: linear.weight_gradient(dy, x, s)[s.perm.long()], "primes"
    ),
    "tiles transposed": _kernel(
        "csr_linear.weight_gradient",
        lambda dy, x, s: linear.weight_gradient(dy, x, s).transpose(1, 2).reshape(s.n, *s.block),
        "tiles",
    ),
    "half of the batch": _kernel("csr_conv2d.weight_gradient", _half_the_batch, "padded"),
    "stride ignored": _kernel(
        "csr_conv2d.forward", lambda x, v, s, g: conv2d.forward(x, v, s, g._replace(stride=(1, 1))), "strided"
    ),
    "padding transposed": _kernel(
        "csr_conv2d.forward",
        lambda x, v, s, g: conv2d.forward(x, v, s, g._replace(padding=g.padding[::-1])),
        "all unlike",
    ),
    "overlaps not added": _kernel(
        "csr_conv2d.input_gradient",
        lambda dy, v, s, g, size: conv2d.input_gradient(dy, v, s, g, size).clamp(max=1.0),
        "3x3",
    ),
    "sensed in the order of columns": _kernel(
        "csr_sense.sampled", lambda dy, x, ids, shape, block, g: sense.sampled(dy, x, ids, shape, block, g).flip(0)
    ),
    "the largest instead of the strongest": _kernel("csr_sense.strongest", lambda *a: _signed_strongest(*a), "primes"),
    "strongest among the kept too": _kernel(
        "csr_sense.strongest",
        lambda ops, s, k, g: sense.strongest(ops, Support.from_ids(s.ids()[:0], s.shape, s.block), k, g),
        "primes",
    ),
    "strongest of the first micro-batch": _kernel(
        "csr_sense.strongest", lambda ops, s, k, g: sense.strongest(ops[:1], s, k, g), "primes"
    ),
    "reasons_against says yes and no": _kernel("csr_linear.forward", linear.forward, reasons_against=lambda *_: [True]),
}


def _signed_strongest(operands, s, k, g):
    ids = s.outside(torch.arange(s.total - s.n))
    found = sum(sense.sampled(dy, x, ids, s.shape, s.block, g) for dy, x in operands)
    best = sense.top_k(found, k)
    return ids[best], found[best]
