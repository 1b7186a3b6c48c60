"""Objectives: time density, weighting and the loss of a sample."""

from diffusion.objectives.adversarial import adaptive_weight, hinge_discriminator, hinge_generator
from diffusion.objectives.bound import Bound, step_divergence
from diffusion.objectives.objective import Objective
from diffusion.objectives.reconstruction import ReconstructionLoss
from diffusion.objectives.times import LogitNormal, LogNormal, TimeDensity, UniformBetween, UniformTime, held
from diffusion.objectives.weightings import EDM, ELBO, MinSNR, Simple, Weighting

__all__ = [
    "EDM",
    "ELBO",
    "Bound",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "ReconstructionLoss",
    "Simple",
    "TimeDensity",
    "UniformBetween",
    "UniformTime",
    "Weighting",
    "adaptive_weight",
    "held",
    "hinge_discriminator",
    "hinge_generator",
    "step_divergence",
]
