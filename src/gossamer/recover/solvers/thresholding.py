# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""The exact hard threshold, and a streamed gradient that is valid for all step sizes.

    H_s(z)       keeps the s largest |z|, exactly s if z has that many non-zeros; ties go to the lowest index
    sense        g = A^T r on the support and at its s largest entries elsewhere, from one stream over the columns

Off the support of x, the vector x + mu g equals mu g. For every step size mu, the entries that H_s keeps are therefore
on the support or among the s largest entries of g off it. One pass over A^T r, with O(s + block) numbers in memory, is
enough for all step sizes that a solver tries.
"""

import torch
from torch import Tensor

from ...products.sense.op import top_k
from ..operators.protocol import Operator


def hard(ids: Tensor, z: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """H_s of a sparse vector with sorted ids: the s largest |z| that are not zero, ties to the lowest id."""
    keep = top_k(z.abs(), s)
    keep = keep[z[keep] != 0]
    return ids[keep], z[keep]


class Largest:
    """The k largest |values| of a stream of blocks in order of their ids. Zeros are left out; ties to the lowest id.

    O(k + block).
    """

    def __init__(self, k: int, like: Tensor):
        self.k = k
        self.ids = torch.empty(0, dtype=torch.int64, device=like.device)
        self.values = torch.empty(0, dtype=like.dtype, device=like.device)

    def offer(self, first: int, values: Tensor) -> None:
        """Adds the values of the ids first, first + 1, ..."""
        best = top_k(values.abs(), min(self.k, values.numel()))
        ids, values = torch.cat([self.ids, best + first]), torch.cat([self.values, values[best]])
        self.ids, self.values = hard(ids, values, self.k)


def sense(A: Operator, r: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A^T r on the support and at its k largest entries off it: sorted ids, and values."""
    best, on = Largest(k, r), list[Tensor]()
    for first, g in A.adjoint(r):
        inside = support[torch.searchsorted(support, first) : torch.searchsorted(support, first + g.numel())] - first
        on.append(g[inside])
        best.offer(first, g.index_fill(0, inside, 0.0))
    ids, order = torch.sort(torch.cat([support, best.ids]))
    return ids, torch.cat([*on, best.values])[order]


def spread(ids: Tensor, support: Tensor, values: Tensor) -> Tensor:
    """The values of a sparse vector at sorted ids that contain its support."""
    return values.new_zeros(ids.numel()).index_put_((torch.searchsorted(ids, support),), values)


def nonzeros(x: Tensor) -> tuple[Tensor, Tensor]:
    """Support and values of a dense vector."""
    S = x.nonzero().flatten()
    return S, x[S]


def least_squares(A_S: Tensor, y: Tensor) -> Tensor:
    """argmin ||A_S x - y||; the minimiser of least norm where the columns depend on each other."""
    if A_S.shape[1] == 0:
        return y.new_empty(0)
    if A_S.is_cuda:
        return torch.linalg.pinv(A_S) @ y
    return torch.linalg.lstsq(A_S, y[:, None], driver="gelsd").solution[:, 0]
