"""Small random shifts, rotations and scalings of the training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.augmentations.base import Transform, check_keys, per_image, uniform
from diffusion.augmentations.warp import rotation, warp


@dataclass(frozen=True)
class Affine(Transform):
    """Each image, with some probability, is shifted, rotated and scaled a little about its centre, in its plane.

    The network is told. Volumes are moved alike in all slices; what comes from outside repeats the border.

    probability: of being changed at all
    shift: standard deviation in pixels, along each axis
    rotation: standard deviation in radians
    scale: standard deviation of the logarithm of the scale
    """

    probability: float = 0.5
    shift: float = 0.4
    rotation: float = 0.12
    scale: float = 0.08

    told = True
    moves = True
    draws = 5
    numbers = 4
    """Shift x, shift y, rotation, scale, each over its standard deviation."""

    def __post_init__(self):
        check_keys(self.probability, shift=self.shift, rotation=self.rotation, scale=self.scale)

    def change(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        chosen = uniform(draws[:, 4]) < self.probability
        done = torch.where(chosen[:, None], draws[:, :4], 0.0)
        zoom = torch.exp(-self.scale * done[:, 3])
        linear = zoom[:, None, None] * rotation(self.rotation * done[:, 2])
        moved = warp(images, linear, self.shift * done[:, :2], outside="border")
        return torch.where(per_image(chosen, images), moved, images), done
