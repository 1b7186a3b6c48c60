"""Guidance: Denoiser -> Denoiser wrappers."""

from diffusion.guidance.autoguidance import Autoguidance
from diffusion.guidance.base import Guidance
from diffusion.guidance.classifier import ClassifierGuidance, NetworkClassifier, NoisyClassifier
from diffusion.guidance.classifier_free import ClassifierFree
from diffusion.guidance.interval import Interval
from diffusion.guidance.known import Known
from diffusion.guidance.measured import Measured

__all__ = [
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "Guidance",
    "Interval",
    "Known",
    "Measured",
    "NetworkClassifier",
    "NoisyClassifier",
]
