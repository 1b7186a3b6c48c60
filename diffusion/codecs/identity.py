"""Pixel space: the codec that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Identity(nn.Module):
    """encode and decode give back what they get, to the bit."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, *S) in [-1, 1] -> the same."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return latents

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (C, *S) of what `encode` gives for images of `shape` (C, *S)."""
        return tuple(shape)
