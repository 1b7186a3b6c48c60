"""Masks as what is diffused: class indices <-> values around -1 and 1.

The images of these codecs are maps (B, K, *S), 1 where a place is of class k and 0 elsewhere; their moments are the
class indices (B, 1, *S), as a batch holds a mask. A codec is set to K classes by `for_images`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.codecs.base import Codec
from diffusion.random import Noise


class LabelCodec(Codec):
    """What both codecs of masks share; a subclass has `draw`, `indices` and `channels`."""

    target = "mask"
    classes: int = 2

    @abstractmethod
    def indices(self, latents: Tensor) -> Tensor:
        """Latents (B, L, *S) -> the class of each place, int64 (B, *S)."""

    @staticmethod
    @abstractmethod
    def channels(classes: int) -> int:
        """L, for so many classes."""

    def moments(self, images: Tensor) -> Tensor:
        return images.argmax(1, keepdim=True).float()

    def decode(self, latents: Tensor) -> Tensor:
        return F.one_hot(self.indices(latents), self.classes).movedim(-1, 1).float()

    def shown(self, images: Tensor) -> Tensor:
        return images.argmax(1, keepdim=True) * (2.0 / max(1, self.classes - 1)) - 1

    def for_images(self, shape: Sequence[int]) -> LabelCodec:
        self.classes = shape[0]
        return self

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (self.channels(shape[0]), *shape[1:])


class OneHot(LabelCodec):
    """One channel for each class, 1 where it is and -1 elsewhere; a place is of the class whose channel is highest."""

    @staticmethod
    def channels(classes: int) -> int:
        return classes

    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        return 2 * F.one_hot(moments[:, 0].long(), self.classes).movedim(-1, 1).float() - 1

    def indices(self, latents: Tensor) -> Tensor:
        return latents.argmax(1)


class AnalogBits(LabelCodec):
    """The class's number in binary, a channel for each bit, 1 or -1: ceil(log2 K) channels.

    A number beyond the last class, where K is no power of 2, becomes the last. Source: Chen et al. 2023.
    """

    @staticmethod
    def channels(classes: int) -> int:
        return max(1, (classes - 1).bit_length())

    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        values = moments.long()
        bits = [(values >> place) & 1 for place in range(self.channels(self.classes))]
        return 2 * torch.cat(bits, 1).float() - 1

    def indices(self, latents: Tensor) -> Tensor:
        weights = (2 ** torch.arange(latents.shape[1], device=latents.device)).view(-1, *[1] * (latents.ndim - 2))
        return ((latents > 0) * weights).sum(1).clamp(max=self.classes - 1)
