"""What every source of images is to the Trainer: splits, what is known of them, and batches in a known order."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.arrays.examine import examine
from datamodules.arrays.kept import kept_rows, without_classes
from datamodules.arrays.order import EndlessBatches, epoch_order
from datamodules.arrays.split import LEVELS, SPLITS, Split
from datamodules.arrays.stored import blocks_of
from datamodules.batch import Batch, DataError, DataSpec

if TYPE_CHECKING:
    from datamodules.files.survey import Survey
    from datamodules.latents import Codec

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 31
"""Of a split that does not fit into memory, so many bytes are held against samples."""


class Batches:
    """The batches of a split in a given order, read in this process."""

    def __init__(self, split: Split, order: Iterable[Tensor]) -> None:
        self.split, self.order = split, order

    def __iter__(self) -> Iterator[Batch]:
        return (self.split[indices] for indices in self.order)

    def __len__(self) -> int:
        """Number of batches; TypeError where there is no end, by which Lightning knows an endless loader."""
        return len(self.order)  # type: ignore[arg-type]


class ImageDataModule(pl.LightningDataModule, ABC):
    """Base of all sources: a subclass has `load`, and may name itself and its classes.

    Data in memory go to the accelerator whole; stored ones (see arrays/stored.py) are read batch by batch.

    batch_size: samples of an optimizer step, over all processes and accumulated batches
    validation_limit: validation looks at no more than this many samples, the same ones in every run
    workers: processes that prepare batches ahead; 0 prepares each in the training process when it is needed
    only: the classes, by number or name, that are kept in all splits, without their labels: data of one kind, such as
        normal images. Of rows of several labels those that hold no other; None: all classes, with their labels
    DataError: from whatever first needs the data, when they break a rule of `examine.examine`
    """

    source: str = "data"
    class_names: tuple[str, ...] | None = None
    ordinal: bool = False
    known_mask_classes: int | None = None
    """Of the masks' pixels, where they need not be looked at to know it."""
    order: Callable[[int, int, int], Tensor] = staticmethod(epoch_order)
    """The permutation of (n, seed, epoch) that an epoch of the training samples visits."""

    def __init__(
        self,
        seed: int = 0,
        batch_size: int = 64,
        validation_limit: int = 1024,
        workers: int = 0,
        only: Sequence[int | str] | int | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "validation_limit": validation_limit}.items():
            if value < 1:
                raise DataError(f"{name}={value} leaves nothing to look at: choose 1 or more")
        if workers < 0:
            raise DataError(f"dataset.workers={workers}: give the number of processes that read ahead, or 0")
        self.seed, self.batch_size, self.validation_limit, self.workers = seed, batch_size, validation_limit, workers
        self.only = [only] if isinstance(only, int | str) else None if only is None else list(only)
        self._rows: dict[str, Tensor] = {}
        self._splits: dict[str, Split] = {}
        self._moved: dict[str, Split] = {}
        self._references: dict[str, Split] = {}
        self._facts: dict[str, Any] = {}

    @property
    def options(self) -> dict[str, int]:
        """What every source is made with."""
        return {name: getattr(self, name) for name in ("seed", "batch_size", "validation_limit", "workers")}

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Read the splits train, val and test, in an order that never changes."""

    def setup(self, stage: str | None = None) -> None:
        """Load the data, the first time only."""
        if not self._splits:
            splits = self.load()
            spec = examine(self.source, splits, self.class_names, self.ordinal, self.known_mask_classes)
            if self.only is not None:
                self._rows = kept_rows(self.source, splits, spec, self.only)
                splits = {name: replace(splits[name].only(rows), labels=None) for name, rows in self._rows.items()}
                spec = without_classes(spec)
            self._splits, self._spec = splits, spec
            log.info("%s: %s", self.source, ", ".join(f"{name} {len(splits[name])}" for name in SPLITS))

    @property
    def spec(self) -> DataSpec:
        """Shape and classes; loads the data when nothing has yet."""
        self.setup()
        return self._spec

    def split(self, name: str) -> Split:
        """The split train, val or test, in main memory or in its file."""
        self.setup()
        if name not in self._splits:
            raise DataError(f"there is no split '{name}': choose one of {', '.join(SPLITS)}")
        return self._splits[name]

    @property
    def names(self) -> dict[str, list[str]] | None:
        """The file that each sample of each split came from, or None where samples have no names."""
        return None

    def kept(self, items: dict[str, list[str]]) -> dict[str, list[str]]:
        """Of lists that have an item for each sample of a split, the items of the samples that `only` keeps."""
        return {name: [items[name][row] for row in rows.tolist()] for name, rows in self._rows.items()} or items

    @property
    def files(self) -> list[tuple[str, str, str]] | None:
        """Path, split and label of each file, in the order of the splits; None where the data are not files."""
        return None

    def survey(self, seconds: float | None = None) -> Survey | None:
        """Every file by itself, with all that is wrong with it; None where the data are not files."""
        return None

    def part(self, rows: Mapping[str, Tensor]) -> ImageDataModule:
        """The samples at `rows`, int64 (M,), of each split, in memory, with the spec of the whole.

        With its fingerprint too, unless the whole would have to be read from the disk for it.
        """
        from datamodules.part import Part

        splits = {name: self.split(name).take(rows[name]) for name in SPLITS}
        known = {"spec": self.spec, "fingerprint": None if self.split("train").stored else self.fingerprint()}
        return Part(self.source, splits, class_names=self.class_names, **known, **self.options)

    def reference(self, name: str) -> Split:
        """The split in memory with uint8 images, for whatever holds samples against it.

        Of a stored split at most MOST_BYTES, at even distances, which is said.
        """
        if name not in self._references:
            split = self.split(name)
            most = max(1, MOST_BYTES // split.images[0].numel()) if split.stored else len(split)
            if len(split) > most:
                said = "%s, %s: %d of %d images are looked at, at even distances"
                log.warning(said, self.source, name, most, len(split))
            self._references[name] = split.eight_bit(most)
        return self._references[name]

    def std(self) -> float:
        """Standard deviation over all pixels and channels of the training images on the scale [-1, 1]; exact.

        DataError: every training image is one and the same flat grey.
        """
        variance = self.fact(f"variance{self._which}", self._variance)
        if variance == 0:
            raise DataError(f"{self.source}, train: every pixel has the same value, so there is nothing to learn")
        return variance**0.5

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any value, shape or order in any split."""
        return self.fact(f"fingerprint{self._which}", self._fingerprint)

    @property
    def _which(self) -> str:
        """Of the whole data nothing, else what tells facts of its part from those of the whole."""
        return "" if self.only is None else f"_only_{hashlib.sha256(repr(self.only).encode()).hexdigest()[:16]}"

    def fact(self, name: str, compute: Callable[[], Any]) -> Any:
        """What is computed from the whole data, once. A source that keeps its data on disk keeps this beside them."""
        if name not in self._facts:
            self._facts[name] = compute()
        return self._facts[name]

    def _variance(self) -> float:
        images = self.split("train").images
        levels, least = LEVELS[images.dtype], torch.iinfo(images.dtype).min
        counts = torch.zeros(levels, dtype=torch.int64)
        for block in blocks_of(images):
            # Part by part, because bincount widens what it counts to int64.
            for part in block.flatten().split(1 << 22):
                counts += torch.bincount(part.int() - least if least else part, minlength=levels)
        share = counts.double() / images.numel()
        value = torch.arange(levels).double() * 2 / (levels - 1) - 1
        return float(share @ (value - share @ value) ** 2)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in SPLITS:
            for key, value in self.split(name).arrays().items():
                digest.update(repr((name, key, str(value.dtype), tuple(value.shape))).encode())
                for block in blocks_of(value):
                    digest.update(block.contiguous().numpy())
        return digest.hexdigest()[:16]

    @property
    def pixels(self) -> ImageDataModule:
        """The data as images, whatever is made of them: these themselves."""
        return self

    def encoded(self, codec: Codec, cache: Path, device: torch.device | str) -> ImageDataModule:
        """The same samples in the same order as moments of a codec, encoded on `device` and kept under `cache`.

        These data themselves where the codec has no fingerprint, because it changes nothing.
        """
        from datamodules.latents import Latents

        return self if codec.fingerprint is None else Latents(self, codec, cache, device)

    def write_shards(self, folder: Path, n: int | None = None, **options: Any) -> dict[str, Any]:
        """Write the data as tar files, from which dataset=shards reads them; what index.json holds.

        n: up to so many samples of each split, at even distances; None for all
        options: see `shard_writer.write`
        """
        from datamodules.formats.shard_writer import write_source

        return write_source(self, folder, n, **options)

    def train_dataloader(self) -> Batches | DataLoader:
        """Batches without end, from the trainer's optimizer step on."""
        trainer, split = self.trainer, self._on_device("train")
        place = {} if trainer is None else {
            "start_step": trainer.global_step,
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
        }  # fmt: skip
        return self._loader(split, EndlessBatches(len(split), self.batch_size, self.seed, order=self.order, **place))

    def val_dataloader(self) -> Batches | DataLoader:
        """Up to `validation_limit` samples, the same ones for every seed, so that curves compare.

        The processes take the batches in turn. One that has none left in the last round gets one sample of id -1, which
        counts for nothing: all make the same number of steps, for they wait for each other.
        """
        # Shuffled first, because many files are sorted by class.
        order = epoch_order(len(self.split("val")), 0, 0)
        return self._once("val", order[: self.validation_limit])

    def test_dataloader(self) -> Batches | DataLoader:
        """The whole test split in its own order."""
        return self._once("test", torch.arange(len(self.split("test"))))

    def _once(self, name: str, order: Tensor) -> Batches | DataLoader:
        batches = order.split(self.batch_size)
        if self.trainer is not None:
            count = self.trainer.world_size
            fillers = [torch.tensor([-1])] * (-len(batches) % count)
            batches = [*batches, *fillers][self.trainer.global_rank :: count]
        return self._loader(self._on_device(name), batches)

    def _loader(self, split: Split, order: Iterable[Tensor]) -> Batches | DataLoader:
        if self.workers == 0:
            return Batches(split, order)
        return DataLoader(
            split,
            batch_size=None,
            sampler=order,
            num_workers=self.workers,
            generator=torch.Generator(),  # workers draw nothing, and the global generator is left alone
            pin_memory=torch.cuda.is_available(),
        )

    def _on_device(self, name: str) -> Split:
        split = self.split(name)
        if self.trainer is None or self.workers or split.stored:
            return split
        device = self.trainer.strategy.root_device
        moved = self._moved.get(name)
        if moved is None or moved.device != device:
            moved = self._moved[name] = split.to(device)
        return moved
