"""What the sources of picture files share: how a picture becomes an image, and a mask a map of classes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays.split import Split
from datamodules.batch import DataError
from datamodules.files.base import FilesDataModule
from datamodules.formats.pictures import fitted, fitted_mask, picture_size, read_mask, read_picture
from datamodules.progress import with_progress
from datamodules.settings import is_numbers
from datamodules.table import Item

log = logging.getLogger(__name__)

MOST_PIXELS = 8192
"""Along a side: beyond, one image takes a gigabyte to compute."""
GREY = (0.299, 0.587, 0.114)
"""Rec. 601 luma."""


class PictureFiles(FilesDataModule):
    """Pictures, all as size x size with the same channels and bits.

    size: pixels along each side
    fit: crop, pad or stretch what is not square; see `pictures.fitted`
    channels: 1 or 3 converts colour to grey (Rec. 601 luma) or grey to colour; null: as the files have it, all alike
    bits: 8 or 16 converts; null: as the files have it, all alike
    intensity: [low, high], the values that become black and white, beyond which is cut off; null: the whole range of
        the type, 0 to 255 or 65535
    """

    def __init__(
        self,
        size: int = 64,
        fit: str = "crop",
        channels: int | None = None,
        bits: int | None = None,
        intensity: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 1 <= size <= MOST_PIXELS:
            raise DataError(f"dataset.size={size}: give pixels, from 1 to {MOST_PIXELS}")
        if fit not in ("crop", "pad", "stretch"):
            raise DataError(f"dataset.fit={fit}: use crop, pad or stretch")
        if channels not in (None, 1, 3) or channels is True:
            raise DataError(f"dataset.channels={channels}: use 1, 3, or null for what the files have")
        if bits not in (None, 8, 16):
            raise DataError(f"dataset.bits={bits}: use 8, 16, or null for what the files have")
        if intensity is not None and not (is_numbers(intensity, 2) and intensity[0] < intensity[1]):
            raise DataError(f"dataset.intensity={intensity}: give [low,high], low below high")
        self.size, self.fit, self.channels, self.bits = size, fit, channels, bits
        self.intensity = None if intensity is None else tuple(map(float, intensity))
        self._brightest = 0

    def decoding(self) -> dict[str, Any]:
        keys = ("size", "fit", "channels", "bits", "intensity")
        return {key: getattr(self, key) for key in keys}

    def decode(self, item: Item) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        picture = read_picture(item.path)
        mask = None
        if item.mask is not None:
            classes = self.mask_classes(read_mask(item.mask))
            if classes.shape != picture.shape[:2]:
                raise DataError(
                    f"{item.mask} is {classes.shape}, but {item.path} is {picture.shape[:2]}: save them alike"
                )
            mask = fitted_mask(torch.from_numpy(classes)[None], self.size, self.fit, len(self.mask_values))
        yield item.name, self.image(picture, item), mask

    def pictures(self) -> tuple[list[str], Tensor]:
        """All files by name, and what they become, whatever their splits and labels; nothing is kept.

        DataError: one of them cannot be read.
        """
        names, images = [], []
        for item in with_progress("reading pictures", self.items()):
            names.append(item.name)
            images += [image for _, image, _ in self.decode(item)]
        return names, torch.stack(images)

    def size_in_file(self, item: Item) -> tuple[int, int] | None:
        return picture_size(item.path)

    mask_values: Sequence[int] = (0, 255)
    """The values of a mask's classes 0, 1, ..."""

    def mask_classes(self, mask: np.ndarray) -> np.ndarray:
        """Each pixel's class: the one whose value is nearest; uint8 (H, W)."""
        values = np.asarray(self.mask_values)
        middles = (values[1:] + values[:-1]) / 2
        return np.searchsorted(middles, mask).astype(np.uint8)

    def image(self, picture: np.ndarray, item: Item) -> Tensor:
        """(H, W, C) uint8 or uint16 -> uint8 or int16 (C, size, size)."""
        sixteen, white = picture.dtype == np.uint16, float(np.iinfo(picture.dtype).max)
        values = torch.from_numpy(picture.astype(np.float32)).movedim(-1, 0)
        if sixteen:
            self._brightest = max(self._brightest, int(picture.max()))
        low, high = self.intensity or (0.0, white)
        values = fitted(self._with_channels(values, item), self.size, self.fit).sub(low).div(high - low).clamp(0, 1)
        if (self.bits or (16 if sixteen else 8)) == 8:
            return values.mul(255).round().to(torch.uint8)
        return values.mul(65535).round().sub(32768).to(torch.int16)

    def _with_channels(self, values: Tensor, item: Item) -> Tensor:
        if self.channels in (None, len(values)):
            return values
        if self.channels == 1 and len(values) == 3:
            return torch.einsum("c,chw->hw", torch.tensor(GREY), values)[None]
        if self.channels == 3 and len(values) == 1:
            return values.expand(3, -1, -1)
        raise DataError(f"{item.path} has {len(values)} channels, which do not become {self.channels}: leave it out")

    def about(self) -> dict[str, Any]:
        return {"brightest": self._brightest}

    def load(self) -> dict[str, Split]:
        splits, brightest = super().load(), self._prepared.more["brightest"]
        if 0 < brightest < 1 << 14 and self.intensity is None:
            log.warning(
                "%s: the 16-bit images use the values up to %d only, so they are dark: set dataset.intensity=[0,%d]",
                self.source,
                brightest,
                (1 << brightest.bit_length()) - 1,
            )
        return splits
