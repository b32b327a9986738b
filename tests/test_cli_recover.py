"""``gossamer recover``: small grids, resumed, in processes, refused with reasons; the pictures are there."""

import csv
import json

import pytest
import torch

pytest.importorskip("jsonargparse")

from gossamer.experiments import cells, cli
from gossamer.experiments import recover as experiments
from gossamer.experiments.recover.phase_diagrams import crossing
from gossamer.experiments.recover.planted_networks import imp

PHASE = ["recover", "phase", "--d", "40", "--deltas", "[0.5]", "--rhos", "[0.1, 0.9]", "--trials", "3", "--picture", "false"]


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
    arguments = ["--d", "8", "--samples", "[60]", "--neurons", "[2]", "--nonzeros", "[3]", "--methods", "[iht, authors, gated]"]
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
    (["phase", "--tirals", "3"], "did you mean '--trials'"),
    (["planted", "--methods", "[imq]"], "did you mean 'imp'"),
    (["inr", "--image", "nowhere.png"], "there is no such image"),
    (["mnist", "--digits", "17"], "unknown digits"),
    (["mnist", "--data", "/nowhere"], "data files are missing"),
    (["fase"], "did you mean 'phase'"),
])  # fmt: skip
def test_mistakes_are_one_message(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recover", *arguments]) == 2
    assert sentence in capsys.readouterr().err


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


def test_where_success_falls_below_one_half():
    points = [(0.1, 1.0), (0.2, 1.0), (0.3, 0.5), (0.4, 0.0)]
    assert abs((crossing(points) or 0) - 0.3) < 0.01
    assert crossing([(0.1, 1.0), (0.2, 0.9)]) is None and crossing([]) is None


def test_a_failing_cell_keeps_what_is_finished(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cells.compute("who", str(tmp_path), {}, [{"a": 1}, {"a": 0}], lambda cell: {"b": 1 / cell["a"]})
    rows, _ = cells.compute("who", str(tmp_path), {}, [{"a": 1}, {"a": 2}], lambda cell: {"b": 1 / cell["a"]})
    assert rows == [{"a": 1, "b": 1.0}, {"a": 2, "b": 0.5}]
