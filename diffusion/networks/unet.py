"""The U-Net F(x, c_noise, cond), in two or three dimensions, for any number of channels and any image size.

Shapes below: B batch, C channels, S = (H, W) or (D, H, W). Sources: Ho et al. 2020, appendix B; scale and shift by
the embedding from Dhariwal and Nichol 2021, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion.denoiser import Cond
from diffusion.errors import UserError
from diffusion.networks.layers import Attention, conv, norm, pad_to_multiple, patches, zero


class UNet(nn.Module):
    """Residual blocks on a pyramid of resolutions, with skip connections from the way down to the way up.

    Args:
        in_channels, out_channels: of x and of the answer.
        size: the images' S; it decides where attention goes. Other sizes still run, if the levels can halve them.
        classes: number of classes, or None for an unconditional network.
        augmentation: numbers by which the network is told how an image was augmented; 0 for none.
        channels: width of the first level; level i has channels * multipliers[i].
        blocks: residual blocks a level, on the way down (one more on the way up).
        attention_size: self-attention at every level whose longest side is at most this; 0 for none.
        head_channels: width of an attention head.
        dropout: share of whole channels left out in every residual block.
        patch: pixels a side of what the first layer makes one place, and the last turns back; both see the neighbouring
            patches. 1 is one place for each pixel.
        checkpointing: keep what goes into each block alone, and compute the rest anew for the gradients, which are the
            same to the bit: less memory for more time. Source: Chen et al. 2016.

    The output layer starts at zero, so an untrained network answers 0. Raises UserError if the smallest side of
    `size` holds no patch that can be halved at every level, and for values out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Sequence[int],
        classes: int | None = None,
        augmentation: int = 0,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention_size: int = 8,
        head_channels: int = 32,
        dropout: float = 0.0,
        patch: int = 1,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        spatial_dims = len(size)
        sizes = {"channels": channels, "blocks": blocks, "head_channels": head_channels, "patch": patch}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"network.{name}={value}: give at least 1")
        if not multipliers or min(multipliers) < 1:
            raise UserError(f"network.multipliers={list(multipliers)}: give one number above 0 for each level")
        self.patch, self.factor = patch, patch * 2 ** (len(multipliers) - 1)
        if min(size) < self.factor:
            if min(size) < patch:
                raise UserError(f"network.patch={patch} is larger than images of {'x'.join(map(str, size))}")
            cut, smaller = (f" in patches of {patch}", "a smaller network.patch, ") if patch > 1 else ("", "")
            raise UserError(
                f"images of {'x'.join(map(str, size))}{cut} cannot be halved {len(multipliers) - 1} times by a U-Net "
                f"of {len(multipliers)} levels: use {smaller}fewer network.multipliers, a smaller network, or larger "
                "images"
            )
        longest = math.ceil(max(size) / self.factor) * self.factor // patch  # in patches, as are all levels
        width = 4 * channels

        self.embedding = Embedding(width, classes, augmentation)
        self.input = patches(spatial_dims, in_channels, channels, patch)
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips, current = [channels], channels
        for level, multiplier in enumerate(multipliers):
            attends = longest // 2**level <= attention_size
            for _ in range(blocks):
                self.down.append(
                    Block(current, channels * multiplier, width, spatial_dims, dropout, attends, head_channels)
                )
                current = channels * multiplier
                skips.append(current)
            if level < len(multipliers) - 1:
                self.down.append(Downsample(current, spatial_dims))
                skips.append(current)
        self.skip_channels = tuple(skips)
        attends = longest // 2 ** (len(multipliers) - 1) <= attention_size
        for has_attention in (attends, False):
            self.middle.append(Block(current, current, width, spatial_dims, dropout, has_attention, head_channels))
        for level, multiplier in reversed(list(enumerate(multipliers))):
            attends = longest // 2**level <= attention_size
            for _ in range(blocks + 1):
                self.up.append(
                    Block(
                        current + skips.pop(),
                        channels * multiplier,
                        width,
                        spatial_dims,
                        dropout,
                        attends,
                        head_channels,
                    )
                )
                current = channels * multiplier
            if level > 0:
                self.up.append(Upsample())
        self.norm = norm(current)
        self.output = zero(patches(spatial_dims, current, out_channels, patch, back=True))
        if spatial_dims == 2:
            # The images take the weights' layout, which the CPU's convolutions prefer; volumes would lose 4% to 14%.
            self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """x (B, in_channels, *S), c_noise (B,) -> (B, out_channels, *S).

        cond may hold "label", int64 (B,) or multi-hot float (B, classes); "drop", bool (B,): those samples are
        answered without their label; and "augmentation", float (B, augmentation), which is 0 where it is not given.
        """
        embedding = self.embedding(c_noise, cond)  # (B, width)
        x, crop = pad_to_multiple(x, self.factor)
        x, skips = self.encode(self.input(x), embedding)
        return self.decode(x, skips, embedding)[crop]

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What `input` answers (B, channels, *S / patch) -> the middle's answer, and what the way up is given again.

        Each side of S must be a multiple of `factor`.
        """
        skips = [x]
        for layer in self.down:
            x = self._answer(layer, embedding, x)
            skips.append(x)
        for layer in self.middle:
            x = self._answer(layer, embedding, x)
        return x, skips

    def decode(self, x: Tensor, skips: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """What `encode` answers -> (B, out_channels, *S)."""
        skips = list(skips)
        for layer in self.up:
            x = self._answer(layer, embedding, *([x] if isinstance(layer, Upsample) else [x, skips.pop()]))
        return self.output(F.silu(self.norm(x)))

    def _answer(self, layer: nn.Module, embedding: Tensor, *parts: Tensor) -> Tensor:
        """Of the layer, to the channels of all parts."""

        def answer(*parts: Tensor) -> Tensor:
            return layer(torch.cat(parts, 1) if len(parts) > 1 else parts[0], embedding)

        if self.checkpointing and torch.is_grad_enabled():
            # Dropout draws again what it drew: the generators' states are put back.
            return checkpoint(answer, *parts, use_reentrant=False)
        return answer(*parts)


class Embedding(nn.Module):
    """The noise level, and the class and the augmentation where there are any, as a vector (B, width)."""

    def __init__(self, width: int, classes: int | None, augmentation: int, frequencies: int = 64):
        super().__init__()
        self.classes = classes
        self.register_buffer("frequencies", torch.logspace(-1, 2, frequencies, dtype=torch.float32), persistent=False)
        self.noise = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        if classes is not None:
            self.label = nn.Linear(classes + 1, width, bias=False)  # the last input means "no label"
        if augmentation:
            self.augmentation = nn.Linear(augmentation, width, bias=False)

    def forward(self, c_noise: Tensor, cond: Cond | None) -> Tensor:
        phase = c_noise[:, None] * self.frequencies  # (B, frequencies)
        embedding = self.noise(torch.cat([phase.cos(), phase.sin()], 1))
        if self.classes is not None:
            embedding = embedding + self.label(self._one_hot(c_noise.shape[0], cond or {}).to(embedding.dtype))
        if cond and "augmentation" in cond:
            embedding = embedding + self.augmentation(cond["augmentation"])
        return F.silu(embedding)

    def _one_hot(self, count: int, cond: Cond) -> Tensor:
        places = torch.arange(self.classes + 1, device=self.frequencies.device)
        none = (places == self.classes).to(self.frequencies)
        if "label" not in cond:
            return none.expand(count, -1)
        label = cond["label"]
        hot = F.one_hot(label, self.classes) if label.ndim == 1 else label
        hot = F.pad(hot.to(none), (0, 1))  # (B, classes + 1)
        return torch.where(cond["drop"][:, None], none, hot) if "drop" in cond else hot


class Block(nn.Module):
    """Two convolutions around a residual connection, scaled and shifted by the embedding; then attention, if any."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        spatial_dims: int,
        dropout: float,
        attends: bool,
        head_channels: int,
    ):
        super().__init__()
        convolution = conv(spatial_dims)
        self.norm1 = norm(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(width, 2 * out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = {2: nn.Dropout2d, 3: nn.Dropout3d}[spatial_dims](dropout)
        self.conv2 = zero(convolution(out_channels, out_channels, 3, padding=1))
        self.shortcut = convolution(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels, head_channels) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.scale_shift(embedding).reshape(x.shape[0], -1, *(1,) * (x.ndim - 2)).chunk(2, 1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.attention(self.shortcut(x) + self.conv2(self.dropout(F.silu(h))))


class Downsample(nn.Module):
    """Halve each side with a strided convolution."""

    def __init__(self, channels: int, spatial_dims: int):
        super().__init__()
        self.conv = conv(spatial_dims)(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double each side by repeating its values; the block that follows convolves at the new resolution."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
