"""Any file in MedMNIST's layout."""

from __future__ import annotations

from pathlib import Path

from datamodules.arrays.split import Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError
from datamodules.formats import medmnist_layout


class Npz(ImageDataModule):
    """The images of one npz file; `medmnist_layout.read` says what it may hold.

    memory: GiB up to which the images are held in memory; more are read from the disk batch by batch
    cache: the folder that compressed images are then unpacked to
    DataError: no path was given, or the file breaks a rule of `medmnist_layout.read` or `examine.examine`.
    """

    def __init__(
        self, path: str | None = None, memory: float = 4.0, cache: str = "~/.cache/med-diffusion", **options: int
    ) -> None:
        super().__init__(**options)
        if memory < 0:
            raise DataError(f"dataset.memory={memory}: give GiB, 0 or more")
        if not path:
            raise DataError("dataset=npz needs a file: add dataset.path=FILE")
        self.path = Path(path).expanduser()
        self.source = str(self.path)
        self.memory, self.cache = memory, Path(cache).expanduser()

    def load(self) -> dict[str, Split]:
        return medmnist_layout.read(self.path, self.memory, self.cache)
