# pyright: strict
"""The modules of a model: by name, in eval mode, and their exchange.

Torch does not declare the types of ``named_modules``; :func:`named_modules` does.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from torch import nn


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module once, by qualified name, in order of definition; the model itself is ""."""
    return dict(cast("Iterator[tuple[str, nn.Module]]", model.named_modules()))


def replaced(model: nn.Module, counterparts: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The model with modules exchanged at every place where they stand, in place; or the counterpart of the model
    itself."""
    if model in counterparts:
        return counterparts[model]
    places = cast("Iterator[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=False))
    for name, m in list(places):
        if m in counterparts:
            model.set_submodule(name, counterparts[m])
    return model


@contextmanager
def eval_mode(model: nn.Module) -> Generator[None]:
    """Inside, all modules are in eval mode; afterwards, each is in its own mode again."""
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
