"""Cold storage of :class:`~gossamer.Multilevel`: a rule's state of every weight of a layer, on and off the support.

The optimizer holds the state of the weights on the support, "hot", in compact tensors of shape (n,). Cold storage
holds tensors of the dense size. Its entries on the support are stale until the hot state is written back.
"""

# pyright: strict

from collections.abc import Mapping

from torch import Tensor

from ..support import Support

Entries = dict[str, Tensor]  # by the rule's name of the entry: v, and m, q where the rule has them


class ColdStorage:
    """For each layer name, the state of all weights. A layer is added at its first fine step."""

    def __init__(self, layers: Mapping[str, Entries] | None = None):
        self.layers: dict[str, Entries] = {name: dict(entries) for name, entries in (layers or {}).items()}

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for entries in self.layers.values() for t in entries.values())

    def write_back(self, name: str, s: Support, hot: Mapping[str, Tensor]) -> Entries:
        """Writes the hot state of a layer, on the support ``s``, into cold storage.

        The first call makes the storage, with zeros off the support. Returns the whole state, each entry (rows, cols).
        """
        if name not in self.layers:
            self.layers[name] = {key: t.new_zeros(s.shape) for key, t in hot.items()}
        entries, ids = self.layers[name], s.ids()
        for key, t in hot.items():
            entries[key].view(-1)[ids] = t
        return entries

    def restricted(self, name: str, s: Support) -> Entries:
        """The state of a layer on the support ``s``, each entry (n,)."""
        ids = s.ids()
        return {key: t.view(-1)[ids] for key, t in self.layers[name].items()}
