"""One split of a data set."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.arrays.stored import OnDisk
from datamodules.batch import Batch

SPLITS = ("train", "val", "test")
LEVELS = {torch.uint8: 256, torch.int16: 65536}
"""Grey levels of the types that images are kept in."""


@dataclass(frozen=True, eq=False)
class Split(Dataset):
    """One split. Indexing by int64 (B,) returns the whole Batch: no collation.

    images: uint8 (N, C, *S), S of two or three axes, or int16: 16 bits, moved by -32768. In a batch both are in
            [-1, 1]. Or float32 (N, M, *s), the moments of such images, which a batch holds as they are
    labels: int64 (N,) class indices, or int64 (N, K) of zeros and ones, or None
    masks:  uint8 (N, 1, *S) of class indices, 0 where there is nothing, or None
    """

    images: Tensor | OnDisk
    labels: Tensor | None = None
    masks: Tensor | OnDisk | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Batch:
        if self.device.type == "cuda":
            # A copy from pageable memory would make the host wait for all the work that is queued on the GPU.
            indices = indices.pin_memory()
        indices = indices.to(self.device, non_blocking=True)
        batch: Batch = {"image": unit_range(self.images[indices]), "id": indices}
        if self.labels is not None:
            labels = self.labels[indices]
            batch["label"] = labels.float() if labels.ndim == 2 else labels
        if self.masks is not None:
            batch["mask"] = self.masks[indices].float()
        return batch

    @property
    def stored(self) -> bool:
        """Whether the images are read from a file with each batch."""
        return not isinstance(self.images, Tensor)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.stored else self.images.device

    def arrays(self) -> dict[str, Tensor | OnDisk]:
        """What this split has, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def to(self, device: torch.device | str) -> Split:
        """The same split on a device; tensors that are there already are shared, not copied. Stored data stay."""
        return self if self.stored else Split(**{name: value.to(device) for name, value in self.arrays().items()})

    def take(self, indices: Tensor) -> Split:
        """The samples at indices, int64 (M,), as a split of their own, in memory."""
        return Split(**{name: value[indices] for name, value in self.arrays().items()})

    def only(self, indices: Tensor) -> Split:
        """Like `take`, but stored data stay in their file."""
        return Split(**{
            name: value.only(indices) if isinstance(value, OnDisk) else value[indices]
            for name, value in self.arrays().items()
        })  # fmt: skip

    def eight_bit(self, most: int = 1 << 62) -> Split:
        """Up to `most` samples at even distances, in memory, their images uint8 (N, C, *S), as samples are written."""
        part = self
        if self.stored or len(self) > most:
            part = self.take(torch.arange(min(most, len(self))) * len(self) // min(most, len(self)))
        return Split(eight_bits(part.images), part.labels, part.masks)


def unit_range(values: Tensor) -> Tensor:
    """What a split keeps -> float32 in [-1, 1]; moments as they are."""
    if values.dtype not in LEVELS:
        return values
    half, least = (LEVELS[values.dtype] - 1) / 2, torch.iinfo(values.dtype).min
    return (values.float() - least if least else values.float()).div_(half).sub_(1)


def eight_bits(images: Tensor) -> Tensor:
    """uint8 images as they are, int16 ones rounded to uint8."""
    if images.dtype is torch.uint8:
        return images
    return ((images.int() + 32768) * 255 + 32767).div(65535, rounding_mode="floor").to(torch.uint8)
