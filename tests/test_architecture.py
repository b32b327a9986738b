"""The shape of the package: the order of imports, no cycles, sizes, public names, documentation, one version."""

import ast
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

import gossamer

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(gossamer.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

ORDER = (  # modules and packages of gossamer, from the bottom: each imports only what stands before it
    *("_errors", "_schedules", "_budgets"),
    "_backend",
    *("_grid", "_sampling", "support"),
    *("products", "_geometry"),
    "layouts",
    "penalties",
    "rules",
    "topology",
    "observe",
    *("_initial", "_kernel_names", "indexed", "layers"),
    *("optimizer_state", "keeper", "surgery"),
    *("_modules", "batch_last", "selection"),
    "_plan",
    "convert",
    "training",
    *("ledger", "checkpoint"),
    "recover",
    "laws",
    "cli",
)
ABOVE_ALL = {"__init__", "__main__"}  # only the command line imports these; only __main__ imports it
INDEPENDENT = set(permutations(("layouts", "rules", "topology", "observe"), 2))  # parts that must not know each other
CORE = {"torch", "numpy", "safetensors"}  # what the library imports from outside
EXTRA = {"recover": {"scipy", "sklearn", "rich"}}  # what a part of it may import besides, where it is installed
NO_LIMIT = {"cli", "__main__"}  # the command line imports any extra

MOST_LINES, MOST_FUNCTION_LINES, MOST_CORE_LINES = 350, 60, 1500
LONG_FILES: dict[str, str] = {}  # path below the package -> why it is longer than MOST_LINES
LONG_FUNCTIONS: dict[str, str] = {  # path:function -> why it is longer than MOST_FUNCTION_LINES
    "convert/sparsify.py:sparsify": "the signature and the documentation of its 13 arguments take 50 of its lines",
}

PUBLIC_MODULES = {"checkpoint", "laws", "penalties", "recover", "rules"}  # documented as gossamer.NAME


# ---------------------------------------------------------------- the graph of modules


def modules_of(package: Path) -> dict[str, Path]:
    """Every module of a package by its full name; a folder with ``__init__.py`` has the folder's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(("gossamer", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Absolute names of all that a module imports, ``gossamer.x.y`` for ``from .x import y``.

    It makes no difference where the import stands: at the top, in a function, or under ``TYPE_CHECKING``.
    """
    parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*here, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def graph_of(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports.

    Python runs the ``__init__`` of every package on the way to a module, so these count too, except those that hold the
    importing module itself.
    """
    modules, graph = modules_of(package), {}
    for name, path in modules.items():
        graph[name] = set()
        for imported in imports(name, path):
            parts = imported.split(".")
            way = [".".join(parts[:k]) for k in range(1, len(parts) + 1)]
            known = [module for module in way if module in modules]
            holders = {module for module in known[:-1] if f"{name}.".startswith(f"{module}.")} | {"gossamer"}
            graph[name] |= set(known) - (holders if known[-1:] != ["gossamer"] else set())
    return graph


def top(module: str) -> str:
    """The part of gossamer that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def upward(package: Path) -> list[str]:
    """Imports of a part that stands later in ORDER, or that the importing part must not know."""
    place = {name: i for i, name in enumerate(ORDER)}
    found = []
    for module, imported in graph_of(package).items():
        here = top(module)
        for other in sorted(imported):
            there = top(other)
            if here == "__init__":
                wrong = there == "cli"
            elif there in ABOVE_ALL:
                wrong = here not in ABOVE_ALL | {"cli"}
            else:
                wrong = here != "__main__" and (place[there] > place[here] or (here, there) in INDEPENDENT)
            if wrong:
                found.append(f"{module} imports {other}")
    return found


def foreign(package: Path) -> list[str]:
    """Imports of packages that are no dependency of the part that imports them."""
    found = []
    for module, path in modules_of(package).items():
        allowed = CORE | EXTRA.get(top(module), set()) | {"gossamer"} | sys.stdlib_module_names
        if top(module) not in NO_LIMIT:
            names = sorted(name for name in imports(module, path) if name.split(".")[0] not in allowed)
            found += [f"{module} imports {name}, which is no dependency of the library" for name in names]
    return found


def components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or by others: the strongly connected components."""
    reach = {module: reachable(graph, module) for module in graph}
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph}
    return sorted(list(group) for group in groups if len(group) > 1 or (group and group[0] in graph[group[0]]))


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All modules to which a path of at least one import leads."""
    found, waiting = set(), list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += graph[module]
    return found


def test_every_module_has_a_place_in_the_order():
    assert {top(name) for name in modules_of(PACKAGE)} - ABOVE_ALL <= set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


def test_imports_run_downwards():
    assert upward(PACKAGE) == []


def test_no_modules_import_each_other():
    assert components(graph_of(PACKAGE)) == []


def test_the_library_imports_only_its_dependencies():
    assert foreign(PACKAGE) == []


UPWARD = {
    "a function": {"support.py": "def f():\n    from .layers import SparseLinear", "layers.py": ""},
    "for types alone": {
        "support.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .layers import SparseLinear",
        "layers.py": "",
    },
    "a module by its name": {"layers.py": "from . import training", "training/__init__.py": ""},
    "by the absolute name": {"layers.py": "import gossamer.training.loop", "training/loop.py": ""},
    "from a sub-package": {"products/linear/op.py": "from ...layers import SparseLinear", "layers.py": ""},
    "from the __init__ of a package": {"topology/__init__.py": "from ..layers import SparseLinear", "layers.py": ""},
    "a name of the whole package": {"layers.py": "from gossamer import fit", "__init__.py": ""},
    "parts that must not know each other": {"topology/mine.py": "from ..layouts import CSR", "layouts.py": ""},
    "the command line by the package": {"__init__.py": "from .cli.main import main", "cli/main.py": ""},
    "laws by recovery": {"recover/mine.py": "from .. import laws", "laws/__init__.py": ""},
    "within one level": {"_errors.py": "from ._budgets import erk", "_budgets.py": ""},
}
CYCLES = {
    "siblings": {"topology/a.py": "from .b import f", "topology/b.py": "from .a import g"},
    "for types alone": {
        "topology/a.py": "from .b import f",
        "topology/b.py": "import typing\nif typing.TYPE_CHECKING:\n    from .a import g",
    },
    "in a function": {"a.py": "def f():\n    from . import b", "b.py": "from .a import f"},
    "of three": {"a.py": "from . import b", "b.py": "from . import c", "c.py": "from . import a"},
    "by the package": {"rules/__init__.py": "from .a import f", "rules/a.py": "from . import f"},
    "by the whole package": {"__init__.py": "from .a import f", "a.py": "import gossamer"},
    "by the package of a module": {
        "rules/__init__.py": "from .a import f",
        "rules/a.py": "from ..penalties import g",
        "rules/c.py": "",
        "penalties.py": "from .rules.c import h",
    },
}


def package_of(folder: Path, files: dict[str, str]) -> Path:
    """A package with these files."""
    for where, text in files.items():
        (folder / where).parent.mkdir(parents=True, exist_ok=True)
        (folder / where).write_text(text + "\n")
    return folder


@pytest.mark.parametrize("case", UPWARD)
def test_an_upward_import_is_noticed(tmp_path, case):
    assert len(upward(package_of(tmp_path, UPWARD[case]))) >= 1


@pytest.mark.parametrize("case", CYCLES)
def test_a_cycle_is_noticed(tmp_path, case):
    assert len(components(graph_of(package_of(tmp_path, CYCLES[case])))) == 1


@pytest.mark.parametrize("line", ["import rich", "from sklearn.base import BaseEstimator", "import matplotlib.pyplot"])
def test_a_foreign_import_is_noticed(tmp_path, line):
    assert len(foreign(package_of(tmp_path, {"ledger.py": f"def f():\n    {line}"}))) == 1


def test_what_is_allowed_is_not_noticed(tmp_path):
    files = {
        "__init__.py": "from .rules import f",
        "__main__.py": "from .cli.main import main",
        "cli/main.py": "import rich\nfrom .. import recover",
        "recover/__init__.py": "from .a import f",
        "recover/a.py": "import scipy\nfrom ..rules.b import g\nfrom . import c",
        "recover/c.py": "",
        "rules/__init__.py": "from .b import g as f",
        "rules/b.py": "from .._errors import UsageError\nimport torch, math",
        "_errors.py": "",
    }
    package = package_of(tmp_path, files)
    assert upward(package) == foreign(package) == components(graph_of(package)) == []


# ---------------------------------------------------------------- sizes


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function and method, the docstring included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node.end_lineno - node.lineno + 1
            yield from functions(node, f"{name}.")


def too_long(package: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Files and functions above the limits, with their numbers of lines."""
    files, found = {}, {}
    for path in sorted(package.rglob("*.py")):
        where, text = path.relative_to(package).as_posix(), path.read_text()
        if (lines := len(text.splitlines())) > MOST_LINES:
            files[where] = lines
        longest = {name: lines for name, lines in functions(ast.parse(text)) if lines > MOST_FUNCTION_LINES}
        found |= {f"{where}:{name}": lines for name, lines in longest.items()}
    return files, found


def test_files_are_short():
    assert {file: lines for file, lines in too_long(PACKAGE)[0].items() if file not in LONG_FILES} == {}


def test_functions_are_short():
    assert {name: lines for name, lines in too_long(PACKAGE)[1].items() if name not in LONG_FUNCTIONS} == {}


def test_every_exception_is_needed_and_has_a_reason():
    files, found = too_long(PACKAGE)
    assert set(LONG_FILES) <= set(files) and set(LONG_FUNCTIONS) <= set(found)
    assert all((LONG_FILES | LONG_FUNCTIONS).values())


def test_long_files_and_functions_are_noticed(tmp_path):
    body = "class A:\n    def f(self):\n" + "        x = 1\n" * MOST_FUNCTION_LINES
    package = package_of(tmp_path, {"a.py": body + "\n" * (MOST_LINES - 1), "b.py": "def g():\n    x = 1"})
    assert too_long(package) == ({"a.py": 412}, {"a.py:A.f": 61})


def core_path(page: str) -> list[str]:
    """The files between the marks <!-- core --> and <!-- /core -->, one a line, as paths below src/gossamer."""
    blocks = re.findall(r"<!-- core -->\n(.*?)<!-- /core -->", page, re.DOTALL)
    assert len(blocks) == 1, "docs/reading.md must hold the marks <!-- core --> and <!-- /core --> once"
    return [
        found[1] for line in blocks[0].splitlines() if (found := re.search(r"(?:src/gossamer/)?([\w/]+\.py)", line))
    ]


def test_the_core_path_is_short():
    files = core_path((ROOT / "docs" / "reading.md").read_text())
    assert files and len(set(files)) == len(files)
    assert sum(len((PACKAGE / file).read_text().splitlines()) for file in files) <= MOST_CORE_LINES


def test_the_core_path_is_read_from_the_page():
    page = "a.py\n<!-- core -->\n- `support.py`\n| 2 | `src/gossamer/rules/rule.py` | text |\n\n<!-- /core -->\nb.py\n"
    assert core_path(page) == ["support.py", "rules/rule.py"]


# ---------------------------------------------------------------- public names


def public_names() -> list[str]:
    """What ``gossamer`` holds besides modules."""
    return [
        name for name in vars(gossamer) if not name.startswith("_") and not inspect.ismodule(getattr(gossamer, name))
    ]


def test_all_lists_every_public_name_once():
    assert sorted(gossamer.__all__) == sorted({*public_names(), *PUBLIC_MODULES})
    assert list(gossamer.__all__) == sorted(gossamer.__all__, key=str.casefold)
    assert all(inspect.ismodule(getattr(gossamer, name)) for name in PUBLIC_MODULES)


@pytest.mark.parametrize("name", public_names())
def test_public_names_say_what_they_are(name):
    thing = getattr(gossamer, name)
    if callable(thing) and not typing.get_origin(thing):  # an alias of a type cannot have a docstring
        assert inspect.getdoc(thing), f"gossamer.{name} has no docstring"


def test_public_names_stand_in_the_documentation():
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in gossamer.__all__ if not re.search(rf"\b{name}\b", text)] == []


def hidden(package: Path) -> list[str]:
    """Names that a package's ``__init__`` binds and that a module of the package has too: the one hides the other."""
    modules, found = modules_of(package), []
    for name, path in modules.items():
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text())
            bound = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and not (node.level == 1 and node.module is None):
                    bound |= {alias.asname or alias.name for alias in node.names}
            found += sorted(f"{name}.{inner}" for inner in bound if f"{name}.{inner}" in modules)
    return found


def test_no_module_hides_a_function():
    assert hidden(PACKAGE) == []


def test_a_module_that_hides_a_function_is_noticed(tmp_path):
    files = {
        "__init__.py": "from .plan import plan\nfrom . import laws",
        "plan.py": "",
        "laws/__init__.py": "from .a import f",
        "laws/a.py": "",
        "laws/f.py": "",
    }
    assert hidden(package_of(tmp_path, files)) == ["gossamer.plan", "gossamer.laws.f"]


OVERWRITTEN = """
import importlib, inspect, pkgutil, sys
import gossamer
packages = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "gossamer" and hasattr(m, "__path__")}
before = {(name, key): v for name, m in packages.items() for key, v in vars(m).items() if not inspect.ismodule(v)}
for found in pkgutil.walk_packages(gossamer.__path__, "gossamer."):
    if not found.name.endswith("__main__") and not found.name.startswith("gossamer._backend.native."):
        importlib.import_module(found.name)
print([f"{name}.{key}" for (name, key), v in before.items() if getattr(packages[name], key) is not v])
print(type(gossamer.plan).__name__, type(gossamer.recover.iht).__name__)
"""


def test_importing_every_module_overwrites_nothing():
    done = subprocess.run([sys.executable, "-c", OVERWRITTEN], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "function function"], done.stderr


# ---------------------------------------------------------------- documentation


def undocumented(path: Path) -> list[str]:
    """Public modules, classes and functions of a file that have no docstring."""
    tree = ast.parse(path.read_text())
    nodes = [
        *([tree] if tree.body else []),
        *(n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and not n.name.startswith("_")),
    ]
    return [getattr(n, "name", "module") for n in nodes if not ast.get_docstring(n)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_definitions_have_docstrings(path):
    assert undocumented(path) == []


def private_imports(text: str) -> list[str]:
    """Modules below the public ones that the Python blocks of a page import."""
    allowed = {"gossamer", *(f"gossamer.{name}" for name in PUBLIC_MODULES)}
    blocks = "\n".join(re.findall(r"^ *```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL))
    found = re.findall(r"^\s*(?:from|import)\s+(gossamer[\w.]*)", blocks, re.MULTILINE)
    return [name for name in found if name not in allowed]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_import_public_modules_only(page):
    assert private_imports(page.read_text()) == []


def test_an_import_of_a_private_module_is_noticed():
    page = "from gossamer.topology.slots import f\nfrom gossamer.recover import iht\nimport gossamer as gs\n"
    assert private_imports(f"```python\n{page}```\n") == ["gossamer.topology.slots"]
    assert private_imports("from gossamer._plan import plan\n") == []  # text, no example


# ---------------------------------------------------------------- the package


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
