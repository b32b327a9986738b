"""Layouts broken on purpose."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from gossamer import CSR, MASKED, SHADOW, laws
from gossamer.layouts import Layout, gather, scatter


class _WrongGradient(torch.autograd.Function):
    """The identity, with the gradient of the values bent on its way back."""

    @staticmethod
    def forward(ctx, values, bend):
        ctx.bend = bend
        return values.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.bend(grad), None


def _bending(layout: Layout, bend: Callable) -> Layout:
    return layout._replace(
        linear=lambda x, v, s, b=None: layout.linear(x, _WrongGradient.apply(v, lambda g: bend(g, s)), s, b),
        conv2d=lambda x, v, s, g, b=None: layout.conv2d(
            x, _WrongGradient.apply(v, lambda grad: bend(grad, s)), s, g, b
        ),
    )


class _RowOrder(Layout):
    def compact(self, stored, s):
        return stored[s.perm.long()]


class _Rounded(Layout):
    def stored(self, compact, s, shape):
        return super().stored(compact.float().double(), s, shape)


def _straight_through(x, values, s):
    masked = scatter(gather(values, s), s)
    return F.linear(x, values + (masked - values).detach())


LAYOUT = {
    name: (lambda layout=layout: laws.check_layout(layout))
    for name, layout in {
        "gradient in column order": _bending(CSR, lambda g, s: g[s.perm.long()]),
        "gradient halved": _bending(CSR, lambda g, s: g / 2),
        "gradient leaks off the support": MASKED._replace(linear=_straight_through),
        "what is off the support is read": MASKED._replace(linear=lambda x, v, s: F.linear(x, v)),
        "a zero that follows gets no gradient": MASKED._replace(follows=True),
        "what follows has its gradient on the support only": SHADOW._replace(linear=MASKED.linear),
        "half a gradient off the support": _bending(SHADOW, lambda g, s: torch.where(s.mask().view(g.shape), g, g / 2)),
        "weight transposed": MASKED._replace(
            linear=lambda x, v, s: F.linear(x, scatter(gather(v, s), s).reshape(s.shape[::-1]).t())
        ),
        "input gets no gradient through one row": CSR._replace(
            linear=lambda x, v, s: torch.cat([CSR.linear(x[:1].detach(), v, s), CSR.linear(x[1:], v, s)])
        ),
        "stride and dilation exchanged": CSR._replace(
            conv2d=lambda x, v, s, g: CSR.conv2d(x, v, s, g._replace(stride=g.dilation, dilation=g.stride))
        ),
        "padding transposed": CSR._replace(
            conv2d=lambda x, v, s, g: CSR.conv2d(x, v, s, g._replace(padding=g.padding[::-1]))
        ),
        "values come back in another order": _RowOrder(*CSR),
        "values rounded when stored": _Rounded(*CSR),
        "storage of its own": CSR._replace(storage="sparse"),
    }.items()
}
