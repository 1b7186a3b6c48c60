"""Samplers: plain functions from noise to data. `inversion` goes back."""

from diffusion.samplers.base import OnStep, Rng, Sampler
from diffusion.samplers.ddim import ddim
from diffusion.samplers.ddpm import ddpm
from diffusion.samplers.dpmpp_2m import dpmpp_2m
from diffusion.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from diffusion.samplers.dpmpp_3m import dpmpp_3m
from diffusion.samplers.euler import euler
from diffusion.samplers.heun import heun
from diffusion.samplers.midpoint import midpoint
from diffusion.samplers.unipc import unipc

__all__ = [
    "OnStep",
    "Rng",
    "Sampler",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "euler",
    "heun",
    "midpoint",
    "unipc",
]
