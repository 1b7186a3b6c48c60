"""Models: how a config becomes something that trains, and what is made of it afterwards."""

from diffusion.models.autoencoder import Autoencoder
from diffusion.models.base import PARTS, Model, Weights, factory
from diffusion.models.classifier import Classifier
from diffusion.models.diffusion import Diffusion, another_codec
from diffusion.models.distilled import Distilled, unfit
from diffusion.models.mask_diffusion import MaskDiffusion
from diffusion.models.segmenter import Segmenter

__all__ = [
    "PARTS",
    "Autoencoder",
    "Classifier",
    "Diffusion",
    "Distilled",
    "MaskDiffusion",
    "Model",
    "Segmenter",
    "Weights",
    "another_codec",
    "factory",
    "unfit",
]
