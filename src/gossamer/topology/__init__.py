"""Topologies: how supports change. There is one file per method. A method is a frozen record of settings; it resolves
to a :class:`Topology`."""

from .csst import CSST as CSST
from .exchange import event as event
from .gmp import GMP as GMP
from .records import LayerState as LayerState
from .records import Outcome as Outcome
from .records import Sensing as Sensing
from .records import Update as Update
from .rewiring import rewire as rewire
from .rigl import RigL as RigL
from .set import SET as SET
from .slots import Annealed as Annealed
from .snfs import SNFS as SNFS
from .static import Static as Static
from .topology import Topology as Topology
from .topology import TopologyLike as TopologyLike
