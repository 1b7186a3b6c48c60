"""The autoencoder: images to latents of lower resolution and back, in two or three dimensions.

Shapes below: B batch, C image channels, S the images' (H, W) or (D, H, W), c and s the same of the latents. Source:
the first stage of Rombach et al. 2022, appendix G, with widths that change where the resolution does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.networks.bottlenecks import Bottleneck
from diffusion.networks.layers import Attention, ResidualBlock, conv, norm
from diffusion.random import Noise


class Reconstruction(NamedTuple):
    """What an autoencoder makes of images: (B, C, *S), its bottleneck's penalty (B,) float32, and scalars to log."""

    images: Tensor
    penalty: Tensor
    statistics: dict[str, Tensor]


class Autoencoder(nn.Module):
    """Encoder, bottleneck and decoder. Every side of the latents is that of the images divided by `factor`.

    Args:
        in_channels, size: of the images.
        bottleneck: latent_channels -> the bottleneck.
        latent_channels: of the latents.
        channels: width of the first level; level i has channels * multipliers[i].
        multipliers: one for each level; factor = 2^(levels - 1).
        blocks: residual blocks a level, in the encoder and in the decoder.
        attention: self-attention at the lowest resolution.

    Raises UserError for values out of range, and for a `size` that `latent_shape` refuses.
    """

    def __init__(
        self,
        in_channels: int,
        size: Sequence[int],
        bottleneck: Callable[[int], Bottleneck],
        latent_channels: int = 4,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        attention: bool = False,
    ):
        super().__init__()
        for name, value in {"latent_channels": latent_channels, "channels": channels, "blocks": blocks}.items():
            if value < 1:
                raise UserError(f"model.network.{name}={value}: give at least 1")
        if not multipliers or min(multipliers) < 1:
            raise UserError(f"model.network.multipliers={list(multipliers)}: give one number above 0 for each level")
        self.in_channels, self.latent_channels, self.spatial_dims = in_channels, latent_channels, len(size)
        self.factor = 2 ** (len(multipliers) - 1)
        self.latent_shape((in_channels, *size))
        widths = [channels * multiplier for multiplier in multipliers]
        self.bottleneck = bottleneck(latent_channels)
        self.encoder = Encoder(in_channels, self.bottleneck.features, widths, blocks, attention, len(size))
        self.decoder = Decoder(latent_channels, in_channels, widths[::-1], blocks, attention, len(size))

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's output convolution, for the adaptive weight of an adversarial loss."""
        return self.decoder.output.weight

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(C, *S) of images -> (c, *s) of latents. Raises UserError if the network does not fit the images."""
        channels, *size = shape
        images = f"images of {'x'.join(map(str, size))} with {channels} channel{'s' * (channels != 1)}"
        if channels != self.in_channels:
            raise UserError(f"{images} do not fit an autoencoder of {self.in_channels}: train one on such images")
        if len(size) != self.spatial_dims:
            raise UserError(f"{images} do not fit an autoencoder in {self.spatial_dims}-D: train one on such images")
        wrong = dict.fromkeys(side for side in size if side % self.factor)
        if wrong:
            advice = (f"{self._near(side)} in place of {side}" for side in wrong)
            raise UserError(
                f"{images}: every side must be a multiple of {self.factor}: take {', '.join(advice)}; "
                "or fewer model.network.multipliers"
            )
        return self.latent_channels, *(side // self.factor for side in size)

    def moments(self, images: Tensor) -> Tensor:
        """images (B, C, *S) -> (B, M, *s) float32: all that `draw` needs, and nothing random."""
        return self.bottleneck.moments(self.encoder(images))

    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        """moments (B, M, *s) -> latents (B, c, *s); their mean if rng is None."""
        return self.bottleneck.draw(moments, rng)

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, c, *s) -> images (B, C, *S)."""
        return self.decoder(self.bottleneck.restore(latents))

    def forward(self, images: Tensor, rng: Noise | None) -> Reconstruction:
        """images (B, C, *S) -> what comes back of them, through latents drawn with rng, or their mean."""
        latents, penalty, statistics = self.bottleneck(self.encoder(images), rng)
        return Reconstruction(self.decoder(latents), penalty, statistics)

    def _near(self, side: int) -> str:
        below = side // self.factor * self.factor
        return f"{below} or {below + self.factor}" if below else str(self.factor)


class Encoder(nn.Module):
    """(B, in_channels, *S) -> (B, out_channels, *s): at each level residual blocks, then a strided convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], blocks: int, attends: bool, spatial_dims: int
    ):
        super().__init__()
        convolution = conv(spatial_dims)
        self.input = convolution(in_channels, widths[0], 3, padding=1)
        self.down = nn.Sequential()
        for i, width in enumerate(widths):
            self.down.extend(ResidualBlock(width, spatial_dims) for _ in range(blocks))
            if i < len(widths) - 1:
                self.down.append(convolution(width, widths[i + 1], 3, stride=2, padding=1))
        self.middle = _middle(widths[-1], attends, spatial_dims)
        self.norm = norm(widths[-1])
        self.output = convolution(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.down(self.input(x)))
        return self.output(F.silu(self.norm(x)))


class Decoder(nn.Module):
    """(B, in_channels, *s) -> (B, out_channels, *S): at each level residual blocks, then twice the resolution."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], blocks: int, attends: bool, spatial_dims: int
    ):
        super().__init__()
        convolution = conv(spatial_dims)
        self.input = convolution(in_channels, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], attends, spatial_dims)
        self.up = nn.Sequential()
        for i, width in enumerate(widths):
            self.up.extend(ResidualBlock(width, spatial_dims) for _ in range(blocks))
            if i < len(widths) - 1:
                self.up.append(nn.Upsample(scale_factor=2, mode="nearest"))
                self.up.append(convolution(width, widths[i + 1], 3, padding=1))
        self.norm = norm(widths[-1])
        self.output = convolution(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.middle(self.input(x)))
        return self.output(F.silu(self.norm(x)))


def _middle(width: int, attends: bool, spatial_dims: int) -> nn.Sequential:
    """A residual block at the lowest resolution; with attention, that and a second block after it."""
    first = ResidualBlock(width, spatial_dims)
    return nn.Sequential(first, *([Attention(width, width), ResidualBlock(width, spatial_dims)] if attends else []))
