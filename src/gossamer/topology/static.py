"""Static: the support never changes. The null model of every method at the same budget."""

from dataclasses import dataclass

from .topology import Topology


@dataclass(frozen=True)
class Static:
    """A support that never changes, the null model at the same budget."""

    def resolve(self, steps: int | None = None) -> Topology:
        """The topology; ``steps`` does not matter."""
        return Topology("static")
