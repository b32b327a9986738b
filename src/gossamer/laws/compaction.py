# pyright: strict
"""The law of compaction: the smaller model is the same function, and has no dead channels."""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..convert.sparsify import sparsify
from ..layers import sparse_layers
from .details import close, demand, same

Compact = Callable[[nn.Module], nn.Module]
Widths = Mapping[str, tuple[int, int]]  # layer name -> (outputs, inputs)


class Network(NamedTuple):
    """A network with dead channels, the shape of an input, and the sizes that its layers must have without them."""

    make: Callable[[], nn.Module]
    input: tuple[int, ...]
    widths: Widths


def check_compact(compact: Compact) -> None:
    """A compaction (:func:`~gossamer.compact`) returns a model with equal outputs in eval mode.

    The law runs it on a table of networks: chains with unread and with constant channels, padding, sums, operations
    that mix channels, layers that are called twice, tensors that are written in place, all layouts, and blocks. The
    result has no dead channel. A second compaction removes nothing. Modes, frozen parameters and layouts do not change.
    The given model does not change, and shares no memory with the result.

    Args:
        compact: the function that is tested.

    Raises: AssertionError.
    """
    for name, network in NETWORKS.items():
        for training in (False, True):
            _check(compact, name, network.make().train(training), network.input, network.widths)
    chain = NETWORKS["a chain"]
    for layout in ("csr", "masked", "shadow"):
        _check_sparse(compact, f"a chain in {layout}", chain, layout, (1, 1))
    for block in ((1, 2), (2, 1), (2, 3)):
        _check_sparse(compact, f"a chain in tiles of {block}", chain, "csr", block)


def _check_sparse(compact: Compact, name: str, network: Network, layout: str, block: tuple[int, int]) -> None:
    model = sparsify(network.make(), 0.8, layout=layout, block=block, init="magnitude", budget="pooled", rng=_rng())
    made = _check(compact, name, model, network.input, network.widths if block == (1, 1) else {})
    layouts = [{k: layer.layout.name for k, layer in sparse_layers(m).items()} for m in (made, model)]
    demand(layouts[0] == layouts[1], f"{name}: the layout of each layer must stay")
    blocks = {layer.block for layer in sparse_layers(made).values()}
    demand(blocks == {block}, f"{name}: the blocks must stay {block}")


def _check(compact: Compact, name: str, model: nn.Module, shape: tuple[int, ...], widths: Widths) -> nn.Module:
    """Checks all properties for one model. Returns the compacted model."""
    state = copy.deepcopy(model.state_dict())
    frozen = next(model.parameters()).requires_grad_(False)
    made, modes = compact(model), [m.training for m in model.modules()]
    demand(same(state, dict(model.state_dict())), f"{name}: the given model must not change")
    demand(made is not model and frozen is next(model.parameters()), f"{name}: it must be a new model")
    demand([m.training for m in made.modules()] == modes, f"{name}: every module must keep its mode")
    trained = [[p.requires_grad for p in m.parameters()] for m in (made, model)]
    demand(trained[0][: len(trained[1])] == trained[1], f"{name}: frozen parameters must stay frozen, and no others")
    memory = [{t.untyped_storage().data_ptr() for t in m.state_dict().values() if t.numel()} for m in (made, model)]
    demand(memory[0].isdisjoint(memory[1]), f"{name}: the two models must not share memory")
    again = compact(made)
    _same_function(name, model, made, shape)
    _same_function(f"{name}, twice", model, again, shape)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (again, made)]
    demand(sizes[0] == sizes[1], f"{name}: a second compaction must remove nothing")
    for layer, width in widths.items():
        got = _width(made.get_submodule(layer))
        demand(got == width, f"{name}: layer {layer} must have (outputs, inputs) {width}, and has {got}")
    return made


def _same_function(name: str, model: nn.Module, made: nn.Module, shape: tuple[int, ...]) -> None:
    model, made = copy.deepcopy(model).eval(), copy.deepcopy(made).eval()
    for seed, scale in ((1, 1.0), (2, 30.0), (3, 0.0)):
        x = scale * torch.randn(shape, generator=_rng(seed), dtype=torch.float64)
        with torch.no_grad():
            expected = model(x.clone())
            try:
                got = made(x.clone())
            except RuntimeError as error:
                raise AssertionError(f"{name}: the smaller model must run, and raises {error!r}") from error
        demand(got.shape == expected.shape, f"{name}: the output must keep its shape")
        close(got, expected, f"{name}: the output must stay the same", 1e-12)


def _width(m: nn.Module) -> tuple[int, int]:
    shape: object = getattr(m, "dense_shape", None)
    weight = m.weight.shape if shape is None else shape
    assert isinstance(weight, torch.Size)
    return weight[0], weight[1]


# -------------------------------------------------------------------- networks


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _drawn(model: nn.Module) -> nn.Module:
    """The model in float64, with new values that are not zero for all parameters and statistics."""
    rng, model = _rng(), model.double()
    with torch.no_grad():
        for t in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            t.copy_(torch.rand(t.shape, generator=rng, dtype=t.dtype) + 0.25)
        for p in model.parameters():
            p.mul_(torch.rand(p.shape, generator=rng, dtype=p.dtype).sub(0.5).sign())
    return model


