"""The benchmarks run and put what they measured on a page. Their gates reject a wrong kernel before any time."""

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gossamer as gs
from gossamer._backend.dispatch import Kernel
from gossamer.products.conv2d import op as conv2d_op
from gossamer.products.linear import op as linear_op

ROOT = Path(__file__).resolve().parents[1]
FAST = ["--quick", "--threads", "1"]
SHARED = {"gate", "networks", "newborn_tasks", "products", "report", "timing", "variants"}  # no scripts of their own
SCRIPTS = sorted({p.stem for p in (ROOT / "benchmarks").glob("*.py")} - SHARED)


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def page(path: Path, *names: str) -> Path:
    """A page with empty tables of these names."""
    path.write_text(
        "before\n" + "".join(f"<!-- table: {name} -->\nnot measured yet\n<!-- end -->\n" for name in names) + "after\n"
    )
    return path


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_begins_with_its_question_and_its_command(benchmark, capsys, name):
    script = benchmark(name)
    assert re.match(rf".+\?\n\n    (GOSSAMER_DATA=\S+ )?python benchmarks/{name}\.py", script.__doc__)
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and script.__doc__.split("\n")[0] in said


def test_a_script_runs_by_itself():
    script = str(ROOT / "benchmarks" / "layers.py")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--densities" in done.stdout


# -------------------------------------------------------------------- one layer


