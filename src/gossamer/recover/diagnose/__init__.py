"""The quality of measurements: of sensing matrices, of gated-ReLU operators, of the sensing of sparse layers.

matrices     coherence, isometry, convexity
recall       sensing, measured_recall, support_conditioning: the quality of a layer's sensed gradients
noise        gradient_and_noise: the gradient and its variance over samples; the signal in it
watch        Watch: a diagnosis of every event of a training
operands     record_operands: output gradients and inputs of a layer's backward passes
diagnosis    Diagnosis: the figures and a sentence
"""

from .diagnosis import Diagnosis
from .matrices import Coherence, Convexity, Isometry, coherence, convexity, isometry
from .noise import gradient_and_noise
from .operands import record_operands
from .recall import measured_recall, sensing, support_conditioning
from .watch import Watch

__all__ = [
    "Coherence",
    "Convexity",
    "Diagnosis",
    "Isometry",
    "Watch",
    "coherence",
    "convexity",
    "gradient_and_noise",
    "isometry",
    "measured_recall",
    "record_operands",
    "sensing",
    "support_conditioning",
]
