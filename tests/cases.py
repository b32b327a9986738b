"""The tables: every law runs over one of these. Sizes are tiny, prime where possible, and include hard cases."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer import recover
from gossamer.products.conv2d.reference import Geometry

SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(cases: dict) -> pytest.MarkDecorator:
    """A mark that parametrizes a test over a table. The argument is ``case``, and the keys name the tests."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


# ---------------------------------------------------------------- supports: name -> (shape, ids or a number, block)


def _support(shape: tuple[int, int], kept: int | list[int], block: tuple[int, int] = (1, 1)) -> gs.Support:
    if isinstance(kept, int):
        return gs.Support.random(shape, kept, block, generator(7))
    return gs.Support.from_ids(torch.tensor(kept, dtype=torch.int64), shape, block)


SUPPORTS = {
    "one of one": _support((1, 1), 1),
    "primes": _support((13, 7), 31),
    "one row": _support((1, 17), 5),
    "one column": _support((17, 1), 5),
    "wide": _support((3, 101), 20),
    "empty rows and columns": _support((7, 11), [12, 14, 40]),
    "one full row": _support((5, 6), [12, 13, 14, 15, 16, 17]),
    "empty": _support((5, 6), []),
    "full": _support((4, 5), 20),
    "all but one": _support((4, 5), 19),
    "first and last": _support((6, 5), [0, 29]),
    "tiles": _support((8, 6), 5, (2, 3)),
    "ragged tiles": _support((13, 7), 6, (4, 3)),
    "ragged corner only": _support((5, 5), [3], (3, 3)),
    "tiles taller than the matrix": _support((3, 10), 2, (4, 4)),
    "row tiles": _support((6, 13), 7, (1, 4)),
    "column tiles": _support((13, 6), 7, (4, 1)),
}

# ---------------------------------------------------------------- convolutions


class Conv(NamedTuple):
    """Input channels, output channels, geometry, image size, number of blocks, block."""

    channels: int
    filters: int
    g: Geometry
    size: tuple[int, int]
    n: int
    block: tuple[int, int] = (1, 1)

    @property
    def support(self) -> gs.Support:
        return gs.Support.random(
            (self.filters, self.channels * self.g.kernel[0] * self.g.kernel[1]), self.n, self.block, generator(3)
        )


CONVS = {
    "1x1": Conv(3, 5, Geometry((1, 1)), (5, 4), 7),
    "3x3": Conv(3, 5, Geometry((3, 3)), (7, 6), 40),
    "padded": Conv(3, 5, Geometry((3, 3), padding=(1, 1)), (5, 5), 40),
    "strided": Conv(2, 7, Geometry((3, 3), (2, 2), (1, 1)), (7, 8), 30),
    "stride leaves a rest": Conv(2, 3, Geometry((2, 2), (3, 2)), (9, 8), 11),
    "dilated": Conv(2, 3, Geometry((3, 3), dilation=(2, 2)), (8, 9), 20),
    "all unlike": Conv(3, 2, Geometry((2, 3), (2, 1), (1, 2), (1, 2)), (7, 6), 15),
    "kernel as large as the image": Conv(2, 3, Geometry((5, 4)), (5, 4), 33),
    "padding beyond the kernel": Conv(1, 2, Geometry((1, 1), padding=(2, 1)), (2, 2), 1),
    "ragged tiles": Conv(3, 5, Geometry((3, 3), (1, 2), (1, 1)), (6, 7), 6, (2, 4)),
}

# ---------------------------------------------------------------- optimizers

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: ADAMW(p, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
}
TWO_OPTIMIZERS = {name: OPTIMIZERS[name] for name in ("nesterov", "adamw")}

# ---------------------------------------------------------------- penalties and rules