def test_layers_measure_and_fill_a_page(benchmark, tmp_path, capsys):
    layers, file = benchmark("layers"), tmp_path / "layers.json"
    asked = ["--rows", "linear", "conv", "--densities", "0.2", "0.1", "--batch", "6"]
    assert layers.main([*FAST, *asked, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    names = [cell["work"] for cell in result["kernels"]]
    assert set(names) == {"linear-48", "conv-4@5", "conv-8@3"} and len(names) == 6
    for cell in result["kernels"]:
        best = cell["dense"][cell["best dense"]]["seconds"]
        assert best == min(t["seconds"] for t in cell["dense"].values()) and len(cell["dense"]) == 2
        assert cell["ratio"] == best / cell["gossamer"]["seconds"] > 0
        positions = 25 if "@5" in cell["work"] else 9 if "@3" in cell["work"] else 1
        assert cell["flops"] == 6 * 6 * positions * cell["n"]
        assert set(cell["peers"]) >= ({"torch.sparse"} if cell["work"].startswith("linear") else set())
    assert result["roofline"]["flops"] > 0 < result["roofline"]["bytes"] and result["machine"]["threads"] == 1

    printed, written = capsys.readouterr().out, page(tmp_path / "page.md", "kernels")
    assert layers.main([*FAST, "--from", str(file), "--markdown", str(written)]) == 0
    text = written.read_text()
    assert "not measured yet" not in text and text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n")
    assert "| work | density | best dense |" in text and text.count("QUICK") == printed.count("QUICK") == 1


def test_a_page_without_the_mark_is_left_alone(benchmark, tmp_path, capsys):
    report, written = benchmark("report"), page(tmp_path / "page.md", "wide")
    before = written.read_text()
    assert report.fill(written, {"wide": "x", "growth": "y"}) == 2 and written.read_text() == before
    assert "<!-- table: growth -->" in capsys.readouterr().err
    file = tmp_path / "wide.json"
    assert benchmark("wide").main([*FAST, "--json", str(file), "--markdown", str(written), "--mark", "sweep"]) == 2
    assert "nothing was measured here for the mark 'sweep'" in capsys.readouterr().err and written.read_text() == before


@pytest.mark.parametrize("name", ["overhead", "growth", "wide"])
def test_other_questions_about_one_layer(benchmark, tmp_path, name):
    file, written = tmp_path / "found.json", page(tmp_path / "page.md", name)
    assert benchmark(name).main([*FAST, "--json", str(file), "--markdown", str(written)]) == 0
    found = json.loads(file.read_text())[name]
    if name == "overhead":
        assert [p["layer"] for p in found] == ["linear", "linear with bias", "conv 3x3"]
    elif name == "growth":
        assert [p["n"] for p in found["points"]] == [1000, 3162, 10000]
    else:
        assert found["n"] == 1000 and found["bytes"]["values"] == 4000
    assert "not measured yet" not in written.read_text()


def test_tiles_have_a_column_each(benchmark, tmp_path):
    tiles, file, written = benchmark("tiles"), tmp_path / "tiles.json", page(tmp_path / "page.md", "tiles")
    asked = ["--densities", "0.5", "--batch", "4", "--json", str(file), "--markdown", str(written)]
    assert tiles.main([*FAST, *asked]) == 0
    blocks = [tuple(cell["block"]) for cell in json.loads(file.read_text())["tiles"]]
    assert blocks == list(tiles.TILES) * 2 and "| 4 x 1 | 16 x 1 |" in written.read_text()


def test_the_sweep_is_drawn_with_its_break_even_points(benchmark, tmp_path):
    pytest.importorskip("matplotlib")
    script, written = benchmark("break_even"), page(tmp_path / "page.md", "sweep", "picture")
    file, other, drawn = tmp_path / "sweep.json", tmp_path / "growth.json", tmp_path / "speed.svg"
    assert script.main([*FAST, "--rows", "linear", "--batch", "4", "--json", str(file)]) == 0
    assert benchmark("growth").main([*FAST, "--json", str(other)]) == 0
    result = json.loads(file.read_text())
    assert [cell["density"] for cell in result["sweep"]] == list(script.DENSITIES)
    for cell in result["sweep"]:
        cell["ratio"] = 0.2 / cell["density"]  # falls through 1 at density 0.2
    file.write_text(json.dumps(result))
    asked = ["--from", str(file), str(other), "--picture", str(drawn), "--markdown", str(written)]
    assert script.main(asked) == 0
    assert drawn.read_text().startswith("<?xml") and "non-zeros" in drawn.read_text()
    assert "| 0.2 |" in written.read_text() and "(speed.svg)" in written.read_text()


@pytest.mark.parametrize(
    "points, expected",
    [
        ([(0.1, 4.0), (0.4, 0.25)], 0.2),
        ([(0.4, 0.25), (0.1, 4.0)], 0.2),
        ([(0.1, 4.0), (1.0, 1.5)], None),
        ([(0.1, 0.5), (1.0, 0.1)], None),
        ([(0.1, 1.0), (0.2, 0.5)], 0.1),
    ],
)
def test_break_even_is_where_the_line_falls_through_one(benchmark, points, expected):
    found = benchmark("break_even").break_even(points)
    assert found == pytest.approx(expected) if expected else found is None


# -------------------------------------------------------------------- whole networks


def test_training_measures_steps(benchmark, tmp_path):
    training, file = benchmark("training"), tmp_path / "training.json"
    assert training.main([*FAST, "--densities", "0.1", "--json", str(file)]) == 0
    cells = json.loads(file.read_text())["training"]
    assert [cell["model"] for cell in cells] == ["resnet20", "mlp"]
    for cell in cells:
        best = cell["dense"][cell["best dense"]]["seconds"]
        assert cell["ratio"] == best / cell["gossamer"]["seconds"] > 0
        assert cell["density of all layers"] == pytest.approx(0.1, rel=0.02) and 0.1 < cell["flops over dense"] < 0.4
    assert set(cells[0]["dense"]) == {"NCHW", "channels last"} and set(cells[1]["dense"]) == {"batch first"}


def test_sensing_is_measured_and_amortised(benchmark, tmp_path):
    file, written = tmp_path / "sensing.json", page(tmp_path / "page.md", "sensing")
    asked = ["--models", "mlp", "--markdown", str(written), "--json", str(file)]
    assert benchmark("sensing").main([*FAST, *asked]) == 0
    [found] = json.loads(file.read_text())["sensing"]
    assert found["schedule"]["sensing steps"] == 10 * found["schedule"]["events"] > 0 < found["blocks exchanged"]
    assert "not measured yet" not in written.read_text()


def test_hot_spots_are_listed(benchmark, capsys):
    assert benchmark("hot_spots").main([*FAST, "--models", "mlp"]) == 0
    assert "Self CPU" in capsys.readouterr().out


def test_memory_is_measured_on_a_layer_that_trains(benchmark, tmp_path, capsys):
    asked = ["--power", "8", "--nonzeros", "2000", "--count", "4000", "--threads", "1"]
    assert benchmark("memory").main([*asked, "--json", str(tmp_path / "memory.json")]) == 0
    found = json.loads((tmp_path / "memory.json").read_text())
    assert (
        found["non-zeros"] == 2000
        and found["blocks exchanged"] > 0
        and "| non-zeros | 2,000 |" in capsys.readouterr().out
    )


# -------------------------------------------------------------------- the gates


def spoiled(kernel: Kernel, factor: float = 1.001) -> Kernel:
    """A kernel whose last output is off by a thousandth."""

    def run(*arguments):
        made = kernel.run(*arguments)
        return (*made[:-1], made[-1] * factor) if isinstance(made, tuple) else made * factor

    return kernel._replace(run=run)


def spoil(monkeypatch, operation, product: str, factor: float = 1.001) -> None:
    """Makes an operation choose among spoiled kernels for one of its products."""
    field = product.lower()
    wrong = [spoiled(kernel, factor) for kernel in getattr(operation.KERNELS, field)]
    monkeypatch.setattr(operation.PRODUCT, "kernels", operation.KERNELS._replace(**{field: wrong}))


@pytest.mark.parametrize("product", ["FORWARD", "BACKWARD"])
@pytest.mark.parametrize("operation, row", [(linear_op, "linear"), (conv2d_op, "conv-4")], ids=["linear", "conv"])
def test_the_gate_of_layers_rejects_a_wrong_kernel(benchmark, monkeypatch, capsys, operation, row, product):
    spoil(monkeypatch, operation, product)
    assert benchmark("layers").main([*FAST, "--rows", row, "--densities", "0.2", "--batch", "4"]) == 1
    said = capsys.readouterr()
    assert "differs from the dense product" in said.err and not said.out and "timing" not in said.err


ONE_LAYER = {
    "wide": [*FAST],
    "growth": [*FAST],
    "overhead": [*FAST],
    "tiles": [*FAST, "--rows", "conv", "--densities", "0.5", "--batch", "4"],
    "break_even": [*FAST, "--rows", "linear", "--batch", "4"],
    "memory": ["--power", "6", "--nonzeros", "400", "--count", "100", "--threads", "1"],
}


@pytest.mark.parametrize("product", ["FORWARD", "BACKWARD"])
@pytest.mark.parametrize("name", ONE_LAYER)
def test_the_gates_of_one_layer_reject_a_wrong_kernel(benchmark, monkeypatch, capsys, name, product):
    for operation in (linear_op, conv2d_op):
        spoil(monkeypatch, operation, product)
    assert benchmark(name).main(ONE_LAYER[name]) == 1
    said = capsys.readouterr()
    assert "No time is reported" in said.err and not said.out and "timing" not in said.err


NETWORK = {
    "training": ["--models", "mlp", "--densities", "0.1"],
    "sensing": ["--models", "mlp"],
    "hot_spots": ["--models", "mlp"],
}


@pytest.mark.parametrize("product", ["FORWARD", "BACKWARD"])
@pytest.mark.parametrize("name", NETWORK)
def test_the_gate_of_networks_rejects_a_wrong_kernel(benchmark, monkeypatch, capsys, name, product):
    spoil(monkeypatch, linear_op, product, 1.1)
    assert benchmark(name).main([*FAST, *NETWORK[name]]) == 1
    said = capsys.readouterr()
    assert "No time is reported" in said.err and not said.out and "timing" not in said.err


def test_nan_does_not_pass_for_equal(benchmark):
    gate = benchmark("gate")
    wrong, zero = torch.tensor([1.0, torch.nan]), torch.zeros(2)
    assert not gate.error(wrong, torch.ones(2)) <= 1.0 and gate.problems({"output": (wrong, torch.ones(2))}, 1.0)
    assert gate.error(torch.tensor([3.0, 4.0]), zero) > 1e100 and gate.error(zero, zero) == 0.0


def test_medians_quartiles_and_turns(benchmark):
    timing, called = benchmark("timing"), []
    assert timing.Timing.of([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0, 2.0, 4.0, 5)
    assert timing.Timing.of([2.0]) == (2.0, 2.0, 2.0, 1)
    taken = timing.interleaved({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, budget=0.0, least=3)
    assert "".join(called) == "aabb" * 3 and {t.repeats for t in taken.values()} == {3}


def test_what_cannot_be_measured_is_refused(benchmark, capsys):
    assert benchmark("layers").main([*FAST, "--rows", "nothing"]) == 2
    assert "no row has a name that begins with it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark("training").main([*FAST, "--models", "vgg16"])


# -------------------------------------------------------------------- newborns


@pytest.fixture
def newborns(benchmark, monkeypatch):
    """The script, and the settings that it asked a Rewirer for; a Rewirer that has no such choice is not told."""
    asked, known = [], "newborn" in inspect.signature(gs.Rewirer).parameters

    def rewirer(*given, newborn, **more):
        asked.append(newborn)
        return plain(*given, **more, **({"newborn": newborn} if known else {}))

    plain, script = gs.Rewirer, benchmark("newborns")
    monkeypatch.setattr(gs, "Rewirer", rewirer)
    return script, asked


def test_newborns_goes_on_where_it_was_cut(newborns, tmp_path, capsys):
    (script, asked), file, text = newborns, tmp_path / "results" / "cells.jsonl", tmp_path / "text"
    text.write_text("to be or not to be, that is the question. " * 30)
    common = ["--quick", "--results", str(file), "--data", str(text), "--seeds", "1"]
    assert script.main([*common, "--tasks", "text", "--cells", "1"]) == 0 and asked == ["zero"]
    first = file.read_text()
    file.write_text(first + first[:100])  # a line that was cut
    assert script.main([*common, "--tasks", "text", "--cells", "2"]) == 0 and asked == ["zero", "fresh", "zero"]
    assert "stopped before text rigl 0.1 fresh 0" in capsys.readouterr().err
    assert script.main([*common, "--tasks", "images"]) == 0 and asked[3:] == ["zero", "fresh"] * 6
    assert script.main([*common, "--tasks", "images", "--newborn", "sensed", "--cells", "1"]) == 0 and asked[15:] == [
        "sensed"
    ]
    rows = list(script.read(file).values())
    assert len(rows) == len(file.read_text().splitlines()) - 1 == 19 and file.read_text().startswith(first)
    for row in rows:
        assert (
            0 < row["metric"] < 100 and row["diverged"] is None and row["seconds"] > 0 and row["machine"]["processor"]
        )
        assert (row["newborn"] is None) == (row["method"] in ("static", "dense"))
        assert row["events"] == (0 if row["method"] == "dense" else 2) and (row["rise"] is None) == (
            row["method"] == "dense"
        )
        assert "command" not in row["machine"]  # it has paths

    written = page(tmp_path / "page.md", "newborn")
    assert script.main([*common, "--cells", "0", "--markdown", str(written)]) == 0 and len(asked) == 16
    said = written.read_text()
    assert (
        said.count("| images |") == 16
        and said.count("| text |") == 3
        and "not measured yet" not in said
        and "QUICK" in said
    )


def test_the_same_cell_is_the_same_run(newborns, tmp_path):
    script, _ = newborns
    for name in ("a", "b"):
        asked = ["--quick", "--tasks", "images", "--newborn", "zero", "--seeds", "1", "--cells", "2"]
        assert script.main(["--results", str(tmp_path / name), *asked]) == 0
    a, b = (
        [(row["metric"], row["rise"], row["peak"]) for row in script.read(tmp_path / name).values()] for name in "ab"
    )
    assert a == b and len(a) == 2


def test_a_rise_is_counted_around_events(benchmark):
    around = benchmark("newborns").around
    losses = [float(t % 2) for t in range(1, 41)] + [5.0] + [2.0] * 19 + [0.0] * 40
    found = around(losses, [5, 40, 80, 95])  # too early, whole, whole, too late
    sd = (20 * 0.25 / 19) ** 0.5  # of ten zeros and ten ones
    assert found["events"] == 2 and found["rise"] == pytest.approx((13 / 5 - 0.5 + 0) / 2)
    assert found["peak"] == pytest.approx((5 - 0.5 - 2 * sd + 0) / 2) and found["above"] == 0.5
    assert around(losses, [5]) == {"events": 0, "rise": None, "peak": None, "above": None}


def cell(newborn, seed, metric, rise, **more):
    """A line of the results of newborns.py."""
    told = {
        "processor": "a",
        "threads": 1,
        "vector instructions of torch": "b",
        "torch": "2",
        "gossamer": "0",
        "peers": {},
        "started": "c",
    }
    known = {
        "task": "images",
        "density": 0.05,
        "method": "rigl",
        "diverged": None,
        "peak": 0.1,
        "above": 0.5,
        "seconds": 1.0,
    }
    made = {"newborn": newborn, "seed": seed, "metric": metric, "rise": rise, "kernels": ["native"], "machine": told}
    return {**known, **made, **more}


def test_settings_are_compared_seed_by_seed(benchmark):
    zero = [cell("zero", 0, 80.0, 0.5), cell("zero", 1, 90.0, 0.3), cell("zero", 2, 85.0, 0.1)]
    fresh = [
        cell("fresh", 0, 81.0, 0.4),
        cell("fresh", 1, 93.0, 0.2),
        cell("fresh", 2, None, None, diverged=7),
        cell("fresh", 3, 9.0, 0.3),
    ]
    table = benchmark("newborns").tabulated([*fresh, *zero])
    first, second = (dict(zip(range(11), row, strict=True)) for row in table.rows)
    assert (
        first[3] == "zero"
        and first[4] == "3"
        and first[5] == "85.00 ± 5.00"
        and first[6] == first[8] == "-"
        and first[10] == "50"
    )
    assert second[4] == "3, 1 diverged" and second[6] == "+2.00 ± 1.00" and second[8] == "-0.1000 ± 0.0000"


def test_newborns_refuses_what_it_cannot_do(newborns, tmp_path, capsys):
    script, _ = newborns
    results = ["--quick", "--results", str(tmp_path / "cells.jsonl"), "--cells", "1"]
    assert script.main([*results, "--tasks", "text"]) == 2 and "--data" in capsys.readouterr().err
    assert script.main(["--quick", "--results", str(tmp_path / "none.jsonl"), "--cells", "0"]) == 2
    assert "holds no cell" in capsys.readouterr().err
    wrong = page(tmp_path / "page.md", "other")
    assert (
        script.main([*results, "--tasks", "images", "--markdown", str(wrong)]) == 2
        and "not measured yet" in wrong.read_text()
    )


def test_the_page_about_newborns_has_a_place_for_the_table():
    assert (ROOT / "docs" / "methods" / "newborn.md").read_text().count("<!-- table: newborn -->\n") == 1


def test_the_page_about_speed_has_a_place_for_every_table():
    text = (ROOT / "docs" / "speed.md").read_text()
    for name in ("kernels", "tiles", "sweep", "overhead", "growth", "wide", "training", "sensing", "picture"):
        assert text.count(f"<!-- table: {name} -->\n") == 1


def test_every_command_of_the_documentation_names_a_script():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.yaml")]
    named = {name for page in pages for name in re.findall(r"benchmarks/(\w+)\.py", page.read_text())}
    assert named and named <= set(SCRIPTS)
