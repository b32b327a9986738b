"""Optional packages: the packages that a part of the command line needs, and the pip command for missing ones."""

from importlib.util import find_spec
from typing import NamedTuple

from .._errors import UsageError


class Extra(NamedTuple):
    """One optional-dependency group of the package."""

    purpose: str
    modules: dict[str, str]  # importable name -> requirement for pip


EXTRAS = {
    "run": Extra(
        "commands run, sweep and report; the digits task",
        {
            "jsonargparse": "jsonargparse[signatures]",
            "docstring_parser": "jsonargparse[signatures]",
            "yaml": "pyyaml",
            "rich": "rich",
            "sklearn": "scikit-learn",
        },
    ),
    "board": Extra("TensorBoard events of a run", {"tensorboard": "tensorboard"}),
    "recover": Extra("the estimators of gossamer.recover", {"sklearn": "scikit-learn", "scipy": "scipy"}),
    "plot": Extra("pictures of gossamer recover and of the benchmarks", {"matplotlib": "matplotlib"}),
}


def missing(extra: str) -> list[str]:
    """The requirements of ``extra`` that are not installed."""
    return sorted({source for module, source in EXTRAS[extra].modules.items() if find_spec(module) is None})


def pip_command(extra: str) -> str:
    """The command that installs the missing packages of ``extra``."""
    return "pip install " + " ".join(f'"{source}"' if "[" in source else source for source in missing(extra))


def require(extra: str, who: str) -> None:
    """Raises UsageError, with the pip command, if a package of ``extra`` is missing."""
    lacking = missing(extra)
    if lacking:
        raise UsageError(who, f"needs packages that are not installed: {', '.join(lacking)}", remedy=pip_command(extra))
