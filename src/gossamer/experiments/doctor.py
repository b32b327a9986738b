"""What is available on this machine, what is not, and why."""

import os
import platform
import re

import torch

from .. import __version__
from . import extras
from .console import show


def doctor() -> int:
    """Print versions, threads, kernels, GPU and extras. Works with the core alone."""
    columns, rows = ("what", "here"), [[what, said] for what, said in findings()]
    lacking = [f"{name}: {extras.pip_command(name)}" for name in extras.EXTRAS if extras.missing(name)]
    show("gossamer doctor", columns, rows, lacking, left=2)
    return 0


def findings() -> list[tuple[str, str]]:
    """(subject, finding) pairs."""
    from .environment import processor

    rows = [
        ("gossamer", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", torch.__version__),
        ("processor", f"{processor()}, {os.cpu_count()} cores"),
        ("threads", f"{torch.get_num_threads()} (torch), {torch.get_num_interop_threads()} between operators; --threads sets the first"),
        ("vector instructions", torch.backends.cpu.get_cpu_capability()),
        ("BLAS", blas()),
        (
            "sparse kernels",
            "reference (plain torch); native ones are not part of this version",
        ),
        ("GPU", gpu()),
    ]
    for name, extra in extras.EXTRAS.items():
        lacking = extras.missing(name)
        rows.append((f"extra {name}", f"{'missing ' + ', '.join(lacking) if lacking else 'present'} ({extra.purpose})"))
    return rows


def blas() -> str:
    """The linear algebra torch was built with."""
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    parts = [found.group(1) if found else "unknown"]
    parts += ["oneDNN"] * torch.backends.mkldnn.is_available() + ["OpenMP"] * torch.backends.openmp.is_available()
    return ", ".join(parts)


def gpu() -> str:
    """The GPUs torch sees, or why there is none."""
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) + " (the command line trains on the CPU)"
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch is built for the CPU alone"
    return "none: torch is built for one, but finds no device or driver"
