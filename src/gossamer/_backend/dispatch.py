# pyright: strict
"""Dispatch with reasons. Each kernel lists the reasons why it cannot run. The first one with an empty list runs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage]

from .._errors import UsageError, nearest
from .private_torch import (
    environment_reader,
    hides_numbers,
    in_forward_mode,
    in_func_transform,
    is_batch_of_gradients,
    is_wrapped,
    needs_plain_functions,
    watches_calls,
)

ENVIRONMENT = "GOSSAMER_BACKEND"
PLAIN = (Tensor, torch.nn.Parameter)


class Kernel(NamedTuple):
    """One implementation of an operation: call ``run(*args)`` if ``reasons_against(*args)`` is empty.

    ``run`` returns a tensor or a tuple of tensors, which depends on the operation.
    """

    name: str
    run: Callable[..., Any]
    reasons_against: Callable[..., list[str]]  # sentences; [] if it can run


# () -> the name of the kernel that the environment variable forces; None without it
forced_kernel = environment_reader(ENVIRONMENT)


def device_type(x: Tensor) -> str:
    """The type of the device that holds a tensor."""
    return "cpu" if x.is_cpu else x.device.type


def always(*_args: Any) -> list[str]:
    """No reason against any arguments."""
    return []


def full_precision(*args: Any) -> list[str]:
    """The reasons of kernels that compute only in float32 or float64, with the same dtype for all tensors."""
    dtypes = {a.dtype: None for a in args if isinstance(a, Tensor)}
    unknown = [str(d) for d in dtypes if d not in (torch.float32, torch.float64)]
    if unknown:
        return [f"values must be float32 or float64, not {' and '.join(unknown)} (under autocast they stay float32)"]
    return ["activations and values must have the same dtype"] if len(dtypes) > 1 else []


def choose(kernels: Sequence[Kernel], *args: Any) -> Kernel:
    """The first kernel of a list that can run on these arguments; ``GOSSAMER_BACKEND`` forces one by name.

    Raises: UsageError under ``torch.func`` and forward-mode differentiation, for an unknown name, and if no kernel can
    run.
    """
    forced = forced_kernel()
    if hides_numbers():
        what = "kernels cannot read the tensors of torch.func or tangents"
        remedy = "call it outside of the transform, or transform gossamer.densify(copy.deepcopy(model))"
        raise UsageError("kernels", what, remedy=remedy)
    if forced is None and not kernels[0].reasons_against(*args):
        return kernels[0]
    names = [k.name for k in kernels]
    if forced and forced not in names:
        what = f"there is no kernel {forced!r} for this operation{nearest(forced, names)}"
        raise UsageError(ENVIRONMENT, what, remedy=f"one of {', '.join(names)}")
    for kernel in kernels:
        if (not forced or kernel.name == forced) and not kernel.reasons_against(*args):
            return kernel
    reasons = [line for _, lines in why(kernels, *args) for line in lines]
    raise UsageError("kernels", "no kernel can run on these arguments", reasons=reasons)


def run(kernels: Sequence[Kernel], *args: Any) -> Any:
    """The result of the chosen kernel on these arguments, of which the first is a tensor.

    Autocast is off inside the kernel, because it would change dtypes.
    """
    kind = device_type(args[0])
    if not torch.is_autocast_enabled(kind):
        return choose(kernels, *args).run(*args)
    with torch.autocast(kind, enabled=False):
        return choose(kernels, *args).run(*args)


def run_as(kernels: Sequence[Kernel], dtype: torch.dtype, *args: Any) -> Any:
    """:func:`run`. If no kernel accepts the dtype of the activations, all floating arguments are cast to ``dtype``."""
    if args[0].dtype is not dtype:
        possible = (k for k in kernels if forced_kernel() in (None, k.name))
        if all(k.reasons_against(*args) for k in possible):
            args = tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
    return run(kernels, *args)


def why(kernels: Sequence[Kernel], *args: Any) -> list[tuple[str, list[str]]]:
    """For each kernel, its name and the reasons against it, [] if it can run."""
    return [(k.name, k.reasons_against(*args)) for k in kernels]


# ---------------------------------------------------------------- transforms of torch that act on a call


def is_traced(*tensors: Tensor | None) -> bool:
    """Whether a kernel must not be called directly: torch follows the call, or an argument has a subclass of Tensor.

    Torch follows a call in ``torch.compile`` and export, in a dispatch mode such as FLOP counting or ``make_fx``, in
    ``torch.func``, in forward-mode differentiation and in ``torch.jit.trace``.
    """
    if watches_calls():
        return True
    for t in tensors:
        if t is not None and type(t) not in PLAIN:
            return True
    return False


def is_differentiated_again(dy: Tensor) -> bool:
    """Whether a backward pass is itself differentiated, mapped or traced; ``dy`` is the gradient that it receives."""
    return torch.is_grad_enabled() or is_traced(dy) or is_batch_of_gradients(dy)


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is active. Call it only if :func:`is_traced` is true."""
    return in_func_transform() or (not is_compiling() and in_forward_mode())


def is_placeholder(t: Tensor) -> bool:
    """Whether a tensor is a placeholder of ``make_fx`` or ``torch.func``, whose numbers must not be read."""
    return is_traced(t) and (get_proxy_mode() is not None or is_wrapped(t))


def needs_torch_operations() -> bool:
    """Whether only torch's own operations are allowed. Call it only if :func:`is_traced` is true.

    ``torch.jit.trace``, ``torch.export`` and ONNX export record a program that can run without gossamer. Transforms
    within a compiled graph, ``functionalize`` and tangents of tangents support no other operations.
    """
    if is_tracing() or is_exporting():
        return True
    return is_transformed() if is_compiling() else needs_plain_functions()
