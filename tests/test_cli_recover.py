"""``gossamer recover``: small grids, resumed, in processes, refused with reasons; the pictures are there."""

import csv
import json

import pytest
import torch

pytest.importorskip("jsonargparse")

from gossamer.cli import grid as cells
from gossamer.cli import main as cli
from gossamer.cli import recover as experiments
from gossamer.cli.recover.phase_diagrams import crossing, gaussian_problem, recovered
from gossamer.cli.recover.planted_networks import imp

PHASE = [
    "recover",
    "phase",
    "--d",
    "40",
    "--deltas",
    "[0.5]",
    "--rhos",
    "[0.1, 0.9]",
    "--trials",
    "3",
    "--picture",
    "false",
]


def test_phase_is_computed_once_and_resumed(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert cli.main([*PHASE, *out]) == 0
    said = capsys.readouterr().out
    assert "2 cells" in said and "Donoho-Tanner" in said and "0.3857" in said
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["success"] for row in rows] == [1.0, 0.0] and [row["s"] for row in rows] == [2, 18]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"delta": 0.5, "rh')  # interrupted while writing
    assert cli.main([*PHASE, *out]) == 0
    assert "2 finished, 0 to do" in capsys.readouterr().out
    with (tmp_path / "table.csv").open() as file:
        assert [row["success"] for row in csv.DictReader(file)] == ["1.0", "0.0"]
    assert cli.main([*PHASE, *out, "--seed", "1"]) == 2
    assert "seed was 0, is 1" in capsys.readouterr().err


def test_the_same_numbers_in_processes(tmp_path, capsys):
    assert cli.main([*PHASE, "--out", str(tmp_path / "a")]) == 0
    assert cli.main([*PHASE, "--out", str(tmp_path / "b"), "--jobs", "2"]) == 0
    a, b = (sorted((tmp_path / d / "rows.jsonl").read_text().splitlines()) for d in "ab")
    for one, other in zip(a, b, strict=True):
        one, other = json.loads(one), json.loads(other)
        assert one.pop("seconds") and other.pop("seconds") and one == other


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    assert cli.main([*PHASE[:-2], "--out", str(tmp_path)]) == 0
    assert (tmp_path / "phase.png").stat().st_size > 1000


def test_planted_and_its_methods(tmp_path, capsys):
    arguments = [
        "--d",
        "8",
        "--samples",
        "[60]",
        "--neurons",
        "[2]",
        "--nonzeros",
        "[3]",
        "--methods",
        "[iht, authors, gated]",
    ]
    arguments += ["--seeds", "1", "--rounds", "6", "--picture", "false", "--out", str(tmp_path)]
    assert cli.main(["recover", "planted", *arguments]) == 0
    rows = {row["method"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())}
    assert rows.keys() == {"iht", "authors", "gated"} and rows["gated"]["exact"]
    assert "median dB" in capsys.readouterr().out


def test_an_image(tmp_path, capsys):
    arguments = ["--nonzeros", "[5, 40]", "--frequencies", "40", "--rounds", "6", "--neurons", "4"]
    pytest.importorskip("matplotlib")
    assert cli.main(["recover", "inr", *arguments, "--out", str(tmp_path)]) == 0
    few, many = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert few["psnr"] < many["psnr"] and many["nonzeros"] <= 40 and len(many["pixels"]) == 8
    assert (tmp_path / "inr.png").is_file() and (tmp_path / "psnr.png").is_file()


