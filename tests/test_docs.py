"""The documentation runs: every Python block of the README and docs/, page by page, and prints what the block of text after it says."""

import contextlib
import inspect
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch

import gossamer

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```\n(?: *```text\n(.*?)^ *```\n)?", re.MULTILINE | re.DOTALL)
YAML = re.compile(r"^```yaml\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def blocks(page: Path) -> list[tuple[int, str, str | None]]:
    """(line number, code, expected output or None) of a page's Python blocks."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start(2)), dedent(m[2]), m[3] and dedent(m[3])) for m in BLOCK.finditer(text)]


def run(code: str, where: str, namespace: dict) -> str:
    """What the code prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, where, "exec"), namespace)
    return output.getvalue()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict = {"__name__": "__page__"}
    for line, code, expected in blocks(page):
        printed = run("\n" * line + code, str(page), namespace)
        if expected is not None:
            assert printed.rstrip() == expected.rstrip(), f"{page.name}, line {line + 1}"


def test_a_wrong_output_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n```text\n2\n```\n")
    [(line, code, expected)] = blocks(page)
    assert (line, expected) == (1, "2\n") and run(code, "page", {}) == "1\n" != expected


def settings_table(page: Path) -> dict[str, str]:
    """Settings and defaults by a method's page, as written; "" for one without default."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|([^|]*)\|", page.read_text(), re.MULTILINE)
    said: dict[str, str] = {}
    for names, defaults in rows:
        names = re.findall(r"`(\w+)`", names)
        said |= dict(zip(names, [d.strip(" `") for d in defaults.split(",")], strict=True))
    return said


@pytest.mark.parametrize("name", ["csst", "rigl", "set_", "snfs", "gmp"])
def test_methods_pages_list_all_settings_with_their_defaults(name):
    said = settings_table(ROOT / "docs" / "methods" / f"{name.rstrip('_')}.md")
    parameters = inspect.signature(getattr(gossamer, name)).parameters.values()
    there = {p.name: "" if p.default is p.empty else repr(p.default).replace("'", '"') for p in parameters}
    assert said == there


def configurations() -> list[Path]:
    """The committed configuration files, and the YAML blocks of the pages."""
    return sorted((ROOT / "experiments").glob("*.yaml")) + [p for p in PAGES if YAML.search(p.read_text())]


@pytest.mark.parametrize("source", configurations(), ids=lambda p: str(p.relative_to(ROOT)))
def test_configurations_are_valid(source, tmp_path):
    """Runs and sweeps, in files and on pages; the data need not be here."""
    pytest.importorskip("jsonargparse")
    from gossamer.cli.config import parse, read_yaml
    from gossamer.cli.sweep import plan

    texts = [source.read_text()] if source.suffix == ".yaml" else [m[1] for m in YAML.finditer(source.read_text())]
    for i, text in enumerate(texts):
        file = tmp_path / f"{i}.yaml"
        file.write_text(text)
        tree = read_yaml(file)
        if "grid" in tree:
            jobs, _ = plan(file, str(tmp_path / "out"), None)
            assert jobs
        else:
            parse(tree, str(file))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert not missing


def test_the_readme_and_ci_give_the_same_test_command():
    commands = re.findall(r"^pip install .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert len(commands) == 2
    assert commands[1].endswith("&& pytest") and commands[1] in script
    assert commands[0].endswith("&& gossamer run") and any("gossamer run" in line for line in script)


def row(method: str, density: float, accuracy: float | None, **more) -> dict:
    """One row of a table.json."""
    plain = {"runs": 3 if accuracy else 0, "diverged": [], "unfinished": 0, "simulated": False, "flops_ratio": density}
    return {
        "method": method,
        "settings": {"density": density},
        "metrics": {"accuracy": accuracy},
        "metrics_sd": {"accuracy": 0.001},
        "seconds": 7.2,
        **plain,
        **more,
    }


def test_the_readme_table_is_written_between_the_marks(tmp_path):
    rows = [row("dense", 0.05, 0.9, flops_ratio=1.0), row("csst", 0.1, 0.8), row("csst", 0.02, None, diverged=[7])]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    script = [sys.executable, str(ROOT / "benchmarks" / "readme_table.py"), str(tmp_path)]
    assert subprocess.run([*script, "--write", str(page)]).returncode == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- results -->\n| method | density 0.1 | density 0.02 |\n") and text.endswith(
        "<!-- /results -->\nafter\n"
    )
    assert "| dense | **90.00** ± 0.10<br>1.0000<br>7 s | **90.00** ± 0.10<br>1.0000<br>7 s |" in text
    assert "| csst | **80.00** ± 0.10<br>0.1000<br>7 s | 1 diverged |" in text
    page.write_text("no marks\n")
    assert subprocess.run([*script, "--write", str(page)], capture_output=True).returncode == 2
    assert page.read_text() == "no marks\n"
