"""Data sets that live in memory as one uint8 tensor, on the accelerator when there is one."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules.batch import Batch, DataError, DataSpec
from datamodules.examine import examine
from datamodules.order import EndlessBatches, epoch_order
from datamodules.split import SPLITS, Split

if TYPE_CHECKING:
    from datamodules.latents import Codec

log = logging.getLogger(__name__)


class Batches:
    """The batches of a split in a given order.

    Not a DataLoader: it would add nothing for data in memory, and Lightning swaps the sampler of a DataLoader
    for its own when there are several processes, unless told not to.
    """

    def __init__(self, split: Split, order: Iterable[Tensor]) -> None:
        self.split, self.order = split, order

    def __iter__(self) -> Iterator[Batch]:
        return (self.split[indices] for indices in self.order)

    def __len__(self) -> int:
        """Number of batches; TypeError where there is no end, by which Lightning knows an endless loader."""
        return len(self.order)  # type: ignore[arg-type]


class InMemoryDataModule(pl.LightningDataModule, ABC):
    """Base of the sources that fit in memory: a subclass has `load`, and may name itself and its classes.

    batch_size: samples of an optimizer step, over all processes and accumulated batches
    validation_limit: validation looks at no more than this many samples, the same ones in every run
    DataError: from whatever first needs the data, when they break a rule of `examine.examine`
    """

    source: str = "data"
    class_names: tuple[str, ...] | None = None

    def __init__(self, seed: int = 0, batch_size: int = 64, validation_limit: int = 1024) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "validation_limit": validation_limit}.items():
            if value < 1:
                raise DataError(f"{name}={value} leaves nothing to look at: choose 1 or more")
        self.seed, self.batch_size, self.validation_limit = seed, batch_size, validation_limit
        self._splits: dict[str, Split] = {}
        self._moved: dict[str, Split] = {}

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Read the splits train, val and test, in an order that never changes."""

    def setup(self, stage: str | None = None) -> None:
        """Load the data, the first time only."""
        if not self._splits:
            splits = self.load()
            self._spec = examine(self.source, splits, self.class_names)
            self._splits = splits
            log.info("%s: %s", self.source, ", ".join(f"{name} {len(splits[name])}" for name in SPLITS))

    @property
    def spec(self) -> DataSpec:
        """Shape and classes; loads the data when nothing has yet."""
        self.setup()
        return self._spec

    def split(self, name: str) -> Split:
        """The split train, val or test, in main memory."""
        self.setup()
        if name not in self._splits:
            raise DataError(f"there is no split '{name}': choose one of {', '.join(SPLITS)}")
        return self._splits[name]

    def std(self) -> float:
        """Standard deviation over all pixels and channels of the training images on the scale [-1, 1]; exact.

        DataError: every training image is one and the same flat grey.
        """
        # Block by block, because bincount widens what it counts to int64.
        pixels = self.split("train").images.flatten()
        counts = sum(torch.bincount(block, minlength=256) for block in pixels.split(1 << 24))
        share = counts.double() / pixels.numel()
        value = torch.arange(256).double() / 127.5 - 1
        variance = float(share @ (value - share @ value) ** 2)
        if variance == 0:
            raise DataError(f"{self.source}, train: every pixel has the same value, so there is nothing to learn")
        return variance**0.5

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any value, shape or order in any split."""
        digest = hashlib.sha256()
        for name in SPLITS:
            for key, value in self.split(name).tensors().items():
                digest.update(repr((name, key, str(value.dtype), tuple(value.shape))).encode())
                digest.update(value.contiguous().numpy())
        return digest.hexdigest()[:16]

    @property
    def pixels(self) -> InMemoryDataModule:
        """The data as images, whatever is made of them: these themselves."""
        return self

    def encoded(self, codec: Codec, cache: Path, device: torch.device | str) -> InMemoryDataModule:
        """The same samples in the same order as moments of a codec, encoded on `device` and kept under `cache`.

        These data themselves where the codec has no fingerprint, because it changes nothing.
        """
        from datamodules.latents import Latents

        return self if codec.fingerprint is None else Latents(self, codec, cache, device)

    def train_dataloader(self) -> Batches:
        """Batches without end, from the trainer's optimizer step on."""
        trainer, split = self.trainer, self._on_device("train")
        if trainer is None:
            return Batches(split, EndlessBatches(len(split), self.batch_size, self.seed))
        order = EndlessBatches(
            len(split),
            self.batch_size,
            self.seed,
            start_step=trainer.global_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulate=trainer.accumulate_grad_batches,
        )
        return Batches(split, order)

    def val_dataloader(self) -> Batches:
        """Up to `validation_limit` samples, the same ones for every seed, so that curves compare."""
        # Shuffled first, because many files are sorted by class.
        order = epoch_order(len(self.split("val")), seed=0, epoch=0)
        return self._once("val", order[: self.validation_limit])

    def test_dataloader(self) -> Batches:
        """The whole test split in its own order."""
        return self._once("test", torch.arange(len(self.split("test"))))

    def _once(self, name: str, order: Tensor) -> Batches:
        batches = order.split(self.batch_size)
        if self.trainer is not None:
            batches = batches[self.trainer.global_rank :: self.trainer.world_size]
        return Batches(self._on_device(name), batches)

    def _on_device(self, name: str) -> Split:
        if self.trainer is None:
            return self.split(name)
        device = self.trainer.strategy.root_device
        moved = self._moved.get(name)
        if moved is None or moved.images.device != device:
            moved = self._moved[name] = self.split(name).to(device)
        return moved
