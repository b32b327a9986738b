"""Checkpoints: the law for every kind of state, resuming at any step, and the sentence of every refusal."""

import copy
import errno
import json
import os
import re
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from cases import (
    FLAT,
    LAYOUT_NAMES,
    OPTIMIZERS,
    TOPOLOGIES,
    convnet,
    generator,
    mlp,
    same_state,
    supports,
    table,
    train,
)
from gossamer import checkpoint, laws
from gossamer.checkpoint import disk, file
from gossamer.checkpoint.file import seal
from gossamer.training.loop import fit
from gossamer.training.rewirer import Rewirer


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
        return {
            "optimizer": self.optimizer,
            "rewirer": self.rewirer,
            "scheduler": self.scheduler,
            "ledger": self.ledger,
        }

    def train(self, start: int, stop: int) -> list[float]:
        """With dropout-like noise from torch's own generator, so that its state matters."""
        losses: list[float] = []
        batches = (
            (x + 0.01 * torch.randn(x.shape, dtype=x.dtype), y) for x, y in (FLAT.batch(t) for t in range(start, stop))
        )
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
    laws.check_checkpoint(TOPOLOGIES["csst"], gs.Rewirer, optimizer=OPTIMIZERS[name], block=(2, 3))


CUT = (
    "set",
    "rigl",
    "snfs",
    "gmp",
    "csst",
    "csst by flow",
    "csst iht",
    "csst merging",
    "csst pooled",
    "csst shrinking",
)


@pytest.mark.parametrize("name", CUT)
def test_resume_is_bit_equal_wherever_it_was_cut(name, tmp_path):
    """From before the first event to after the second: plain steps, the middle of windows, just after events. Losses,
    weights, supports, optimizer, schedule, accounts and torch's random state."""
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
    assert (
        said["version"] == checkpoint.VERSION
        and said["extra"] == {"epoch": 2}
        and set(said["states"]) == set(job.parts)
    )
    for name, layer in gs.sparse_layers(job.model).items():
        entry = said["supports"][name]
        assert (entry["shape"], entry["n"], entry["layout"], entry["block"]) == (
            list(layer.dense_shape),
            layer.support.n,
            "csr",
            [1, 1],
        )
        assert entry["sha256"] == checkpoint.digest(layer.crow, layer.col)


def test_a_file_holds_plain_tensors_and_json(tmp_path):
    """Anything that reads safetensors can read it: values and index of each layer under the model's own names, int32
    index."""
    job, path = saved(tmp_path)
    with safe_open(str(path), "pt") as held:
        header = held.metadata()
        names = set(held.keys())
        layer = gs.sparse_layers(job.model)["2"]
        assert torch.equal(held.get_tensor("model.2.values"), layer.values.detach())
        assert (
            torch.equal(held.get_tensor("model.2.col"), layer.col)
            and held.get_tensor("model.2.crow").dtype == torch.int32
        )
    assert header["format"] == "gossamer-checkpoint" and json.loads(header["json"])["extra"] == {"epoch": 2}
    assert {f"model.{key}" for key in job.model.state_dict()} <= names and not any(
        "perm" in name or "ccol" in name for name in names
    )


def test_the_file_is_as_small_as_the_support(tmp_path):
    layer = gs.SparseLinear(4096, 4096, support=gs.Support.random((4096, 4096), 1000, rng=generator()))
    checkpoint.save(tmp_path / "x", layer)
    assert (
        os.path.getsize(tmp_path / "x") < 1000 * 8 + 4096 * 8 + 20_000
    )  # values, columns; pointers, bias; header and random state


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
    with pytest.raises(gs.UsageError, match="extra"):
        checkpoint.save(tmp_path / "x", Job().model, extra={"model": object()})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what is refused


