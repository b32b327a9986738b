"""Compaction: channels that no output depends on, and channels that are constant, are removed from a model.

``values`` describes what is known of a tensor, ``operations`` what torch's operations do to it, ``weights`` what a
layer reads; ``graph`` follows the channels through a model; ``liveness`` finds the channels to keep; ``narrow`` makes
the smaller modules; ``compact`` is the public function and its report.
"""
