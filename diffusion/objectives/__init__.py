"""Objectives: time density, weighting and the loss of a sample."""

from diffusion.objectives.adversarial import adaptive_weight, hinge_discriminator, hinge_generator
from diffusion.objectives.bound import Bound, step_divergence
from diffusion.objectives.cross_entropy import CrossEntropy
from diffusion.objectives.distillation import Distillation
from diffusion.objectives.objective import Objective
from diffusion.objectives.reconstruction import ReconstructionLoss
from diffusion.objectives.segmentation import segmentation_loss
from diffusion.objectives.times import LogitNormal, LogNormal, OneLevel, TimeDensity, UniformBetween, UniformTime, held
from diffusion.objectives.weightings import EDM, ELBO, MinSNR, Simple, Weighting

__all__ = [
    "EDM",
    "ELBO",
    "Bound",
    "CrossEntropy",
    "Distillation",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "OneLevel",
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
    "segmentation_loss",
    "step_divergence",
]
