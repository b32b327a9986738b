"""Runs, sweeps and reports: complete folders, bit-equal resumption, divergence, tables."""

import json
import math
import os
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gossamer import UsageError, checkpoint, sparse_layers
from gossamer._backend.native import BEST
from gossamer.checkpoint.file import seal
from gossamer.cli import sweep as sweeps
from gossamer.cli.building import network, optimizer_of, sparsified, step_size, too_short, topology_of
from gossamer.cli.catalog import CATALOG, METHODS, OPTIMIZERS
from gossamer.cli.config import Config, configure, differences, flat, parse, read_yaml, settings
from gossamer.cli.folder import Folder, named
from gossamer.cli.models import MLP, MODELS
from gossamer.cli.progress import Silent
from gossamer.cli.report import aggregate, collect, report, table
from gossamer.cli.run import Stopped, run
from gossamer.cli.tasks import stream

TINY = {
    "task": {"name": "planted", "features": 12, "relevant": 6, "hidden": 8, "fan_in": 3, "examples": 80},
    "model.widths": [16, 16],
    "density": 0.3,
    "epochs": 3,
    "batch": 16,
    "threads": 1,
}  # five steps per epoch
EVENTS = {
    "set": {"every": 2},
    "rigl": {"every": 2},
    "snfs": {"every": 3},
    "gmp": {"every": 2},
    "csst": {"every": 4, "last_every": 5, "window": 3},
    "multilevel": {"coarse": 2},
}
BESIDE = {
    "proximal": {
        "layout": "shadow",
        "optimizer": {"name": "linbreg", "lr": 0.1, "penalty": {"name": "l1", "lam": 0.02}, "momentum": 0.9},
        "density": 0.2,
        "initial": 0.2,
        "target": {"name": "targetdensity", "every": 1},
    },
    "multilevel": {"optimizer": {"name": "adabreg", "penalty": {"name": "l1", "lam": 0.1}}},
}


def tiny(method: str = "csst", **more) -> Config:
    return parse(
        {**TINY, "method": {"name": method, **EVENTS.get(method, {})}, **BESIDE.get(method, {}), **more}, "test"
    )


