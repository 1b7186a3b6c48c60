"""Figures of merit: of reconstructions, of sets of images, and how sure they are."""

from diffusion.metrics.bootstrap import Interval, interval
from diffusion.metrics.frechet import frechet_distance
from diffusion.metrics.perceptual import LPIPS, ClassifierDistance
from diffusion.metrics.reconstruction import left_out, psnr_of, reconstruction_metrics

__all__ = [
    "LPIPS",
    "ClassifierDistance",
    "Interval",
    "frechet_distance",
    "interval",
    "left_out",
    "psnr_of",
    "reconstruction_metrics",
]
