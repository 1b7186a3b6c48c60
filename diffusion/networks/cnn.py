"""The simplest denoiser: convolutions for what is near, dense layers for the whole image, one noise level.

Shapes below: B batch, C channels, S = (H, W) or (D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.denoiser import Cond
from diffusion.errors import UserError
from diffusion.networks.layers import ResidualBlock, conv, norm


class CNN(nn.Module):
    """Residual convolutions at full resolution, to which two dense layers add what they make of the whole image.

    It is told neither the noise level nor a class, so that it is for one level: objective=one_level.

    Args:
        in_channels, out_channels: of x and of the answer.
        size: the images' S, from which the dense layers have their widths; no other size runs.
        classes, augmentation: what networks may be told; this one is told nothing.
        channels: of the convolutions.
        blocks: residual blocks, of two convolutions each.
        dense: width between the two dense layers, which see the image at a quarter of its sides; 0 for none.
        bounded: answer within (-1, 1), tanh(l / 2) of what are the logits of pixels that are black or white.

    Raises UserError for values out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Sequence[int],
        classes: int | None = None,
        augmentation: int = 0,
        channels: int = 16,
        blocks: int = 3,
        dense: int = 128,
        bounded: bool = False,
    ):
        super().__init__()
        for name, value, least in (("channels", channels, 1), ("blocks", blocks, 1), ("dense", dense, 0)):
            if value < least:
                raise UserError(f"network.{name}={value}: give at least {least}")
        dims = len(size)
        self.bounded = bounded
        self.input = conv(dims)(in_channels, channels, 3, padding=1)
        if dense:
            small = [math.ceil(side / 4) for side in size]
            self.small = tuple(small)
            self.narrow = conv(dims)(channels, channels, 4, stride=4)
            self.dense = nn.Sequential(
                nn.Linear(channels * math.prod(small), dense), nn.SiLU(), nn.Linear(dense, channels * math.prod(small))
            )
        self.has_dense = bool(dense)
        self.blocks = nn.Sequential(*(ResidualBlock(channels, dims) for _ in range(blocks)))
        self.norm = norm(channels)
        self.output = conv(dims)(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """x (B, in_channels, *S) -> (B, out_channels, *S); c_noise and cond are left aside."""
        h = self.input(x)  # (B, C, *S)
        if self.has_dense:
            pad = [p for side in reversed(h.shape[2:]) for p in (0, -side % 4)]
            coarse = F.silu(self.narrow(F.pad(F.silu(h), pad)))  # (B, C, *S / 4)
            whole = self.dense(coarse.flatten(1)).reshape(coarse.shape)
            h = h + F.interpolate(whole, size=h.shape[2:], mode="nearest")
        answer = self.output(F.silu(self.norm(self.blocks(h))))
        return torch.tanh(answer / 2) if self.bounded else answer
