"""Noise schedulers: alpha(t), sigma(t), the log-SNR and its inverse; nothing else."""

from diffusion.schedulers.base import IntegratedBeta, NoiseScheduler, VariancePreserving
from diffusion.schedulers.cosine import Cosine
from diffusion.schedulers.edm import EDM
from diffusion.schedulers.flow import Flow
from diffusion.schedulers.linear import Linear
from diffusion.schedulers.scaled_linear import ScaledLinear
from diffusion.schedulers.sigmoid import Sigmoid

__all__ = [
    "EDM",
    "Cosine",
    "Flow",
    "IntegratedBeta",
    "Linear",
    "NoiseScheduler",
    "ScaledLinear",
    "Sigmoid",
    "VariancePreserving",
]
