"""Any file in MedMNIST's layout."""

from __future__ import annotations

from pathlib import Path

from datamodules import medmnist_layout
from datamodules.batch import DataError
from datamodules.memory import InMemoryDataModule
from datamodules.split import Split


class Npz(InMemoryDataModule):
    """The images of one npz file; `medmnist_layout.read` says what it may hold.

    DataError: no path was given, or the file breaks a rule of `medmnist_layout.read` or `examine.examine`.
    """

    def __init__(self, path: str | None = None, **options: int) -> None:
        super().__init__(**options)
        if not path:
            raise DataError("dataset=npz needs a file: add dataset.path=FILE")
        self.path = Path(path).expanduser()
        self.source = str(self.path)

    def load(self) -> dict[str, Split]:
        return medmnist_layout.read(self.path)
