"""Sparse ReLU networks, one file per method.

gated         networks with fixed gates, found by any solver: ``fit_gated``
scalar        one output, gates that follow the weights: ``fit_scalar``
vector        several outputs, any loss, mini-batches: ``fit_vector``; ``projection`` is its topology
deep          several hidden layers: ``fit_deep``
relu, data    shared code: layers, network, result; checked data and PSNR
"""

from .data import psnr
from .deep import fit_deep
from .gated import GatedNetwork, fit_gated
from .relu import Fit, Layer, ReLUNetwork
from .scalar import fit_scalar
from .vector import fit_vector

__all__ = [
    "Fit",
    "GatedNetwork",
    "Layer",
    "ReLUNetwork",
    "fit_deep",
    "fit_gated",
    "fit_scalar",
    "fit_vector",
    "psnr",
]