def figures(folder) -> list[dict]:
    """Metrics without the time they took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in Folder(folder).rows()]


def same_end(a, b) -> None:
    """Asserts that two runs ended alike, bit for bit: all tensors of their checkpoints, metrics, accounts."""
    left, right = load_file(a / "checkpoint.safetensors"), load_file(b / "checkpoint.safetensors")
    assert left.keys() == right.keys() and [key for key in left if not torch.equal(left[key], right[key])] == []
    assert figures(a) == figures(b)
    results = [{**Folder(f).figures(), "seconds": 0} for f in (a, b)]
    assert results[0] == results[1]


# -------------------------------------------------------------------- models, methods, optimizers

SIZES = {"mlp": 85_002, "lenet5": 431_080, "resnet18": 11_173_962, "resnet20": 269_722, "vgg16-bn": 14_724_042}


@pytest.mark.parametrize("name", MODELS)
def test_models_have_their_published_sizes(name):
    shape = {"mlp": (1, 8, 8), "lenet5": (1, 28, 28)}.get(name, (3, 32, 32))
    net = MODELS[name]().build(shape, 10, stream(0, "init"))
    assert net(torch.zeros(2, *shape)).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) == SIZES[name]


def test_initial_values_are_kaiming_and_follow_from_the_generator():
    nets = [MLP((400,)).build((300,), 10, stream(seed, "init")) for seed in (0, 0, 1)]
    weights = [net.fc1.weight.detach() for net in nets]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert float(weights[0].std()) == pytest.approx(math.sqrt(2 / 300), rel=0.02) and not nets[0].fc1.bias.any()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mlp"])
def test_models_refuse_inputs_they_cannot_take(name):
    for shape in ((12,), (1, 3, 3)):
        with pytest.raises(UsageError, match=f"model {name}.*needs images"):
            MODELS[name]().build(shape, 10, stream(0, "init"))


def test_a_shrinking_support_begins_at_a_multiple_of_its_end_capped_by_the_layer():
    config = tiny("csst", **{"start": 3.0})
    plain, _ = sparsified(network(config.model, (12,), 4, stream(0, "init")), tiny("static"))
    model, final = sparsified(network(config.model, (12,), 4, stream(0, "init")), config)
    ends = {name: layer.density for name, layer in sparse_layers(plain).items()}
    begins = {name: layer.density for name, layer in sparse_layers(model).items()}
    assert final == ends
    for name, layer in sparse_layers(model).items():
        assert begins[name] == pytest.approx(min(1.0, 3 * ends[name]), abs=1 / layer.support.total)


@pytest.mark.parametrize("method, start", [("set", 3.0), ("rigl", 3.0), ("csst", 3.0), ("gmp", None)])
def test_a_shrinking_support_ends_at_the_asked_size(tmp_path, method, start):
    kept = run(tiny(method, **({"start": start} if start else {})), tmp_path / "a")
    plain = run(tiny("static"), tmp_path / "b")
    assert kept["nonzero"] == plain["nonzero"] and kept["flops"]["total"] > plain["flops"]["total"]


LAM = {"proxsgd": "l1", "rda": "l1", "xrda": "logl1", "linbreg": "l1", "adabreg": "l1"}  # the penalty of each rule


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_size_follows_the_density_at_the_end(name):
    penalty = {"penalty": {"name": LAM[name], "lam": 1e-3}} if name in LAM else {}
    decay = {"weight_decay": 5e-4}
    config = tiny("csst", optimizer={"name": name, **penalty, **decay}, density_exponent=0.5, start=3.0)
    model, final = sparsified(network(config.model, (12,), 4, stream(0, "init")), config)
    lr = config.optimizer.settings["lr"]
    for group in optimizer_of(config, model, final).param_groups:
        scale = final[group["name"]] ** 0.5 if group["name"] in final else 1.0
        assert group["lr"] == pytest.approx(lr / scale)
        if group["name"] in final and name != "xrda":  # its decay acts on all parameters
            assert group["lr"] * group["weight_decay"] == pytest.approx(lr * 5e-4)


def test_step_sizes_warm_up_and_anneal():
    cosine, warm = step_size(tiny(), 10), step_size(tiny(warm_up=4, schedule="constant"), 10)
    assert [cosine(0), cosine(5), cosine(10)] == pytest.approx([1.0, 0.5, 0.0])
    assert [warm(t) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "method, wrong",
    [
        ("csst", {"window": 5}),
        ("csst", {"mode": "both"}),
        ("set", {"drop_fraction": 1.5}),
        ("rigl", {"every": 0}),
        ("gmp", {"stop": 0.0}),
        ("csst", {"decay": 1.0}),
        ("set", {"stop": 1}),
    ],
)
def test_methods_refuse_impossible_settings_before_any_work(method, wrong):
    with pytest.raises(UsageError):
        tiny(method, **{f"method.{key}": value for key, value in wrong.items()})


# -------------------------------------------------------------------- one run


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_leaves_a_complete_folder(tmp_path, method):
    config = tiny(method)
    result = run(config, tmp_path)
    folder = Folder(tmp_path)
    assert result["status"] == folder.status == "finished" and result == folder.figures()
    assert parse(folder.settings(), "config.yaml") == config.resolved()
    assert {"gossamer", "commit", "python", "torch", "platform", "processor", "cores"} <= json.loads(
        folder.environment.read_text()
    ).keys()
    assert [row["epoch"] for row in folder.rows()] == [0, 1, 2, 3] and folder.rows()[-1]["step"] == 15
    assert set(result["metrics"]) >= {"accuracy", "loss", "found", "train_loss"}
    assert checkpoint.inspect(folder.checkpoint)["extra"]["epoch"] == 3
    sparse = "native" if BEST else "reference"
    assert result["kernels"] == {"dense": ["torch"], "proximal": ["dense", sparse]}.get(method, [sparse])
    if method == "dense":
        assert result["flops_ratio"] == result["density"] == 1.0 and result["nonzero"] == result["parameters"]
    else:
        close = config.density if method != "multilevel" else result["density"]  # nothing steers it
        assert result["flops_ratio"] < 1.0 and result["density"] == pytest.approx(close, abs=0.01)
        assert (result["flops"]["sensing"] > 0) == (method in ("rigl", "snfs", "csst", "multilevel"))


def test_the_metrics_are_those_of_the_checkpoint(tmp_path):
    config = tiny()
    result = run(config, tmp_path)
    task = config.task.make()
    data = task.load()
    model, _ = sparsified(network(config.model, data.shape, data.classes, stream(5, "init")), config)
    checkpoint.load(tmp_path / "checkpoint.safetensors", model)
    measured = task.metrics(model, data)
    assert measured == {key: result["metrics"][key] for key in measured}


def test_the_seed_decides_everything_and_null_models_start_alike(tmp_path):
    for name, config in {"a": tiny(), "b": tiny(), "c": tiny(seed=1), "static": tiny("static")}.items():
        torch.rand(17)  # whatever happened to torch's own generator before
        run(config, tmp_path / name)
    same_end(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        same_end(tmp_path / "a", tmp_path / "c")
    assert (
        figures(tmp_path / "a")[0] == figures(tmp_path / "static")[0]
    )  # the same support and values before the first event


@pytest.mark.parametrize(
    "more",
    [
        {"layout": "masked"},
        {"optimizer": "adamw"},
        {"autocast": True},
        {"clip": 0.5},
        {"block": [2, 2]},
        {"accumulate": 2},
    ],
)
def test_options_of_a_run(tmp_path, more):
    result = run(tiny(**more), tmp_path)
    assert result["simulated"] == (more.get("layout") == "masked")
    assert result["status"] == "finished" and Folder(tmp_path).rows()[-1]["step"] == (9 if "accumulate" in more else 15)


def test_excluded_layers_stay_dense(tmp_path):
    run(tiny(exclude=["fc3"]), tmp_path)
    assert list(checkpoint.inspect(tmp_path / "checkpoint.safetensors")["supports"]) == ["fc1", "fc2"]


@pytest.mark.filterwarnings("ignore")
def test_events_are_diagnosed_if_asked_for(tmp_path):
    run(tiny("csst", epochs=2), tmp_path / "plain")
    run(tiny("csst", epochs=2, diagnose=True), tmp_path / "told")
    assert not (tmp_path / "plain" / "diagnosis.jsonl").exists()
    lines = [json.loads(line) for line in (tmp_path / "told" / "diagnosis.jsonl").read_text().splitlines()]
    assert lines and all("senses" in line["sentence"] for line in lines)
    a, b = (json.loads((tmp_path / name / "result.json").read_text())["metrics"] for name in ("plain", "told"))
    assert a == b


def test_tensorboard_events_are_written_if_asked_for(tmp_path):
    pytest.importorskip("tensorboard")
    run(tiny("dense", tensorboard=True, epochs=1), tmp_path)
    assert list(tmp_path.glob("events*"))


# -------------------------------------------------------------------- resumption


class Presses(Silent):
    """Sends this process a signal at the given step of the run."""

    def __init__(self, at: int, number: int = signal.SIGINT):
        self.left, self.number = at, number

    def step(self, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("method", ["csst", "rigl", "gmp", "dense", "proximal", "multilevel"])
@pytest.mark.parametrize(
    "at", [3, 5, 9]
)  # inside csst's first window; at the end of an epoch; in the second epoch, after events
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, method, at):
    config = tiny(method) if method in BESIDE else tiny(method, optimizer="adamw" if at == 3 else "sgd")
    run(config, tmp_path / "whole")
    with pytest.raises(Stopped) as stopped:
        run(config, tmp_path / "parts", watch=Presses(at, signal.SIGTERM if at == 5 else signal.SIGINT))
    assert Folder(tmp_path / "parts").status == "stopped"
    assert stopped.value.at.epoch * 5 + stopped.value.at.step == at
    torch.rand(3)
    run(config, tmp_path / "parts", resume=True)
    same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_run_may_be_interrupted_again_and_again(tmp_path):
    config = tiny(accumulate=2, warm_up=3, density_exponent=0.25)
    run(config, tmp_path / "whole")
    for _ in range(4):
        with pytest.raises(Stopped):
            run(config, tmp_path / "parts", resume=True, watch=Presses(2))
    run(config, tmp_path / "parts", resume=True)
    same_end(tmp_path / "whole", tmp_path / "parts")


def test_metrics_written_after_the_checkpoint_are_forgotten(tmp_path):
    config = tiny()
    run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "parts", watch=Presses(7))
    Folder(tmp_path / "parts").append({"epoch": 2, "accuracy": 1.0})  # killed between the line and its checkpoint
    run(config, tmp_path / "parts", resume=True)
    same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_lost_position_would_be_noticed(tmp_path):
    """The mutant of the law above: a resumed run that begins its epoch again does not end alike."""
    config = tiny()
    run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "parts", watch=Presses(7))
    path = tmp_path / "parts" / "checkpoint.safetensors"
    tensors = load_file(path)
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(str(path), "pt") as file:
        header = file.metadata()
    meta = json.loads(header["json"])
    meta["extra"]["step"] = 0
    save_file(tensors, path, {**header, "json": json.dumps(meta)})
    seal(path)
    run(config, tmp_path / "parts", resume=True)
    with pytest.raises(AssertionError):
        same_end(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    """The process that holds the lock is named. The lock of a killed process is ignored. Nothing is left over."""
    config, folder = tiny(), Folder(tmp_path / "a")
    with folder.locked():
        for resume in (False, True):
            with pytest.raises(UsageError, match=f"{folder.path}: process {os.getpid()} is writing here"):
                run(config, folder.path, resume=resume)
    assert not folder.path.exists()  # it was made for nothing
    folder.path.mkdir()
    folder.lock.write_text("4194305\n")
    run(config, folder.path)
    folder.lock.write_text("4194305\n")  # killed when it was over
    run(config, folder.path, resume=True)
    assert sorted(p.name for p in folder.path.iterdir()) == FILES


FILES = ["checkpoint.safetensors", "config.yaml", "environment.json", "metrics.jsonl", "result.json"]


def test_what_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(UsageError, match="needs images"):
        run(parse({"task": "planted", "model": "lenet5"}, ""), tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").write_text("a file")
    with pytest.raises(UsageError, match="cannot be written"):
        run(tiny(), tmp_path / "a")
    with pytest.raises(UsageError, match="cannot be written"):
        run(tiny(), tmp_path / "a" / "b")


DAMAGE = {  # of which file -> what it holds afterwards
    "a result that was cut off": ("result.json", lambda old: old[:50]),
    "an empty result": ("result.json", lambda old: b""),
    "a result of zeros": ("result.json", lambda old: bytes(len(old))),
    "a result without figures": ("result.json", lambda old: b'{"status": "finished"}'),
    "a result that is a list": ("result.json", lambda old: b"[]"),
    "an empty configuration": ("config.yaml", lambda old: b""),
    "a configuration that was cut off": ("config.yaml", lambda old: old[:90]),
    "a configuration that is no text": ("config.yaml", lambda old: b"\xff\x00" * 20),
    "an empty environment": ("environment.json", lambda old: b""),
    "an environment that was cut off": ("environment.json", lambda old: old[:20]),
    "empty metrics": ("metrics.jsonl", lambda old: b""),
    "a torn last line": ("metrics.jsonl", lambda old: old[:-10]),
    "a line of zeros": ("metrics.jsonl", lambda old: old[:20] + bytes(30) + old[50:]),
    "a line that no checkpoint knows": ("metrics.jsonl", lambda old: old + b'{"epoch": 4, "accuracy": 1.0}\n'),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a run that has ended."""
    path = tmp_path_factory.mktemp("ended") / "whole"
    run(tiny(), path)
    return path


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("over", [False, True])
def test_what_is_damaged_is_mended_where_nothing_is_lost(case, over, tmp_path, ended):
    """Whether the run had ended or not: it comes to the same end, and the folder is whole."""
    name, damage = DAMAGE[case]
    shutil.copytree(ended, tmp_path / "a")
    path, folder = tmp_path / "a" / name, Folder(tmp_path / "a")
    path.write_bytes(damage(path.read_bytes()))
    if not over:
        folder.result.unlink()
    (tmp_path / "a" / "metrics.jsonl.0a1b2c3d.tmp").write_text("left by a dead process")
    run(parse(folder.settings(), ""), folder.path, resume=True)
    if over and name != "result.json":  # nobody needs it any more, and nothing was written
        return
    same_end(ended, tmp_path / "a")
    assert sorted(p.name for p in folder.path.iterdir()) == FILES
    assert parse(folder.settings(), "") == tiny() and json.loads(folder.environment.read_text())["torch"]


