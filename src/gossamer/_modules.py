# pyright: strict
"""Lists the modules of a model by name, replaces modules, and sets eval mode for a while.

Torch does not declare the types of ``named_modules``; :func:`named_modules` does.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from torch import nn


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module once, by qualified name, in order of definition. The name of the model itself is ""."""
    return dict(cast("Iterator[tuple[str, nn.Module]]", model.named_modules()))


def replaced(model: nn.Module, counterparts: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replaces modules by their counterparts, in place, at every position in the model.

    Returns: the model, or its counterpart if the model itself has one.
    """
    if model in counterparts:
        return counterparts[model]
    places = cast("Iterator[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=False))
    for name, m in list(places):
        if m in counterparts:
            model.set_submodule(name, counterparts[m])
    return model


@contextmanager
def eval_mode(model: nn.Module) -> Generator[None]:
    """Sets all modules to eval mode. At the end, each module gets its former mode back."""
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
