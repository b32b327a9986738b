"""The native kernels: which build of them runs on this machine, and why none does if none does.

They are written once (``*/native.hpp`` beside each reference) and built for several instruction sets, each a module of its own here:
``_avx512``, ``_avx2``, ``_plain`` (SSE2 or NEON). The best that the processor knows is taken; ``GOSSAMER_ISA`` asks for another.
They run on the threads of torch (one OpenMP runtime in the process, ``torch.set_num_threads`` is honoured); a forked child, which has
none of its parent's threads, runs them on one. For a given number of threads the same inputs give the same bits.
"""

import importlib
import os
import warnings
from importlib.resources import files
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import memory
from ..dispatch import asked
from ..memory import is_batch_last

ENVIRONMENT = "GOSSAMER_ISA"
ONE = (1, 1)
COMPUTED = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
}  # stored -> computed in


def _module(isa: str) -> ModuleType | str:
    """The build for an instruction set, or why it cannot be had."""
    try:
        m: Any = importlib.import_module(f"{__name__}._{isa}")
        m.use_tensors_of(Tensor)
    except (ImportError, AttributeError, RuntimeError) as error:
        missing = files(__name__) / "missing.txt"
        if missing.is_file():
            return missing.read_text(encoding="utf-8").strip()
        if isinstance(error, ModuleNotFoundError):
            return "the extension modules were not built when gossamer was installed (pip install -v shows the compiler's messages)"
        return f"the extension module {isa} cannot be used: {error}"
    return m


def _builds() -> tuple[list[ModuleType], str, dict[str, str]]:
    """The usable builds, why there is none, and of the others that the processor could run (by instruction set) why not."""
    plain: Any = _module("plain")
    if isinstance(plain, str):
        return [], plain, {}
    names = plain.supported()
    asked = os.environ.get(ENVIRONMENT)
    if asked and asked not in names:
        return [], f"{ENVIRONMENT}={asked}, and this machine runs {', '.join(names)}", {}
    found = {name: plain if name == "plain" else _module(name) for name in names if not asked or name == asked}
    unusable = {name: m for name, m in found.items() if isinstance(m, str)}
    builds = [m for m in found.values() if not isinstance(m, str)]
    return builds, "" if builds else next(iter(unusable.values())), unusable


BUILDS, MISSING, UNUSABLE = (
    _builds()
)  # modules that can run here, best first; why there is none; what else there could be: why not
BEST: Any = BUILDS[0] if BUILDS else None
_warned = False


def why_not(*tensors: Tensor | None) -> list[str]:
    """The objections of every native kernel to these tensors, of which the first holds activations."""
    first, *rest = (t for t in tensors if t is not None)
    if BEST is None:
        if first.is_cpu:
            warn_once()
        return [f"the native kernels are missing: {MISSING}"]
    reasons = []
    if first.dtype not in COMPUTED:
        reasons.append(f"activations must be float32, float64 or bfloat16, not {first.dtype}")
    elif any(COMPUTED.get(t.dtype) != COMPUTED[first.dtype] for t in rest):
        reasons.append(f"activations of {first.dtype} do not go with {' and '.join(str(t.dtype) for t in rest)}")
    if not first.is_cpu:
        reasons.append(f"they run on the CPU; the tensors are on {first.device}")
    return reasons


def reasons_against(first: Tensor, second: Tensor, third: Any, *_: Any) -> list[str]:
    """:func:`why_not` of a product's operands, (x or dy, values, s, ...) or (dy, x, s, ...) or (dy, x, values, s, ...). The usual case is
    told by a glance: a layer asks at every call."""
    last = third if isinstance(third, Tensor) else first
    dtype = first.dtype
    if BEST is not None and dtype is second.dtype is last.dtype and dtype in COMPUTED and first.is_cpu:
        return []
    return why_not(first, second, last)


def warn_once() -> None:
    """Says once per process that there is nothing faster than the reference kernels, and why."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"without its native kernels gossamer is slow: {MISSING} (gossamer doctor says what to do)", stacklevel=2
        )


def like(x: Tensor, *shape: int) -> Tensor:
    """An uninitialised batch-last tensor (N, C) or (N, C, H, W), with the dtype and device of ``x``."""
    if len(shape) == 2:
        return x.new_empty_strided(shape, (1, shape[0]))
    n, _, h, w = shape
    return x.new_empty_strided(shape, (1, h * w * n, w * n, n))


def batch_last(x: Tensor) -> Tensor:
    """:func:`gossamer._backend.memory.batch_last` for use below autograd: a kernel turns what it can."""
    if is_batch_last(x):
        return x
    if BEST is None or x.dim() not in (2, 4) or not x.is_cpu or x.dtype not in COMPUTED:
        return memory.batch_last(x)
    if not x.is_contiguous():
        if not x.is_contiguous(memory_format=torch.channels_last):
            return memory.batch_last(x)
        x = x.contiguous()  # two quick turns, where one between these two formats is slow
    y = like(x, *x.shape)
    BEST.turn(x, y, torch.get_num_threads())
    return y


def turned(x: Tensor) -> Tensor:
    """:func:`batch_last` above autograd, any number of times; a gradient keeps the format it comes in."""
    if is_batch_last(x):
        return x
    return _Turned.apply(x) if x.requires_grad else batch_last(x)  # type: ignore[return-value]


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return batch_last(x)

    @staticmethod
    def backward(ctx, dy):
        return dy


def plain(x: Tensor) -> Tensor:
    """The way back, to torch's contiguous memory; for use below autograd."""
    if not is_batch_last(x):
        return x.contiguous()
    return batch_last(x.movedim(0, -1).flatten(0, -2)).t().view(x.shape)


def computed(values: Tensor) -> Tensor:
    """Values in the dtype that is computed in, contiguous."""
    dtype = COMPUTED[values.dtype]
    return values if values.dtype is dtype and values.is_contiguous() else values.detach().to(dtype).contiguous()


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that tensors give back, for the next step's: for training on the CPU, sparse or dense.

    glibc otherwise returns blocks above 32 MiB to the system at once, and every page of the next step's activations is cleared and mapped
    anew: a third of a whole step of a ResNet-18. It concerns the whole process (``mallopt``); the peak of memory does not grow.

    Returns: whether the allocator took the advice (False without the native kernels, or on another C library).
    """
    return BEST is not None and BEST.keep_freed_memory()


def bias_gradient(dy: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over all dimensions but the second, (N, C, ...) -> (C,)."""
    if BEST is None or asked() == "reference" or not dy.is_cpu or dy.dtype not in COMPUTED:
        return dy.sum([0, *range(2, dy.dim())]).to(dtype)
    sums = dy.new_empty(dy.shape[1], dtype=COMPUTED[dy.dtype])
    BEST.row_sums(batch_last(dy), sums, torch.get_num_threads())
    return sums if sums.dtype is dtype else sums.to(dtype)


__all__ = [
    "BEST", "BUILDS", "MISSING", "batch_last", "bias_gradient", "computed", "keep_freed_memory", "like", "plain", "turned", "reasons_against",
    "warn_once", "why_not",
]  # fmt: skip
