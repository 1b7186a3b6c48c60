"""Small random shifts, rotations and scalings of the training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """Each image, with some probability, is shifted, rotated and scaled a little about its centre, in its plane.

    The network is told what was done, and at sampling that nothing was: so the samples are like the images, not like
    their augmented copies. Three-dimensional images are moved slice by slice, alike in all slices; what comes from
    outside repeats the border. Sources: Jun et al. 2020; Karras et al. 2022, appendix F.2.

    probability: of being changed at all
    shift: standard deviation in pixels, along each axis
    rotation: standard deviation in radians
    scale: standard deviation of the logarithm of the scale
    """

    probability: float = 0.5
    shift: float = 0.4
    rotation: float = 0.12
    scale: float = 0.08

    draws = 5
    """Standard normal numbers that one image takes."""
    values = 4
    """Numbers by which the network is told: shift x, shift y, rotation, scale, each over its standard deviation."""

    def __call__(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, C, *S) float32 and draws (B, 5) -> images of the same shape, and the told values (B, 4)."""
        chosen = torch.special.ndtr(draws[:, 4:]) < self.probability
        told = torch.where(chosen, draws[:, :4], 0.0)
        height, width = images.shape[-2:]
        angle, zoom = self.rotation * told[:, 2], torch.exp(-self.scale * told[:, 3])
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        # Rows of the map from output to input coordinates, which run from -1 to 1 over each side.
        x = torch.stack([cos, -sin * height / width, -2 * self.shift * told[:, 0] / width], 1)
        y = torch.stack([sin * width / height, cos, -2 * self.shift * told[:, 1] / height], 1)
        flat = images.reshape(len(images), -1, height, width)
        grid = F.affine_grid(torch.stack([x, y], 1), list(flat.shape), align_corners=False)
        moved = F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return moved.reshape(images.shape), told
