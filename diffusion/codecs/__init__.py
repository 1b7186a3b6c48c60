"""Codecs: pixels <-> latents. The identity codec is pixel space."""

from diffusion.codecs.autoencoder import Autoencoder, fingerprint_of, latent_statistics
from diffusion.codecs.base import Codec
from diffusion.codecs.identity import Identity
from diffusion.codecs.labels import AnalogBits, OneHot
from diffusion.codecs.pretrained import Diffusers

__all__ = [
    "AnalogBits",
    "Autoencoder",
    "Codec",
    "Diffusers",
    "Identity",
    "OneHot",
    "fingerprint_of",
    "latent_statistics",
]
