"""Guidance: Denoiser -> Denoiser wrappers."""

from diffusion.guidance.classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
