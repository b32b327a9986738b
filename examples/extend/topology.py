"""MEST (Yuan et al. 2021, arXiv 2110.14032): drop by |w| + lam |dL/dw|, grow at random."""

from dataclasses import dataclass

from torch import Tensor

import gossamer as gs


@dataclass(frozen=True)
class MEST:
    """The settings; ``resolve`` makes the topology of a run."""

    stop: int | float = 0.75
    every: int = 100
    drop_fraction: float = 0.3
    lam: float = 0.1

    def resolve(self, steps: int | None = None) -> gs.Topology:
        stop = gs.step_of("MEST", "stop", self.stop, steps)
        events = gs.regular(self.every, stop)
        when = gs.Annealed(events, gs.cosine(self.drop_fraction, stop), step_optimizer=True, allow_regrow=False)
        slots = {"sense": OnSupport(events), "drop_score": Saliency(self.lam), "grow_score": gs.grow_random}
        return gs.Topology("mest", when, **slots, candidates="anywhere", stop=stop)


@dataclass(frozen=True)
class OnSupport:
    events: gs.Events

    def __call__(self, t: int) -> gs.Sensing | None:
        return gs.Sensing(fraction=0.0, active=True) if t in self.events else None


@dataclass(frozen=True)
class Saliency:
    lam: float

    def __call__(self, layer: gs.LayerState) -> Tensor:
        return gs.block_norm(layer.w) + self.lam * gs.block_norm(layer.g)
