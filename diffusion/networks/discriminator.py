"""A patch discriminator: says of each patch of an image how real it looks. Source: Isola et al. 2017, section 3.2.2."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.networks.layers import conv, norm


class PatchDiscriminator(nn.Module):
    """images (B, C, *S) -> logits (B, 1, *patches), in two or three dimensions; patches = S // 2^layers - 1.

    Strided convolutions of 4, each with half the resolution and twice the width, up to 8 * channels; then one of
    stride 1 for the logits, each of which sees 6 * 2^layers - 2 pixels a side. Group norm in place of the paper's
    batch norm: what an image is told depends on no other image, and nothing but the weights is state.

    Args:
        in_channels, size: of the images. Others still run, if they are large enough.
        channels: width of the first layer.
        layers: how often the resolution is halved.

    Raises UserError for values out of range, and where a side is smaller than 2^(layers + 1).
    """

    def __init__(self, in_channels: int, size: Sequence[int], channels: int = 32, layers: int = 2):
        super().__init__()
        for name, value in {"channels": channels, "layers": layers}.items():
            if value < 1:
                raise UserError(f"discriminator.{name}={value}: give at least 1")
        if min(size) < 2 ** (layers + 1):
            raise UserError(
                f"images of {'x'.join(map(str, size))} are too small for discriminator.layers={layers}: "
                f"every side must be {2 ** (layers + 1)} or more; use fewer layers, or larger images"
            )
        convolution = conv(len(size))
        widths = [channels * min(2**layer, 8) for layer in range(layers)]
        parts = [convolution(in_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            parts += [convolution(before, after, 4, stride=2, padding=1), norm(after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, convolution(widths[-1], 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
