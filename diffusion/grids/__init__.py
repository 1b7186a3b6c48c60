"""Grids: which decreasing times a sampler visits."""

from diffusion.grids.angle import Angle, angle, at_angle
from diffusion.grids.base import TimeGrid
from diffusion.grids.karras import Karras
from diffusion.grids.log_snr import LogSNR
from diffusion.grids.optimised import Optimised
from diffusion.grids.quadratic import Quadratic
from diffusion.grids.uniform import Uniform

__all__ = ["Angle", "Karras", "LogSNR", "Optimised", "Quadratic", "TimeGrid", "Uniform", "angle", "at_angle"]
