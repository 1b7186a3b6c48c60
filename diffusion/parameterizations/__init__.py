"""Parameterizations: what the network predicts, as the four coefficients of the denoiser."""

from diffusion.parameterizations.base import Coefficients, Parameterization
from diffusion.parameterizations.edm import EDM
from diffusion.parameterizations.eps import Eps
from diffusion.parameterizations.flow import Flow
from diffusion.parameterizations.v import V
from diffusion.parameterizations.x0 import X0

__all__ = ["EDM", "X0", "Coefficients", "Eps", "Flow", "Parameterization", "V"]
