# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""Sparse ReLU networks with several hidden layers, trained one after the other.   arXiv 2509.20323

Each hidden layer is trained as that of a two-layer network (vector.py) on the outputs of the layers before it. Every
layer but the last gets s / layers non-zeros, and its temporary output layer is discarded (the authors' scheme). The
last stage keeps both its layers and gets the remaining non-zeros.
"""

from collections.abc import Sequence
from typing import Any

from ..._errors import UsageError
from ..arrays import Array
from .relu import Fit, Layer, ReLUNetwork, largest
from .vector import Training, checked, fit_vector, in_units, outputs, train

REFINED = ("steps", "batch", "lr", "weight_decay")  # settings of fit_vector that the last refinement uses


def fit_deep(
    X: Array,
    Y: Array,
    s: int,
    widths: Sequence[int],
    *,
    loss: str = "squared",
    seed: int = 0,
    polish: bool = True,
    **settings: Any,  # those of fit_vector
) -> Fit:
    """A ReLU network with several hidden layers and at most s non-zero weights.

    Args:
        widths: widths of the hidden layers.
        polish: at the end, refine all values together, on fixed supports.

    The other arguments are those of :func:`fit_vector`.

    Raises: UsageError as :func:`fit_vector`, and for empty widths.
    """
    if not widths:
        raise UsageError("fit_deep", "widths must have at least one hidden layer", got=list(widths))
    if "neurons" in settings:
        what = "widths sets the number of neurons of each layer, so neurons is not allowed"
        raise UsageError("fit_deep", what, got=settings["neurons"], remedy="omit neurons")
    x, y = checked("fit_deep", X, Y, loss, s, widths)
    x, y, units = in_units(x, y, loss)
    settings["on_step"] = units.told(settings.get("on_step"))
    k = outputs(y, loss)
    layers: list[Layer] = []
    losses: list[float] = []
    shares, most = _shares(s, [x.shape[1], *widths, k])
    inside, left = x, s
    for i, (width, share) in enumerate(zip(widths[:-1], shares, strict=True)):
        extra = max(1, min(share // 2, width * k))  # of the temporary output layer
        found = fit_vector(inside, y, share + extra, neurons=width, loss=loss, seed=seed + i, **settings)
        losses += found.losses
        layers.append(largest(found.network.layers[0], share))
        left -= layers[-1].support.n
        inside = layers[-1](inside).clamp_min(0)
    last = {"neurons": widths[-1], "loss": loss, "seed": seed + len(widths) - 1}
    found = fit_vector(inside, y, min(left, most), **last, **settings)
    losses += found.losses
    network = ReLUNetwork((*layers, *found.network.layers))
    reason = f"{len(widths)} hidden layers, one after the other"
    if polish:
        kept = {name: settings[name] for name in REFINED if name in settings}
        fixed = Training(loss, **kept, every=10**9, window=1, shrink=0.0, swap=0.0, scouts=0, seed=seed)
        model = network.to_sequential()
        losses += train(model, x, y, network.nonzeros, fixed, settings["on_step"])
        network, reason = ReLUNetwork.from_sequential(model), f"{reason}, then refined together"
    return units.fit(network, losses, reason)


def _shares(s: int, sizes: Sequence[int]) -> tuple[list[int], int]:
    """The non-zeros of each hidden layer but the last, and the capacity of the last stage.

    A layer gets s / layers if it can hold them, and more if the last stage cannot hold the rest.
    """
    room = [a * b for a, b in zip(sizes[:-3], sizes[1:-2], strict=True)]
    last = sizes[-3] * sizes[-2] + sizes[-2] * sizes[-1]
    shares = [min(s // (len(sizes) - 1), most) for most in room]
    for i, most in enumerate(room):
        shares[i] += max(0, min(s - sum(shares) - last, most - shares[i]))
    return shares, last
