"""Static sparse training: a random support, never changed. The null model of every other method: 3 f_S per step, O(n) memory."""

from .topology import Topology


def static() -> Topology:
    """No event, no sensing."""
    return Topology("static")
