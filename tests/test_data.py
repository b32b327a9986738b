"""Readers of data files, tasks, and the order of batches: damage is refused, batches follow from the seed."""

import gzip
import struct

import numpy as np
import pytest
import torch

from gossamer import SparseLinear, Support, UsageError
from gossamer.cli import files
from gossamer.cli.tasks import CIFAR10, CIFAR100, MNIST, TASKS, Digits, FashionMNIST, Planted, crop_and_flip, stream


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(6, dtype=np.uint8)


def write_mnist(folder, images, labels, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))


# -------------------------------------------------------------------- IDX


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_gives_back_what_was_written(tmp_path, images, pack):
    path = tmp_path / "x"
    path.write_bytes(pack(idx(images)))
    assert torch.equal(files.read_idx(path, 3), torch.from_numpy(images))


DAMAGE = {
    "truncated: the header gives 6 x 28 x 28": lambda raw: raw[:-1],
    "truncated: the header has": lambda raw: raw[:9],
    "too long": lambda raw: raw + b"0",
    "two zero bytes": lambda raw: b"\x01" + raw[1:],
    "type 8": lambda raw: raw[:2] + b"\x0d" + raw[3:],
    "3 dimension": lambda raw: raw[:3] + b"\x01" + raw[4:],
    "not an IDX file": lambda raw: b"",
    "damaged gzip": lambda raw: gzip.compress(raw)[:-20],
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_idx_file_is_refused(tmp_path, images, reason):
    path = tmp_path / "x"
    path.write_bytes(DAMAGE[reason](idx(images)))
    with pytest.raises(UsageError, match=reason) as error:
        files.read_idx(path, 3)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "task, folder", [(MNIST, "mnist"), (MNIST, "MNIST/raw"), (MNIST, "."), (FashionMNIST, "fashion-mnist")]
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_tasks_find_their_files(tmp_path, images, labels, task, folder, suffix):
    write_mnist(tmp_path / folder, images, labels, suffix)
    data = task(str(tmp_path)).load()
    assert data.shape == (1, 28, 28) and data.classes == 10
    assert torch.equal(data.train_x[:, 0], torch.from_numpy(images)) and data.test_y.tolist() == labels.tolist()


def test_the_folder_is_the_argument_then_the_variable_then_data(tmp_path, images, labels, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("argument", "variable", "data"):
        write_mnist(tmp_path / name / "mnist", images, labels)
    monkeypatch.setenv("GOSSAMER_DATA", "variable")
    assert MNIST("argument").paths()[0].parts[0] == "argument"
    assert MNIST().paths()[0].parts[0] == "variable"
    monkeypatch.delenv("GOSSAMER_DATA")
    assert MNIST().paths()[0].parts[0] == "data"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_missing_files_are_named_with_where_and_whence(tmp_path, name):
    task = TASKS[name](str(tmp_path))
    with pytest.raises(UsageError) as error:
        task.check()
    message = str(error.value)
    for part in (*task.names, str(tmp_path / task.folders[0]), task.home, "--task.data", "GOSSAMER_DATA"):
        assert part in message


def test_only_the_missing_file_is_named(tmp_path, images, labels):
    write_mnist(tmp_path / "mnist", images, labels)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match="1 of 4") as error:
        MNIST(str(tmp_path)).check()
    assert "train-labels" in str(error.value) and "t10k" not in str(error.value)


@pytest.mark.parametrize(
    "wrong, reason",
    [(np.arange(5), "holds 5 labels"), (np.arange(6) + 7, "labels must be below 10")],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, images, wrong, reason):
    write_mnist(tmp_path / "mnist", images, wrong)
    with pytest.raises(UsageError, match=reason):
        MNIST(str(tmp_path)).load()


# -------------------------------------------------------------------- CIFAR


class Tiny10(CIFAR10):
    records = (2,) * 6


class Tiny100(CIFAR100):
    records = (4, 2)


@pytest.mark.parametrize(
    "task, folder, label_bytes", [(Tiny10, "cifar-10-batches-bin", 1), (Tiny100, "cifar-100-binary", 2)]
)
def test_cifar_reads_the_binary_version(tmp_path, task, folder, label_bytes):
    (tmp_path / folder).mkdir()
    rng, tables = np.random.default_rng(0), []
    for name, n in zip(task.names, task.records, strict=True):
        labels = rng.integers(0, 10, (n, label_bytes), np.uint8)
        tables.append(np.concatenate([labels, rng.integers(0, 256, (n, 3072), np.uint8)], 1))
        tables[-1].tofile(tmp_path / folder / name)
    data = task(str(tmp_path)).load()
    whole = np.concatenate(tables[:-1])
    assert torch.equal(data.train_x, torch.from_numpy(whole[:, label_bytes:].reshape(-1, 3, 32, 32)))
    assert data.train_y.tolist() == whole[:, label_bytes - 1].tolist()  # of CIFAR-100's two labels the fine one
    assert data.test_y.tolist() == tables[-1][:, label_bytes - 1].tolist() and data.augment


@pytest.mark.parametrize(
    "change, reason",
    [(lambda raw: raw[:-1], "truncated"), (lambda raw: raw[:3073], "truncated"), (lambda raw: raw + b"0", "too long")],
)
def test_a_cifar_file_of_another_length_is_refused(tmp_path, change, reason):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(change(bytes(2 * 3073)))
    with pytest.raises(UsageError, match=reason):
        files.read_cifar(path, 1, 2)


# -------------------------------------------------------------------- batches


def test_inputs_are_normalised_per_channel(rng):
    data = Digits().load()
    x = data.inputs(data.train_x)
    assert data.shape == (1, 8, 8) and len(data.train_y) == 1297 and len(data.test_y) == 500
    assert abs(float(x.mean())) < 1e-5 and abs(float(x.std()) - 1) < 1e-3


def test_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch():
    data = Planted(examples=40).load()
    epochs = {key: [y for _, y in data.batches(16, *key)] for key in ((0, 0), (0, 1), (1, 0))}
    again = [y for _, y in data.batches(16, 0, 0)]
    assert [len(y) for y in again] == [16, 16, 8]
    assert all(torch.equal(a, b) for a, b in zip(epochs[0, 0], again, strict=True))
    whole = {key: torch.cat(ys) for key, ys in epochs.items()}
    assert all(torch.equal(whole[0, 0].sort()[0], ys.sort()[0]) for ys in whole.values())
    assert not torch.equal(whole[0, 0], whole[0, 1]) and not torch.equal(whole[0, 0], whole[1, 0])


def test_batches_from_the_middle_are_those_of_the_whole_epoch():
    data = Digits().load()._replace(augment=True)
    whole = list(data.batches(400, 3, 2))
    for (x, y), (x2, y2) in zip(whole[2:], data.batches(400, 3, 2, start=2), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_crops_are_shifted_and_mirrored_windows_of_the_padded_image(rng):
    x = torch.arange(1, 1 + 20 * 3 * 6 * 5).view(20, 3, 6, 5)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    windows = padded.unfold(2, 6, 1).unfold(3, 5, 1)  # (20, 3, 5, 5, 6, 5)
    out, seen = crop_and_flip(x, rng, pad=2), set()
    for image, options in zip(out, windows, strict=True):
        found = [
            (i, j, mirror)
            for i in range(5)
            for j in range(5)
            for mirror in (False, True)
            if torch.equal(image, options[:, i, j].flip(-1) if mirror else options[:, i, j])
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len({s[0] for s in seen}) > 2 and len({s[1] for s in seen}) > 2 and {s[2] for s in seen} == {False, True}


def test_streams_differ_by_seed_purpose_and_position():
    keys = [
        (0, "init"),
        (1, "init"),
        (0, "support"),
        (0, "order", 0),
        (0, "order", 1),
        (0, "augment", 0, 1),
        (0, "augment", 1, 0),
    ]
    first = [torch.rand(1, generator=stream(*key)).item() for key in keys]
    assert len(set(first)) == len(keys)
    assert first == [torch.rand(1, generator=stream(*key)).item() for key in keys]


# -------------------------------------------------------------------- planted


def test_the_planted_teacher_is_right_on_its_own_data_and_found_wholly():
    task = Planted()
    data = task.load()
    used, first, second = task.teacher(stream(task.seed, "data"))
    x = torch.cat([data.train_x, data.test_x])
    scores = torch.relu(x @ first.T) @ second.T
    centred = (scores - scores.mean(0)).argmax(1)
    assert torch.equal(centred, torch.cat([data.train_y, data.test_y]))
    assert (first.count_nonzero(1) == task.fan_in).all() and not first[
        :, [i for i in range(64) if i not in used.tolist()]
    ].any()
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    with torch.no_grad():
        net[0].weight.copy_(first)
        net[0].bias.zero_()
        net[2].weight.copy_(second)
        net[2].bias.copy_(-scores.mean(0))
    metrics = task.metrics(net, data)
    assert metrics["accuracy"] == 1.0 and metrics["found"] == pytest.approx(1.0)


def test_found_reads_the_weights_of_a_sparse_layer():
    task = Planted(examples=40)
    used, *_ = task.teacher(stream(task.seed, "data"))
    other = next(i for i in range(64) if i not in used.tolist())
    layer = SparseLinear(64, 4, support=Support.from_ids(torch.tensor(sorted([int(used[0]), other])), (4, 64)))
    with torch.no_grad():
        layer.values.fill_(1.0)
    assert task.metrics(torch.nn.Sequential(layer), task.load())["found"] == pytest.approx(0.5)


def test_noise_replaces_that_share_of_the_training_labels_only():
    clean, noisy = Planted().load(), Planted(noise=0.4).load()
    assert torch.equal(clean.test_y, noisy.test_y) and torch.equal(clean.train_x, noisy.train_x)
    assert 0.25 < float((clean.train_y != noisy.train_y).float().mean()) < 0.35  # 0.4 (1 - 1/4)


@pytest.mark.parametrize("wrong", [{"fan_in": 17}, {"relevant": 65}, {"classes": 1}, {"noise": 1.5}])
def test_impossible_plants_are_refused(wrong):
    with pytest.raises(UsageError):
        Planted(**wrong)
