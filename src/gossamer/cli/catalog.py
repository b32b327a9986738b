"""The names of the command line: for each kind of part, name -> constructor.

The signature of a constructor declares the settings of the part. A name is the name of the class in lower case, or a
preset that is defined here: ``sgd``, ``adamw`` and ``iht``. Any other name is an import path (``parts.py``).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..penalties import L1, GroupL1, LogL1, NonNegativeL1, TopK
from ..rules import RDA, XRDA, AdaBreg, LinBreg, ProxSGD
from ..topology import CSST, GMP, SET, SNFS, RigL, Static
from ..training.multilevel import Multilevel
from ..training.target import TargetDensity
from .models import MODELS
from .tasks import TASKS

Constructor = Callable[..., Any]


def dense() -> None:
    """No sparsity: the null model to compare every method with."""


def proximal() -> None:
    """The optimizer sets weights to zero and revives them: proxsgd, iht, rda, xrda, linbreg, adabreg; layout shadow."""


def none() -> None:
    """The strength of the penalty is constant."""


def sgd(
    params: Iterable[Any],
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 5e-4,
) -> torch.optim.SGD:
    """Stochastic gradient descent: torch.optim.SGD with the settings of the experiments.

    Args:
        lr: step size.
        momentum: factor on the velocity at each step, in [0, 1).
        nesterov: use Nesterov's form of momentum.
        weight_decay: decay of the non-zero weights towards 0; biases and normalisation parameters have none.
    """
    return torch.optim.SGD(params, lr, momentum, nesterov=nesterov, weight_decay=weight_decay)


def adamw(
    params: Iterable[Any],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> torch.optim.AdamW:
    """Adam with decoupled weight decay: torch.optim.AdamW.

    Args:
        lr: step size.
        betas: decay rates of the mean gradient and of the mean squared gradient.
        eps: added to the root of the mean squared gradient.
        weight_decay: decay of the non-zero weights towards 0; biases and normalisation parameters have none.
    """
    return torch.optim.AdamW(params, lr, betas, eps, weight_decay)


def iht(density: float, momentum: float = 0.9) -> ProxSGD:
    """Iterative hard thresholding: after each gradient step every weight keeps its largest entries.

    The density of the run is the fraction of entries that stay.

    Args:
        momentum: decay rate of the mean gradient, in [0, 1).
    """
    return ProxSGD(TopK(density=density), momentum)


METHODS: dict[str, Constructor] = {
    "dense": dense,
    "static": Static,
    "set": SET,
    "rigl": RigL,
    "snfs": SNFS,
    "gmp": GMP,
    "csst": CSST,
    "proximal": proximal,
    "multilevel": Multilevel,
}
OPTIMIZERS: dict[str, Constructor] = {
    "sgd": sgd,
    "adamw": adamw,
    "proxsgd": ProxSGD,
    "iht": iht,
    "rda": RDA,
    "xrda": XRDA,
    "linbreg": LinBreg,
    "adabreg": AdaBreg,
}
PENALTIES: dict[str, Constructor] = {
    "l1": L1,
    "nonnegativel1": NonNegativeL1,
    "groupl1": GroupL1,
    "logl1": LogL1,
    "topk": TopK,
}
TARGETS: dict[str, Constructor] = {"none": none, "targetdensity": TargetDensity}
CATALOG: dict[str, dict[str, Constructor]] = {
    "task": dict(TASKS),
    "model": dict(MODELS),
    "method": METHODS,
    "optimizer": OPTIMIZERS,
    "penalty": PENALTIES,
    "target": TARGETS,
}
