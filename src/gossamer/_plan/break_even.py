# pyright: strict
"""Break-even: the density below which csr is faster than dense.

The time of csr is about a + b density; the time of dense does not depend on the density. Their ratio r is therefore
nearly linear in the density. Secants from the layer's density d find the density where r = 1. The first guess is
d / r(d), which lies between d and the root. Each further guess is on the line through two measured points.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

CLOSE = 0.05  # densities that differ by less than this fraction count as equal
SECANTS = 4  # largest number of measurements in the search

Curve = Mapping[float, float]  # density -> seconds of csr over seconds of dense


def break_even(ratio: Callable[[float], float], curve: dict[float, float], least: float, most: float) -> float | None:
    """The density at which ``ratio(density)``, seconds of csr over seconds of dense, is 1; None if it is not in
    [least, most].

    ``curve``: density -> ratio, with at least one entry. The search adds its measurements to it, at most SECANTS.
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
    """The density where the ratio is 1, by interpolation between the points on both sides of it.

    If all points are on one side, it is extrapolated from the nearest two.
    """
    points = sorted(curve.items())
    if len(points) == 1:
        return points[0][0] / points[0][1]
    pairs = list(pairwise(points))
    across = [((d0, r0), (d1, r1)) for (d0, r0), (d1, r1) in pairs if (r0 - 1) * (r1 - 1) <= 0]
    below = points[-1][1] < 1
    (d0, r0), (d1, r1) = across[0] if across else pairs[-1] if below else pairs[0]
    if not across and r1 <= r0:  # by noise of the clock the line does not rise, and has no root on the right side
        return math.inf if below else 0.0
    return d0 if r1 == r0 else d0 + (1 - r0) * (d1 - d0) / (r1 - r0)
