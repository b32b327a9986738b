"""``gossamer doctor``: what is available on this machine, and why the rest is not."""

import ctypes
import os
import platform
import re
from importlib.util import find_spec
from pathlib import Path

import torch

from .. import __version__
from .._backend import dispatch as kernels
from .._backend import native
from .._errors import nearest
from . import extras
from .console import show

BUILDS = ("avx512", "avx2", "plain")  # all builds, best first


def doctor() -> int:
    """Prints versions, threads, kernels, GPU and extras. It needs no extra packages. Returns the exit code 0."""
    columns, rows = ("what", "here"), [[what, said] for what, said in findings()]
    lacking = [f"{name}: {extras.pip_command(name)}" for name in extras.EXTRAS if extras.missing(name)]
    show("gossamer doctor", columns, rows, [*remedies(), *lacking], left=2)
    return 0


def findings() -> list[tuple[str, str]]:
    """(subject, finding) pairs."""
    from .environment import processor

    threads = torch.get_num_threads()

    rows = [
        ("gossamer", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("processor", f"{processor()}, {os.cpu_count()} cores"),
        (
            "threads",
            f"{threads} within an operator (set by --threads), {torch.get_num_interop_threads()} between operators",
        ),
        ("vector instructions", torch.backends.cpu.get_cpu_capability()),
        ("BLAS", blas()),
        ("sparse kernels", sparse_kernels()),
        ("native builds", builds()),
        ("GPU", gpu()),
    ]
    for name, extra in extras.EXTRAS.items():
        lacking = extras.missing(name)
        rows.append((f"extra {name}", f"{'missing ' + ', '.join(lacking) if lacking else 'present'} ({extra.purpose})"))
    return rows


def sparse_kernels() -> str:
    """The kernels that the csr layout runs on this machine, and why."""
    asked, m = os.environ.get(kernels.ENVIRONMENT), native.BEST
    by = f"{kernels.ENVIRONMENT}={asked}"
    if asked not in (None, "", "native", "reference"):
        return f"none: {by} names no kernel{nearest(asked, ['native', 'reference'])}"
    if m is None:
        return (
            f"none: {by}, but {native.MISSING}"
            if asked == "native"
            else f"reference (plain torch, slower): {native.MISSING}"
        )
    if asked == "reference":
        return f"reference (plain torch, slower), by {by}"
    what = f"native, {m.isa} build{f', by {by}' if asked else ''}: {m.lanes} float32 lanes, {openmp()}"
    return f"{what}, tiles for a level-2 cache of {m.cache_bytes()} bytes"


def builds() -> str:
    """The native builds that are installed, and why one of them was chosen."""
    there = [isa for isa in BUILDS if find_spec(f"{native.__name__}._{isa}") is not None]
    if not there:
        return "none"
    asked, parts = os.environ.get(native.ENVIRONMENT), [", ".join(there)]
    if native.BEST is not None:
        parts.append(
            f"{native.BEST.isa} by {native.ENVIRONMENT}"
            if asked
            else f"{native.BEST.isa} is the best that can run here"
        )
    unusable = dict(native.UNUSABLE)
    if native.BEST is not None and not asked:
        known = {*unusable, *(m.isa for m in native.BUILDS)}
        unusable |= {isa: "this processor does not support it" for isa in there if isa not in known}
    return "; ".join([*parts, *(f"not {isa}: {reason}" for isa, reason in unusable.items())])


def openmp() -> str:
    """The threads of the native kernels, and whether they share torch's OpenMP runtime."""
    build = native.BEST
    if build is None or not build.openmp:
        return "one thread (built without OpenMP)"
    count, ours = torch.get_num_threads(), _omp_of(build.__file__)
    torchs = next(map(_omp_of, (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")), None)
    if ours is None or torchs is None:
        return f"{count} OpenMP threads"
    return f"{count} OpenMP threads {'shared with torch' if ours == torchs else 'in addition to those of torch'}"


def _omp_of(library: str | Path) -> int | None:
    """The address of the OpenMP runtime of a loaded library."""
    try:
        return ctypes.cast(ctypes.CDLL(str(library)).omp_get_max_threads, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def remedies() -> list[str]:
    """What to do if the native kernels do not run; [] if there is nothing to do."""
    asked = os.environ.get(kernels.ENVIRONMENT)
    if asked not in (None, "", "native", "reference"):
        return [f"sparse kernels: unset {kernels.ENVIRONMENT}, or set it to native or reference"]
    if native.BEST is not None or asked == "reference":
        return []
    if os.environ.get(native.ENVIRONMENT):
        return [f"sparse kernels: unset {native.ENVIRONMENT}"]
    install = "pip install -v --force-reinstall --no-deps ."
    return [f"sparse kernels: install g++ and the headers of Python (python3-dev), then run {install}"]


def blas() -> str:
    """The linear algebra libraries that torch was built with."""
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    parts = [found.group(1) if found else "unknown"]
    parts += ["oneDNN"] * torch.backends.mkldnn.is_available() + ["OpenMP"] * torch.backends.openmp.is_available()
    return ", ".join(parts)


def gpu() -> str:
    """The GPUs that torch finds, or why it finds none."""
    if torch.cuda.is_available():
        return (
            ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
            + " (the command line trains on the CPU)"
        )
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this build of torch is for the CPU only"
    return "none: this build of torch supports GPUs, but finds no device or driver"
