"""Networks for colour images, and what becomes of grey images and of volumes before them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.extractors.base import Extractor
from diffusion.extractors.weights import reason

if TYPE_CHECKING:
    import pytorch_lightning as pl

SLICES = 4
"""Along each axis of a volume."""
MOST_PLANES = 64
"""Planar images that a network sees at once: enlarged to its input, they need far more memory than the images."""


class Planar(Extractor):
    """An extractor whose network takes 2-D images of three channels.

    A grey image is shown in all three channels. Of a volume the network sees evenly spaced slices inside it, 4 along
    each of its axes, and features and probabilities are their means over the 12. Other numbers of channels are refused
    by `check_channels`, which comes before the network is made.

    resize: how the network's input is made, and its side in pixels.
    """

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        network: nn.Module,
        features: int,
        resize: tuple[str, int],
        device: torch.device | str = "cpu",
    ):
        super().__init__(network, features, device)
        self.shape, self.resize = tuple(datamodule.spec.shape), resize

    @abstractmethod
    def planar(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images uint8 (B, 3, H, W) of any size -> features (B, E), probabilities (B, K) or None."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        values, probabilities = zip(*(self._mean(planes) for planes in planes_of(images)), strict=True)
        return mean(values), None if probabilities[0] is None else mean(probabilities)

    def _mean(self, planes: Tensor) -> tuple[Tensor, Tensor | None]:
        """The means over the planes (B, P, C, H, W) of each image."""
        count, each, _, *size = planes.shape
        found = zip(*map(self.planar, planes.flatten(0, 1).expand(-1, 3, *size).split(MOST_PLANES)), strict=True)
        values, probabilities = (None if parts[0] is None else torch.cat(parts) for parts in found)
        return tuple(x if x is None else x.view(count, each, -1).mean(1) for x in (values, probabilities))

    def receipt(self) -> dict[str, Any]:
        channels, *size = self.shape
        volumes, (how, side) = len(size) == 3, self.resize
        before = ("slices of " if volumes else "") + " x ".join(map(str, size))
        return super().receipt() | {
            "resize": f"{how}, {before} -> {side} x {side}",
            "channels": "one channel repeated three times" if channels == 1 else "as they are",
            "volumes": f"mean over {SLICES} slices along each of 3 axes" if volumes else None,
        }


class Photographs(Planar):
    """A network for images at its own size, less a mean and over a standard deviation of each channel.

    Images are resized whole, not cropped, with antialiasing, in float32 and within their range.

    network: float32 (B, 3, side, side) -> (B, E).
    interpolation: bilinear; anything else is bicubic.
    statistics: means and standard deviations of the channels, on the scale [0, 1].

    Raises UserError if the network does not take images of this side.
    """

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        network: nn.Module,
        side: int,
        interpolation: str,
        statistics: tuple[Sequence[float], Sequence[float]],
        device: torch.device | str = "cpu",
    ):
        try:
            with torch.no_grad():
                features = network.eval()(torch.zeros(1, 3, side, side)).shape[1]
        # What a network raises for images that do not fit has no common base.
        except Exception as error:
            raise UserError(
                f"extractor={self.name}: the model does not take images of {side} x {side} ({reason(error)}): "
                "choose another extractor.size, or null"
            ) from error
        mode = interpolation if interpolation == "bilinear" else "bicubic"
        super().__init__(datamodule, network, features, (f"{mode}, antialiased", side), device)
        self.mode = mode
        self.register_buffer("statistics", torch.tensor(statistics, device=device).view(2, 3, 1, 1))

    def planar(self, images: Tensor) -> tuple[Tensor, None]:
        side, (average, std) = self.resize[1], self.statistics
        if images.shape[2:] != (side, side):
            # Bicubic interpolation goes beyond the values that it goes between.
            images = F.interpolate(images.float(), (side, side), mode=self.mode, antialias=True).clamp(0, 255)
        return self.network((images / 255 - average) / std), None


def check_channels(choice: str, datamodule: pl.LightningDataModule) -> None:
    """Raises UserError unless the images have one or three channels."""
    channels = datamodule.spec.shape[0]
    if channels not in (1, 3):
        raise UserError(
            f"extractor={choice} takes images of one or three channels, not of {channels} as in {datamodule.source}: "
            "choose extractor=domain or extractor=random"
        )


def planes_of(images: Tensor) -> list[Tensor]:
    """Images (B, C, H, W) as [(B, 1, C, H, W)]; volumes (B, C, D, H, W) as slices (B, 4, C, h, w) along each axis."""
    if images.ndim == 4:
        return [images[:, None]]
    return [images.index_select(axis, places(images.shape[axis], images)).movedim(axis, 1) for axis in (2, 3, 4)]


def places(side: int, like: Tensor) -> Tensor:
    """Where the slices lie along an axis: the whole numbers next to (i + 1) (side - 1) / 5, i = 0 ... 3."""
    return (torch.arange(1, SLICES + 1, device=like.device) * (side - 1) / (SLICES + 1)).round().long()


def mean(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(parts).mean(0)
