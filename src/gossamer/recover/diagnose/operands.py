# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""Operands (dy, x) of backward passes: recorded from layers, checked, and scaled to units of their own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

from torch import Tensor

from ..._errors import UsageError
from ...layers import SparseLayer
from ..arrays import Array, tensor
from ..units import exponent, shifted

Operands = Sequence[tuple[Array, Array]]  # (dy, x) of each batch
Pairs = list[tuple[Tensor, Tensor]]  # the same as tensors

NEAR = 16  # operands whose largest entry lies within 2^-16 and 2^16 keep their units


def record_operands(
    layers: Mapping[str, SparseLayer], passes: Iterable[Callable[[], object]]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Operands (dy, x) of every layer in each of several backward passes.

    Args:
        layers: by name, as ``gs.sparse_layers(model)``.
        passes: functions that call ``loss(...).backward()``.
    """
    found: dict[str, Pairs] = {name: [] for name in layers}
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.observe(_appending(found[name])))
        for backward in passes:
            backward()
    return found


def _appending(pairs: Pairs) -> Callable[[Tensor, Tensor], None]:
    return lambda dy, x: pairs.append((dy, x))


def tensors(who: str, operands: Operands) -> Pairs:
    """As tensors. Raises UsageError for anything else than tensors and arrays."""
    return [
        (tensor(who, f"dy of batch {b}", dy), tensor(who, f"x of batch {b}", x)) for b, (dy, x) in enumerate(operands)
    ]


def in_units(operands: Pairs) -> tuple[Pairs, int, int]:
    """2^-a dy and 2^-b x of all batches, with a and b: squares of their products neither overflow nor vanish.

    a and b are 0 for operands whose largest entry is within ``NEAR`` binary orders of magnitude of one.
    """
    largest = [max((exponent(pair[i]) for pair in operands if bool(pair[i].any())), default=0) for i in range(2)]
    a, b = (e if abs(e) > NEAR else 0 for e in largest)
    return [(shifted(dy, -a), shifted(x, -b)) for dy, x in operands], a, b


def not_finite(operands: Pairs) -> str | None:
    """The sentence about the first operand that holds NaN or infinities; None if all are finite."""
    for b, pair in enumerate(operands):
        for name, values in zip(("dy", "x"), pair, strict=True):
            if bad := int((~values.isfinite()).sum()):
                return f"{name} of batch {b} holds {bad} entries that are NaN or infinite"
    return None


def checked(who: str, operands: Operands) -> Pairs:
    """Finite operands in units of their own. Raises UsageError."""
    pairs = tensors(who, operands)
    if not pairs:
        raise UsageError(who, "needs the operands (dy, x) of one batch at least")
    if (broken := not_finite(pairs)) is not None:
        raise UsageError(who, broken, remedy="leave out steps whose loss overflowed")
    return in_units(pairs)[0]
