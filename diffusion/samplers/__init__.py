"""Samplers: plain functions from noise to data."""

from diffusion.samplers.base import OnStep, Rng, Sampler
from diffusion.samplers.ddim import ddim
from diffusion.samplers.ddpm import ddpm
from diffusion.samplers.dpmpp_2m import dpmpp_2m
from diffusion.samplers.heun import heun

__all__ = ["OnStep", "Rng", "Sampler", "ddim", "ddpm", "dpmpp_2m", "heun"]