def rewritten(path, tensors=lambda t: None, meta=lambda m: None, header=lambda h: None) -> None:
    """The file again, with some of it changed, and sealed again as if it had been written so: the digest does not
    help."""
    with safe_open(str(path), "pt") as opened:
        said, held = dict(opened.metadata()), {key: opened.get_tensor(key) for key in opened.keys()}
    inner = json.loads(said["json"])
    tensors(held), meta(inner)
    said["json"] = json.dumps(inner)
    header(said)
    save_file(held, str(path), metadata=said)
    if "digest" in said:
        seal(path)


def truncated(path, fraction: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])


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
    "of another program": (lambda p: save_file({"a": torch.ones(2)}, str(p)), "not a gossamer checkpoint"),
    "newer": (
        lambda p: rewritten(p, header=lambda h: h.update(version="4")),
        "it has format version 4; this gossamer reads version 3",
    ),
    "of an older format": (
        lambda p: rewritten(p, header=lambda h: h.update(version="2")),
        "it has format version 2; this gossamer reads version 3",
    ),
    "of gossamer 0.1.0": (
        lambda p: rewritten(p, header=lambda h: (h.pop("digest"), h.update(version="1"))),
        "it has format version 1; this gossamer reads version 3",
    ),
    "no digest": (lambda p: rewritten(p, header=lambda h: h.pop("digest")), "header is damaged.*no digest"),
    "no version": (lambda p: rewritten(p, header=lambda h: h.pop("version")), "header is damaged"),
    "broken json": (lambda p: rewritten(p, header=lambda h: h.update(json="{")), "header is damaged"),
    "json of something else": (lambda p: rewritten(p, header=lambda h: h.update(json="[1]")), "header is damaged"),
    "no states": (lambda p: rewritten(p, meta=lambda m: m.pop("states")), "header is damaged"),
    "no random state": (lambda p: rewritten(p, meta=lambda m: m.pop("rng")), "header is damaged"),
    "no supports": (
        lambda p: rewritten(p, meta=lambda m: m.update(supports={})),
        "2: the file does not describe its support",
    ),
    "supports of more layers": (
        lambda p: rewritten(p, meta=lambda m: m["supports"].update(x={})),
        "x: the file describes it as a sparse layer",
    ),
    "index of int64": (lambda p: rewritten(p, changed("model.2.col", torch.Tensor.long)), "not int32"),
    "index unsorted": (lambda p: rewritten(p, flipped), "2: columns must"),
    "index of another support": (lambda p: rewritten(p, other_index), "SHA-256 differs"),
    "values of another length": (
        lambda p: rewritten(p, changed("model.2.values", lambda t: t[:3])),
        "values have shape",
    ),
    "values of another dtype": (
        lambda p: rewritten(p, changed("model.2.values", torch.Tensor.half)),
        "torch.float16 in the file",
    ),
    "a bias of another shape": (lambda p: rewritten(p, changed("model.2.bias", lambda t: t[:3])), "2.bias"),
    "no bias": (lambda p: rewritten(p, lambda t: t.pop("model.2.bias")), "only the model has '2.bias', not the file"),
    "no index": (lambda p: rewritten(p, lambda t: t.pop("model.2.col")), "only the model has '2.col', not the file"),
    "a tensor of the optimizer gone": (
        lambda p: rewritten(p, lambda t: t.pop(next(k for k in t if k.startswith("optimizer.")))),
        "is damaged.*that is missing, or used twice",
    ),
    "a tensor more": (
        lambda p: rewritten(p, lambda t: t.update(more=torch.ones(2))),
        "its tensors are not the tensors that its header names",
    ),
    "one tensor in two places": (
        lambda p: rewritten(p, meta=lambda m: m["rng"]["items"].append(m["rng"]["items"][0])),
        "that is missing, or used twice",
    ),
    "a random state that is none": (
        lambda p: rewritten(p, changed("rng.torch", torch.zeros_like)),
        "generator does not accept the random state",
    ),
    "a random state too short": (
        lambda p: rewritten(p, changed("rng.torch", lambda t: t[:100])),
        "random state is a tensor",
    ),
    "a state packed wrongly": (
        lambda p: rewritten(p, meta=lambda m: m["states"].update(ledger={"set": []})),
        "packed as 'set'",
    ),
    "nested without end": (
        lambda p: rewritten(p, header=lambda h: h.update(json="[" * 100_000)),
        "header is damaged: RecursionError",
    ),
    "nested deeply": (
        lambda p: rewritten(p, meta=lambda m: m["states"].update(ledger=nested(200))),
        "it is not a dict",
    ),
    "gone": (lambda p: p.unlink(), "there is no such file"),
}


