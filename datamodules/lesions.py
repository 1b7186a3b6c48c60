"""Tissue with planted lesions, of which every pixel is known: for tasks that seek what is not normal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from datamodules.arrays.order import permutation
from datamodules.arrays.split import SPLITS, Split
from datamodules.batch import DataError
from datamodules.tissue import Tissue

CONTRASTS = {"low": 0.25, "middle": 0.5, "high": 1.0}
"""The root mean square change of a lesion's pixels, over them and their channels, in standard deviations of the
training images (over all pixels and channels): to the eye barely visible, visible on a second look, and obvious."""
TEXTURES = ("mixed", "flat")
RADII = (3 / 28, 6 / 28)
"""The smallest and the largest radius, as shares of the image's side."""


class Lesions(Tissue):
    """The windows of `Tissue`: those of train as they are, and half of those of val and test with a planted disc.

    A disc lies wholly in the image; its radius is 3 to 6 pixels of 28, place and radius are uniform. Its colours are
    those of pixels, drawn at random, of a window of another stain class in the same split; see `planted`. Place, size
    and colours of a lesion depend on its split and window alone, not on the contrast.
    mask: 1 in the lesion. There are no labels: an image is normal where its mask is empty, as all of train are.

    contrast: low, middle or high; see `CONTRASTS`
    texture: mixed, every pixel of the disc has a colour of its own; or flat, all have the same
    DataError: another contrast or texture; images of less than 14 pixels.
    """

    source = "lesions"
    class_names = None

    def __init__(self, contrast: str = "middle", texture: str = "mixed", **options: Any) -> None:
        super().__init__(**options)
        if contrast not in CONTRASTS:
            raise DataError(f"dataset.contrast={contrast}: give {', '.join(CONTRASTS)}")
        if texture not in TEXTURES:
            raise DataError(f"dataset.texture={texture}: give {', '.join(TEXTURES)}")
        if self.size < 14:
            raise DataError(f"lesions: size={self.size}: give 14 or more, for a disc to be seen")
        self.contrast, self.texture = contrast, texture

    def load(self) -> dict[str, Split]:
        tissue = super().load()
        std = float(tissue["train"].images.double().std(correction=0))
        return {
            name: Split(split.images, None, torch.zeros_like(split.masks))
            if name == "train"
            else self._plant(name, split, std)
            for name, split in tissue.items()
        }

    def _plant(self, name: str, split: Split, std: float) -> Split:
        images, masks = split.images.clone(), torch.zeros_like(split.masks)
        for place in permutation(len(split), f"lesions {name}")[: len(split) // 2].tolist():
            rng = np.random.default_rng([SPLITS.index(name), place])
            image = split.images[place].numpy()
            inside = _disc(image.shape[1:], rng)
            count = int(inside.sum()) if self.texture == "mixed" else 1
            others = rng.permutation((split.labels != split.labels[place]).nonzero()[:, 0].numpy())
            drawn = (rng.choice(split.images[row].flatten(1).numpy(), count, axis=1) for row in others)
            colours = far(image[:, inside], drawn, max(CONTRASTS.values()) * std)
            images[place] = torch.from_numpy(planted(image, inside, colours, CONTRASTS[self.contrast] * std))
            masks[place, 0] = torch.from_numpy(inside)
        return Split(images, None, masks)


def _disc(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """The pixels of a disc that lies wholly in an image of this shape, bool (H, W)."""
    radius = rng.uniform(*RADII) * min(shape)
    centre = [rng.uniform(radius, side - 1 - radius) for side in shape]
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def far(tissue: np.ndarray, drawn: Iterable[np.ndarray], change: float) -> np.ndarray:
    """The first of the colours `drawn`, (C, M) or (C, 1), that differ from the tissue (C, M) by `change` or more."""
    for colours in drawn:
        if _rms(colours - tissue.astype(np.float64)) >= change:
            return colours
    raise DataError("lesions: no other tissue has colours that differ enough: choose a larger dataset.size")


def planted(image: np.ndarray, inside: np.ndarray, colours: np.ndarray, change: float) -> np.ndarray:
    """The image uint8 (C, H, W) with a lesion where inside (H, W) holds.

    x' = (1 - w) x + w c for the pixels x and the colours c, (C, M) or (C, 1), with w = change / rms(c - x): the
    colours are blended in so far that the root mean square of x' - x over pixels and channels is `change`, in grey
    levels and but for rounding.
    """
    found, tissue = image.copy(), image[:, inside].astype(np.float64)
    found[:, inside] = (tissue + change / _rms(colours - tissue) * (colours - tissue)).round()
    return found


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))
