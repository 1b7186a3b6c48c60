"""Sets that are larger than memory, or than one disk: tar files in WebDataset's layout, in a folder or on a server."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datamodules.arrays.order import epoch_order, windowed_order
from datamodules.arrays.prepared import fits
from datamodules.arrays.split import SPLITS, Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError
from datamodules.formats.shard_files import ShardArray, ShardFiles


class Shards(ImageDataModule):
    """What `python -m diffusion shard` has written. Sample i of a split is sample i of the data that it was made of.

    An epoch visits the shards in an order of its own, `window` of them at a time, and the samples of those permuted: a
    pure function of (seed, epoch), as for every source. With a window of all shards it is the order of every source.

    path: the folder, or its address, http:// or https://
    window: shards whose samples are mixed, and which have to be on the disk together
    memory: GiB up to which the images are read into memory at the start; more are read batch by batch
    cache: folder for downloaded shards, and for what was found out about shards when they were first opened
    cache_size: GiB of downloaded shards; those of the window stay, whatever their size
    DataError: no index at `path`, or one of no use; from reading, a shard that is missing, damaged or another one.
    """

    def __init__(
        self,
        path: str | None = None,
        window: int = 8,
        memory: float = 0.0,
        cache: str = "~/.cache/med-diffusion",
        cache_size: float = 50.0,
        **options: int,
    ) -> None:
        super().__init__(**options)
        if not path:
            raise DataError("dataset=shards needs dataset.path=DIR, a folder of shards, or its http address")
        if "://" in path and not path.startswith(("http://", "https://")):
            raise DataError(f"dataset.path={path}: give a folder, or an address that begins with http:// or https://")
        for name, value, least in (("window", window, 1), ("memory", memory, 0), ("cache_size", cache_size, 0)):
            if value < least:
                raise DataError(f"dataset.{name}={value}: give {least} or more")
        self.path, self.source = path, path
        self.window, self.memory, self.cache_size = window, memory, cache_size
        self.cache = Path(cache).expanduser()
        self._files: ShardFiles | None = None

    def load(self) -> dict[str, Split]:
        self._files = files = ShardFiles(self.path, self.cache, self.cache_size * 2**30, self.window)
        index = files.index
        self.class_names, self.ordinal, self.known_mask_classes = index.class_names, index.ordinal, index.mask_classes
        kinds = ["images", "masks"] if index.mask else ["images"]
        arrays = {name: {kind: ShardArray(files, name, kind) for kind in kinds} for name in SPLITS}
        if fits(self.memory, *(array for found in arrays.values() for array in found.values())):
            arrays = {name: {kind: array.load() for kind, array in found.items()} for name, found in arrays.items()}
        return {name: Split(labels=files.labels.get(name), **found) for name, found in arrays.items()}

    def order(self, n: int, seed: int, epoch: int) -> Tensor:
        """The permutation of the n training samples that an epoch visits."""
        self.setup()
        shards = self._files.index.splits["train"]
        if len(shards) <= self.window:
            return epoch_order(n, seed, epoch)
        places = windowed_order([shard.samples for shard in shards], self.window, seed, epoch)
        order = self._files.places["train"].samples[places]
        if self.only is None:
            return order
        place = torch.full_like(order, -1).scatter_(0, self._rows["train"], torch.arange(n))[order]
        return place[place >= 0]

    def std(self) -> float:
        self.setup()
        return self._files.index.std if self.only is None else super().std()

    def fingerprint(self) -> str:
        """That of the data which the shards were made of, sample by sample."""
        self.setup()
        return self._files.index.fingerprint if self.only is None else super().fingerprint()
