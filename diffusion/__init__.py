"""Diffusion models for medical images: one denoiser, many parts that plug into it."""

__version__ = "0.1.0"
