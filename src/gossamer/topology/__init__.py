"""Topologies: one file per algorithm, each a function that returns the one record :class:`Topology`."""

from .csst import csst as csst
from .gmp import gmp as gmp
from .rigl import rigl as rigl
from .set import set_ as set_
from .snfs import snfs as snfs
from .static import static as static
from .topology import Change as Change
from .topology import Sense as Sense
from .topology import Site as Site
from .topology import Topology as Topology
from .topology import rewire as rewire
