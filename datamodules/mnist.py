"""MNIST: handwritten digits in gzipped idx files (LeCun et al. 1998)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays.split import Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError
from datamodules.fetch import fetch
from datamodules.files.partition import rows_by_ratio

ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
"""Names and md5 of the files where they are downloaded; files that are there already may be packed otherwise."""
MOST_BYTES = 1 << 30


class Mnist(ImageDataModule):
    """28 x 28 grey, 10 classes: 60,000 training images, of which the share `val` validates, and 10,000 for testing.

    root: the folder that holds the four files; those that are absent are downloaded
    t10k_only: make all three splits of the 10,000 test images, by the shares `val` and `test`
    split_seed: of these divisions, which are made class by class
    DataError: a file is missing and cannot be downloaded (or may not: download=False), is damaged or no idx file.
    """

    source = "mnist"
    class_names = tuple("0123456789")

    def __init__(
        self,
        root: str = "~/.cache/mnist",
        download: bool = True,
        t10k_only: bool = False,
        val: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.download, self.t10k_only = Path(root).expanduser(), download, t10k_only
        self.val, self.test, self.split_seed = val, test, split_seed

    def prepare_data(self) -> None:
        """Download the files that are absent."""
        for name, md5 in FILES.items():
            path = self.root / name
            if path.exists() or (self.t10k_only and not name.startswith("t10k")):
                continue
            if not self.download:
                raise DataError(f"{path} is wanted, and dataset.download is off: get {ADDRESS}{name} and put it there")
            fetch(ADDRESS + name, path, md5)

    def load(self) -> dict[str, Split]:
        self.prepare_data()
        test = self._read("t10k")
        if self.t10k_only:
            rows = rows_by_ratio(len(test), test.labels, self.val, self.test, self.split_seed)
            return {name: test.take(places) for name, places in rows.items()}
        train = self._read("train")
        rows = rows_by_ratio(len(train), train.labels, self.val, 0.0, self.split_seed)
        return {"train": train.take(rows["train"]), "val": train.take(rows["val"]), "test": test}

    def _read(self, part: str) -> Split:
        images = read_idx(self.root / f"{part}-images-idx3-ubyte.gz", axes=3)
        labels = read_idx(self.root / f"{part}-labels-idx1-ubyte.gz", axes=1)
        return Split(images[:, None], labels.long())


def read_idx(path: Path, axes: int) -> Tensor:
    """A gzipped idx file of bytes with so many axes, uint8. DataError: it is damaged, or no such file."""
    try:
        with gzip.open(path) as file:
            head = file.read(4 + 4 * axes)
            shape = tuple(np.frombuffer(head[4:], ">u4").tolist())
            # Two zeros, 8 for bytes, and the number of axes.
            if head[:4] != bytes([0, 0, 8, axes]) or len(shape) != axes:
                raise DataError(f"{path} is no idx file of bytes with {axes} axes: get it again")
            size = math.prod(shape)
            if size > MOST_BYTES:
                raise DataError(f"{path} claims {size / 2**30:.0f} GiB, more than can be true: get it again")
            content = file.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged, or not gzipped: get it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    if len(content) != size:
        raise DataError(f"{path} is cut short, or longer than its head says: get it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)