PENALTIES: dict[str, gs.penalties.Penalty] = {
    "zero": gs.penalties.Zero(),
    "l1": gs.L1(0.5),
    "l1 without strength": gs.L1(0.0),
    "non-negative": gs.NonNegativeL1(0.5),
    "rows": gs.GroupL1(0.5, "row"),
    "kernels": gs.GroupL1(0.5, "kernel"),
    "channels": gs.GroupL1(0.5, "channel"),
    "log": gs.LogL1(0.5, 0.1),
    "log, kernels": gs.LogL1(0.5, 0.1, "kernel"),
    "log, channels": gs.LogL1(0.5, 0.1, "channel"),
    "log, kernels shrinking": gs.LogL1(0.5, 0.1, "kernel", shrinking=True),
    "log, channels shrinking": gs.LogL1(0.5, 0.1, "channel", shrinking=True),
    "top 5": gs.TopK(5),
    "top 30 %": gs.TopK(density=0.3),
}
RULES: dict[str, gs.rules.Rule] = {
    "prox-SGD": gs.ProxSGD(gs.L1(0.1)),
    "prox-SGD with momentum": gs.ProxSGD(gs.L1(0.1), 0.9),
    "prox-SGD of kernels": gs.ProxSGD(gs.GroupL1(0.1, "kernel")),
    "IHT": gs.ProxSGD(gs.TopK(density=0.3), 0.5),
    "RDA": gs.RDA(gs.L1(0.01)),
    "xRDA": gs.XRDA(gs.LogL1(0.001, 0.1), 0.3, 2.0, 1.0, 0.01),
    "xRDA as printed": gs.XRDA(gs.LogL1(0.001, 0.1), gs.cosine_pair(0.05, 20)[1], accumulate=False),
    "xRDA of kernels": gs.XRDA(gs.LogL1(0.001, 0.1, "kernel")),
    "xRDA of shrinking channels": gs.XRDA(gs.LogL1(0.001, 0.1, "channel", shrinking=True), 0.2),
    "xRDA without averaging": gs.XRDA(gs.L1(0.01), 0.0, None),
    "LinBreg": gs.LinBreg(gs.L1(0.1)),
    "LinBreg with momentum": gs.LinBreg(gs.L1(0.1), 2.0, 0.5),
    "LinBreg of rows": gs.LinBreg(gs.GroupL1(0.1, "row")),
    "LinBreg, non-negative": gs.LinBreg(gs.NonNegativeL1(0.1)),
    "AdaBreg": gs.AdaBreg(gs.L1(0.1), 0.5),
    "AdaBreg of channels": gs.AdaBreg(gs.GroupL1(0.1, "channel")),
}

# ---------------------------------------------------------------- topologies


def topologies(stop: int, every: int, window: int) -> dict[str, gs.Topology]:
    """One topology of every kind. The distance of events grows from ``every`` to 2 ``every`` steps."""
    regular = {"stop": stop, "every": every}
    growing = {**regular, "last_every": 2 * every, "window": window}
    half = {**growing, "fraction": 0.5, "drop_fraction": 0.3}
    methods: dict[str, gs.TopologyLike] = {
        "static": gs.Static(),
        "set": gs.SET(**regular),
        "set signed": gs.SET(**regular, signed=True),
        "set shrinking": gs.SET(**regular, final_density=0.2),
        "set growing": gs.SET(**regular, final_density=0.6),
        "rigl": gs.RigL(**regular),
        "rigl moving": gs.RigL(**regular, step_optimizer=True, min_fan_in=1),
        "rigl merging": gs.RigL(**regular, merge=True),
        "rigl shrinking": gs.RigL(**regular, final_density=0.2),
        "snfs": gs.SNFS(**regular),
        "gmp": gs.GMP(final_density=0.1, **regular),
        "csst": gs.CSST(**growing, fraction=0.5),
        "csst counted": gs.CSST(**growing, count=9, drop_fraction=0.4, min_fan_in=1),
        "csst iht": gs.CSST(**{**half, "drop_fraction": 0.5}, mode="iht"),
        "csst merging": gs.CSST(**half, mode="merge"),
        "csst pooled": gs.CSST(**half, allocate="pooled"),
        "csst by flow": gs.CSST(**{**half, "fraction": 0.3}, candidates="flow"),
        "csst regrowing": gs.CSST(**half, step_optimizer=False, allow_regrow=True),
        "csst shrinking": gs.CSST(**half, final_density=0.2),
    }
    return {name: method.resolve(None) for name, method in methods.items()}


STOP = 23
TOPOLOGIES = topologies(STOP, 4, 3)
LAYOUT_NAMES = ("masked", "csr")  # layouts whose support a topology may change
MAIN = ("static", "set", "rigl", "snfs", "gmp", "csst", "csst iht", "csst merging", "csst pooled", "csst by flow")

# ---------------------------------------------------------------- recovery


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def _scipy() -> recover.Operator:
    aslinearoperator = pytest.importorskip("scipy.sparse.linalg").aslinearoperator
    return recover.operator(aslinearoperator(normal(11, 17).numpy()))


