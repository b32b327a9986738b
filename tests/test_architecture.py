"""The shape of the package: imports run downwards, public names are documented, the version is said once in four places."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

import gossamer

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(gossamer.__file__).parent
LAYERS = [
    {"errors", "schedules", "budgets"},
    {"support", "ops", "penalties"},
    {"layouts", "rules", "topology", "observe"},
    {
        "layers",
        "batch_last",
        "allotment",
        "timing",
        "plan",
        "convert",
        "surgery",
        "sensing",
        "newborn",
        "average",
        "checkpoint",
        "ledger",
        "laws",
        "recover",
        "target",
    },
    {"rewirer", "train", "multilevel"},
    {"experiments"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
STRANGERS = {(a, b) for a in LAYERS[2] for b in LAYERS[2] if a != b}  # siblings that do not know each other
CORE = {"torch", "numpy", "safetensors"}  # what the core may import from outside
EXTRA = {"recover": {"scipy", "sklearn", "rich"}}  # ... and what one part of it may where it is installed


def imports(path: Path, package: Path) -> set[str]:
    """Absolute names of all modules that a file imports, those of its own package as ``gossamer.x.y``."""
    parts = ("gossamer", *path.relative_to(package).with_suffix("").parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join((*parts[: len(parts) - node.level], *([node.module] if node.module else [])))
                if node.level
                else node.module
            )
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def offences(package: Path) -> list[str]:
    """Imports that go upwards, sideways where they may not, or outside from the core."""
    found = []
    for path in sorted(package.rglob("*.py")):
        here = path.relative_to(package).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for name in sorted(imports(path, package)):
            top, *rest = name.split(".")
            there = rest[0] if top == "gossamer" and rest else None
            if there in LEVEL and (LEVEL[there] > LEVEL[here] or (here, there) in STRANGERS):
                found.append(f"{path.relative_to(package)} imports {name}")
            if (
                here != "experiments"
                and top not in CORE | EXTRA.get(here, set()) | {"gossamer"} | sys.stdlib_module_names
            ):
                found.append(f"{path.relative_to(package)} imports {name}, which is no core dependency")
    return found


def test_every_module_has_a_layer():
    modules = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()
    }
    assert modules - {"__init__"} <= set(LEVEL)


def test_imports_run_downwards():
    assert offences(PACKAGE) == []


@pytest.mark.parametrize(
    "where, line",
    [
        ("support.py", "from .layers import SparseLinear"),
        ("topology/mine.py", "from ..layouts import CSR"),
        ("rules/mine.py", "from ..topology import Change"),
        ("penalties.py", "from .rules import LinBreg"),
        ("layers.py", "from . import train"),
        ("train.py", "from .experiments.run import run"),
        ("ops/mine/op.py", "from ...layers import SparseLinear"),
        ("ledger.py", "import rich"),
        ("recover/mine.py", "from ..train import Rewirer"),
        ("recover/mine.py", "import matplotlib"),
        ("topology/mine.py", "from ..recover import niht"),
    ],
)
def test_an_offence_is_noticed(tmp_path, where, line):
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text(line + "\n")
    assert len(offences(tmp_path)) == 1


def public_names() -> list[str]:
    return [
        name for name in vars(gossamer) if not name.startswith("_") and not inspect.ismodule(getattr(gossamer, name))
    ]


@pytest.mark.parametrize("name", public_names())
def test_public_names_say_what_they_are(name):
    thing = getattr(gossamer, name)
    if callable(thing):
        assert inspect.getdoc(thing), f"gossamer.{name} has no docstring"


def test_public_names_stand_in_the_documentation():
    text = "\n".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    assert [name for name in public_names() if not re.search(rf"\b{name}\b", text)] == []


def undocumented(path: Path) -> list[str]:
    """Public modules, classes and functions of a file without a docstring; methods of protocols' implementers inherit theirs."""
    tree = ast.parse(path.read_text())
    nodes = [
        *([tree] if tree.body else []),
        *(n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and not n.name.startswith("_")),
    ]
    return [getattr(n, "name", "module") for n in nodes if not ast.get_docstring(n)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_definitions_have_docstrings(path):
    assert undocumented(path) == []


def test_one_version():
    sources = {
        "pyproject.toml": r'^version = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## \[(\d+\.\d+\.\d+)\]",
    }
    said = {file: re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1] for file, pattern in sources.items()}
    assert set(said.values()) == {gossamer.__version__}, said


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()
