"""Conversions that change what a module computes or is."""

from collections.abc import Callable

import torch
from torch import nn

import gossamer as gs
from gossamer import laws


def _exchanged(old: type[nn.Module], new: Callable[[nn.Module], nn.Module]) -> Callable[[], None]:
    """Every module of a type replaced, the rest made sparse."""

    def change(model):
        for name, m in list(model.named_children()):
            if type(m) is old:
                setattr(model, name, new(m))
        return gs.sparsify(model, 0.4)

    return lambda: laws.check_meaning(change)


class _Lookalike(nn.Module):
    """Does what a ReLU does, and is none."""

    def forward(self, x):
        return x.relu()


class _Nested(nn.BatchNorm2d):
    """A normalisation around a normalisation."""

    def __init__(self, inner):
        super().__init__(inner.num_features)
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def _shifted(m):
    with torch.no_grad():
        m.running_mean += 0.1
    return m


MEANING = {
    "normalisation and ReLU are fused": lambda: laws.check_meaning(lambda m: gs.sparsify(m, 0.4, fuse=True)),
    "... without a sparse layer": lambda: laws.check_meaning(lambda m: gs.batch_last.keep_batch_last(m, fuse=True)),
    "another type": _exchanged(nn.ReLU, lambda _: _Lookalike()),
    "another key": _exchanged(nn.BatchNorm2d, _Nested),
    "hooks are lost": _exchanged(nn.Flatten, lambda _: nn.Flatten()),
    "the mode is lost": lambda: laws.check_meaning(lambda m: gs.sparsify(m, 0.4).train()),
    "one module less": lambda: laws.check_meaning(lambda m: gs.sparsify(nn.Sequential(*list(m)[:-1]), 0.4)),
    "statistics are not what they were": _exchanged(nn.BatchNorm2d, _shifted),
}
