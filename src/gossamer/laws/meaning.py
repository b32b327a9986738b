"""The law of conversions: a conversion changes only the modules that it makes sparse."""

# torch leaves the state of modules without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

import copy
import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..layers import SparseLayer
from .details import close, demand


def check_meaning(change: Callable[[nn.Module], nn.Module]) -> None:
    """A conversion of a network (``sparsify``, a memory format) keeps all modules that it does not make sparse.

    A kept module has the same type, mode, name, keys, hooks and output. A user can inspect it, cut the network after
    it, or replace it, also in a copy.

    Args:
        change: takes the network and returns the converted network.

    Raises: AssertionError.
    """
    for training in (True, False):
        plain = _network().train(training)
        model = copy.deepcopy(plain)
        seen: list[nn.Module] = []
        hooked = [m for m in model if isinstance(m, (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten))]
        for m in hooked:
            m.register_forward_hook(_noting(seen))
        model = change(model)
        if not isinstance(model, nn.Sequential) or len(model) != len(plain):
            raise AssertionError("a Sequential must stay a Sequential of the same length")
        _check_names(model, plain)
        meant = nn.Sequential(*(a if isinstance(a, SparseLayer) else b for a, b in zip(model, plain, strict=True)))
        for way in (lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(_bare(m)))):
            _check_outputs(way(model), copy.deepcopy(meant))
        seen.clear()
        model(_images())
        demand(seen == hooked, "the hooks of every module that stays must still be called, once each")


def _noting(seen: list[nn.Module]) -> Callable[..., None]:
    return lambda m, *_: seen.append(m)


def _copying(found: list[Tensor]) -> Callable[..., None]:
    return lambda _module, _inputs, y: found.append(y.detach().clone())


def _network() -> nn.Sequential:
    """A network with every kind of module, in float64. Its normalisations do not have their initial values."""
    first = (nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    head = (nn.Flatten(), nn.Linear(7, 11), nn.BatchNorm1d(11), nn.ReLU(), nn.Linear(11, 3))
    model, rng = nn.Sequential(*first, *second, *head).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for t in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            t.copy_(torch.rand(t.shape, generator=rng, dtype=t.dtype) - (0.0 if t.dim() == 1 else 0.5))
    return model


def _images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _bare(model: nn.Sequential) -> nn.Sequential:
    """A copy without hooks, which cannot be pickled."""
    model = copy.deepcopy(model)
    for m in model.modules():
        m._forward_hooks.clear()  # pyright: ignore[reportPrivateUsage]  # torch has no other way to remove all hooks
    return model


def _check_names(model: nn.Sequential, plain: nn.Sequential) -> None:
    for (name, m), (before, p) in zip(model.named_children(), plain.named_children(), strict=True):
        demand(name == before and m.training == p.training, f"module {before}: name and mode must stay")
        if not isinstance(m, SparseLayer):
            demand(isinstance(m, type(p)), f"module {name}: isinstance(m, {type(p).__name__}) must stay true")
            demand(m.state_dict().keys() == p.state_dict().keys(), f"module {name}: the keys of its state must stay")


def _check_outputs(model: nn.Sequential, meant: nn.Sequential) -> None:
    x = _images()
    for k in range(1, len(meant) + 1):
        mine, theirs = copy.deepcopy(model), copy.deepcopy(meant)
        kind = type(meant[k - 1])
        cut = nn.Sequential(*list(mine)[:k])(x), nn.Sequential(*list(theirs)[:k])(x)
        close(*cut, f"cut after module {k - 1} ({kind.__name__}), the network must return the output of that module")
        mine[k - 1], theirs[k - 1] = nn.GELU(), nn.GELU()
        if issubclass(kind, (nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU)):  # a GELU can replace them: same shapes
            what = f"after module {k - 1} ({kind.__name__}) is replaced, its effect must be gone"
            close(mine(x), theirs(x), what)
    outputs: list[list[Tensor]] = [[], []]
    for found, network in zip(outputs, (model, meant), strict=True):
        for m in network:
            m.register_forward_hook(_copying(found))
    results = [network(x) for network in (model, meant)]
    for k, (a, b) in enumerate(zip(*outputs, strict=True)):
        close(a, b, f"a hook on module {k} ({type(meant[k]).__name__}) must get its output")
    grads = [
        torch.autograd.grad(y.square().sum(), list(n.parameters()))
        for y, n in zip(results, (model, meant), strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        close(a, b, "the gradients of all parameters must be the same")
