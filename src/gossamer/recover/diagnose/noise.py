# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""Noise and signal of a layer's gradient at its zeros, from one or several batches.

noise     for zero c and sample b, g_bc = dy_bi x_bj. The batch gradient S_c = sum_b g_bc has the variance
          v_c = B / (B - 1) (sum_b g_bc^2 - S_c^2 / B), from a second sampled product, of squares            (1)
signal    empirical Bayes: among zeros of similar noise, the distribution of true gradients over their noise is a
          mixture of centred normal distributions of given scales. EM finds its weights (Stephens 2017,
          Biostatistics 18(2)), and gradients are drawn from the posterior                                   (2)
"""

import torch
from torch import Tensor

from ..._backend.dispatch import run
from ...products.conv2d.reference import Geometry
from ...products.sense.op import SAMPLED
from ...support import Support
from ..units import shifted
from .operands import Operands, Pairs, in_units, tensors

BINS, SIMILAR = 8, 500  # number of groups of similar noise; least number of zeros in each
LEARNT, EM = 5000, 30  # number of zeros for EM; its rounds
POWERS = torch.cat([torch.zeros(1), 2.0 ** torch.arange(-4, 12)]).double()  # signal over noise power of each component


def gradient_and_noise(
    operands: Operands, s: Support, ids: Tensor, geometry: Geometry | None = None
) -> tuple[Tensor, Tensor]:
    """The gradient at some zeros, and its noise by (1).

    Args:
        operands: (dy, x) of each batch.
        s: support of the layer.
        ids: ids of the zeros, (m,) int64.
        geometry: geometry of a convolution; None is a linear layer.

    Returns: the mean over the batches of the gradient, and the variance of one batch's gradient; (m,) float64 each.
    """
    pairs, a, b = in_units(tensors("diagnose.gradient_and_noise", operands))
    total, squares = torch.zeros(ids.numel(), dtype=torch.float64), torch.zeros(ids.numel(), dtype=torch.float64)
    for dy, x in pairs:
        B = dy.shape[0]
        if geometry is None:
            dy, x = dy.reshape(-1, s.shape[0]), x.reshape(-1, s.shape[1])
            g = sampled(dy, x, s, ids, None)
            q = sampled(dy.square(), x.square(), s, ids, None)
        else:  # the gradient of one image sums over its pixels: it is squared after the sum
            images = torch.stack([sampled(dy[i : i + 1], x[i : i + 1], s, ids, geometry) for i in range(B)])
            g, q = images.sum(0), images.square().sum(0)
        total += g
        squares += B / (B - 1) * (q - g.square() / B)
    return shifted(total / len(pairs), a + b), shifted((squares / len(pairs)).clamp_min(0), 2 * (a + b))


def sampled(dy: Tensor, x: Tensor, s: Support, ids: Tensor, geometry: Geometry | None) -> Tensor:
    """The gradient of one batch at these ids, (m,) float64 on the CPU."""
    return run(SAMPLED, dy, x, ids, s.shape, s.block, geometry).double().cpu()


def signal(g: Tensor, v: Tensor, batches: int, rng: torch.Generator) -> tuple[Tensor, float]:
    """(2): the signal in the measured mean gradient.

    Returns: for each zero the fraction of its measured mean that is signal, by a draw from the posterior, in [0, 1];
    and the ratio of signal to noise power of one batch, over all zeros.
    """
    noise, share = v / batches, torch.ones_like(g)
    order = torch.argsort(v)
    order = order[v[order] > 0]
    for part in order.chunk(max(1, min(BINS, order.numel() // SIMILAR))):
        if not part.numel():
            continue
        likelihood = _likelihood(g[part] / noise[part].sqrt())
        some = likelihood[:: max(1, part.numel() // LEARNT)]
        weights = torch.full_like(POWERS, 1 / len(POWERS))
        for _ in range(EM):
            posterior = some * weights
            weights = (posterior / posterior.sum(1, keepdim=True)).mean(0)
        which = torch.multinomial(likelihood * weights + 1e-300, 1, generator=rng)[:, 0]
        share[part] = (POWERS / (1 + POWERS))[which]
    power = max(0.0, float((g.square() - noise).mean()))
    return share, power / max(float(v.mean()), 1e-300)


def _likelihood(z: Tensor) -> Tensor:
    """Likelihood of means, in units of their noise, under each component, (m, components)."""
    exponent = -0.5 * z[:, None].square() / (1 + POWERS) - 0.5 * (1 + POWERS).log()
    return (exponent - exponent.max(1, keepdim=True).values).exp()


def bootstrap(pairs: Pairs, s: Support, ids: Tensor, geometry: Geometry | None, rng: torch.Generator) -> Tensor:
    """One draw of the joint noise of a batch at these ids.

    The samples of one batch are drawn again with replacement. The result is the new gradient minus the old one.
    """
    dy, x = pairs[int(torch.randint(len(pairs), (), generator=rng))]
    B = dy.shape[0]
    again = torch.bincount(torch.randint(B, (B,), generator=rng), minlength=B) - 1
    drawn = dy * again.to(dy).view(-1, *(1,) * (dy.dim() - 1))
    return (B / (B - 1)) ** 0.5 * sampled(drawn, x, s, ids, geometry)
