"""The MedMNIST sets (https://medmnist.com): address, md5 and class names come from the medmnist package."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import runpy
from pathlib import Path
from typing import Any

from datamodules.arrays.split import Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError
from datamodules.fetch import fetch, md5_of
from datamodules.formats import medmnist_layout

LARGE = 1 << 28
"""Bytes of a file whose md5 is worth remembering."""


@functools.cache
def catalogue() -> dict[str, dict[str, Any]]:
    """The package's table of data sets, by name."""
    # The file alone: importing the package brings in pandas, sklearn.metrics and, where present, torchvision.
    folder = importlib.util.find_spec("medmnist").submodule_search_locations[0]
    return runpy.run_path(str(Path(folder) / "info.py"))["INFO"]


class MedMNIST(ImageDataModule):
    """A MedMNIST set, 2-D or 3-D, from the official file in `root`, which is downloaded when it is absent.

    name: as in the medmnist package, in lower case
    size: 28, or one of the larger sizes that the set comes in
    memory, cache: see `medmnist_layout.read`
    DataError: no such set or size; the file is absent and cannot be downloaded (or may not: download=False);
    the file is not the official one by its md5.
    """

    def __init__(
        self,
        name: str,
        size: int = 28,
        root: str = "~/.medmnist",
        download: bool = True,
        memory: float = 4.0,
        cache: str = "~/.cache/med-diffusion",
        **options: int,
    ) -> None:
        super().__init__(**options)
        sets = catalogue()
        if name not in sets:
            near = difflib.get_close_matches(name, sets) or list(sets)
            raise DataError(f"medmnist has no set '{name}': did you mean {', '.join(near)}?")
        info, suffix = sets[name], "" if size == 28 else f"_{size}"
        if f"MD5{suffix}" not in info:
            sizes = [28, *(key.removeprefix("MD5_") for key in info if key.startswith("MD5_"))]
            raise DataError(
                f"{name} does not come in size {size}: choose dataset.size from {', '.join(map(str, sizes))}"
            )
        self.source, self.download = name, download
        self.memory, self.cache = memory, Path(cache).expanduser()
        self.ordinal = info["task"].startswith("ordinal")
        self.path = Path(root).expanduser() / f"{name}{suffix}.npz"
        self.address, self.md5 = info[f"url{suffix}"], info[f"MD5{suffix}"]
        self.class_names = tuple(info["label"][str(index)] for index in range(len(info["label"])))

    def prepare_data(self) -> None:
        """Download the file if it is absent."""
        if self.path.exists():
            return
        if not self.download:
            raise DataError(
                f"{self.path} is wanted (md5 {self.md5}), and dataset.download is off: "
                f"get {self.address} and put it there"
            )
        fetch(self.address, self.path, self.md5)

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        self._check_md5()
        return medmnist_layout.read(self.path, self.memory, self.cache)

    def _check_md5(self) -> None:
        if not self.path.is_file():
            return
        state = self.path.stat()
        seen = self.cache / f"{self.md5}_{state.st_size}_{state.st_mtime_ns}"
        if seen.exists():
            return
        if (found := md5_of(self.path)) != self.md5:
            raise DataError(
                f"{self.path} has the md5 {found}, but the official {self.source} has {self.md5}: delete "
                f"it to have it downloaded again, or read it as it is: dataset=npz dataset.path={self.path}"
            )
        if state.st_size > LARGE:
            with contextlib.suppress(OSError):  # without leave to note it, it is read again next time
                self.cache.mkdir(parents=True, exist_ok=True)
                seen.touch()
