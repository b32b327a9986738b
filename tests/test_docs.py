"""The documentation runs: every Python block of the README and docs/, page by page, and prints what the block of text after it says."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def blocks(page: Path) -> list[tuple[int, str, str | None]]:
    """(line number, code, expected output or None) of a page's Python blocks."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start(1)), m[1], m[2]) for m in BLOCK.finditer(text)]


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
