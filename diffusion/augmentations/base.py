"""What an augmentation is, and several in turn.

An augmentation has no random state: it is a function of the images and of standard normal numbers, which the caller
draws for each image by its place in the stream of training samples. What it tells are numbers, all of them 0 for an
image that it left alone. A network that is told them learns the images as they are at 0, and is sampled there: so the
changes do not leak into the samples (Jun et al. 2020; Karras et al. 2022, appendix F.2). A change that makes one true
image into another, equally likely one need not be told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.errors import UserError


class Augmentation(ABC):
    """Random changes of images; see above."""

    draws: int
    """Standard normal numbers that one image takes."""
    values: int
    """Numbers by which the network is told; 0 where it is told nothing."""

    def check(self, shape: Sequence[int]) -> None:  # noqa: B027
        """Raises UserError if images of this shape (C, *S) cannot be changed so."""

    @abstractmethod
    def __call__(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, C, *S) float32 in [-1, 1] and draws (B, draws) -> such images, and the told values (B, values)."""

    @abstractmethod
    def move(self, masks: Tensor, draws: Tensor) -> Tensor:
        """masks (B, 1, *S) of class indices -> such masks, moved as a call with the same draws moves the images."""


class Transform(Augmentation):
    """One kind of change; a subclass says how in `change`."""

    told: bool
    """Whether the network is told what was done."""
    moves: bool
    """Whether it changes where things are; else masks stay as they are."""
    numbers: int
    """Numbers by which what was done is described."""

    @property
    def values(self) -> int:
        return self.numbers if self.told else 0

    @abstractmethod
    def change(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """As a call, but what was done (B, numbers) is always said."""

    def __call__(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        # Places and optical densities need all their digits, also where the network computes with fewer.
        with torch.autocast(images.device.type, enabled=False):
            changed, done = self.change(images, draws)
        return changed, done[:, : self.values]

    def move(self, masks: Tensor, draws: Tensor) -> Tensor:
        """Each class is moved as an image of zeros and ones; a pixel is of the class that fills most of it."""
        if not self.moves:
            return masks
        hot = F.one_hot(masks[:, 0].long()).movedim(-1, 1).float()
        with torch.autocast(masks.device.type, enabled=False):
            return self.change(hot, draws)[0].argmax(1, keepdim=True).to(masks)


class Chain(Augmentation):
    """Several augmentations in turn; their names serve the config alone."""

    def __init__(self, **links: Augmentation):
        self.links = tuple(links.values())
        self.draws = sum(link.draws for link in self.links)
        self.values = sum(link.values for link in self.links)

    def check(self, shape: Sequence[int]) -> None:
        for link in self.links:
            link.check(shape)

    def __call__(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        told = [draws[:, :0]]
        for link, own in self._each(draws):
            images, values = link(images, own)
            told.append(values)
        return images, torch.cat(told, 1)

    def move(self, masks: Tensor, draws: Tensor) -> Tensor:
        for link, own in self._each(draws):
            masks = link.move(masks, own)
        return masks

    def _each(self, draws: Tensor) -> Iterator[tuple[Augmentation, Tensor]]:
        """Each link with its own draws."""
        return zip(self.links, draws.split([link.draws for link in self.links], 1), strict=True)


def uniform(draws: Tensor) -> Tensor:
    """Standard normal numbers -> numbers that are uniform in [0, 1]."""
    return torch.special.ndtr(draws)


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), which broadcasts against the images."""
    return values.reshape(-1, *[1] * (images.ndim - 1))


def check_keys(probability: float, **strengths: float) -> None:
    """Raises UserError for a probability outside [0, 1], or a strength below 0."""
    if not 0 <= probability <= 1:
        raise UserError(f"augmentation: probability={probability}: give a share from 0 to 1")
    for name, strength in strengths.items():
        if not 0 <= strength < float("inf"):
            raise UserError(f"augmentation: {name}={strength}: give a number of at least 0 (0 leaves it out)")
