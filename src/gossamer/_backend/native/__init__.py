# pyright: strict
"""The native kernels: the choice of a build for this machine, or the reason why none can run.

The kernels are written once, in the ``native.hpp`` next to each reference, and compiled for several instruction sets.
Each build is an extension module in this folder: ``_avx512``, ``_avx2``, ``_plain`` (SSE2 or NEON). The best build that
the processor supports is used; ``GOSSAMER_ISA`` selects another. Kernels run on torch's threads: the process has one
OpenMP runtime, and ``torch.set_num_threads`` applies. A forked child has no threads of its parent, and uses one. For a
given number of threads, the same inputs give the same bits.
"""

import importlib
import os
import warnings
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Protocol, cast

import torch
from torch import Tensor

ENVIRONMENT = "GOSSAMER_ISA"
ONE = (1, 1)  # the block of one weight
COMPUTED = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
}  # dtype of activations -> dtype of the computation

# A function of tensors, then sizes, then the number of threads. It checks shapes, dtypes and strides, and writes its
# results into its last tensors.
Function = Callable[..., None]


class Build(Protocol):
    """The extension module of one instruction set (``module.cpp``, and the ``bind.hpp`` of each ``native.hpp``)."""

    isa: str
    lanes: int  # float32 numbers in a vector
    openmp: bool
    __file__: str

    def supported(self) -> list[str]:
        """The instruction sets that this machine supports, best first."""
        ...

    def use_tensors_of(self, tensor: type[Tensor]) -> None:
        """Prepares reading tensors of this class. Call it before all other functions."""
        ...

    def cache_bytes(self) -> int:
        """The size of the level-2 cache."""
        ...

    def peak_flops(self, threads: int, seconds: float) -> float:
        """The highest rate of multiply-adds, in FLOP per second."""
        ...

    def keep_freed_memory(self) -> bool:
        """See :func:`keep_freed_memory`."""
        ...

    def row_pointers(self, w: Tensor, crow: Tensor, threads: int) -> int:
        """Fills ``crow``; returns the number of non-zeros."""
        ...

    linear_forward: Function
    linear_backward: Function
    conv_forward: Function
    conv_backward: Function
    conv_weight: Function
    block_forward: Function
    block_backward: Function
    batch_norm_forward: Function
    batch_norm_backward: Function
    row_sums: Function
    row_columns: Function
    column_order: Function
    values_at: Function
    turn: Function


def _load(isa: str) -> Build | str:
    """The build for an instruction set, or a sentence on why there is none."""
    try:
        build = cast(Build, importlib.import_module(f"{__name__}._{isa}"))
        build.use_tensors_of(Tensor)
    except (ImportError, AttributeError, RuntimeError) as error:
        missing = files(__name__) / "missing.txt"
        if missing.is_file():
            return missing.read_text(encoding="utf-8").strip()
        if isinstance(error, ModuleNotFoundError):
            shows = "pip install -v shows the messages of the compiler"
            return f"the extension modules were not built when gossamer was installed ({shows})"
        return f"the extension module {isa} cannot be used: {error}"
    return build


def _builds() -> tuple[list[Build], str, dict[str, str]]:
    """The values of ``BUILDS``, ``MISSING`` and ``UNUSABLE``."""
    plain = _load("plain")
    if isinstance(plain, str):
        return [], plain, {}
    names, wanted = plain.supported(), os.environ.get(ENVIRONMENT)
    if wanted and wanted not in names:
        return [], f"{ENVIRONMENT}={wanted}, but this machine supports only {', '.join(names)}", {}
    found = {name: plain if name == "plain" else _load(name) for name in names if not wanted or name == wanted}
    unusable = {name: m for name, m in found.items() if isinstance(m, str)}
    builds = [m for m in found.values() if not isinstance(m, str)]
    return builds, "" if builds else next(iter(unusable.values())), unusable


# The builds that run here, best first; why there is none, or ""; the reasons why other builds for this processor do
# not run.
BUILDS, MISSING, UNUSABLE = _builds()
BEST: Build | None = BUILDS[0] if BUILDS else None
_warned = False


def why_not(*tensors: Tensor | None) -> list[str]:
    """The reasons against all native kernels for these tensors, of which the first holds activations."""
    first, *rest = (t for t in tensors if t is not None)
    if BEST is None:
        if first.is_cpu:
            warn_once()
        return [f"the native kernels are missing: {MISSING}"]
    reasons: list[str] = []
    if first.dtype not in COMPUTED:
        reasons.append(f"activations must be float32, float64 or bfloat16, not {first.dtype}")
    elif any(COMPUTED.get(t.dtype) != COMPUTED[first.dtype] for t in rest):
        dtypes = " and ".join(str(t.dtype) for t in rest)
        reasons.append(f"activations of {first.dtype} cannot be multiplied by values of {dtypes}")
    if not first.is_cpu:
        reasons.append(f"they run on the CPU; the tensors are on {first.device}")
    return reasons


def reasons_against(first: Tensor, second: Tensor, third: Any, *_: Any) -> list[str]:
    """:func:`why_not` of a product's operands: (x or dy, values, s, ...), (dy, x, s, ...) or (dy, x, values, s, ...).

    Every call of a layer runs this function, so the usual case needs only four comparisons.
    """
    last = third if isinstance(third, Tensor) else first
    dtype = first.dtype
    if BEST is not None and dtype is second.dtype is last.dtype and dtype in COMPUTED and first.is_cpu:
        return []
    return why_not(first, second, last)


def warn_once() -> None:
    """Warns, once per process, that only the reference kernels run, and why."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"without its native kernels gossamer is slow: {MISSING} (run gossamer doctor for a remedy)", stacklevel=2
        )


def computed(values: Tensor) -> Tensor:
    """Values in the dtype of the computation, contiguous and without autograd."""
    dtype = COMPUTED[values.dtype]
    return values if values.dtype is dtype and values.is_contiguous() else values.detach().to(dtype).contiguous()


def keep_freed_memory() -> bool:
    """Makes this process keep the memory of freed tensors for the next step. For training on the CPU, sparse or dense.

    By default glibc returns blocks above 32 MiB to the system at once. The system then clears and maps every page of
    the activations again in the next step, which takes a third of a step of a ResNet-18. The setting applies to the
    whole process (``mallopt``). The peak of memory does not grow.

    Returns: whether the allocator accepted the setting; False without the native kernels, or with another C library.
    """
    return BEST is not None and BEST.keep_freed_memory()
