"""Static: the support never changes. It is the baseline of every method at the same budget."""

from dataclasses import dataclass

from .topology import Topology


@dataclass(frozen=True)
class Static:
    """A support that never changes: the baseline at the same budget."""

    def resolve(self, steps: int | None = None) -> Topology:
        """The topology. ``steps`` is not used."""
        return Topology("static")
