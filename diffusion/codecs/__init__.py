"""Codecs: pixels <-> latents. The identity codec is pixel space."""

from diffusion.codecs.identity import Identity

__all__ = ["Identity"]
