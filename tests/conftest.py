"""What all tests share: one thread unless OMP_NUM_THREADS asks for more (bits are those of a number of threads), nothing random left."""

import os

import pytest
import torch

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


@pytest.fixture(autouse=True)
def reproducible():
    """Every test starts from the same random state on the same number of threads, and leaves both as they were."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)


@pytest.fixture
def rng() -> torch.Generator:
    """A generator of the test's own."""
    return torch.Generator().manual_seed(0)
