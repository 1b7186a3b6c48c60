"""Masks of images: from a network that finds them at once, or from a model that draws them again and again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from diffusion.generative import GenerativeModel
from diffusion.random import seed_of


class Segmenter(ABC):
    """What finds masks of images."""

    random: bool
    """Whether a second draw differs from the first."""

    @abstractmethod
    def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """images (B, C, *S) in [-1, 1] and a seed for each -> probabilities of the classes, (B, K, *S).

        Mask i depends on images[i] and seeds[i] alone.
        """


class NetworkSegmenter(Segmenter):
    """A network F(x, c_noise) as a map from images to logits: it is told that there is no noise, c_noise = 0."""

    random = False

    def __init__(self, network: nn.Module):
        self.network = network

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, *S) -> (B, K, *S)."""
        return self.network(images, images.new_zeros(len(images)))

    @torch.no_grad()
    def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return self.logits(images).float().softmax(1)


class DrawnMasks(Segmenter):
    """A generative model whose samples are masks, one-hot (B, classes, *S), of the image that it is told.

    control: a batch with images -> how it is told of them, (B, P, *S).
    """

    random = True

    def __init__(self, generative: GenerativeModel, classes: int, control: Callable[[Mapping[str, Tensor]], Tensor]):
        self.generative, self.classes, self.control = generative, classes, control

    def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        told = {"control": self.control({"image": images})}
        return self.generative.sample((self.classes, *images.shape[2:]), told, seeds=seeds)


def mean_masks(
    segmenter: Segmenter,
    images: Tensor,
    places: Sequence[int],
    samples: int,
    seed: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """The mean over `samples` draws of the class probabilities of each image, float32 (N, K, *S) on the CPU.

    images: uint8 (N, C, *S); places: of each image in its split: its draw j depends on (seed, place, j) alone.
    `on_batch` is told after each batch how many images were drawn in it. A segmenter that is not random draws once.
    """
    found = []
    for batch, own in zip(images.split(batch_size), _parts(places, batch_size), strict=True):
        pixels, total = batch.to(device).float() / 127.5 - 1, 0
        for draw in range(samples if segmenter.random else 1):
            total = total + segmenter.draw(pixels, [seed_of(seed, place, draw) for place in own]).float()
            if on_batch is not None:
                on_batch(len(batch))
        found.append((total / (draw + 1)).cpu())
    return torch.cat(found)


def _parts(places: Sequence[int], size: int) -> list[Sequence[int]]:
    return [places[first : first + size] for first in range(0, len(places), size)]
