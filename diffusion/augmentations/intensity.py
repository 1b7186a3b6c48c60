"""How bright things are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.augmentations.base import Transform, check_keys, per_image, uniform


@dataclass(frozen=True)
class Intensity(Transform):
    """Each image, with some probability, gets another gamma, then contrast, then brightness, cut off at -1 and 1.

    All channels of an image change alike, so colours keep their balance; any number of channels.

    told: whether the network is told what was done
    probability: of being changed at all
    gamma: standard deviation of the logarithm of the exponent, of values counted from black 0 to white 1
    contrast: standard deviation of the logarithm of the factor of each value's distance from the image's mean
    brightness: standard deviation of what is added, black being -1 and white 1
    """

    told: bool = True
    probability: float = 0.5
    gamma: float = 0.2
    contrast: float = 0.2
    brightness: float = 0.1

    moves = False

    def __post_init__(self):
        check_keys(self.probability, gamma=self.gamma, contrast=self.contrast, brightness=self.brightness)

    @property
    def numbers(self) -> int:
        """Of gamma, contrast and brightness, as far as they are not left out: each over its standard deviation."""
        return (self.gamma > 0) + (self.contrast > 0) + (self.brightness > 0)

    @property
    def draws(self) -> int:
        return 1 + self.numbers

    def change(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        chosen = uniform(draws[:, 0]) < self.probability
        done = torch.where(chosen[:, None], draws[:, 1:], 0.0)
        numbers = iter(per_image(number, images) for number in done.unbind(1))
        changed = images
        if self.gamma:
            changed = 2 * ((changed + 1) / 2).clamp(0, 1) ** torch.exp(self.gamma * next(numbers)) - 1
        if self.contrast:
            mean = changed.flatten(1).mean(1)
            mean = per_image(mean, images)
            changed = mean + (changed - mean) * torch.exp(self.contrast * next(numbers))
        if self.brightness:
            changed = changed + self.brightness * next(numbers)
        return torch.where(per_image(chosen, images), changed.clamp(-1, 1), images), done