def shallow(seed: int) -> nn.Module:
    return mlp(seed)[:3]


def wide(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(13, 18), nn.Tanh(), nn.Linear(18, 11), nn.Tanh(), nn.Linear(11, 5)).double()


OTHERS = {  # what loads it -> the sentence
    "another depth": (lambda: Job(make=shallow), "only the file has '4.values', not the model"),
    "another width": (lambda: Job(make=wide), "0: shape is"),
    "another kind": (lambda: Job(exclude="2"), "only the model has '2.weight', not the file"),
    "another layout": (lambda: Job(layout="masked"), "0: layout is masked here, csr in the file"),
    "other tiles": (lambda: Job(block=(2, 2)), r"0: block is \[2, 2\] here, \[1, 1\] in the file"),
    "another dtype": (lambda: _single_precision(), "torch.float64 in the file"),
    "another topology": (lambda: Job(TOPOLOGIES["rigl"]), "state of its rewirer does not fit(.|\n)*topology 'csst'"),
    "other groups": (lambda: _grouped(), r"parameter groups of sizes \[6\], not"),
}


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
    with pytest.raises(gs.UsageError, match=sentence) as caught:
        checkpoint.load(path, victim.model, **victim.parts)
    assert str(path) in str(caught.value)
    assert laws.details.same(victim.state(), before)


@table(OTHERS)
def test_a_run_that_is_not_the_same_is_refused_and_nothing_changes(case, tmp_path):
    make, sentence = case
    _, path = saved(tmp_path)
    victim = make()
    before = victim.state()
    with pytest.raises(gs.UsageError, match=sentence):
        checkpoint.load(path, victim.model, optimizer=victim.optimizer, rewirer=victim.rewirer)
    assert laws.details.same(victim.state(), before)


def test_a_ledger_of_other_layers_is_refused_before_anything_changes(tmp_path):
    _, path = saved(tmp_path)
    victim = Job(seed=1)
    victim.ledger = gs.Ledger(Job(make=shallow).model, FLAT.batch(0)[0])
    before = victim.state()
    with pytest.raises(gs.UsageError, match="layers"):
        checkpoint.load(path, victim.model, **victim.parts)
    assert laws.details.same(victim.state(), before)


def test_a_state_that_was_not_saved_is_refused(tmp_path):
    job = Job()
    checkpoint.save(tmp_path / "x.safetensors", job.model)
    with pytest.raises(gs.UsageError, match="holds no state of the optimizer and the rewirer"):
        checkpoint.load(tmp_path / "x.safetensors", job.model, optimizer=job.optimizer, rewirer=job.rewirer)


def test_a_misspelt_path_suggests_its_neighbour(tmp_path):
    saved(tmp_path)
    with pytest.raises(gs.UsageError, match=r"no such file; did you mean 'run\.safetensors'"):
        checkpoint.load(tmp_path / "rnu.safetensors", mlp())
    with pytest.raises(gs.UsageError, match="no such file"):
        checkpoint.inspect(tmp_path / "nowhere" / "x.safetensors")


def test_names_near_each_other_are_suggested(tmp_path):
    checkpoint.save(tmp_path / "x", nn.ModuleDict({"head": gs.SparseLinear(3, 4, density=0.5)}))
    with pytest.raises(
        gs.UsageError, match="only the model has 'haed.values', not the file; did you mean 'head.values'"
    ):
        checkpoint.load(tmp_path / "x", nn.ModuleDict({"haed": gs.SparseLinear(3, 4, density=0.5)}))


