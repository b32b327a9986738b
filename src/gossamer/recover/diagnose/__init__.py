"""How good are these measurements? Of a sensing matrix, of a gated-ReLU operator, and of any sparse layer while it trains."""

from .recall import Diagnosis, Watch, gradient_and_noise, record_operands, measured_recall, sensing, support_conditioning
from .matrices import Coherence, Convexity, Isometry, coherence, convexity, isometry

__all__ = [
    "Coherence",
    "Convexity",
    "Diagnosis",
    "Isometry",
    "Watch",
    "coherence",
    "convexity",
    "gradient_and_noise",
    "record_operands",
    "isometry",
    "measured_recall",
    "sensing",
    "support_conditioning",
]
