# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""Operands (dy, x) of backward passes: recorded from layers, checked, and scaled to the order of one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

from torch import Tensor

from ..._errors import UsageError
from ...layers import SparseLayer
from ..arrays import Array, tensor
from ..units import exponent, shifted

Operands = Sequence[tuple[Array, Array]]  # (dy, x) of each batch
Pairs = list[tuple[Tensor, Tensor]]  # the same as tensors

NEAR = 16  # operands whose largest entry is between 2^-16 and 2^16 are not scaled


def record_operands(
    layers: Mapping[str, SparseLayer], passes: Iterable[Callable[[], object]]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Runs several backward passes, and records the operands (dy, x) of every layer in each.

    Args:
        layers: layers by name, as ``gs.sparse_layers(model)`` returns them.
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
    """The operands as tensors. Raises UsageError unless they are tensors or arrays."""
    return [
        (tensor(who, f"dy of batch {b}", dy), tensor(who, f"x of batch {b}", x)) for b, (dy, x) in enumerate(operands)
    ]


def in_units(operands: Pairs) -> tuple[Pairs, int, int]:
    """2^-a dy and 2^-b x of all batches, with a and b: squares of their products neither overflow nor underflow.

    a and b are 0 for operands whose largest entry is within ``NEAR`` binary orders of magnitude of one.
    """
    largest = [max((exponent(pair[i]) for pair in operands if bool(pair[i].any())), default=0) for i in range(2)]
    a, b = (e if abs(e) > NEAR else 0 for e in largest)
    return [(shifted(dy, -a), shifted(x, -b)) for dy, x in operands], a, b


def not_finite(operands: Pairs) -> str | None:
    """A sentence on the first operand with NaN or infinities; None if all are finite."""
    for b, pair in enumerate(operands):
        for name, values in zip(("dy", "x"), pair, strict=True):
            if bad := int((~values.isfinite()).sum()):
                return f"{name} of batch {b} holds {bad} entries that are NaN or infinite"
    return None


def checked(who: str, operands: Operands) -> Pairs:
    """Checked operands, scaled to the order of one. Raises UsageError if they are not finite, or missing."""
    pairs = tensors(who, operands)
    if not pairs:
        raise UsageError(who, "needs the operands (dy, x) of at least one batch")
    if (broken := not_finite(pairs)) is not None:
        raise UsageError(who, broken, remedy="omit steps with an overflowed loss")
    return in_units(pairs)[0]
