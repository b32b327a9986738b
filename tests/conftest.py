"""What all tests share: a fixed number of threads, and no randomness that one test hands on to another.

Bits depend on the number of threads, so it is one unless OMP_NUM_THREADS asks for more.
"""

import os

import pytest
import torch

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


@pytest.fixture(autouse=True)
def reproducible():
    """Every test starts from the same random state and number of threads, and restores both."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)


@pytest.fixture
def rng() -> torch.Generator:
    """A generator for one test."""
    return torch.Generator().manual_seed(0)
