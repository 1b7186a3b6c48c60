"""Images in one npy file, and their classes as one-hot rows in another: the sprites of the diffusion course."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays.prepared import fits
from datamodules.arrays.split import Split
from datamodules.arrays.stored import Stored, npy_header
from datamodules.base import ImageDataModule
from datamodules.batch import DataError
from datamodules.files.partition import rows_by_ratio

IMAGES, LABELS = "sprites_1788_16x16.npy", "sprite_labels_nc_1788_16x16.npy"
CLASSES = ("hero", "non-hero", "food", "spell", "side-facing")


class Sprites(ImageDataModule):
    """89,400 drawings of 16 x 16 RGB pixels in 5 classes, of "How Diffusion Models Work" (DeepLearning.AI).

    path: the folder that holds both files, or a file uint8 (N, H, W, C) of one's own
    labels: the file of one-hot rows (N, K); null: the course's, beside the images, if it is there
    val, test: shares, class by class
    split_seed: of that division
    memory: GiB up to which the images are held in memory; more are read from the file batch by batch
    DataError: a file is missing, damaged, or holds something else, or pickled objects, which are never loaded.
    """

    def __init__(
        self,
        path: str | None = None,
        labels: str | None = None,
        val: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
        memory: float = 4.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not path:
            raise DataError(f"dataset.path is not set: add dataset.path=DIR, the folder that holds {IMAGES}")
        given = Path(path).expanduser()
        self.path = given / IMAGES if given.is_dir() else given
        beside = self.path.with_name(LABELS)
        self.labels = Path(labels).expanduser() if labels else beside if self.path.name == IMAGES else None
        if labels is None and not beside.is_file():
            self.labels = None
        self.source, self.memory = str(self.path), memory
        self.val, self.test, self.split_seed = val, test, split_seed

    def load(self) -> dict[str, Split]:
        images = self._images()
        labels = None if self.labels is None else self._classes(len(images))
        rows = rows_by_ratio(len(images), labels, self.val, self.test, self.split_seed)
        whole = Split(images, labels)
        return {name: whole.only(places) for name, places in rows.items()}

    def _images(self) -> Tensor | Stored:
        shape, dtype, offset = _header(self.path)
        if len(shape) != 4 or dtype != np.uint8 or not 1 <= shape[-1] <= 4 or 0 in shape:
            raise DataError(f"{self.path} holds {dtype} of shape {shape}, but images uint8 (N, H, W, C) are needed")
        stored = Stored(self.path, torch.uint8, shape, offset, channels_last=True)
        if self.path.stat().st_size != offset + stored.numel():
            raise DataError(f"{self.path} is cut short, or longer than its header says: copy it again")
        return stored.load() if fits(self.memory, stored) else stored

    def _classes(self, n: int) -> Tensor:
        shape, dtype, _ = _header(self.labels)
        if len(shape) != 2 or shape[0] != n or dtype.kind not in "biuf":
            raise DataError(f"{self.labels} holds {dtype} of shape {shape}, but one-hot rows ({n}, K) are needed")
        rows = torch.from_numpy(np.load(self.labels, allow_pickle=False).astype(np.float64))
        if not (((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all()):
            raise DataError(f"{self.labels}: a row is not one-hot: a single 1 and otherwise 0 are needed")
        if self.path.name == IMAGES and shape[1] == len(CLASSES):
            self.class_names = CLASSES
        return rows.argmax(1)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    try:
        with path.open("rb") as file:
            return *npy_header(file, str(path), in_place=True), file.tell()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check dataset.path (relative ones start at {Path.cwd()})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
