"""The laws themselves: every one accepts the real thing and rejects each of its mutants. A test that cannot fail is worse than none."""

import pytest
import torch

import gossamer as gs
from cases import CONVS, OPERATORS, OPTIMIZERS, RULES, SUPPORTS, TOPOLOGIES
from gossamer import laws, recover
from gossamer._backend.dispatch import Kernel
from gossamer._backend.index import op as index
from gossamer.products.linear import op as csr_linear
from mutants import MUTANTS

INDEX = {"rows_of": index.ROWS_OF[-1], "columns_of": index.COLUMNS_OF[-1], "values_at": index.VALUES_AT[-1]}
REAL = {
    "check_support": lambda: laws.check_support(SUPPORTS["ragged tiles"]),
    "check_rewire": laws.check_rewire,
    "check_event": laws.check_event,
    "check_kernel": lambda: laws.check_kernel("csr_linear.forward", csr_linear.FORWARD[0], SUPPORTS["primes"]),
    "check_index": lambda: laws.check_index(INDEX, torch.eye(3, 5)),
    "check_layout": lambda: laws.check_layout(gs.CSR),
    "check_surgery": laws.check_surgery,
    "check_penalty": lambda: laws.check_penalty(gs.LogL1(0.5, 0.1, "kernel")),
    "check_rule": lambda: laws.check_rule(RULES["xRDA"]),
    "check_topology": lambda: laws.check_topology(TOPOLOGIES["csst"], gs.Rewirer),
    "check_passes": lambda: laws.check_passes(TOPOLOGIES["csst"], gs.Rewirer),
    "check_copies": lambda: laws.check_copies(TOPOLOGIES["csst"], gs.Rewirer),
    "check_reload": lambda: laws.check_reload(TOPOLOGIES["csst"], gs.Rewirer),
    "check_average": lambda: laws.check_average(gs.Rewirer),
    "check_newborn": lambda: laws.check_newborn(gs.Rewirer, OPTIMIZERS["adamw"]),
    "check_checkpoint": lambda: laws.check_checkpoint(TOPOLOGIES["csst"], gs.Rewirer),
    "check_operator": lambda: laws.check_operator(OPERATORS["gated"]()),
    "check_solver": lambda: laws.check_solver(recover.niht),
    "check_transforms": lambda: laws.check_transforms(gs.CSR, SUPPORTS["ragged tiles"]),
    "check_compact": lambda: laws.check_compact(gs.compact),
    "check_meaning": lambda: laws.check_meaning(lambda m: gs.sparsify(m, 0.4)),
    "check_units": lambda: laws.check_units(lambda A, y: recover.niht(A, y, 3)),
}


def test_every_law_has_mutants():
    assert {name for name in laws.__all__ if name.startswith("check_")} == set(MUTANTS) == set(REAL)
    assert all(len(mutants) >= 5 for mutants in MUTANTS.values())


@pytest.mark.parametrize("law", REAL)
def test_law_accepts_the_real_thing(law):
    REAL[law]()


@pytest.mark.parametrize(("law", "mutant"), [(law, name) for law, mutants in MUTANTS.items() for name in mutants])
def test_law_rejects_its_mutant(law, mutant):
    with pytest.raises(AssertionError) as caught:
        MUTANTS[law][mutant]()
    assert str(caught.value), "a law must say in a sentence which law is broken"


def test_a_kernel_that_declines_breaks_no_law():
    """... and the law says that it has tested nothing."""
    declines = Kernel("picky", lambda *_: 1 / 0, lambda *_: ["only on Sundays"])
    assert laws.check_kernel("csr_linear.forward", declines, SUPPORTS["primes"]) is False
    assert laws.check_kernel("csr_linear.forward", csr_linear.FORWARD[-1], SUPPORTS["primes"]) is True


def test_laws_leave_torch_as_it_was():
    state, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    laws.check_layout(gs.CSR, CONVS["3x3"].support, CONVS["3x3"].g)
    laws.check_topology(TOPOLOGIES["static"], gs.Rewirer)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.equal(torch.get_rng_state(), state)
