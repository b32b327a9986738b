"""What all tests share: one thread (tests compare bits), and nothing random left behind."""

import pytest
import torch


@pytest.fixture(autouse=True)
def reproducible():
    """Every test starts from the same random state on one thread, and leaves both as they were."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)


@pytest.fixture
def rng() -> torch.Generator:
    """A generator of the test's own."""
    return torch.Generator().manual_seed(0)
