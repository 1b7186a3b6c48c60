"""Objectives: time density, weighting and the loss of a sample."""

from diffusion.objectives.adversarial import adaptive_weight, hinge_discriminator, hinge_generator
from diffusion.objectives.objective import Objective
from diffusion.objectives.reconstruction import ReconstructionLoss
from diffusion.objectives.times import LogitNormal, LogNormal, TimeDensity, UniformTime
from diffusion.objectives.weightings import EDM, MinSNR, Simple, Weighting

__all__ = [
    "EDM",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "ReconstructionLoss",
    "Simple",
    "TimeDensity",
    "UniformTime",
    "Weighting",
    "adaptive_weight",
    "hinge_discriminator",
    "hinge_generator",
]