def test_a_damaged_checkpoint_is_named_and_the_run_can_begin_anew(tmp_path, ended):
    folder = Folder(tmp_path / "a")
    for damage in (lambda old: old[:1000], lambda old: b"", lambda old: old[:-1] + bytes([old[-1] ^ 1])):
        shutil.copytree(ended, folder.path)
        folder.result.unlink()
        folder.checkpoint.write_bytes(damage(folder.checkpoint.read_bytes()))
        with pytest.raises(
            UsageError,
            match="checkpoint.safetensors: .*\n.*delete checkpoint.safetensors, and --resume starts the run again",
        ):
            run(tiny(), folder.path, resume=True)
        folder.checkpoint.unlink()
        run(tiny(), folder.path, resume=True)
        same_end(ended, folder.path)
        shutil.rmtree(folder.path)


def test_a_configuration_that_nothing_holds_is_named(tmp_path):
    folder = Folder(tmp_path)
    folder.config.write_text("task: digits\n")
    with pytest.raises(UsageError, match="config.yaml: damaged, and no checkpoint holds a copy: it lacks model"):
        folder.settings()
    assert folder.damage and not Folder(tmp_path / "new").damage


def test_a_damaged_plan_is_measured_again_only_where_nothing_follows_it(tmp_path, ended):
    folder = Folder(tmp_path / "a")
    shutil.copytree(ended, folder.path)
    folder.planned.write_text("{")
    with pytest.raises(UsageError, match="plan.json: damaged: the layouts"):
        folder.plan()
    folder.checkpoint.unlink()
    assert folder.plan() is None


