"""Models: how a config becomes something that trains, and what is made of it afterwards."""

from diffusion.models.autoencoder import Autoencoder
from diffusion.models.base import PARTS, Model, factory
from diffusion.models.diffusion import Diffusion, another_codec

__all__ = ["PARTS", "Autoencoder", "Diffusion", "Model", "another_codec", "factory"]
