"""The documentation runs: every Python block of the README and docs/ prints what the block of text after it says.

The scripts of examples/ run at small scale. Tables of settings list what the constructors take. The reference of the
API names everything public once. Lines are short, and links lead somewhere.
"""

import contextlib
import importlib
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
INCLUDED = re.compile(r'^--8<-- "(.+)"\n', re.MULTILINE)  # a file that the site shows in place of this line
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def blocks(page: Path) -> list[tuple[int, str, str | None]]:
    """(line number, code, expected output or None) of a page's Python blocks."""
    text = page.read_text()
    return [
        (text.count("\n", 0, m.start(2)), with_files(dedent(m[2])), m[3] and dedent(m[3])) for m in BLOCK.finditer(text)
    ]


def with_files(code: str) -> str:
    """The code of a block, with the files that it shows."""
    return INCLUDED.sub(lambda m: (ROOT / m[1]).read_text(), code)


def run(code: str, where: str, namespace: dict) -> str:
    """What the code prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, where, "exec"), namespace)
    return output.getvalue()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")  # scripts of the gallery import each other
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


TABLE = re.compile(r"^\| setting of `gs\.(\w+)` \|.*\n\| ?-.*\n((?:\|.*\n)+)", re.MULTILINE)
WITH_SETTINGS = [
    "CSST",
    "RigL",
    "SET",
    "SNFS",
    "GMP",
    "ProxSGD",
    "RDA",
    "XRDA",
    "LinBreg",
    "AdaBreg",
    "Multilevel",
    "TargetDensity",
]


def settings_tables() -> dict[str, dict[str, str]]:
    """By class the settings and defaults that the pages list, as written; "" for one without default."""
    tables: dict[str, dict[str, str]] = {}
    for page in sorted((ROOT / "docs" / "methods").glob("*.md")):
        for name, rows in TABLE.findall(page.read_text()):
            assert name not in tables, f"{page.name}: a second table of gs.{name}"
            tables[name] = {}
            for row in rows.splitlines():
                settings, defaults = row.split("|")[1:3]
                names = re.findall(r"`(\w+)`", settings)
                values = [v.strip(" `") for v in re.split(r",(?![^(]*\))", defaults)]
                tables[name] |= dict(zip(names, values, strict=True))
    return tables


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_the_pages_list_all_settings_with_their_defaults(name):
    parameters = inspect.signature(getattr(gossamer, name)).parameters.values()
    there = {p.name: "" if p.default is p.empty else repr(p.default).replace("'", '"') for p in parameters}
    assert settings_tables()[name] == there


def test_the_reference_names_everything_public_once():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    assert sorted(re.findall(r"^::: gossamer\.(\w+)$", pages, re.MULTILINE)) == sorted(gossamer.__all__)


GENERATED = re.compile(r"^<!-- table.*?^<!-- end -->|^<!-- (\w+) -->$.*?^<!-- /\1 -->", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_of_prose_are_short(page):
    """At most 120 characters, outside of tables, code and what a script has written."""
    prose = FENCED.sub("", GENERATED.sub("", page.read_text())).splitlines()
    assert not [line for line in prose if len(line) > 120 and not line.startswith(("|", "    "))]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


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


# -------------------------------------------------------------------- the examples

EXAMPLES = {  # at small scale
    "digits_csst": {"steps": 60},
    "xrda_target": {"steps": 150, "density": 0.2},
    "multilevel": {"steps": 210},
    "equal_flops": {"budget": 5e7, "seeds": 1},
    "recovery_phase": {"n": 64, "trials": 2},
}
LONGEST = {"topology": 40, "rule": 40, "penalty": 30, "layer": 120}  # lines


@pytest.fixture
def example(monkeypatch):
    """Imports a script of examples/ by its name."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.syspath_prepend(ROOT / "examples" / "extend")
    yield importlib.import_module
    for name in (*EXAMPLES, *LONGEST):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, example, capsys):
    if name != "recovery_phase":
        pytest.importorskip("sklearn", reason="the digits are those of scikit-learn")
    example(name).main(**EXAMPLES[name])
    assert capsys.readouterr().out


def test_every_example_is_tested_and_short():
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert {script.stem for script in scripts} == set(EXAMPLES)
    assert all(len(script.read_text().splitlines()) < 60 for script in scripts)


