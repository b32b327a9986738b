"""Kinds of layers that compute, train, count or save something else than the dense layer does."""

import torch
from torch import nn

import gossamer as gs
from gossamer import laws


class Right(nn.Module):
    """A sparse layer over the last dimension but one."""

    def __init__(self, density=0.4):
        super().__init__()
        self.inner = gs.SparseLinear(7, 5, density=density)

    def forward(self, x):
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Stretched(Right):
    def forward(self, x):
        return super().forward(x) * (1.001 if hasattr(self.inner, "support") else 1.0)


class Detached(Right):
    def forward(self, x):
        return super().forward(x) if not hasattr(self.inner, "support") else super().forward(x.detach())


class Cached(Right):
    """Multiplies by the dense weight of the first pass."""

    def forward(self, x):
        if not hasattr(self.inner, "support"):
            return super().forward(x)
        if "weight" not in vars(self):
            vars(self)["weight"] = self.inner.to_dense()
        y = x.transpose(1, 2) @ self.inner.weight.T + self.inner.bias
        return (y + x.transpose(1, 2) @ (self.weight - self.inner.to_dense()).T).transpose(1, 2)


class Hidden(Right):
    """Its sparse layer is no submodule."""

    def __init__(self):
        super().__init__()
        vars(self)["kept"] = self._modules.pop("inner")
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.kept(x.transpose(1, 2)).transpose(1, 2)


class Unsaved(Right):
    """Its factor is in no state_dict."""

    made = 0

    def __init__(self):
        super().__init__()
        Unsaved.made += 1
        self.factor = 1.0 + Unsaved.made

    def forward(self, x):
        return self.factor * super().forward(x)


class Frozen(Right):
    """Its values get no gradient."""

    def forward(self, x):
        if not hasattr(self.inner, "support"):
            return super().forward(x)
        return (x.transpose(1, 2) @ self.inner.to_dense().T + self.inner.bias).transpose(1, 2)


X = torch.randn(3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _law(make):
    return lambda: laws.check_layer(make, X)


RIGHT = _law(Right)
LAYER = {
    "its output is off by a thousandth": _law(Stretched),
    "the input gets no gradient": _law(Detached),
    "it keeps the weight of its first pass": _law(Cached),
    "its sparse layer cannot be found": _law(Hidden),
    "it does not save its factor": _law(Unsaved),
    "its values get no gradient": _law(Frozen),
    "it has no zeros": _law(lambda: Right(density=1.0)),
}