OPERATORS: dict[str, Callable[[], recover.Operator]] = {
    "dense": lambda: recover.Dense(normal(11, 17)),
    "dense, single precision": lambda: recover.Dense(normal(11, 17, dtype=torch.float32)),
    "gaussian": lambda: recover.Gaussian(11, 150, seed=4),
    "gaussian, single precision": lambda: recover.Gaussian(11, 65, seed=4, dtype=torch.float32),
    "dct": lambda: recover.SubsampledDCT(11, 30, seed=1),
    "dct, all rows": lambda: recover.SubsampledDCT(13, 13),
    "gated": lambda: recover.GatedReLU(normal(13, 5), normal(7, 5, seed=1)),
    "gated, one of each": lambda: recover.GatedReLU(normal(1, 1).abs(), normal(1, 1, seed=1).abs()),
    "gated, single precision": lambda: recover.GatedReLU(normal(16, 5, dtype=torch.float32), normal(7, 5, seed=1)),
    "gated from a seed": lambda: recover.GatedReLU.random(normal(17, 3), 70, seed=2),
    "stacked": lambda: recover.Stacked(recover.GatedReLU(normal(13, 5), normal(3, 5, seed=1)), 2),
    "scipy": _scipy,
}
EVERY: dict[str, Callable[..., recover.Recovery]] = {  # every solver as solve(A, y)
    **{name: (lambda A, y, solve=solve: solve(A, y, 3)) for name, solve in recover.GREEDY.items()},
    **recover.CONVEX,
    "fista": recover.fista,
    "ista": recover.ista,
}
EXACT = {
    name: solve for name, solve in recover.GREEDY.items() if name != "iht"
}  # on section 6.5's problems; a fixed step is too slow


def gaussian_problem(m: int, d: int, s: int, seed: int, signs: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A (m, d) with block columns, x with s non-zeros, y."""
    A, where = normal(m, d, seed=seed), torch.randperm(d, generator=generator(seed + 1))[:s]
    A, x, values = A / A.norm(dim=0), torch.zeros(d, dtype=torch.float64), normal(s, seed=seed + 2)
    x[where] = values.sign() if signs else values
    return A, x, A @ x


def planted_network(
    d: int, neurons: int, s: int, n: int, seed: int, mixed: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, first layer (neurons, d), output signs, y."""
    W, where = torch.zeros(neurons * d, dtype=torch.float64), torch.randperm(neurons * d, generator=generator(seed))[:s]
    W[where] = normal(s, seed=seed + 1)
    X, W = normal(n, d, seed=seed + 2), W.view(neurons, d)
    signs = normal(neurons, seed=seed + 3).sign() if mixed else torch.ones(neurons, dtype=torch.float64)
    return X, W, signs, (X @ W.T).clamp_min(0) @ signs


# ---------------------------------------------------------------- models and data


class Data(NamedTuple):
    """Batches that depend only on a seed."""

    features: tuple[int, ...]
    classes: int
    size: int = 8

    def batch(self, t: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        rng = generator(10_000 + t)
        x = torch.randn(self.size, *self.features, generator=rng, dtype=dtype)
        return x, torch.randint(self.classes, (self.size,), generator=rng)

    def batches(self, steps: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
        return [self.batch(t, dtype) for t in range(steps)]


FLAT, IMAGES = Data((13,), 5), Data((2, 6, 6), 5)


def mlp(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return seeded(
        nn.Sequential(nn.Linear(13, 17), nn.Tanh(), nn.Linear(17, 11), nn.Tanh(), nn.Linear(11, 5)).to(dtype), seed
    )


def convnet(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    layers = (
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 7, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(28, 5),
    )
    return seeded(nn.Sequential(*layers).to(dtype), seed)


def seeded(model: nn.Sequential, seed: int) -> nn.Sequential:
    """The model with values that depend only on the seed, not on torch's random state."""
    rng = generator(seed)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            nn.init.normal_(p, 0.0, 0.4, generator=rng)
        elif not name.startswith("1."):  # normalisation
            nn.init.normal_(p, 0.0, 0.1, generator=rng)
    return model


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rewirer: gs.Rewirer | None,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> list[float]:
    """Trains with the loop of the README. Returns the losses."""
    losses = []
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        (rewirer or optimizer).step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def supports(model: nn.Module) -> dict[str, gs.Support]:
    return {name: layer.support for name, layer in gs.sparse_layers(model).items()}


def same_supports(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = supports(a), supports(b)
    return mine.keys() == theirs.keys() and all(s.same(theirs[name]) for name, s in mine.items())


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Whether parameters and buffers are equal bit for bit."""
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[key]) for key, t in mine.items())