def test_an_edited_configuration_is_refused_unless_the_change_is_asked_for(tmp_path):
    config, path = tiny("dense", epochs=4), tmp_path / "a"
    with pytest.raises(Stopped):
        run(config, path, watch=Presses(7))
    folder = Folder(path)
    folder.config.write_text(folder.config.read_text().replace("lr: 0.1", "lr: 0.01"))
    edited = parse(folder.settings(), "")
    assert edited.optimizer.settings["lr"] == 0.01
    for change in ((), ("seed", "optimizer.momentum"), ("model",)):
        with pytest.raises(UsageError, match="another configuration") as refused:
            run(edited, path, resume=True, change=change)
        assert "optimizer.lr was 0.1, is 0.01" in str(refused.value) and "--change" in str(refused.value)
    with pytest.raises(UsageError, match="epochs was 4, is 5"):
        run(tiny("dense", epochs=5), path, resume=True)
    with pytest.raises(Stopped):
        run(edited, path, resume=True, change=("optimizer.lr",), watch=Presses(1))
    assert run(edited, path, resume=True)["config"]["optimizer"]["lr"] == 0.01  # it is this run's now
    with pytest.raises(UsageError, match="has finished with other settings"):
        run(config, path, resume=True, change=("optimizer",))


def test_the_checkpoint_holds_the_configuration_and_its_digest(tmp_path, ended):
    said = checkpoint.inspect(ended / "checkpoint.safetensors")["extra"]["config"]
    assert parse(said["settings"], "") == tiny() and said == named(settings(tiny()))
    assert named(settings(tiny(seed=1)))["sha256"] != said["sha256"] == named(settings(tiny(diagnose=True)))["sha256"]


