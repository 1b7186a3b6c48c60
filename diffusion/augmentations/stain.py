"""How strongly a section of tissue took its stains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.augmentations.base import Transform, check_keys, per_image, uniform
from diffusion.devices import to_device
from diffusion.errors import UserError

STAINS = (
    (0.65, 0.70, 0.29),  # haematoxylin
    (0.07, 0.99, 0.11),  # eosin
    (0.27, 0.57, 0.78),  # diaminobenzidine, DAB
)
"""The optical density of each stain in red, green and blue: Ruifrok and Johnston 2001."""
DARKEST = 1 / 255
"""Transmitted light below which an 8-bit image knows no more."""


@dataclass(frozen=True)
class Stain(Transform):
    """Each image, with some probability, has more or less of each stain: haematoxylin, eosin and DAB.

    Light that passes falls exponentially with density, and densities of stains add up. So each pixel's density is
    taken apart into the three stains, their amounts change, and only the difference is put on: black stays black, and
    no change gives the image back.
    Source: Tellez et al. 2018 (whole-slide mitosis detection), with normal instead of uniform numbers. RGB only.

    told: whether the network is told what was done
    probability: of being changed at all
    strength: standard deviation of the logarithm of the factor of each stain
    offset: standard deviation of the amount of each stain that every pixel gains or loses, in natural logarithms
    """

    told: bool = True
    probability: float = 0.5
    strength: float = 0.2
    offset: float = 0.03

    moves = False
    draws = 7
    numbers = 6
    """The factors of the three stains, then what they gain, each over its standard deviation."""

    def __post_init__(self):
        check_keys(self.probability, strength=self.strength, offset=self.offset)

    def check(self, shape: Sequence[int]) -> None:
        if shape[0] != 3:
            raise UserError(
                f"augmentation: stains are told apart by their colour, and these images have {shape[0]} channel"
                f"{'' if shape[0] == 1 else 's'} instead of 3 (RGB): choose another, as augmentation=dihedral"
            )

    def change(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        chosen = uniform(draws[:, 0]) < self.probability
        done = torch.where(chosen[:, None], draws[:, 1:], 0.0)
        stains = torch.tensor(STAINS)
        stains, apart = (to_device(each, images.device, images.dtype) for each in (stains, torch.linalg.inv(stains)))
        factors, gains = torch.exp(self.strength * done[:, :3]), self.offset * done[:, 3:]
        light = (images.flatten(2) + 1) / 2  # (B, 3, P)
        density = -light.clamp(min=DARKEST).log()
        # Each pixel's density (a row) @ apart: its stains; times what they change by, @ stains: the change in density.
        change = apart @ torch.diag_embed(factors - 1) @ stains  # (B, 3, 3)
        added = change.mT @ density + (gains @ stains)[:, :, None]
        changed = (2 * light * torch.exp(-added) - 1).clamp(-1, 1).reshape(images.shape)
        return torch.where(per_image(chosen, images), changed, images), done
