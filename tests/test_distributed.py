"""Two processes, each with half of every batch: both have the supports of one process with the whole batch."""

import multiprocessing

import pytest
import torch

from ranks import AVERAGED, WORLD, WRAPPED, trained, work

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="needs gloo"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both processes ended with, per topology."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, str(folder))) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * WORLD
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", WRAPPED + AVERAGED)
def test_both_ranks_hold_the_same_bits(ranks, name):
    """Weights and supports: nothing that decides differs between the ranks, though each saw other data."""
    first, second = (rank[name] for rank in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first if key != "losses")
    assert not torch.equal(first["losses"], second["losses"])


@pytest.mark.parametrize("name", WRAPPED + AVERAGED)
def test_they_are_one_process_with_the_whole_batch(ranks, name):
    """Supports exactly, weights and the mean of the losses to rounding, in float64."""
    alone = trained(name, slice(None), parallel=False)
    for key, t in ranks[0][name].items():
        if key == "losses":
            assert torch.allclose((t + ranks[1][name][key]) / 2, alone[key], rtol=1e-8)
        elif t.dtype == torch.int32:
            assert torch.equal(t, alone[key]), key
        else:
            assert torch.allclose(t, alone[key], rtol=1e-8, atol=1e-10), key
