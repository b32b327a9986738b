"""Functions that save or load a checkpoint wrongly."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

import gossamer as gs
from cases import STOP
from gossamer import checkpoint, laws
from gossamer.checkpoint.file import read_file, seal, unpacked, write_file


def _checkpoint(**functions: Callable) -> Callable[[], None]:
    return lambda: laws.check_checkpoint(gs.CSST(STOP, 4, 8, window=3, fraction=0.5), gs.Rewirer, **functions)


def _saves_no_rewirer(path, model, *, optimizer, rewirer, extra):
    state = {**rewirer.state_dict(), "probes": {}}

    class Emptied:
        def state_dict(self):
            return state

    checkpoint.save(path, model, optimizer=optimizer, rewirer=Emptied(), extra=extra)


def _keeps_random_state(path, model, **parts):
    state = torch.get_rng_state()
    extra = checkpoint.load(path, model, **parts)
    torch.set_rng_state(state)
    return extra


def _not_atomic(path, model, **parts):
    Path(path).write_bytes(b"here a checkpoint will be")
    checkpoint.save(path, model, **parts)


def _leaves_a_file(path, model, **parts):
    Path(path).with_suffix(".partial").write_bytes(b"")
    checkpoint.save(path, model, **parts)


def _drops_what_is_not_json(path, model, *, extra, **parts):
    plain = {key: value for key, value in extra.items() if isinstance(value, (int, str))}
    checkpoint.save(path, model, extra=plain, **parts)


def _loads_unverified(path, model, *, optimizer, rewirer):
    """As a user's own script may do it: no version, no index and no digest is verified."""
    seal(path)
    meta, tensors = read_file(Path(path))
    model.load_state_dict(
        {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}, strict=False
    )
    for name, part in (("optimizer", optimizer), ("rewirer", rewirer)):
        part.load_state_dict(unpacked(meta["states"][name], tensors, set()))
    checkpoint._set_rng_state(unpacked(meta["rng"], tensors, set()))
    return meta["extra"]


def _verifies_after_loading(path, model, **parts):
    _, tensors = read_file(Path(path))
    values = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    with torch.no_grad():
        for key, t in model.state_dict().items():
            if key in values and values[key].shape == t.shape and not key.endswith(("crow", "col")):
                t.copy_(values[key])
    return checkpoint.load(path, model, **parts)


def _digest_ignored(path, model, **parts):
    """Replaces the digests of the indices in the file by those that fit."""
    meta, tensors = read_file(Path(path))
    meta.pop("version")
    for name, said in meta["supports"].items():
        if f"model.{name}.col" in tensors:
            said["sha256"] = checkpoint.digest(tensors[f"model.{name}.crow"], tensors[f"model.{name}.col"])
    write_file(Path(path), tensors, meta)
    return checkpoint.load(path, model, **parts)


def _any_bytes(path, model, **parts):
    """Looks at the structure alone: whatever the bytes are, they are those that were written."""
    with contextlib.suppress(EOFError, AssertionError):
        seal(path)
    return checkpoint.load(path, model, **parts)


def _optimizer_unseen(path, model, *, optimizer, rewirer):
    """Loads the optimizer unverified, before it verifies the rest."""
    meta, tensors = read_file(Path(path))
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        optimizer.load_state_dict(unpacked(meta["states"]["optimizer"], tensors, set()))
    return checkpoint.load(path, model, optimizer=optimizer, rewirer=rewirer)


def _other_exception(path, model, **parts):
    try:
        return checkpoint.load(path, model, **parts)
    except gs.UsageError as refusal:
        raise RuntimeError(str(refusal)) from refusal


CHECKPOINT = {
    "the window in progress is not saved": _checkpoint(save=_saves_no_rewirer),
    "torch's random state does not come back": _checkpoint(load=_keeps_random_state),
    "a failed save destroys the old file": _checkpoint(save=_not_atomic),
    "a save leaves a second file": _checkpoint(save=_leaves_a_file),
    "what is not JSON is dropped in silence": _checkpoint(save=_drops_what_is_not_json),
    "nothing is verified": _checkpoint(load=_loads_unverified),
    "verified after the model has changed": _checkpoint(load=_verifies_after_loading),
    "the digest of an index is not compared": _checkpoint(load=_digest_ignored),
    "the digest of the file is not compared": _checkpoint(load=_any_bytes),
    "the optimizer is not verified": _checkpoint(load=_optimizer_unseen),
    "refused with another exception": _checkpoint(load=_other_exception),
}