@pytest.mark.parametrize("arguments, sentence", [
    (["phase", "--solver", "nith"], "did you mean 'niht'"),
    (["phase", "--amplitudes", "big"], "unknown amplitudes"),
    (["phase", "--trials", "0"], "trials must be at least 1"),
    (["phase", "--jobs", "0", "--picture", "false"], "jobs must be at least 1"),
    (["phase", "--rhos", "[-1]"], "rhos must be a list of numbers"),
    (["phase", "--d", "0"], "d must be at least 1"),
    (["phase", "--d=-5"], "d must be at least 1"),
    (["phase", "--seed=-1"], "seed must be at least 0"),
    (["phase", "--error=-1"], "error must be at least 0"),
    (["phase", "--deltas", "[.inf]"], "must be finite"),
    (["phase", "--rhos", "[0.5, 1.5]"], "rho = s / m must be at most 1"),
    (["phase", "--deltas", "[2]", "--rhos", "[0.9]"], "give 360 non-zeros in vectors of length 200"),
    (["phase", "--solver", "amp", "--deltas", "[0.5, 1]"], "amp needs fewer measurements than unknowns"),
    (["phase", "--solver", "basis_pursuit", "--deltas", "[0.5, 1.2]"], "basis_pursuit needs fewer measurements"),
    (["phase", "--tirals", "3"], "did you mean '--trials'"),
    (["planted", "--methods", "[imq]"], "did you mean 'imp'"),
    (["planted", "--seeds", "0"], "seeds must be at least 1"),
    (["planted", "--rounds", "0"], "rounds must be at least 1"),
    (["planted", "--d", "0"], "d must be at least 1"),
    (["planted", "--distractors=-1"], "distractors must be at least 0"),
    (["planted", "--d", "4", "--neurons", "[9, 2]", "--nonzeros", "[3, 9]"], "have 8 weights, and cannot have 9"),
    (["inr", "--neurons", "2", "--frequencies", "3", "--nonzeros", "[13]"], "have 12 weights, and cannot have 13"),
    (["inr", "--rounds", "0"], "rounds must be at least 1"),
    (["inr", "--seed=-1"], "seed must be at least 0"),
    (["inr", "--sigma", "0"], "sigma must be a positive number"),
    (["mnist", "--seeds", "0"], "seeds must be at least 1"),
    (["mnist", "--steps", "0"], "steps must be at least 1"),
    (["mnist", "--batch", "0"], "batch must be at least 1"),
    (["mnist", "--imp_steps", "0"], "imp_steps must be at least 1"),
    (["mnist", "--lr", "0"], "lr must be a positive number"),
    (["mnist", "--widths", "[9, 2]", "--nonzeros", "[1600]"], "has 1588 weights, and cannot have 1600 non-zeros"),
    (["inr", "--image", "nowhere.png"], "there is no such image"),
    (["mnist", "--digits", "17"], "unknown digits"),
    (["mnist", "--data", "/nowhere"], "data files are missing"),
    (["fase"], "did you mean 'phase'"),
])  # fmt: skip
def test_mistakes_are_one_message(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recover", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_lists_the_experiments(capsys):
    assert cli.main(["recover"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in experiments.COMMANDS)


def test_pruning_counts_exactly_and_trains():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    model = imp(x, y, [5], 9, "cross_entropy", steps=60, lr=0.02)
    assert sum(int(p.count_nonzero()) for p in model.parameters()) == 9
    assert float((model(x).argmax(1) == y).double().mean()) > 0.9


def test_a_network_that_need_not_be_pruned_is_trained_too():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    for s in (5 * 8, 1000):
        model = imp(x, y, [5], s, "cross_entropy", steps=60, lr=0.02)
        assert sum(int(p.count_nonzero()) for p in model.parameters()) == 40
        assert float((model(x).argmax(1) == y).double().mean()) > 0.9


@pytest.mark.parametrize("solver", ["fista", "ista"])
def test_the_lasso_recovers_where_l1_does(solver):
    A, x, y = gaussian_problem(60, 30, 4, "gaussian", (0,))
    torch.testing.assert_close(recovered(solver, A, y, 4), x)
    assert not recovered(solver, A, y * 0, 4).any()
    A, x, y = gaussian_problem(60, 30, 27, "gaussian", (0,))
    assert float((recovered(solver, A, y, 27) - x).norm()) > 0.1


def test_the_lasso_has_a_phase_diagram(tmp_path):
    assert cli.main([*PHASE, "--solver", "fista", "--out", str(tmp_path)]) == 0
    assert [json.loads(line)["success"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [1.0, 0.0]


@pytest.mark.parametrize("step", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_a_step_is_placed_midway_whatever_the_grid(step):
    rhos = [0.1 + step * i for i in range(max(2, round(0.8 / step) + 1))]
    for last in range(len(rhos) - 1):
        found = crossing([(rho, float(i <= last)) for i, rho in enumerate(rhos)])
        assert found is not None and abs(found - (rhos[last] + rhos[last + 1]) / 2) < 0.003


def test_where_success_falls_below_one_half():
    points = [(0.1, 1.0), (0.2, 1.0), (0.3, 0.5), (0.4, 0.0)]
    assert abs((crossing(points) or 0) - 0.3) < 0.01
    assert crossing([(0.1, 1.0), (0.2, 0.9)]) is None and crossing([]) is None


def test_a_failing_cell_keeps_what_is_finished(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cells.compute("who", str(tmp_path), {}, [{"a": 1}, {"a": 0}], lambda cell: {"b": 1 / cell["a"]})
    rows, _ = cells.compute("who", str(tmp_path), {}, [{"a": 1}, {"a": 2}], lambda cell: {"b": 1 / cell["a"]})
    assert rows == [{"a": 1, "b": 1.0}, {"a": 2, "b": 0.5}]
