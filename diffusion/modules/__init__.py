"""The thin LightningModules: they train, and know nothing of sampling, metrics or averaging."""

from diffusion.modules.autoencoder import AutoencoderModule
from diffusion.modules.classifier import ClassifierModule
from diffusion.modules.diffusion import DiffusionModule
from diffusion.modules.segmenter import SegmenterModule

__all__ = ["AutoencoderModule", "ClassifierModule", "DiffusionModule", "SegmenterModule"]
