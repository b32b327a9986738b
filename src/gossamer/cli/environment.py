"""The environment of a run: versions, machine, commit."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .._errors import UsageError

PACKAGE = Path(__file__).resolve().parents[1]


def environment() -> dict[str, Any]:
    """The environment as a dict for JSON."""
    return {
        "gossamer": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def commit() -> str | None:
    """The commit of the checkout of this package, with ``-modified`` if files differ; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() / "src" / "gossamer" != PACKAGE:
        return None
    head = git("rev-parse", "HEAD")
    return head + ("-modified" if git("status", "--porcelain", "--untracked-files=no") else "") if head else None


def check_memory(who: str, what: str, numbers: int) -> None:
    """Raises UsageError if so many float32 numbers do not fit into the memory of this machine."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return  # the system does not report the size of its memory
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * numbers > held:
        raise UsageError(
            who, f"{what} take {4 * numbers:,} bytes; this machine has {held:,}", remedy="use smaller settings"
        )


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