def _zero(t: Tensor, *where: int, dim: int = 0, to: float = 0.0) -> None:
    """Sets slices of a parameter."""
    with torch.no_grad():
        t.index_fill_(dim, torch.tensor(where), to)


def _chain() -> nn.Module:
    """Each kind of dead channel once, before and after a normalisation, a pooling and a flattening."""
    a, b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, bias=False)
    c, d = nn.Linear(5 * 3 * 3, 8), nn.Linear(8, 3)
    scale, norm = nn.BatchNorm2d(6), nn.BatchNorm1d(8)
    first = (a, scale, nn.ReLU(), nn.MaxPool2d(2), b, nn.LeakyReLU(), nn.AvgPool2d(1), nn.Flatten())
    model = _drawn(nn.Sequential(*first, c, norm, nn.Dropout(0.5), nn.ReLU(inplace=True), d))
    _zero(a.weight, 1)  # constant through the normalisation
    _zero(b.weight, 3, dim=1)  # not read
    _zero(scale.weight, 4)  # constant after the normalisation
    _zero(b.weight, 2)  # zero, since it has no bias
    _zero(c.weight, 5)  # constant through a normalisation of vectors
    _zero(d.weight, 6, dim=1)  # not read
    return model


def _padded() -> nn.Module:
    """A non-zero constant before a padding with zeros must stay; a zero may be removed."""
    a, b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1, stride=2)
    model = _drawn(nn.Sequential(a, nn.ReLU(), b))
    _zero(a.weight, 0, 1)
    _zero(a.bias if a.bias is not None else a.weight, 0, to=1.0)
    _zero(a.bias if a.bias is not None else a.weight, 1, to=-1.0)
    _zero(b.weight, 2, dim=1)
    return model


class _Residual(nn.Module):
    """A sum of two branches: a channel is removed from both or from none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(2, 5, 1, bias=False), nn.Conv2d(5, 4, 3, padding=1)
        self.b, self.head = nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 2)
        _drawn(self)
        _zero(self.stem.weight, 0)  # constant in both branches: added to the bias of the head
        _zero(self.b.weight, 0)
        _zero(self.a.weight, 1, dim=1)  # read by neither
        _zero(self.head.weight, 1, 2, dim=1)  # 2 is read in the branch
        _zero(self.b.weight, 3, dim=1)  # not read
        with torch.no_grad():
            self.b.weight[3:, 2] = 0  # read by channel 2 alone, which is read in the branch alone

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, H, W) -> (N, 2)."""
        x = self.stem(x)
        y = self.b(F.relu(self.a(x)))
        y += x
        return self.head(torch.relu(y).mean((2, 3)))


class _Mixing(nn.Module):
    """Operations that mix or move channels: all channels must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 6), nn.Linear(6, 4), nn.LayerNorm(4)
        self.c, self.d = nn.Linear(8, 3), nn.Linear(3, 2)
        _drawn(self)
        for layer in (self.a, self.b, self.c):
            _zero(layer.weight, 1)
        _zero(self.d.weight, 2, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4) -> (N, 2)."""
        y = self.norm(self.b(torch.softmax(self.a(x), 1)))
        return self.d(self.c(torch.cat([y, y], 1)).flip(1))


class _Twice(nn.Module):
    """A layer that is called twice, with inputs that have different constants."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        _drawn(self)
        _zero(self.a.weight, 1)
        _zero(self.b.weight, 2)
        _zero(self.c.weight, 3, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) -> (N, 2)."""
        x = F.relu(self.a(x))
        return self.c(F.relu(self.b(F.relu(self.b(x)))))


class _Overwritten(nn.Module):
    """A constant that is overwritten before it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        _drawn(self)
        _zero(self.a.weight, 1, 2)
        _zero(self.a.bias, 1, 2, to=-1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) -> (N, 2)."""
        y = self.a(x)
        z = F.relu(y, inplace=True)
        return self.b(y) * self.c(z)


class _Branching(nn.Module):
    """Control flow that depends on the input cannot be traced: all channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        _drawn(self)
        _zero(self.a.weight, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) -> (N, 2)."""
        y = self.a(x)
        return self.b(F.relu(y) if x.sum() > 0 else y)


class _Sized(nn.Module):
    """A forward pass that depends on the width of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        _drawn(self)
        _zero(self.b.weight, 1, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) -> (N, 2)."""
        return self.b(self.a(x)) * self.b.in_features**-0.5


NETWORKS = {
    "a chain": Network(_chain, (4, 3, 12, 12), {"0": (3, 3), "4": (4, 3), "8": (6, 36), "12": (3, 6)}),
    "padding": Network(_padded, (3, 2, 7, 7), {"0": (2, 2), "2": (3, 2)}),
    "a sum": Network(_Residual, (3, 2, 6, 6), {"stem": (3, 2), "a": (3, 3), "b": (3, 3), "head": (2, 3)}),
    "mixed channels": Network(_Mixing, (5, 4), {"a": (6, 4), "b": (4, 6), "c": (3, 8)}),
    "a layer that is called twice": Network(_Twice, (5, 3), {"b": (4, 4)}),
    "a constant that is overwritten": Network(_Overwritten, (5, 3), {}),
    "a forward pass that asks for a width": Network(_Sized, (5, 3), {"a": (4, 3)}),
    "a forward pass that branches": Network(_Branching, (5, 3), {"a": (4, 3)}),
}
