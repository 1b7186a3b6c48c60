"""A small residual classifier (He et al. 2016), whose features also measure how alike images are.

Shapes below: B batch, C channels, S = (H, W) or (D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.networks.layers import ResidualBlock, conv, norm


class Classifier(nn.Module):
    """Residual blocks on a pyramid of resolutions, the mean over all positions, and a linear layer.

    Args:
        in_channels, spatial_dims: of the images; any size runs.
        classes: number of classes, one logit each.
        channels: width of the first level; level i has channels * multipliers[i].
        blocks: residual blocks a level.

    Every level but the first begins with a strided convolution, which halves sides and rounds up. Raises UserError
    for values out of range.
    """

    def __init__(
        self,
        in_channels: int,
        spatial_dims: int,
        classes: int,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
    ):
        super().__init__()
        for name, value in {"classes": classes, "channels": channels, "blocks": blocks}.items():
            if value < 1:
                raise UserError(f"classifier.{name}={value}: give at least 1")
        if not multipliers or min(multipliers) < 1:
            raise UserError(f"classifier.multipliers={list(multipliers)}: give one number above 0 for each level")
        self.levels, current = nn.ModuleList(), in_channels
        for level, multiplier in enumerate(multipliers):
            width = channels * multiplier
            self.levels.append(
                nn.Sequential(
                    conv(spatial_dims)(current, width, 3, stride=2 if level else 1, padding=1),
                    *(ResidualBlock(width, spatial_dims) for _ in range(blocks)),
                )
            )
            current = width
        self.norm = norm(current)
        self.output = nn.Linear(current, classes)

    def features(self, images: Tensor) -> list[Tensor]:
        """The map of each level, (B, channels * multipliers[i], *S_i), the highest resolution first."""
        maps, x = [], images
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps

    def embed(self, images: Tensor) -> Tensor:
        """The last level's map, normalised, as its mean over all positions, (B, channels * multipliers[-1])."""
        return F.silu(self.norm(self.features(images)[-1])).flatten(2).mean(2)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, *S) -> logits (B, classes)."""
        return self.output(self.embed(images))
