"""Checkpoints: the law for every kind of state, resuming in the middle of everything, and what is refused with which sentence."""

import copy
import errno
import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import FLAT, LAYOUT_NAMES, OPTIMIZERS, TOPOLOGIES, convnet, generator, mlp, same_state, supports, table, train
from gossamer import checkpoint, laws
from gossamer.checkpoint import file
from gossamer.checkpoint.file import seal
from gossamer.train import Rewirer, fit


class Job:
    """Everything a run has."""

    def __init__(self, topology=TOPOLOGIES["csst"], seed: int = 0, make=mlp, optimizer: str = "nesterov", **options):
        self.model = gs.sparsify(make(seed), **{"density": 0.3, "rng": generator(seed), **options})
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.rewirer = Rewirer(self.model, self.optimizer, topology, rng=generator(seed))
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 40)
        self.ledger = gs.Ledger(self.model, FLAT.batch(0)[0], optimizer=self.optimizer)

    @property
    def parts(self):
        return {"optimizer": self.optimizer, "rewirer": self.rewirer, "scheduler": self.scheduler, "ledger": self.ledger}

    def train(self, start: int, stop: int) -> list[float]:
        """With dropout-like noise from torch's own generator, so that its state matters."""
        losses: list[float] = []
        batches = ((x + 0.01 * torch.randn(x.shape, dtype=x.dtype), y) for x, y in (FLAT.batch(t) for t in range(start, stop)))
        parts = {"rewirer": self.rewirer, "scheduler": self.scheduler, "ledger": self.ledger}
        fit(self.model, batches, self.optimizer, **parts, on_step=lambda s: losses.append(s.loss))
        return losses

    def state(self):
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return copy.deepcopy({"model": self.model.state_dict(), **parts, "torch": torch.get_rng_state()})


def saved(tmp_path, **options) -> tuple[Job, os.PathLike]:
    job, path = Job(**options), tmp_path / "run.safetensors"
    job.train(0, 7)
    checkpoint.save(path, job.model, **job.parts, extra={"epoch": 2})
    return job, path


# ---------------------------------------------------------------- the law


@table({name: TOPOLOGIES[name] for name in ("csst", "rigl", "gmp")})
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_checkpoints_obey_the_law(case, layout):
    laws.check_checkpoint(case, gs.Rewirer, layout=layout)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_every_optimizer_and_in_tiles(name):
    laws.check_checkpoint(TOPOLOGIES["csst"], gs.Rewirer, optimizer=OPTIMIZERS[name], unit=(2, 3))


CUT = ("set", "rigl", "snfs", "gmp", "csst", "csst by flow", "csst iht", "csst merging", "csst pooled", "csst shrinking")


@pytest.mark.parametrize("name", CUT)
def test_resume_is_bit_equal_wherever_it_was_cut(name, tmp_path):
    """From before the first event to after the second: plain steps, the middle of windows, just after events. Losses, weights, supports,
    optimizer, schedule, accounts and torch's random state."""
    torch.manual_seed(11)
    whole = Job(TOPOLOGIES[name])
    losses, cuts = [], {}
    for t in range(24):
        losses += whole.train(t, t + 1)
        if t in (1, 2, 3, 6, 8):
            checkpoint.save(tmp_path / f"{t}.safetensors", whole.model, **whole.parts)
            cuts[t] = len(losses)
    end = whole.state()
    for t, done in cuts.items():
        torch.manual_seed(99)
        again = Job(TOPOLOGIES[name], seed=5)
        checkpoint.load(tmp_path / f"{t}.safetensors", again.model, **again.parts)
        assert again.train(t + 1, 24) == losses[done:], f"cut after step {t + 1}"
        assert laws.details.same(again.state(), end), f"cut after step {t + 1}"


# ---------------------------------------------------------------- what is in it


def test_inspect_says_what_a_file_holds(tmp_path):
    job, path = saved(tmp_path)
    said = checkpoint.inspect(path)
    assert said["version"] == checkpoint.VERSION and said["extra"] == {"epoch": 2} and set(said["states"]) == set(job.parts)
    for name, layer in gs.sparse_layers(job.model).items():
        entry = said["supports"][name]
        assert (entry["shape"], entry["n"], entry["layout"], entry["unit"]) == (list(layer.dense_shape), layer.support.n, "csr", [1, 1])
        assert entry["sha256"] == checkpoint.digest(layer.crow, layer.col)


