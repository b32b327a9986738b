"""Laws: what supports, kernels, layouts, surgery, penalties, rules, topologies, checkpoints, operators and solvers obey, as functions.

    from gossamer import laws
    laws.check_layout(MY_LAYOUT)
    laws.check_kernel("csr_linear.forward", MY_KERNEL, some_support)
    laws.check_topology(my_topology(stop=40), gs.Rewirer)

Each raises AssertionError with one sentence: which law is broken, and where. Each is itself tested against mutants, objects broken on
purpose that it must reject. Everything is tiny, in float64, and draws from its own generators; new memory is filled with NaN.
"""

from .checkpoints import check_checkpoint
from .compaction import check_compact
from .details import nesterov
from .events import check_event
from .kernels import check_index, check_kernel, check_layout, poisoned_memory
from .meaning import check_meaning
from .ownership import check_average, check_copies, check_newborn, check_passes, check_reload
from .penalties import check_penalty
from .recovery import check_operator, check_solver, check_units
from .rules import check_rule
from .supports import check_rewire, check_support
from .surgery import check_surgery
from .topologies import check_topology
from .transforms import check_transforms

__all__ = (
    "check_average",
    "check_checkpoint",
    "check_compact",
    "check_copies",
    "check_event",
    "check_index",
    "check_kernel",
    "check_layout",
    "check_meaning",
    "check_newborn",
    "check_operator",
    "check_passes",
    "check_penalty",
    "check_reload",
    "check_rewire",
    "check_rule",
    "check_solver",
    "check_support",
    "check_surgery",
    "check_topology",
    "check_transforms",
    "check_units",
    "nesterov",
    "poisoned_memory",
)
