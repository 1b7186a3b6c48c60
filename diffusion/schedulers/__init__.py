"""Noise schedulers: alpha(t), sigma(t), the log-SNR and its inverse; and what follows of one step between two times."""

from diffusion.schedulers.base import IntegratedBeta, NoiseScheduler, VariancePreserving
from diffusion.schedulers.cosine import Cosine
from diffusion.schedulers.edm import EDM
from diffusion.schedulers.flow import Flow
from diffusion.schedulers.linear import Linear
from diffusion.schedulers.piecewise import (
    Learned,
    PiecewiseLinear,
    Table,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)
from diffusion.schedulers.posterior import Posterior, posterior
from diffusion.schedulers.scaled_linear import ScaledLinear
from diffusion.schedulers.shifted import Shifted
from diffusion.schedulers.sigmoid import Sigmoid
from diffusion.schedulers.zero_terminal import ZeroTerminal

__all__ = [
    "EDM",
    "Cosine",
    "Flow",
    "IntegratedBeta",
    "Learned",
    "Linear",
    "NoiseScheduler",
    "PiecewiseLinear",
    "Posterior",
    "ScaledLinear",
    "Shifted",
    "Sigmoid",
    "Table",
    "VariancePreserving",
    "ZeroTerminal",
    "cosine_betas",
    "linear_betas",
    "posterior",
    "scaled_linear_betas",
]