def test_a_file_holds_plain_tensors_and_json(tmp_path):
    """Anything that reads safetensors can read it: values and index of each layer under the model's own names, int32 index."""
    job, path = saved(tmp_path)
    with safe_open(str(path), "pt") as held:
        header = held.metadata()
        names = set(held.keys())
        layer = gs.sparse_layers(job.model)["2"]
        assert torch.equal(held.get_tensor("model.2.values"), layer.values.detach())
        assert torch.equal(held.get_tensor("model.2.col"), layer.col) and held.get_tensor("model.2.crow").dtype == torch.int32
    assert header["format"] == "gossamer-checkpoint" and json.loads(header["json"])["extra"] == {"epoch": 2}
    assert {f"model.{key}" for key in job.model.state_dict()} <= names and not any("perm" in name or "ccol" in name for name in names)


def test_the_file_is_as_small_as_the_support(tmp_path):
    layer = gs.SparseLinear(4096, 4096, support=gs.Support.random((4096, 4096), 1000, rng=generator()))
    checkpoint.save(tmp_path / "x", layer)
    assert os.path.getsize(tmp_path / "x") < 1000 * 8 + 4096 * 8 + 20_000  # values, columns; pointers, bias; header and random state


def test_the_model_alone(tmp_path):
    job, path = saved(tmp_path)
    other = Job(seed=1)
    before = copy.deepcopy(other.optimizer.state_dict())
    assert checkpoint.load(path, other.model) == {"epoch": 2}
    assert same_state(other.model, job.model) and laws.details.same(other.optimizer.state_dict(), before)


def test_a_single_layer_as_model(tmp_path):
    mine, theirs = (gs.SparseLinear(7, 5, density=0.4, rng=generator(i)) for i in range(2))
    checkpoint.save(tmp_path / "x.safetensors", theirs)
    checkpoint.load(tmp_path / "x.safetensors", mine)
    assert same_state(mine, theirs)


