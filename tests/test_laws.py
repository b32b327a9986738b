"""The laws themselves: each accepts the real thing and rejects each of its mutants."""

import pytest
import torch

import gossamer as gs
from cases import CONVS, OPERATORS, OPTIMIZERS, RULES, SUPPORTS, TOPOLOGIES
from gossamer import laws, recover
from gossamer._backend.dispatch import Kernel
from gossamer._backend.index import op as index
from gossamer.products.linear import op as csr_linear
from mutants import MUTANTS
from mutants.layers import RIGHT

INDEX = {"rows_of": index.ROWS_OF[-1], "columns_of": index.COLUMNS_OF[-1], "values_at": index.VALUES_AT[-1]}
REAL = {
    "check_support": lambda: laws.check_support(SUPPORTS["ragged tiles"]),
    "check_rewire": laws.check_rewire,
    "check_event": laws.check_event,
    "check_kernel": lambda: laws.check_kernel("csr_linear.forward", csr_linear.FORWARD[0], SUPPORTS["primes"]),
    "check_index": lambda: laws.check_index(INDEX, torch.eye(3, 5)),
    "check_layout": lambda: laws.check_layout(gs.CSR),
    "check_layer": RIGHT,
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


LEAST = {  # mutants of each law; a law may gain mutants, not lose them
    "check_support": 16,
    "check_rewire": 11,
    "check_event": 13,
    "check_kernel": 29,
    "check_index": 9,
    "check_layout": 14,
    "check_layer": 7,
    "check_surgery": 12,
    "check_penalty": 16,
    "check_rule": 13,
    "check_topology": 22,
    "check_passes": 6,
    "check_copies": 6,
    "check_reload": 6,
    "check_average": 6,
    "check_newborn": 6,
    "check_checkpoint": 11,
    "check_operator": 9,
    "check_solver": 13,
    "check_transforms": 8,
    "check_meaning": 8,
    "check_units": 8,
    "check_compact": 20,
}


def test_every_law_has_mutants():
    assert {name for name in laws.__all__ if name.startswith("check_")} == set(MUTANTS) == set(REAL) == set(LEAST)
    assert {law: len(mutants) for law, mutants in MUTANTS.items() if len(mutants) < max(5, LEAST[law])} == {}


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


@pytest.mark.parametrize("settings", [gs.SET(12, 4), gs.SET(0.8, 4)], ids=["steps", "fraction"])
def test_laws_take_settings_that_resolve_to_a_topology(settings):
    laws.check_topology(settings, gs.Rewirer, steps=15)


def test_a_fraction_of_an_unknown_run_is_refused():
    with pytest.raises(gs.UsageError, match="stop=0.8 is a fraction of the run"):
        laws.check_topology(gs.SET(0.8, 4), gs.Rewirer)


def test_what_does_not_resolve_to_a_topology_breaks_the_law():
    class Empty:
        def resolve(self, steps):
            return None

    with pytest.raises(AssertionError, match="must return a Topology, not NoneType"):
        laws.check_topology(Empty(), gs.Rewirer)
