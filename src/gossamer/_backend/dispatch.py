"""Dispatch with reasons: a kernel says in sentences why it cannot run; the first that has nothing to say runs."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _is_tracing as is_tracing
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    peek_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .._errors import UsageError, nearest

ENVIRONMENT = "GOSSAMER_BACKEND"
PLAIN = (Tensor, torch.nn.Parameter)


class Kernel(NamedTuple):
    """One implementation of an operation: ``run(*args)`` if ``reasons_against(*args)`` is empty."""

    name: str
    run: Callable[..., Any]
    reasons_against: Callable[..., list[str]]  # sentences; [] = can run


_environment: Any = getattr(
    os.environ, "_data", os.environ
)  # what os.environ wraps: a miss there costs 2 us, at every call of a layer
_key: Any = getattr(os.environ, "encodekey", str)(ENVIRONMENT)


def asked() -> str | None:
    """The kernel that the environment asks for by name, as of now."""
    return (os.environ.get(ENVIRONMENT) or None) if _key in _environment else None


def device_type(x: Tensor) -> str:
    """The type of the device that holds a tensor."""
    return "cpu" if x.is_cpu else x.device.type


def always(*_args: Any) -> list[str]:
    """No objection."""
    return []


def full_precision(*args: Any) -> list[str]:
    """The objection of kernels that know float32 and float64 only, one of them at a time."""
    dtypes = {a.dtype: None for a in args if isinstance(a, Tensor)}
    unknown = [str(d) for d in dtypes if d not in (torch.float32, torch.float64)]
    if unknown:
        return [f"values must be float32 or float64, not {' and '.join(unknown)} (under autocast they stay float32)"]
    return ["activations and values must have the same dtype"] if len(dtypes) > 1 else []


def choose(kernels: Sequence[Kernel], *args: Any) -> Kernel:
    """The first kernel, fastest first, that can run on these arguments; ``GOSSAMER_BACKEND`` forces one by name."""
    name = asked()
    if peek_interpreter_stack() is not None or (forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()):
        remedy = "call it outside of the transform, or transform gossamer.densify(copy.deepcopy(model))"
        raise UsageError(
            "kernels", "a kernel reads memory, and sees neither the tensors of torch.func nor tangents", remedy=remedy
        )
    if name is None and not kernels[0].reasons_against(*args):
        return kernels[0]
    names = [k.name for k in kernels]
    if name and name not in names:
        raise UsageError(
            ENVIRONMENT,
            f"there is no kernel {name!r} for this operation{nearest(name, names)}",
            remedy=f"one of {', '.join(names)}",
        )
    for kernel in kernels:
        if (not name or kernel.name == name) and not kernel.reasons_against(*args):
            return kernel
    raise UsageError(
        "kernels",
        "no kernel can run on these arguments",
        reasons=[line for _, lines in why(kernels, *args) for line in lines],
    )


def run(kernels: Sequence[Kernel], *args: Any) -> Any:
    """What the chosen kernel makes of these arguments, the first of them a tensor; autocast is off inside, where it would change dtypes."""
    kind = device_type(args[0])
    if not torch.is_autocast_enabled(kind):
        return choose(kernels, *args).run(*args)
    with torch.autocast(kind, enabled=False):
        return choose(kernels, *args).run(*args)


def run_as(kernels: Sequence[Kernel], dtype: torch.dtype, *args: Any) -> Any:
    """:func:`run`, where activations of another dtype than the values' are cast if no kernel takes them as they are."""
    if args[0].dtype is not dtype and all(k.reasons_against(*args) for k in kernels if asked() in (None, k.name)):
        args = tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
    return run(kernels, *args)


def foreign(*tensors: Tensor | None) -> bool:
    """True where kernels must not be called at once, since somebody follows the call: ``torch.compile`` or export, a dispatch mode (FLOP
    counting, ``make_fx``), ``torch.func``, forward-mode differentiation, ``torch.jit.trace``, or a tensor subclass."""
    if (
        is_compiling()
        or dispatch_modes()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or is_tracing()
    ):
        return True
    for t in tensors:
        if t is not None and type(t) not in PLAIN:
            return True
    return False


def followed(dy: Tensor) -> bool:
    """The same question in a backward pass: whether somebody differentiates, maps or watches it."""
    return (
        torch.is_grad_enabled() or foreign(dy) or is_legacy_batchedtensor(dy)
    )  # the last: torch.autograd.grad(is_grads_batched=True)


def transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is at work. To be asked where :func:`foreign` is true."""
    return peek_interpreter_stack() is not None or (not is_compiling() and forward_ad._current_level >= 0)


def unreadable(t: Tensor) -> bool:
    """Whether nobody may look at the numbers of a tensor, since they stand for others: under ``make_fx`` and ``torch.func``."""
    return foreign(t) and (get_proxy_mode() is not None or is_functorch_wrapped_tensor(t))


def written() -> bool:
    """Whether only torch's own operations serve. To be asked where :func:`foreign` is true. ``torch.jit.trace``, ``torch.export`` and
    ONNX export write down what is to run where there is no gossamer; within a compiled graph, and beside ``functionalize``, transforms know
    nothing else; and a tangent's tangent gets lost in an ``autograd.Function`` (of torch 2.13, without a word)."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return True
    if is_compiling():
        return transformed()
    levels = [level.key() for level in get_interpreter_stack() or ()]
    return TransformType.Functionalize in levels or levels.count(TransformType.Jvp) > 1


def why(kernels: Sequence[Kernel], *args: Any) -> list[tuple[str, list[str]]]:
    """For each kernel its name and the reasons against it, [] if it can run."""
    return [(k.name, k.reasons_against(*args)) for k in kernels]
