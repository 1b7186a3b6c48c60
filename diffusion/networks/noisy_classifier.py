"""A classifier that is told how noisy its images are: the way down of a U-Net, its mean over all positions, logits.

Shapes below: B batch, C channels, S = (H, W) or (D, H, W). Source: Dhariwal and Nichol 2021, section 4 and appendix H.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.networks.layers import conv, norm
from diffusion.networks.unet import Block, Downsample, Embedding


class NoisyClassifier(nn.Module):
    """Residual blocks on a pyramid of resolutions, all told the noise level, then a linear layer.

    Args:
        in_channels, size: of the images; other sizes still run.
        classes: number of classes, one logit each.
        channels: width of the first level; level i has channels * multipliers[i].
        blocks: residual blocks a level; one more at the last, the one place of attention if `attention` is set.
        head_channels: width of an attention head.
        dropout: share of whole channels left out in every residual block.

    Each level but the last halves the sides, and rounds up. Raises UserError for values out of range.
    """

    def __init__(
        self,
        in_channels: int,
        size: Sequence[int],
        classes: int,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        attention: bool = True,
        head_channels: int = 32,
        dropout: float = 0.0,
    ):
        super().__init__()
        for name, value in {"channels": channels, "blocks": blocks, "head_channels": head_channels}.items():
            if value < 1:
                raise UserError(f"model.network.{name}={value}: give at least 1")
        if not multipliers or min(multipliers) < 1:
            raise UserError(f"model.network.multipliers={list(multipliers)}: give one number above 0 for each level")
        if not 0 <= dropout < 1:
            raise UserError(f"model.network.dropout={dropout}: give a share from 0 to below 1")
        dims, width = len(size), 4 * channels
        self.embedding = Embedding(width, None, 0)
        self.input = conv(dims)(in_channels, channels, 3, padding=1)
        self.layers, current = nn.ModuleList(), channels
        for level, multiplier in enumerate(multipliers):
            if level:
                self.layers.append(Downsample(current, dims))
            for _ in range(blocks):
                self.layers.append(Block(current, channels * multiplier, width, dims, dropout, False, head_channels))
                current = channels * multiplier
        self.layers.append(Block(current, current, width, dims, dropout, attention, head_channels))
        self.norm = norm(current)
        self.output = nn.Linear(current, classes)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x (B, in_channels, *S), c_noise (B,) -> logits (B, classes)."""
        embedding = self.embedding(c_noise, None)  # (B, width)
        x = self.input(x)
        for layer in self.layers:
            x = layer(x, embedding)
        return self.output(F.silu(self.norm(x)).flatten(2).mean(2))