# ---------------------------------------------------------------- states that are not those of their objects


class Lying:
    """A part with another's state, damaged: the file that holds it is faultless."""

    def __init__(self, part, lie):
        self.state = copy.deepcopy(part.state_dict())
        lie(self.state)

    def state_dict(self):
        return self.state


def put(*way):
    """Another value at the end of a way of keys."""

    def lie(state):
        *keys, last, value = way
        for key in keys:
            state = state[key]
        state[last] = value(state[last]) if callable(value) else value

    return lie


def without(*way):
    def lie(state):
        for key in way[:-1]:
            state = state[key]
        del state[way[-1]]

    return lie


LIES = {  # of which part, which -> the sentence
    "no groups": ("optimizer", without("param_groups"), "not the state of an optimizer"),
    "a group less": ("optimizer", put("param_groups", lambda groups: groups[:0]), r"groups of sizes \[\]"),
    "an option gone": ("optimizer", without("param_groups", 0, "eps"), "its groups have no eps"),
    "an option that is text": ("optimizer", put("param_groups", 0, "lr", "0.1"), "lr is a str"),
    "a step size that is no number": ("optimizer", put("param_groups", 0, "lr", float("nan")), "lr is nan"),
    "a step size below 0": ("optimizer", put("param_groups", 0, "lr", -0.1), "lr is -0.1"),
    "decays of three moments": ("optimizer", put("param_groups", 0, "betas", (0.9, 0.9, 0.9)), "betas is a list of 3"),
    "parameters numbered otherwise": (
        "optimizer",
        put("param_groups", 0, "params", 0, "x"),
        "not numbered as the present parameters",
    ),
    "a state of no parameter": (
        "optimizer",
        put("state", lambda state: {**state, 99: {}}),
        "not one of its parameters",
    ),
    "a parameter called true": (
        "optimizer",
        put("state", lambda state: {True if k == 1 else k: v for k, v in state.items()}),
        "of True",
    ),
    "a state that is a list": ("optimizer", put("state", 1, [1]), "parameter 1 is a list of 1"),
    "a moment gone": ("optimizer", without("state", 1, "exp_avg_sq"), "0.bias has no 'exp_avg_sq'"),
    "a moment renamed": (
        "optimizer",
        put("state", 0, lambda s: {k.replace("exp_avg", "x"): v for k, v in s.items()}),
        "no 'exp_avg'",
    ),
    "a moment of another length": ("optimizer", put("state", 0, "exp_avg", lambda t: t[:-1]), "0.values has shape"),
    "a moment of more dimensions": (
        "optimizer",
        put("state", 0, "exp_avg", lambda t: t[:, None]),
        "unlike the same state of any other parameter",
    ),
    "a moment of another type": (
        "optimizer",
        put("state", 0, "exp_avg", torch.Tensor.half),
        "unlike the same state of any other parameter",
    ),
    "a moment that is a number": (
        "optimizer",
        put("state", 0, "exp_avg", 0.5),
        "unlike the same state of any other parameter",
    ),
    "a count below 0": ("optimizer", put("state", 0, "step", torch.tensor(-1.0)), "is -1.0"),
    "a schedule without its epoch": ("scheduler", without("last_epoch"), "other keys than at present: last_epoch"),
    "an epoch that is text": ("scheduler", put("last_epoch", "7"), "last_epoch is a str"),
    "half an epoch": ("scheduler", put("last_epoch", 6.5), "last_epoch is a float, not a whole number"),
    "an epoch below -1": ("scheduler", put("last_epoch", -2), "last_epoch is -2, below -1"),
    "step sizes of two groups": ("scheduler", put("base_lrs", [0.1, 0.1]), "base_lrs is a list of 2, not a list of 1"),
    "accounts of five parts": ("ledger", put("flops", [1, 2, 3, 4, 5]), "flops is a list of 5"),
    "accounts of other layers": ("ledger", put("by_layer", {"x": [0, 0, 0, 0]}), "other keys than at present"),
    "a negative account": ("ledger", put("by_layer", "0", [1, 2, -3, 4]), "by_layer.0.2 is -3, below 0"),
    "an account that is true": ("ledger", put("steps", True), "steps is a bool"),
    "a state that is a number": ("ledger", lambda state: state.clear(), "other keys than at present"),
}


