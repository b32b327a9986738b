"""Laws, as functions: properties that supports, kernels, layouts, topologies, rules and all other parts must have.

    from gossamer import laws
    laws.check_layout(MY_LAYOUT)
    laws.check_kernel("csr_linear.forward", MY_KERNEL, some_support)
    laws.check_topology(my_topology(stop=40), gs.Rewirer)

Each function raises AssertionError with one sentence on the broken law and the place. Each function is tested against
mutants: objects that are broken on purpose and must be rejected. The laws compute small cases in float64, use their own
random generators, and fill new memory with NaN.
"""

from .average import check_average
from .checkpoints import check_checkpoint
from .compaction import check_compact
from .details import nesterov
from .events import check_event
from .indices import check_index
from .kernels import check_kernel
from .layers import check_layer
from .layouts import check_layout
from .meaning import check_meaning
from .newborn import check_newborn
from .operands import poisoned_memory
from .ownership import check_copies, check_passes, check_reload
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
    "check_layer",
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