def test_folders_are_made_and_shared_tensors_are_saved_once_each(tmp_path):
    model = nn.Sequential(gs.SparseLinear(7, 7, density=0.4), nn.Linear(7, 7), nn.Linear(7, 7))
    model[2].weight = model[1].weight
    checkpoint.save(tmp_path / "a" / "b" / "x.safetensors", model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight.zero_()
    checkpoint.load(tmp_path / "a" / "b" / "x.safetensors", other)
    assert same_state(model, other)


def test_saving_does_not_touch_the_run(tmp_path):
    job = Job()
    job.train(0, 3)
    before = job.state()
    checkpoint.save(tmp_path / "x", job.model, **job.parts)
    assert laws.details.same(job.state(), before)


def test_extra_must_be_json(tmp_path):
    with pytest.raises(gs.Unfit, match="extra"):
        checkpoint.save(tmp_path / "x", Job().model, extra={"model": object()})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what is refused


def rewritten(path, tensors=lambda t: None, meta=lambda m: None, header=lambda h: None) -> None:
    """The file again, with some of it changed, and sealed again as if it had been written so: the digest does not help."""
    with safe_open(str(path), "pt") as opened:
        said, held = dict(opened.metadata()), {key: opened.get_tensor(key) for key in opened.keys()}
    inner = json.loads(said["json"])
    tensors(held), meta(inner)
    said["json"] = json.dumps(inner)
    header(said)
    save_file(held, str(path), metadata=said)
    if "digest" in said:
        seal(path)


def truncated(path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def flipped(held) -> None:
    held["model.2.col"] = held["model.2.col"].flip(0).contiguous()


def other_index(held) -> None:
    s = gs.Support.random((11, 17), held["model.2.col"].numel(), rng=generator(321))
    held["model.2.crow"], held["model.2.col"] = s.crow, s.col


def nested(depth: int):
    value = 1
    for _ in range(depth):
        value = {"list": [value]}
    return value


def changed(key, change):
    return lambda held: held.update({key: change(held[key]).contiguous()})


SPOILED = {  # what happened to the file -> the sentence
    "cut in the data": (lambda p: truncated(p, 0.7), "truncated, or not a safetensors file"),
    "cut in the header": (lambda p: truncated(p, 0.01), "truncated, or not a safetensors file"),
    "empty": (lambda p: p.write_bytes(b""), "truncated, or not a safetensors file"),
    "a pickle": (lambda p: torch.save({"a": torch.ones(2)}, p), "truncated, or not a safetensors file"),
    "somebody else's": (lambda p: save_file({"a": torch.ones(2)}, str(p)), "not a gossamer checkpoint"),
    "newer": (lambda p: rewritten(p, header=lambda h: h.update(version="3")), "format version 3, newer than the 2 known here"),
    "of gossamer 0.1.0": (lambda p: rewritten(p, header=lambda h: (h.pop("digest"), h.update(version="1"))), "version 1, which has no"),
    "no digest": (lambda p: rewritten(p, header=lambda h: h.pop("digest")), "header is damaged.*no digest"),
    "no version": (lambda p: rewritten(p, header=lambda h: h.pop("version")), "header is damaged"),
    "broken json": (lambda p: rewritten(p, header=lambda h: h.update(json="{")), "header is damaged"),
    "json of something else": (lambda p: rewritten(p, header=lambda h: h.update(json="[1]")), "header is damaged"),
    "no states": (lambda p: rewritten(p, meta=lambda m: m.pop("states")), "header is damaged"),
    "no random state": (lambda p: rewritten(p, meta=lambda m: m.pop("rng")), "header is damaged"),
    "no supports": (lambda p: rewritten(p, meta=lambda m: m.update(supports={})), "2: the file does not describe its support"),
    "supports of more layers": (lambda p: rewritten(p, meta=lambda m: m["supports"].update(x={})), "x: no sparse layer of this model"),
    "index of int64": (lambda p: rewritten(p, changed("model.2.col", torch.Tensor.long)), "not int32"),
    "index unsorted": (lambda p: rewritten(p, flipped), "2: columns must"),
    "index of another support": (lambda p: rewritten(p, other_index), "SHA-256 differs"),
    "values of another length": (lambda p: rewritten(p, changed("model.2.values", lambda t: t[:3])), "values of shape"),
    "values of another dtype": (lambda p: rewritten(p, changed("model.2.values", torch.Tensor.half)), "torch.float16 in the file"),
    "a bias of another shape": (lambda p: rewritten(p, changed("model.2.bias", lambda t: t[:3])), "2.bias"),
    "no bias": (lambda p: rewritten(p, lambda t: t.pop("model.2.bias")), "the model has '2.bias', the file has not"),
    "no index": (lambda p: rewritten(p, lambda t: t.pop("model.2.col")), "the model has '2.col', the file has not"),
    "a tensor of the optimizer gone": (
        lambda p: rewritten(p, lambda t: t.pop(next(k for k in t if k.startswith("optimizer.")))),
        "is damaged.*holds no tensor",
    ),
    "a tensor more": (lambda p: rewritten(p, lambda t: t.update(more=torch.ones(2))), "holds tensors that are not those its header names"),
    "one tensor in two places": (lambda p: rewritten(p, meta=lambda m: m["rng"]["items"].append(m["rng"]["items"][0])), "holds no tensor"),
    "a random state that is none": (lambda p: rewritten(p, changed("rng.torch", torch.zeros_like)), "no generator takes the random state"),
    "a random state too short": (lambda p: rewritten(p, changed("rng.torch", lambda t: t[:100])), "random state is a tensor"),
    "a state packed wrongly": (lambda p: rewritten(p, meta=lambda m: m["states"].update(ledger={"set": []})), "packed as 'set'"),
    "nested without end": (lambda p: rewritten(p, header=lambda h: h.update(json="[" * 100_000)), "header is damaged: RecursionError"),
    "nested deeply": (lambda p: rewritten(p, meta=lambda m: m["states"].update(ledger=nested(200))), "it is no dict"),
    "gone": (lambda p: p.unlink(), "there is no such file"),
}  # fmt: skip


def shallow(seed: int) -> nn.Module:
    return mlp(seed)[:3]


def wide(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(13, 18), nn.Tanh(), nn.Linear(18, 11), nn.Tanh(), nn.Linear(11, 5)).double()


STRANGERS = {  # who loads it -> the sentence
    "another depth": (lambda: Job(make=shallow), "the file has '4.values', the model has not"),
    "another width": (lambda: Job(make=wide), "0: shape is"),
    "another kind": (lambda: Job(exclude="2"), "the model has '2.weight', the file has not"),
    "another layout": (lambda: Job(layout="masked"), "0: layout is masked here, csr in the file"),
    "other tiles": (lambda: Job(unit=(2, 2)), r"0: unit is \[2, 2\] here, \[1, 1\] in the file"),
    "another dtype": (lambda: _single_precision(), "torch.float64 in the file"),
    "another topology": (lambda: Job(TOPOLOGIES["rigl"]), "saved with topology 'csst', not 'rigl'"),
    "other groups": (lambda: _grouped(), r"parameter groups of sizes \[6\], not"),
}  # fmt: skip


def _single_precision() -> Job:
    job = Job()
    job.model.float()
    return job


def _grouped() -> Job:
    job = Job()
    job.optimizer = torch.optim.SGD(gs.parameter_groups(job.model, lr=0.1), momentum=0.9)
    return job


@table(SPOILED)
def test_a_file_that_is_not_right_is_refused_and_nothing_changes(case, tmp_path):
    spoil, sentence = case
    _, path = saved(tmp_path)
    spoil(path)
    victim = Job(seed=1)
    victim.train(0, 5)
    before = victim.state()
    with pytest.raises(gs.Unfit, match=sentence) as caught:
        checkpoint.load(path, victim.model, **victim.parts)
    assert str(path) in str(caught.value)
    assert laws.details.same(victim.state(), before)


@table(STRANGERS)
def test_a_run_that_is_not_the_same_is_refused_and_nothing_changes(case, tmp_path):
    make, sentence = case
    _, path = saved(tmp_path)
    victim = make()
    before = victim.state()
    with pytest.raises(gs.Unfit, match=sentence):
        checkpoint.load(path, victim.model, optimizer=victim.optimizer, rewirer=victim.rewirer)
    assert laws.details.same(victim.state(), before)


def test_a_ledger_of_other_layers_is_refused_before_anything_changes(tmp_path):
    _, path = saved(tmp_path)
    victim = Job(seed=1)
    victim.ledger = gs.Ledger(Job(make=shallow).model, FLAT.batch(0)[0])
    before = victim.state()
    with pytest.raises(gs.Unfit, match="layers"):
        checkpoint.load(path, victim.model, **victim.parts)
    assert laws.details.same(victim.state(), before)


def test_a_state_that_was_not_saved_is_refused(tmp_path):
    job = Job()
    checkpoint.save(tmp_path / "x.safetensors", job.model)
    with pytest.raises(gs.Unfit, match="holds no optimizer and no rewirer state"):
        checkpoint.load(tmp_path / "x.safetensors", job.model, optimizer=job.optimizer, rewirer=job.rewirer)


def test_a_misspelt_path_suggests_its_neighbour(tmp_path):
    saved(tmp_path)
    with pytest.raises(gs.Unfit, match=r"no such file; did you mean 'run\.safetensors'"):
        checkpoint.load(tmp_path / "rnu.safetensors", mlp())
    with pytest.raises(gs.Unfit, match="no such file"):
        checkpoint.inspect(tmp_path / "nowhere" / "x.safetensors")


def test_names_near_each_other_are_suggested(tmp_path):
    checkpoint.save(tmp_path / "x", nn.ModuleDict({"head": gs.SparseLinear(3, 4, density=0.5)}))
    with pytest.raises(gs.Unfit, match="the model has 'haed.values', the file has not; did you mean 'head.values'"):
        checkpoint.load(tmp_path / "x", nn.ModuleDict({"haed": gs.SparseLinear(3, 4, density=0.5)}))


# ---------------------------------------------------------------- interruptions


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """A full disk while writing: the old file is whole, no litter."""
    _, path = saved(tmp_path)
    content = path.read_bytes()

    def full_disk(tensors, name, metadata):
        with open(name, "wb") as half:
            half.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file, "save_file", full_disk)
    with pytest.raises(gs.Unfit, match=f"{path}: the disk is full: No space left on device\n.*what was there before is whole"):
        checkpoint.save(path, Job().model)
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == [path.name]


SAVING = """
import sys, torch, gossamer as gs
model, i = gs.SparseLinear(300, 300, density=0.5), 0
while True:
    gs.checkpoint.save(sys.argv[1], model, extra={"i": i})
    i += 1
"""


def test_a_process_killed_while_saving_leaves_a_whole_file(tmp_path):
    """Whenever it dies, what is there under the name is a valid checkpoint."""
    path = tmp_path / "run.safetensors"
    process = subprocess.Popen([sys.executable, "-c", SAVING, str(path)])
    try:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
    finally:
        process.kill()
        process.wait()
    model = gs.SparseLinear(300, 300, density=0.5)
    assert checkpoint.load(path, model)["i"] > 3


# ---------------------------------------------------------------- no file: state dicts


def test_state_dicts_alone_resume_too(tmp_path):
    """torch.save of the three state dicts, as an existing training script does it."""
    whole = Job()
    whole.train(0, 9)
    whole.optimizer.zero_grad()
    states = [whole.model.state_dict(), whole.optimizer.state_dict(), whole.rewirer.state_dict()]
    torch.save(states, tmp_path / "states.pt")
    batches = [FLAT.batch(t) for t in range(9, 20)]
    losses = train(whole.model, whole.optimizer, whole.rewirer, batches)
    again = Job(seed=3)
    for part, state in zip((again.model, again.optimizer, again.rewirer), torch.load(tmp_path / "states.pt"), strict=True):
        part.load_state_dict(state)
    assert train(again.model, again.optimizer, again.rewirer, batches) == losses


def test_a_convolutional_model_with_normalisation(tmp_path):
    mine, theirs = (gs.sparsify(convnet(i), 0.3, rng=generator(i)) for i in range(2))
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    theirs(x), F.relu(theirs(x))  # running statistics move
    checkpoint.save(tmp_path / "x", theirs)
    checkpoint.load(tmp_path / "x", mine)
    assert same_state(mine, theirs) and torch.equal(mine.eval()(x), theirs.eval()(x))
    assert all(s.same(supports(theirs)[name]) for name, s in supports(mine).items())


def test_the_format_page_matches():
    """The constants that the documentation of the format names."""
    assert (checkpoint.FORMAT, checkpoint.VERSION) == ("gossamer-checkpoint", 2)
    assert re.fullmatch(r"[0-9a-f]{64}", checkpoint.digest(torch.zeros(1), torch.zeros(0)))


def test_other_rules_or_another_optimizer_are_refused_before_anything_changes(tmp_path):
    def parts(topology, kind=torch.optim.SGD):
        layer = gs.SparseLinear(9, 7, density=0.3, rng=torch.Generator().manual_seed(3))
        opt = kind(layer.parameters(), lr=0.1)
        return layer, opt, gs.Rewirer(layer, opt, topology, rng=torch.Generator().manual_seed(4))

    layer, opt, rewirer = parts(gs.csst(40, 10, 20, 4))
    for _ in range(8):  # into a sensing window
        layer(torch.randn(3, 9)).sum().backward()
        rewirer.step()
        opt.zero_grad()
    path = tmp_path / "c.safetensors"
    gs.checkpoint.save(path, layer, optimizer=opt, rewirer=rewirer)
    same = gs.csst(40, 10, 20, 4)
    for topology, kind, what in (
        (gs.csst(40, 5, 20, 4), torch.optim.SGD, "other rules of the topology"),
        (gs.csst(40, 10, 20, 4, mode="merge"), torch.optim.SGD, "other rules of the topology"),
        (same, torch.optim.AdamW, "another kind of optimizer"),
    ):
        other, other_opt, other_rewirer = parts(topology, kind)
        before = other.to_dense()
        with pytest.raises(gs.Unfit, match=what):
            gs.checkpoint.load(path, other, optimizer=other_opt, rewirer=other_rewirer)
        assert torch.equal(other.to_dense(), before)
    other, other_opt, other_rewirer = parts(same)
    gs.checkpoint.load(path, other, optimizer=other_opt, rewirer=other_rewirer)
    assert torch.equal(other.to_dense(), layer.to_dense())