@table(LIES)
def test_a_state_that_is_not_the_objects_is_refused_and_nothing_changes(case, tmp_path):
    name, lie, sentence = case
    job = Job(optimizer="adamw")
    job.train(0, 7)
    checkpoint.save(tmp_path / "x", job.model, **{**job.parts, name: Lying(job.parts[name], lie)})
    for steps in (0, 3):
        victim = Job(seed=1, optimizer="adamw")
        victim.train(0, steps)
        before = victim.state()
        with pytest.raises(gs.UsageError, match=sentence):
            checkpoint.load(tmp_path / "x", victim.model, **victim.parts)
        assert laws.details.same(victim.state(), before)


KINDS = (
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "Adamax",
    "AdamW",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout, block", [("csr", (1, 1)), ("csr", (2, 3)), ("masked", (1, 1))])
def test_no_optimizer_of_torch_is_refused(kind, layout, block, tmp_path):
    """Fresh or trained less or further than the file: what is verified of a state is true of every kind of it."""

    def job(seed: int, steps: int):
        model = gs.sparsify(mlp(seed, torch.float32), 0.4, layout=layout, block=block, exclude="4", rng=generator(seed))
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01)
        train(
            model,
            optimizer,
            gs.Rewirer(model, optimizer, TOPOLOGIES["set"], rng=generator(seed)),
            FLAT.batches(steps, torch.float32),
        )
        return (
            model,
            optimizer,
        )  # in single precision: torch's own loading casts all numbers of ASGD and NAdam to the parameter's type

    model, optimizer = job(0, 6)
    checkpoint.save(tmp_path / "x", model, optimizer=optimizer)
    for steps in (0, 2, 9):
        other, theirs = job(1, steps)
        checkpoint.load(tmp_path / "x", other, optimizer=theirs)
        assert laws.details.same(theirs.state_dict(), optimizer.state_dict()) and same_state(other, model)
    checkpoint.save(tmp_path / "y", job(0, 0)[0], optimizer=job(0, 0)[1])
    checkpoint.load(tmp_path / "y", other, optimizer=theirs)  # back to before the first step
    assert theirs.state_dict()["state"].keys() == job(0, 0)[1].state_dict()["state"].keys()


SCHEDULERS = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "steps": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4]),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 20),
    "in sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.ConstantLR(o, 0.5, 2), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "warm restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


@table(SCHEDULERS)
def test_no_scheduler_of_torch_is_refused(case, tmp_path):
    def job(steps: int):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = case(optimizer)
        for x, y in FLAT.batches(steps):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        return model, {"optimizer": optimizer, "scheduler": scheduler}

    model, parts = job(5)
    checkpoint.save(tmp_path / "x", model, **parts)
    for steps in (0, 3, 7):
        other, theirs = job(steps)
        checkpoint.load(tmp_path / "x", other, **theirs)
        assert theirs["optimizer"].param_groups[0]["lr"] == parts["optimizer"].param_groups[0]["lr"]


