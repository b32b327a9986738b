# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""The diagnosis of the sensing of one layer: figures and one sentence."""

import math
from typing import Any, NamedTuple


class Diagnosis(NamedTuple):
    """The diagnosis of the sensing of one layer. All figures are NaN if the operands hold NaN or infinities.

    Attributes:
        name: name of the layer.
        batch: samples in a batch.
        window: number of averaged steps.
        zeros: number of weights off the support.
        fraction: fraction of the zeros that is sensed.
        n_grow: number of weights that grow.
        recall: expected fraction of the ``n_grow`` strongest true gradients, of all zeros, that is chosen.
        of_sensed: the same fraction for those of the strongest that are in the sample.
        chance: recall of a random choice.
        snr: signal over noise power of the gradient of one batch; NaN if both are 0.
        conditioning: sqrt(beta / alpha), of the input on the support of an output row.
        alpha: smallest eigenvalue of its Gram matrix, with unit columns; the median over rows.
        beta: largest eigenvalue of the same matrix; the median over rows.
        measured: recall by the gradient of all data, if it was measured.
    """

    name: str
    batch: int
    window: int
    zeros: int
    fraction: float
    n_grow: int
    recall: float
    of_sensed: float
    chance: float
    snr: float
    conditioning: float
    alpha: float
    beta: float
    measured: float | None

    @property
    def sentence(self) -> str:
        """The figures and a verdict in one sentence."""
        over = "" if self.window == 1 else f" over {self.window} steps"
        found = f"recall {self.recall:.2f}" + ("" if self.measured is None else f" (measured {self.measured:.2f})")
        head = f"batch {self.batch}{over} senses {100 * self.fraction:.3g} % of {self.zeros:,} zeros: {found}"
        return f"{head}, conditioning {self.conditioning:.1f}; {self._obvious() or self._verdict()}"

    def _obvious(self) -> str | None:
        """The verdict in cases without a choice; None in all others."""
        if math.isnan(self.recall):
            return "the operands hold NaN or infinities, so there is no verdict"
        if self.zeros == 0 or self.n_grow == 0:
            return "nothing grows here"
        if self.fraction == 0:
            return "nothing is sensed, and what grows is random"
        if math.isnan(self.snr):
            return "there is no gradient at the zeros, and what grows is random"
        if self.chance >= 1:
            return "all zeros grow, and there is nothing to choose"
        return None

    def _verdict(self) -> str:
        luck = self.chance / self.fraction  # recall among the strongest in the sample, of a random choice in it
        if luck >= 1:
            return "all that is sensed grows, and it was chosen at random; raise the fraction"
        ranked = (self.of_sensed - luck) / (1 - luck)
        if (self.recall - self.chance) / (1 - self.chance) < min(2 * self.chance, 0.2) or ranked < 0.2:
            then = ", then the fraction" if self.fraction < 0.5 else ""
            return f"growth will be near random; raise the batch or the window{then}"
        if ranked < 0.5:
            return "noise decides half of the growth; a larger batch or window would help"
        if self.fraction < 0.5:
            return "what is sensed is ranked well; a larger fraction, or more events, would find more"
        return "growth follows the gradient"

    def record(self) -> dict[str, Any]:
        """The figures for a line of JSON. Infinities and NaN become null."""
        plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in self._asdict().items()}
        return {**plain, "sentence": self.sentence}
