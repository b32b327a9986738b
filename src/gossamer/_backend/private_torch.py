# pyright: strict
"""All uses of names that are not public in torch.

A test checks that no other file of gossamer uses one. Supported: torch 2.10 and later. The test suite runs on torch
2.13. If a later torch drops a name without public substitute, the import of gossamer fails here with that name.

    name                   purpose                                            public substitute
    ---------------------  -------------------------------------------------  ----------------------------------------
    watches_calls          a kernel must not run if torch follows the call    none; of its parts: torch.jit.is_tracing
    in_func_transform      a kernel cannot read the tensors of torch.func     none
    in_forward_mode        a kernel loses the tangents of forward mode        none
    hides_numbers          either of the two, unless it is switched off       none
    needs_plain_functions  functionalize and nested jvp need torch's own      none
                           operations
    is_wrapped             a tensor of torch.func has no own memory           none
    is_batch_of_gradients  autograd.grad(is_grads_batched=True) wraps dy      none
    backward_pass          distinguishes one backward pass from the next      none
    apply_directly         calls an autograd.Function without the search for  Function.apply, which takes 2 us more;
                           torch.func, which watches_calls has made           used if the shortcut is missing
    BatchNorm              the base class of BatchNorm1d, 2d and 3d           the three; misses subclasses of users
    environment_reader     os.environ.get in a tenth of the time, for each    os.environ.get; used if the parts of
                           call of a layer (private to Python, not to torch)  os.environ have other names
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch._C import _current_graph_task_id, _is_fwd_grad_enabled, _len_torch_dispatch_stack  # pyright: ignore
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    peek_interpreter_stack,
)
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

BatchNorm = _BatchNorm  # what torch's normalisations of batches share

# The names below are C functions. They have no wrappers, because each call of a layer makes several of these calls.
_func_transform: Callable[[], object | None] = peek_interpreter_stack
_modes: Callable[[], int] = _len_torch_dispatch_stack
_forward_mode: Any = forward_ad  # Any: the level is a private variable of the module
is_wrapped: Callable[[Tensor], bool] = is_functorch_wrapped_tensor
is_batch_of_gradients: Callable[[Tensor], bool] = is_legacy_batchedtensor
backward_pass: Callable[[], int] = _current_graph_task_id  # -1 outside of a backward pass


def watches_calls() -> bool:
    """Whether torch currently follows every call.

    This is so in ``torch.compile`` and export, in a dispatch mode (FLOP counting, ``make_fx``), in ``torch.func``, in
    forward-mode differentiation and in ``torch.jit.trace``.
    """
    return bool(
        is_compiling()  # first, because the compiler cannot trace the other functions
        or _modes()
        or _func_transform() is not None
        or _forward_mode._current_level >= 0
        or is_tracing()
    )


def in_func_transform() -> bool:
    """Whether a transform of ``torch.func`` is active."""
    return _func_transform() is not None


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is active."""
    return bool(_forward_mode._current_level >= 0)


def hides_numbers() -> bool:
    """Whether a kernel would miss tensors of ``torch.func``, or tangents (off in an ``autograd.Function``)."""
    return _func_transform() is not None or (_forward_mode._current_level >= 0 and _is_fwd_grad_enabled())


def needs_plain_functions() -> bool:
    """Whether an ``autograd.Function`` would give wrong results.

    ``functionalize`` does not support it, and it loses the tangent of a tangent (torch 2.13, without an error).
    """
    levels = [level.key() for level in get_interpreter_stack() or ()]
    return TransformType.Functionalize in levels or levels.count(TransformType.Jvp) > 1


def apply_directly(function: Any) -> Callable[..., Any]:
    """``function.apply`` of a class of ``autograd.Function``, without the search for ``torch.func``.

    Call the result only if :func:`watches_calls` is false.
    """
    return getattr(super(Function, function), "apply", function.apply)


def environment_reader(name: str) -> Callable[[], str | None]:
    """A function that returns the current value of an environment variable; None if it is not set or empty.

    If the variable is not set, a call takes a tenth of the time of ``os.environ.get``.
    """
    variables: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
    key: Any = getattr(os.environ, "encodekey", str)(name)
    return lambda: (os.environ.get(name) or None) if key in variables else None


__all__ = [
    "BatchNorm", "apply_directly", "backward_pass", "environment_reader", "hides_numbers", "in_forward_mode",
    "in_func_transform", "is_batch_of_gradients", "is_wrapped", "needs_plain_functions", "watches_calls",
]  # fmt: skip