class Stubborn:
    """A user's own part: takes no state but the one it has."""

    def __init__(self, error: BaseException):
        self.error = error

    def state_dict(self):
        return {"a": 1}

    def load_state_dict(self, state):
        torch.rand(3)
        raise self.error


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError("no"), RuntimeError("no"), AssertionError("no"), ZeroDivisionError("no")]
)
def test_a_part_that_refuses_at_last_leaves_all_others_as_they_were(error, tmp_path):
    job, path = saved(tmp_path)
    parts = {**job.parts, "target": Stubborn(error)}
    checkpoint.save(path, job.model, **parts)
    victim = Job(seed=1)
    victim.train(0, 5)
    before = victim.state()
    with pytest.raises(gs.UsageError, match="the target refuses its state; nothing has changed"):
        checkpoint.load(path, victim.model, **{**victim.parts, "target": Stubborn(error)})
    assert laws.details.same(victim.state(), before)


def test_ctrl_c_while_loading_leaves_everything_as_it_was(tmp_path):
    job, path = saved(tmp_path)
    checkpoint.save(path, job.model, **job.parts, target=Stubborn(KeyboardInterrupt()))
    victim = Job(seed=1)
    before = victim.state()
    with pytest.raises(KeyboardInterrupt):
        checkpoint.load(path, victim.model, **victim.parts, target=Stubborn(KeyboardInterrupt()))
    assert laws.details.same(victim.state(), before)


def test_two_ways_of_one_spelling_do_not_meet(tmp_path):
    """{"a.b": x, "a": {"b": y}}: both would be the tensor target.a.b."""

    class Part:
        state = {
            "a.b": torch.tensor([1.0]),
            "a": {"b": torch.tensor([2.0])},
            1: torch.tensor([3.0]),
            "1": torch.tensor([4.0]),
        }

        def state_dict(self):
            return self.state

        def load_state_dict(self, state):
            self.state = state

    model, here, there = mlp(), Part(), Part()
    checkpoint.save(tmp_path / "x", model, target=here)
    there.state = {}
    checkpoint.load(tmp_path / "x", model, target=there)
    assert laws.details.same(there.state, Part.state)


def test_what_was_loaded_does_not_hang_on_the_file(tmp_path):
    """The tensors of safetensors are mapped to the file: writing to the file later would change the optimizer."""
    _, path = saved(tmp_path)
    victim = Job(seed=1)
    checkpoint.load(path, victim.model, **victim.parts)
    before = victim.state()
    with open(path, "r+b") as opened:
        opened.write(bytes(path.stat().st_size))
    assert laws.details.same(victim.state(), before)


@pytest.mark.parametrize("state", [{"a": object()}, {(1, 2): 3}, {"a": {1, 2}}, {"a": torch.float32}])
def test_what_no_file_can_hold_is_refused_at_saving(state, tmp_path):
    class Part:
        def state_dict(self):
            return state

    with pytest.raises(gs.UsageError, match="checkpoint.save"):
        checkpoint.save(tmp_path / "x", mlp(), target=Part())
    with pytest.raises(gs.UsageError, match="extra must be a dict"):
        checkpoint.save(tmp_path / "x", mlp(), extra=[1])
    assert not list(tmp_path.iterdir())


