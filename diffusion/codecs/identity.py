"""Pixel space: the codec that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffusion.codecs.base import Codec
from diffusion.random import Noise


class Identity(Codec):
    """Every step gives back what it gets, to the bit."""

    def moments(self, images: Tensor) -> Tensor:
        return images

    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)
