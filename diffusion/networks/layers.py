"""Layers that the networks share, in two or three dimensions. Shapes: B batch, C channels, S = (H, W) or (D, H, W)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.errors import UserError


def conv(spatial_dims: int) -> type[nn.Module]:
    """The class of convolutions over that many axes."""
    return {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]


def patches(spatial_dims: int, in_channels: int, out_channels: int, size: int, back: bool = False) -> nn.Module:
    """A convolution to patches of `size` a side, (B, in_channels, *S) -> (B, out_channels, *S / size), or `back`.

    It reaches over one patch on each side, so that the patches have no seams; at a size of 1 it is 3 wide, both ways.
    """
    kind = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[spatial_dims] if back and size > 1 else conv(spatial_dims)
    return kind(in_channels, out_channels, 3 * size, stride=size, padding=size)


def groups_of(channels: int) -> int:
    """As many groups, up to 32, as divide the channels and leave four or more in each."""
    return next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels >= 4 * g or g == 1))


def norm(channels: int) -> nn.GroupNorm:
    """Group norm with as many groups as `groups_of` finds."""
    return nn.GroupNorm(groups_of(channels), channels)


def locked_of(network: nn.Module) -> set[int]:
    """The ids of the parameters that a part of it keeps as they are: of each part's `locked`, where it has that."""
    return {id(p) for part in network.modules() for p in getattr(part, "locked", ())}


def zero(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), (B, C, *S) -> (B, C, *S); the identity before training."""

    def __init__(self, channels: int, spatial_dims: int):
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = conv(spatial_dims)(channels, channels, 3, padding=1)
        self.norm2 = norm(channels)
        self.conv2 = zero(conv(spatial_dims)(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Self-attention over all positions, around a residual connection."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.heads = max(1, channels // head_channels)
        if channels % self.heads:
            raise UserError(f"network.head_channels={head_channels} does not divide a level's {channels} channels")
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).mT  # (B, N, C), N positions
        q, k, v = (
            self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, N, C/heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        return x + self.output(mixed).mT.reshape(x.shape)


def pad_to_multiple(x: Tensor, factor: int) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad each side of x (B, C, *S) to a multiple of `factor` by its edge values; also the slices that undo it."""
    pads, crop = [], [slice(None), slice(None)]
    for side in x.shape[2:]:
        extra = -side % factor
        pads.append((extra // 2, extra - extra // 2))
        crop.append(slice(extra // 2, extra // 2 + side))
    if any(sum(pad) for pad in pads):
        x = F.pad(x, [p for pad in reversed(pads) for p in pad], mode="replicate")
    return x, tuple(crop)
