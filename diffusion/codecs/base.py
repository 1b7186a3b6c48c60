"""What a codec is: images -> moments -> latents, and latents -> images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffusion.random import Noise


class Codec(nn.Module, ABC):
    """Pixels <-> latents, in two steps one way, so that the heavy and deterministic one can be done once and kept.

    fingerprint: changes with whatever changes the moments or the latents, fit for a file's name; None where there is
        nothing to check, because the codec changes nothing.
    trained_on: the fingerprint of the data that it learnt from, where that is known.
    target: the batch's key of what it encodes.
    """

    target: str = "image"
    fingerprint: str | None = None
    trained_on: str | None = None

    @abstractmethod
    def moments(self, images: Tensor) -> Tensor:
        """Images (B, C, *S) in [-1, 1] -> (B, M, *s) float32: all that `draw` needs. Deterministic."""

    @abstractmethod
    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        """Moments (B, M, *s) -> latents (B, L, *s): a random draw with noise from rng, or the mean without. Cheap."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, *S) -> the means of their latents (B, L, *s)."""
        return self.draw(self.moments(images), None)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, L, *s) -> images (B, C, *S) in about [-1, 1]; differentiable twice."""

    def shown(self, images: Tensor) -> Tensor:
        """What `decode` gives, as images (B, C, *S) in [-1, 1] to look at."""
        return images

    def for_images(self, shape: Sequence[int]) -> Codec:
        """This codec, set to images of `shape` (C, *S). Raises UserError where it cannot take them."""
        self.latent_shape(shape)
        return self

    @abstractmethod
    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (L, *s) of the latents of images of `shape` (C, *S).

        Raises UserError where the codec cannot take such images.
        """


@contextmanager
def exact(like: Tensor) -> Iterator[None]:
    """float32 even under autocast: a cache must not depend on the precision of a training."""
    with torch.autocast(like.device.type, enabled=False):
        yield


def broadcast(values: Tensor, like: Tensor) -> Tensor:
    """Values (L,), one for each channel, shaped to go with `like` (B, L, *s)."""
    return values.view(-1, *[1] * (like.ndim - 2))