def test_a_header_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    """Such as that of a topology with millions of events."""
    monkeypatch.setattr(file, "LONGEST", 1000)
    with pytest.raises(gs.UsageError, match="checkpoint.save: the states hold too many numbers"):
        checkpoint.save(tmp_path / "x", mlp(), extra={"events": list(range(1000))})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- interruptions


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """A disk that is full when the file is synchronised: the old file is whole, no litter."""
    _, path = saved(tmp_path)
    content = path.read_bytes()

    def full_disk(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "sync", full_disk)
    with pytest.raises(
        gs.UsageError,
        match=f"{path}: the disk is full: No space left on device\n.*the previous file is complete",
    ):
        checkpoint.save(path, Job().model)
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_disk_that_is_really_full_leaves_the_old_file(tmp_path):
    """The system refuses to write beyond a size: the error comes out of safetensors' own writing."""
    resource = pytest.importorskip("resource")
    _, path = saved(tmp_path)
    content, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, hard))
    try:
        with pytest.raises(gs.UsageError, match="the disk is full"):
            checkpoint.save(path, Job(seed=2).model, **Job(seed=2).parts)
        with pytest.raises(gs.UsageError, match="the disk is full"):
            disk.write(path, "x" * len(content))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_places_that_cannot_be_written_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in ("file/x", "folder", "x" * 300):
        with pytest.raises(gs.UsageError, match="cannot be written"):
            checkpoint.save(tmp_path / place, mlp())
    with pytest.raises(gs.UsageError, match="this is a folder"):
        checkpoint.load(tmp_path / "folder", mlp())


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on open files that may be renamed")
def test_the_next_save_removes_what_dead_writers_left_and_nothing_else(tmp_path):
    """Ours, those of 0.1.0; not another file's, not a user's, not a living writer's."""
    dead = ["x.pt.0a1b2c3d.tmp", "x.ptabc_12de.tmp", "x.pt.tmp"]
    others = ["x.pt.old.tmp", "y.pt.0a1b2c3d.tmp", "x.pt.0a1b2c3d.tmp2", "x.pt.txt"]
    for name in dead + others:
        (tmp_path / name).write_text("left")
    with disk.replacing(tmp_path / "x.pt") as living:
        checkpoint.save(tmp_path / "x.pt", mlp())
        assert living.exists()
        living.write_text("later")
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "x.pt"])
        and (tmp_path / "x.pt").read_text() == "later"
    )


def test_files_get_the_usual_permissions(tmp_path):
    checkpoint.save(tmp_path / "x", mlp())
    (tmp_path / "y").write_text("")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "lock"
    with disk.lock(path, "here"):
        with pytest.raises(gs.UsageError, match=f"here: process {os.getpid()} is writing here"):
            with disk.lock(path, "here"):
                pass
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()
    path.write_text("12345\n")  # its holder was killed
    with disk.lock(path, "here"):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


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
    for part, state in zip(
        (again.model, again.optimizer, again.rewirer), torch.load(tmp_path / "states.pt"), strict=True
    ):
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
    assert (checkpoint.FORMAT, checkpoint.VERSION) == ("gossamer-checkpoint", 3)
    assert re.fullmatch(r"[0-9a-f]{64}", checkpoint.digest(torch.zeros(1), torch.zeros(0)))


def test_other_rules_or_another_optimizer_are_refused_before_anything_changes(tmp_path):
    def parts(topology, kind=torch.optim.SGD):
        layer = gs.SparseLinear(9, 7, density=0.3, rng=torch.Generator().manual_seed(3))
        opt = kind(layer.parameters(), lr=0.1)
        return layer, opt, gs.Rewirer(layer, opt, topology, rng=torch.Generator().manual_seed(4))

    layer, opt, rewirer = parts(gs.CSST(40, 10, 20, 4))
    for _ in range(8):  # into a sensing window
        layer(torch.randn(3, 9)).sum().backward()
        rewirer.step()
        opt.zero_grad()
    path = tmp_path / "c.safetensors"
    gs.checkpoint.save(path, layer, optimizer=opt, rewirer=rewirer)
    same = gs.CSST(40, 10, 20, 4)
    for topology, kind, what in (
        (gs.CSST(40, 5, 20, 4), torch.optim.SGD, "state of its rewirer does not fit(.|\n)*when was"),
        (gs.CSST(40, 10, 20, 4, mode="merge"), torch.optim.SGD, "state of its rewirer does not fit(.|\n)*merge was"),
        (same, torch.optim.AdamW, "another kind of optimizer"),
    ):
        other, other_opt, other_rewirer = parts(topology, kind)
        before = other.to_dense()
        with pytest.raises(gs.UsageError, match=what):
            gs.checkpoint.load(path, other, optimizer=other_opt, rewirer=other_rewirer)
        assert torch.equal(other.to_dense(), before)
    other, other_opt, other_rewirer = parts(same)
    gs.checkpoint.load(path, other, optimizer=other_opt, rewirer=other_rewirer)
    assert torch.equal(other.to_dense(), layer.to_dense())
