"""Windows of a photograph of stained human tissue that scikit-image carries: real data without a download."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays.split import Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError

# Bands of rows of the 512 x 512 photograph. They share no pixel, and each holds gland, stroma and all three
# classes: splits that cut columns, or a corner, leave one of their parts nearly or wholly without a class.
BANDS = {"val": (0, 96), "train": (96, 416), "test": (416, 512)}


class Tissue(ImageDataModule):
    """Colon glands from an RGB photograph: DAB stains membranes brown, haematoxylin stains nuclei blue.

    Each band is first reduced by `scale` (the mean of scale x scale pixels), then every window of size x size
    pixels at a distance of `stride` is an image: uint8 (N, 3, size, size). Windows within a split overlap.
    mask: 1 where the DAB stain exceeds Otsu's threshold of the train band.
    label: 0, 1, 2 for a window whose mean DAB is in the lowest, middle or highest third of the train windows.
    The stain is measured on the reduced bands, in the pixels of the images: the same measurement fits
    generated images.
    DataError: size * scale exceeds a band, or a number is below 1.
    """

    source = "tissue"
    class_names = ("low DAB", "middle DAB", "high DAB")

    def __init__(self, size: int = 28, scale: int = 2, stride: int = 2, **options: int) -> None:
        super().__init__(**options)
        for name, value in {"size": size, "scale": scale, "stride": stride}.items():
            if value < 1:
                raise DataError(f"tissue: {name}={value} makes no sense: choose 1 or more")
        largest = min(stop - start for start, stop in BANDS.values()) // scale
        if size > largest:
            raise DataError(
                f"tissue: size={size} at scale={scale} does not fit into the photograph: "
                f"choose dataset.size up to {largest}" + (", or a smaller dataset.scale" if scale > 1 else "")
            )
        self.size, self.scale, self.stride = size, scale, stride

    def load(self) -> dict[str, Split]:
        from skimage.color import rgb2hed
        from skimage.data import immunohistochemistry
        from skimage.filters import threshold_otsu

        photo = immunohistochemistry()
        bands = {name: reduce(photo[start:stop], self.scale) for name, (start, stop) in BANDS.items()}
        stain = {name: rgb2hed(band)[..., 2:].astype(np.float32) for name, band in bands.items()}
        threshold = threshold_otsu(stain["train"])
        dab = {name: self._windows(stain[name]).mean(dim=(1, 2, 3)) for name in BANDS}
        thirds = torch.quantile(dab["train"], torch.tensor([1 / 3, 2 / 3]))
        return {
            name: Split(
                images=self._windows(bands[name]),
                labels=torch.bucketize(dab[name], thirds),
                masks=self._windows((stain[name] > threshold).astype(np.uint8)),
            )
            for name in BANDS
        }

    def _windows(self, band: np.ndarray) -> Tensor:
        """(H, W, C) -> (N, C, size, size), row by row."""
        windows = torch.from_numpy(band).unfold(0, self.size, self.stride).unfold(1, self.size, self.stride)
        return windows.flatten(0, 1).contiguous()


def reduce(photo: np.ndarray, scale: int) -> np.ndarray:
    """uint8 (H, W, C) -> uint8 (H // scale, W // scale, C): rounded means of whole blocks."""
    height, width = photo.shape[0] // scale, photo.shape[1] // scale
    blocks = photo[: height * scale, : width * scale].reshape(height, scale, width, scale, -1)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)