@pytest.mark.parametrize("name", LONGEST)
def test_extensions_are_short_and_need_the_public_names_only(name):
    text = (ROOT / "examples" / "extend" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= LONGEST[name]
    modules = set(re.findall(r"^(?:from|import) (\S+)", text, re.MULTILINE))
    assert modules <= {"dataclasses", "typing", "torch", "gossamer"}


@pytest.mark.parametrize("options", [{}, {"layout": "masked", "block": (2, 2)}], ids=["csr", "masked"])
def test_the_topology_of_the_guide_obeys_its_law(example, options):
    gossamer.laws.check_topology(example("topology").MEST(stop=12, every=4).resolve(), gossamer.Rewirer, **options)


def test_the_rule_of_the_guide_obeys_its_law(example):
    gossamer.laws.check_rule(example("rule").ProxLion(gossamer.L1(0.1)))


def test_the_penalty_of_the_guide_obeys_its_law(example):
    penalty = example("penalty").ElasticNet(0.2, mu=0.5)
    gossamer.laws.check_penalty(penalty)
    gossamer.laws.check_rule(gossamer.LinBreg(penalty))


GEOMETRIES = [{}, {"stride": 2}, {"padding": 3}, {"dilation": 2, "padding": 2}]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("layout", ["csr", "masked"])
def test_the_layer_of_the_guide_is_the_dense_one(example, layout, geometry):
    torch.manual_seed(0)
    layer = example("layer").SparseConv1d(3, 8, 5, density=0.3, layout=layout, dtype=torch.float64, **geometry)
    x = torch.randn(4, 3, 30, dtype=torch.float64, requires_grad=True)
    weight = layer.flat.weight.detach().squeeze(2).requires_grad_()
    expected = torch.nn.functional.conv1d(x, weight, layer.flat.bias, **geometry)
    dy = torch.randn_like(expected)
    (x_dense,) = torch.autograd.grad(expected, x, dy, retain_graph=True)
    (w_dense,) = torch.autograd.grad(expected, weight, dy)
    y = layer(x)
    y.backward(dy)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, x_dense)
    assert layer.flat.values.grad is not None
    on_support = layer.flat.layout.compact(layer.flat.values.grad, layer.flat.support)
    torch.testing.assert_close(on_support.flatten(), w_dense.flatten()[layer.flat.support.ids()])


def conv1d_run(example, seed: int):
    """A network with the guide's layer, in training by CSST."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Conv1d(3, 16, 5, padding=2), torch.nn.Tanh(), torch.nn.Conv1d(16, 4, 3))
    example("layer").sparsify_conv1d(net, density=0.2)
    opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    topology = gossamer.CSST(stop=30, every=5, last_every=5, window=2)
    return net, opt, gossamer.Rewirer(net, opt, topology, rng=torch.Generator().manual_seed(0))


def advance(net, opt, rewirer, ledger=None, steps=range(0)):
    for t in steps:
        x = torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(t))
        net(x).square().mean().backward()
        if ledger is not None:
            ledger.step(4, rewirer)
        rewirer.step()
        opt.zero_grad()


def test_the_layer_of_the_guide_is_sensed_rewired_counted_saved_and_made_dense(example, tmp_path):
    net, opt, rewirer = conv1d_run(example, 0)
    before = {name: layer.support for name, layer in gossamer.sparse_layers(net).items()}
    ledger = gossamer.Ledger(net, torch.zeros(1, 3, 20), optimizer=opt)
    advance(net, opt, rewirer, ledger, range(7))
    layers = gossamer.sparse_layers(net)
    assert list(layers) == ["0.flat", "2.flat"]
    assert all(layer.support.n == before[n].n and not layer.support.same(before[n]) for n, layer in layers.items())
    assert ledger.flops.sensing > 0 and ledger.flops.forward == 7 * 4 * 2 * (
        20 * before["0.flat"].n + 18 * before["2.flat"].n
    )

    gossamer.checkpoint.save(tmp_path / "run.safetensors", net, optimizer=opt, rewirer=rewirer)
    other = conv1d_run(example, 1)
    gossamer.checkpoint.load(tmp_path / "run.safetensors", other[0], optimizer=other[1], rewirer=other[2])
    advance(net, opt, rewirer, steps=range(7, 17))
    advance(*other, steps=range(7, 17))
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), other[0].state_dict().values(), strict=True)
    )

    x = torch.randn(2, 3, 20)
    expected = net(x)
    dense = gossamer.densify(net)
    torch.testing.assert_close(dense(x), expected)
    assert not gossamer.sparse_layers(dense)
