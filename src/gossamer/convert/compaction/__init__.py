"""Compaction removes from a model the channels that no output depends on, and the channels that are constant.

``compact`` is the public function with its report. ``graph`` follows the channels through a model, ``liveness`` finds
the channels to keep, ``narrow`` makes the smaller modules. ``values`` describes a tensor, ``operations`` the effect of
torch's operations on it, ``weights`` the non-zero weights of a layer.
"""