def test_a_full_disk_ends_a_run_in_a_sentence_and_it_goes_on_later(tmp_path, ended):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (ended / "checkpoint.safetensors").stat().st_size

    class Fills(Presses):
        def step(self, loss: float) -> None:
            self.left -= 1
            if self.left == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))

    try:
        with pytest.raises(UsageError, match="the disk is full"):
            run(tiny(), tmp_path / "a", watch=Fills(8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.inspect(tmp_path / "a" / "checkpoint.safetensors")["extra"]["epoch"] == 1
    run(tiny(), tmp_path / "a", resume=True)
    same_end(ended, tmp_path / "a")


@pytest.mark.filterwarnings("ignore")
def test_diagnoses_after_the_checkpoint_are_forgotten(tmp_path):
    run(tiny(diagnose=True), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tiny(diagnose=True), tmp_path / "a", watch=Presses(5))
    with Folder(tmp_path / "a").diagnosis.open("a") as file:
        file.write('{"step": 9, "sentence": "of a step that will be made again"}\n{"step": 1')
    run(tiny(diagnose=True), tmp_path / "a", resume=True)
    a, b = ((tmp_path / name / "diagnosis.jsonl").read_text() for name in ("whole", "a"))
    assert a == b and a


def test_a_folder_is_not_used_twice_by_accident(tmp_path):
    run(tiny(), tmp_path)
    before = Folder(tmp_path).result.read_text()
    with pytest.raises(UsageError, match="already holds a run, which has finished"):
        run(tiny(), tmp_path)
    with pytest.raises(UsageError, match="another configuration") as error:
        run(tiny("rigl", density=0.2), tmp_path, resume=True)
    assert "density was 0.3, is 0.2" in str(error.value) and "method.name was 'csst', is 'rigl'" in str(error.value)
    assert run(tiny(), tmp_path, resume=True) == json.loads(before) and Folder(tmp_path).result.read_text() == before


def test_where_the_data_lie_does_not_make_another_run():
    a, b = (
        settings(parse({"task": {"name": "mnist", "data": "here"}}, "")),
        settings(parse({"task": {"name": "mnist", "data": "there"}}, "")),
    )
    assert differences(a, b) == [] and differences(a, {**b, "seed": 7}) == ["seed was 0, is 7"]


# -------------------------------------------------------------------- divergence


@pytest.mark.parametrize("method", ["csst", "dense"])
def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path, method):
    config = tiny(method, **{"optimizer.lr": 1e4}, epochs=5)
    result = run(config, tmp_path)
    folder = Folder(tmp_path)
    assert result["status"] == folder.status == "diverged" and result["loss"] in ("nan", "inf")
    assert 1 < result["step"] <= 25 and (result["step"] - 1) // 5 == result["checkpoint_epoch"]
    assert (
        checkpoint.inspect(folder.checkpoint)["extra"]["epoch"]
        == result["checkpoint_epoch"]
        == folder.rows()[-1]["epoch"]
    )
    assert run(config, tmp_path, resume=True) == result  # it would diverge again: nothing is tried
    [row] = aggregate(collect(tmp_path))
    columns, [cells], _ = table([row])
    assert dict(zip(columns, cells, strict=True))["runs"] == f"1 diverged (step {result['step']})"
    assert dict(zip(columns, cells, strict=True))["accuracy"] == "-"


def test_the_checkpoint_kept_is_the_good_one(tmp_path):
    """Diverges in the second epoch: the weights kept are those of the first, finite and as measured."""
    config = tiny("dense", epochs=4)

    class Poisons(Silent):
        steps = 0

        def step(self, loss: float) -> None:
            self.steps += 1
            if self.steps == 7:
                next(layer for layer in LAYERS if isinstance(layer, nn.Linear)).weight.data.fill_(math.nan)

    LAYERS: list[nn.Module] = []

    class Seen(MLP):
        def build(self, *arguments):
            net = super().build(*arguments)
            LAYERS.extend(net.modules())
            return net

    CATALOG["model"]["seen"] = Seen
    try:
        result = run(tiny("dense", epochs=4, model={"name": "seen", "widths": [16, 16]}), tmp_path, watch=Poisons())
    finally:
        del CATALOG["model"]["seen"]
    assert result["status"] == "diverged" and result["step"] == 8 and result["checkpoint_epoch"] == 1
    task = config.task.make()
    data = task.load()
    model = network(config.model, data.shape, data.classes, stream(0, "init"))
    checkpoint.load(tmp_path / "checkpoint.safetensors", model)
    assert task.metrics(model, data)["accuracy"] == Folder(tmp_path).rows()[-1]["accuracy"]


# -------------------------------------------------------------------- configurations


def test_settings_and_configurations_are_one_to_one():
    for config in (
        Config(),
        tiny("rigl", clip=1, exclude=["fc1"], block=[2, 1]),
        parse({"task": "cifar10", "model": "resnet20", "method": "gmp"}, ""),
    ):
        assert parse(settings(config), "") == config


def test_a_number_in_scientific_notation_is_a_number():
    assert parse({"optimizer": {"lr": "5e-4"}, "density": "1e-2"}, "").optimizer.settings["lr"] == 5e-4


def test_no_value_is_a_value_where_the_signature_says_so():
    assert parse({"method": {"name": "csst", "count": None}, "clip": None}, "").method.settings["count"] is None


def test_another_name_discards_the_settings_of_the_former_one():
    below = {"method": {"name": "csst", "window": 5}, "density": 0.1}

    def over(above):
        return configure(("a file", below), ("the command", above))

    assert over({"method": "rigl"}) == parse({"method": "rigl", "density": 0.1}, "")
    assert over({"method.every": "50"}).method.settings["window"] == 5
    assert (
        over({"method": {"name": "set", "drop_fraction": 0.1}}).method
        == parse({"method": {"name": "set", "drop_fraction": 0.1}}, "").method
    )
    rule = {"name": "linbreg", "penalty": {"name": "groupl1", "lam": 0.1, "group": "row"}}
    shadow = {"method": "proximal", "layout": "shadow"}
    config = configure(
        ("a file", {**shadow, "optimizer": rule}), ("", {"optimizer.penalty": "l1", "optimizer.penalty.lam": "2"})
    )
    assert config.optimizer.settings["penalty"].settings == {"lam": 2.0}


def test_a_mistake_is_reported_where_it_was_made():
    for layers, where in (
        ((("f", {"epochs": "x"}), ("c", {})), "f"),
        ((("f", {"epochs": 1}), ("c", {"epochs": "x"})), "c"),
    ):
        with pytest.raises(UsageError) as refused:
            configure(*layers)
        assert refused.value.who == where


WRONG = {
    "unknown key 'densty'; did you mean 'density'": {"densty": 0.1},
    "unknown key 'methd'; did you mean 'method'": {"methd": "csst"},
    "unknown key 'method.windw' of method csst; did you mean 'method.window'": {"method": {"windw": 5}},
    "unknown key 'model.width' of model mlp; did you mean 'model.widths'": {"model.width": [4]},
    "unknown method 'cst'; did you mean 'csst'": {"method": "cst"},
    "unknown task 'fashon-mnist'; did you mean 'fashion-mnist'": {"task": "fashon-mnist"},
    "unknown model 'resnet19'; did you mean 'resnet1": {"model": {"name": "resnet19"}},
    "unknown optimizer 'sdg'; did you mean 'sgd'": {"optimizer": "sdg"},
    "unknown layout 'crs'; did you mean 'csr'": {"layout": "crs"},
    "unknown budget 'erkk'; did you mean 'erk'": {"budget": "erkk"},
    "density: Expected a float. Got value: much": {"density": "much"},
    "epochs: Expected a int. Got value: 1.5": {"epochs": 1.5},
    "model.widths: Expected a tuple": {"model": {"widths": 5}},
    "method.every: a value is missing": {"method": {"every": None}},
    r"in \(0, 1\]": {"density": 1.5},
    "epochs must be at least 1": {"epochs": 0},
    "clip": {"clip": -1.0},
    r"seed: must be a whole number below 2\^63": {"seed": 2**63},
    r"task.seed: must be a whole number below 2\^63": {"task": {"name": "planted", "seed": 2**70}},
    "at most 256 threads|threads are started": {"threads": 100_000},
    "optimizer.lr: must be a finite number": {"optimizer.lr": 1e300},
    "optimizer.lr: must be a finite number of": {"optimizer.lr": float("inf")},
    "optimizer.weight_decay: must be a finite number": {"optimizer.weight_decay": float("nan")},
    r"model.widths: must be a whole number below 2\^31": {"model.widths": [2**31]},
    r"batch: must be a whole number below": {"batch": 10**30},
    r"density_exponent: the exponent of the density must be": {"density_exponent": 1000.0},
    "method.last_every: must be a whole number below": {"method.last_every": 10**400},
    r"start must be at least 1": {"start": 0.5},
    "method snfs does not shrink the support": {"start": 2.0, "method": "snfs"},
    "only methods proximal and multilevel use it": {"initial": 0.5},
    "no penalty to steer": {"target": "targetdensity"},
    "optimizer linbreg needs a penalty": {"optimizer": "linbreg"},
    "optimizer.penalty.lam has no default": {"optimizer": {"name": "linbreg", "penalty": "l1"}},
    "unknown penalty 'nonnegative'; did you mean 'nonnegativel1'": {
        "optimizer": {"name": "rda", "penalty": "nonnegative"}
    },
    "unknown key 'method.drop' of method csst; did you mean 'method.drop_fraction'": {"method": {"drop": 0.1}},
    "unknown key 'method.share' of method csst; did you mean 'method.allocate'": {"method.share": "pooled"},
    "unknown key 'unit'; did you mean 'block'": {"unit": [2, 2]},
    "unknown key 'method.reborn' of method csst; did you mean 'method.allow_regrow'": {"method.reborn": True},
    "unknown key 'method.move' of method rigl; did you mean 'method.step_optimizer'": {
        "method": {"name": "rigl", "move": True}
    },
    "unknown key 'method.start' of method csst; did you mean 'start'": {"method.start": 3},
    "unknown key 'method.target' of method proximal; did you mean 'target'": {
        "method": {"name": "proximal", "target": True}
    },
    "unknown key 'optimizer.lam' of optimizer rda; did you mean 'optimizer.penalty.lam'": {
        "optimizer": {"name": "rda", "lam": 0.1, "penalty": "l1"}
    },
    "stop=1 is one step, stop=1.0 is the whole run": {"method.stop": 1},
    r"unknown method \['csst'\]": {"method": ["csst"]},
    r"unknown model {'a': 1}": {"model": {"name": {"a": 1}}},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_configuration_is_refused_with_its_key(message):
    with pytest.raises(UsageError, match=message):
        parse(WRONG[message], "config.yaml")


# -------------------------------------------------------------------- sweeps and reports

SWEEP = """
out: {out}
base: {base}
grid:
  - {{method: dense, seed: [0, 1]}}
  - {{method: [static, {{name: csst, every: 4, window: 2}}], density: [0.3, 0.2], seed: [0, 1]}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(SWEEP.format(out=tmp_path / "out", base=json.dumps({**TINY, "epochs": 2})))
    return path


def test_a_sweep_plans_every_combination_once(file):
    jobs, out = sweeps.plan(file, None, 1)
    assert [job.label for job in jobs][:6] == [
        "dense-seed0",
        "dense-seed1",
        "static-density0.3-seed0",
        "static-density0.3-seed1",
        "static-density0.2-seed0",
        "static-density0.2-seed1",
    ]
    assert jobs[-1].label == "csst-every4-window2-density0.2-seed1" and len(jobs) == 10
    assert jobs[-1].config == parse(
        {**TINY, "epochs": 2, "method": {"name": "csst", "every": 4, "window": 2}, "density": 0.2, "seed": 1}, ""
    )


def test_a_sweep_runs_what_is_missing_resumes_and_reports(file, tmp_path, capsys, monkeypatch):
    jobs, out = sweeps.plan(file, None, 1)
    stopped = jobs[3]
    with pytest.raises(Stopped):
        run(stopped.config, stopped.folder.path, watch=Presses(7))
    run(stopped.config, tmp_path / "whole")
    sweeps.sweep(str(file), threads=1)
    assert "10 runs" in capsys.readouterr().out and all(job.folder.status == "finished" for job in jobs)
    same_end(stopped.folder.path, tmp_path / "whole")

    monkeypatch.setattr(sweeps, "run", None)  # nothing may be run again
    sweeps.sweep(str(file), threads=1)
    said = capsys.readouterr().out
    assert "10 finished, 0 to do" in said

    rows = json.loads((out / "table.json").read_text())
    assert [(row["method"], row["settings"].get("density")) for row in rows] == [
        ("dense", None),
        ("static", 0.3),
        ("csst", 0.3),
        ("static", 0.2),
        ("csst", 0.2),
    ]
    pair = [job.folder.figures()["metrics"]["accuracy"] for job in jobs[:2]]
    mean = sum(pair) / 2
    assert rows[0]["metrics"]["accuracy"] == pytest.approx(mean) and rows[0]["runs"] == 2
    assert rows[0]["metrics_sd"]["accuracy"] == pytest.approx(abs(pair[0] - pair[1]) / math.sqrt(2))
    assert f"{100 * mean:.2f} ± " in (out / "table.md").read_text() and f"{100 * mean:.2f} ± " in said
    assert len((out / "table.csv").read_text().splitlines()) == 6
    before = (out / "table.md").read_text()
    (out / "table.md").unlink()
    report(str(out))
    assert (out / "table.md").read_text() == before


def test_jobs_side_by_side_give_the_same_runs(file, tmp_path):
    file.write_text(
        file.read_text().replace("seed: [0, 1]", "seed: 0").split("  - {method: [static")[0]
        + "  - {method: csst, seed: 0}\n"
    )
    sweeps.sweep(str(file), out=str(tmp_path / "two"), jobs=2, threads=1)
    sweeps.sweep(str(file), out=str(tmp_path / "one"), threads=1)
    for name in ("dense-seed0", "csst-seed0"):
        same_end(tmp_path / "one" / name, tmp_path / "two" / name)


@pytest.mark.parametrize(
    "text, message",
    [
        ("gird: []", "unknown key 'gird'; did you mean 'grid'"),
        ("grid: [{methd: csst}]", "unknown key 'methd'; did you mean 'method'"),
        ("base: {task: digts}", "unknown task 'digts'"),
        ("grid: [{seed: [0, 0]}]", "contains the run seed0 twice"),
        ("grid: [3]", "grid a list of mappings"),
        ("- 1", "a configuration must be a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_sweep_is_refused_before_any_run(tmp_path, text, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        sweeps.sweep(str(path), out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_sweep_does_not_mix_with_another_one(file, tmp_path):
    file.write_text(file.read_text().split("  - {method: [static")[0])
    sweeps.sweep(str(file), threads=1)
    file.write_text(file.read_text().replace('"epochs": 2', '"epochs": 3'))
    with pytest.raises(UsageError, match="epochs was 2, is 3"):
        sweeps.sweep(str(file), threads=1)


def test_one_damaged_folder_does_not_stop_a_sweep(file, capsys):
    file.write_text(file.read_text().split("  - {method: [static")[0] + "  - {method: static, seed: [0, 1, 2]}\n")
    jobs, out = sweeps.plan(file, None, 1)
    sweeps.sweep(str(file), threads=1)
    for job in jobs[:4]:
        job.folder.result.unlink()
    jobs[0].folder.config.write_text("")
    jobs[0].folder.checkpoint.unlink()
    jobs[1].folder.checkpoint.write_bytes(b"x")
    with jobs[2].folder.locked(), pytest.raises(UsageError, match="3 of 5 runs failed") as failed:
        sweeps.sweep(str(file), threads=1)
    assert [job.folder.status for job in jobs] == ["stopped", "stopped", "stopped", "finished", "finished"]
    said = str(failed.value)
    assert "dense-seed0: " in said and "config.yaml: damaged" in said and "checkpoint.safetensors: truncated" in said
    assert f"process {os.getpid()} is writing here" in said
    assert "not in the table: " in capsys.readouterr().err and (out / "table.md").is_file()


WRONG_SWEEPS = {
    "the key 'grid' is given twice": "grid: []\ngrid: []",
    "anchors and aliases are not allowed": "base: &a {seed: 0}\ngrid: [*a]",
    "nested more than 20 deep": "grid: " + "[" * 50 + "]" * 50,
    "out must be the path of a folder": "out: 3",
    "the grid has 3,486,784,401 runs": "grid: {" + ", ".join(f"k{i}: [1, 2, 3]" for i in range(20)) + "}",
    "cannot be the name of a folder": "grid: {exclude: [[" + ", ".join(f"fc{i}" for i in range(80)) + "]]}",
    "the key '1' is not a string": "1: 2",
    "a setting cannot be a date": "base: {seed: 2001-01-01}",
}


@pytest.mark.parametrize("message", WRONG_SWEEPS)
def test_what_yaml_can_do_beyond_a_configuration_is_refused(message, tmp_path):
    (tmp_path / "s.yaml").write_text(WRONG_SWEEPS[message])
    with pytest.raises(UsageError, match=re.escape(message)):
        sweeps.plan(tmp_path / "s.yaml", str(tmp_path / "out"), 1)


@pytest.mark.parametrize(
    "content",
    [b"a: \x00", b"\xff\xfe\xff", b"a: \xe9", b"a: \x1b", b"a: " + b"9" * 5000, b"- a\nb: c", b"a: 2001-99-99"],
)
def test_bytes_that_are_no_yaml_are_refused(content, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UsageError, match="c.yaml: not valid YAML: "):
        read_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_bytes(b"# x\n" * 300_000)
    with pytest.raises(UsageError, match=r"a configuration has at most 1,000,000 bytes \(got 1200000\)"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(UsageError, match="this is a folder"):
        read_yaml(tmp_path)


def test_unfinished_and_diverged_runs_stand_in_the_table(tmp_path):
    run(tiny(), tmp_path / "a")
    run(tiny(seed=1, **{"optimizer.lr": 0.1}), tmp_path / "b")
    with pytest.raises(Stopped):
        run(tiny(seed=2), tmp_path / "c", watch=Presses(2))
    run(tiny(seed=3, **{"optimizer.lr": 1e4}), tmp_path / "d")
    rows = aggregate(collect(tmp_path))
    assert [row["runs"] for row in rows] == [2, 0] and rows[0]["unfinished"] == 1 and len(rows[1]["diverged"]) == 1
    assert [row["settings"] for row in rows] == [{"optimizer.lr": 0.1}, {"optimizer.lr": 1e4}]


def test_a_simulated_figure_is_called_so(tmp_path):
    run(tiny(layout="masked"), tmp_path)
    columns, [cells], notes = table(aggregate(collect(tmp_path)))
    assert cells[columns.index("FLOPs")].endswith("simulated") and any("dense kernels" in note for note in notes)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no run in this folder"):
        report(str(tmp_path))


def test_flat_settings_have_one_key_per_value():
    assert flat({"a": 1, "b": {"c": 2, "d": [3]}}) == {"a": 1, "b.c": 2, "b.d": [3]}


# ---------------------------------------------------------------- seeds, repeats, and what growth was selective from


def result(seed: int, accuracy: float, **more) -> dict:
    config = settings(tiny(seed=seed))
    figures = {
        "density": 0.3,
        "nonzero": 10,
        "parameters": 9,
        "flops_ratio": 0.5,
        "peak_bytes": 8,
        "seconds": 1.0,
        "kernels": ["x"],
    }
    return {
        "status": "finished",
        "config": config,
        "metrics": {"accuracy": accuracy},
        "simulated": False,
        **figures,
        **more,
    }


REPEATS = {  # seeds and accuracies -> mean, standard deviation, the cell
    "three seeds": ([(0, 0.5), (1, 0.7), (2, 0.9)], 0.7, 0.2, "3"),
    "one seed three times": ([(0, 0.5), (0, 0.7), (0, 0.9)], 0.7, None, "1 seed, 2 repeats"),
    "two seeds, one of them twice": ([(0, 0.5), (0, 0.7), (1, 0.8)], 0.7, 0.2 / math.sqrt(2), "2 seeds, 1 repeat"),
    "one": ([(4, 0.5)], 0.5, None, None),
}


@pytest.mark.parametrize("runs, mean, sd, said", REPEATS.values(), ids=REPEATS.keys())
def test_repeats_of_a_seed_are_no_seeds(runs, mean, sd, said):
    rows = aggregate([result(seed, accuracy) for seed, accuracy in runs])
    columns, [cells], notes = table(rows)
    assert rows[0]["metrics"]["accuracy"] == pytest.approx(mean) and rows[0]["metrics_sd"]["accuracy"] == (
        sd and pytest.approx(sd)
    )
    assert (rows[0]["runs"], rows[0]["seeds"]) == (len(runs), len({seed for seed, _ in runs}))
    assert ("runs" in columns) == (said is not None) and (said is None or cells[columns.index("runs")] == said)
    assert ("over seeds" in notes[0]) == (sd is not None) and ("repeats" in notes[0]) == ("repeat" in str(said))


@pytest.mark.parametrize("density", [0.02, 0.1, 0.2, 0.5])
def test_csst_is_selective_at_every_density_and_says_how_much(density, tmp_path):
    """At density 0.2 half of the blocks were as many as were sensed: SET's growth at CSST's price."""
    config = tiny("csst", density=density, **{"model.widths": [40]})
    figures = run(config, tmp_path)
    assert (
        0 < figures["grown"] < figures["sensed"]
        and 0 < figures["least_selective"] <= config.method.settings["selectivity"] == 0.25
    )
    columns, [cells], notes = table(aggregate(collect(tmp_path)))
    share = figures["grown"] / figures["sensed"]
    assert cells[columns.index("grown of sensed")] == f"{share:.3f} (most {figures['least_selective']:.2f})"
    assert any(note.startswith("Grown of sensed") for note in notes)


def test_what_grew_is_counted_across_an_interruption(tmp_path):
    whole = run(tiny("csst", epochs=3), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tiny("csst", epochs=3), tmp_path / "parts", watch=Presses(9))
    parts = run(tiny("csst", epochs=3), tmp_path / "parts", resume=True)
    assert all(whole[key] == parts[key] for key in ("grown", "sensed", "least_selective")) and whole["grown"] > 0


def test_a_method_that_senses_nothing_has_no_such_column(tmp_path):
    figures = run(tiny("set"), tmp_path)
    assert figures["sensed"] == 0 and figures["least_selective"] is None
    assert "grown of sensed" not in table(aggregate(collect(tmp_path)))[0]


@pytest.mark.parametrize("name", ["set", "rigl", "snfs", "csst", "gmp"])
@pytest.mark.parametrize("start", [1.0, 3.0])
def test_a_method_with_no_time_to_exchange_says_so_and_goes_on(name, start):
    if name == "snfs" and start > 1.0:
        return  # refused: see WRONG
    config = parse({"method": {"name": name, "every": 100}, "min_fan_in": 1, "density": 0.1, "start": start}, "")
    said = too_short(config, 133)  # three quarters of it: 100 steps
    prunes = name == "gmp" and start == 1.0
    assert too_short(config, 135) is None and (said is None) == prunes
    assert said is None or "would come at step 100, and exchanges end before step 100 of 133" in said
    made = topology_of(config, 133)
    assert made.name == name and [t for t in range(134) if made.when(t)] == ([100] if config.shrinks else [])
    assert made.min_fan_in == int(config.shrinks)
