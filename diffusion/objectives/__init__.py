"""Objectives: time density, weighting and the loss of a sample."""

from diffusion.objectives.objective import Objective
from diffusion.objectives.times import LogitNormal, LogNormal, TimeDensity, UniformTime
from diffusion.objectives.weightings import EDM, MinSNR, Simple, Weighting

__all__ = [
    "EDM",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "Simple",
    "TimeDensity",
    "UniformTime",
    "Weighting",
]
