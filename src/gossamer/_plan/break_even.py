# pyright: strict
"""Break-even: the density below which csr is faster than dense.

csr costs about a + b density, and dense costs the same at any density. So their ratio r is nearly a line in the
density. The density where r = 1 is found by secants from the layer's own density d: the first guess is d / r(d), which
lies between d and the root; each further guess is on the line through two measured points.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

CLOSE = 0.05  # densities that differ by less than this fraction count as one
SECANTS = 4  # at most this many measurements in search of a break-even density

Curve = Mapping[float, float]  # density -> seconds of csr over seconds of dense


def break_even(ratio: Callable[[float], float], curve: dict[float, float], least: float, most: float) -> float | None:
    """The density at which ``ratio(density)``, seconds of csr over seconds of dense, is 1; None if it is not in
    [least, most].

    ``curve``: density -> ratio, with at least one entry. What is measured here is added to it: SECANTS entries at most.
    """
    for _ in range(SECANTS):
        guess = min(max(_crossing(curve), least), most)
        if any(abs(guess - density) <= CLOSE * density for density in curve):
            break
        curve[guess] = ratio(guess)
    sparse_wins = max(curve.values()) < 1 and max(curve) >= (1 - CLOSE) * most
    dense_wins = min(curve.values()) > 1 and min(curve) <= (1 + CLOSE) * least
    return None if sparse_wins or dense_wins else min(max(_crossing(curve), least), most)


def _crossing(curve: Curve) -> float:
    """Where the ratio is 1: on the line between the points on both sides of it, or else on the line through the
    nearest two."""
    points = sorted(curve.items())
    if len(points) == 1:
        return points[0][0] / points[0][1]
    pairs = list(pairwise(points))
    across = [((d0, r0), (d1, r1)) for (d0, r0), (d1, r1) in pairs if (r0 - 1) * (r1 - 1) <= 0]
    below = points[-1][1] < 1
    (d0, r0), (d1, r1) = across[0] if across else pairs[-1] if below else pairs[0]
    if not across and r1 <= r0:  # noise of the clock: this line does not rise, and has no root on the right side
        return math.inf if below else 0.0
    return d0 if r1 == r0 else d0 + (1 - r0) * (d1 - d0) / (r1 - r0)
