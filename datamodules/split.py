"""One split of a data set, stored whole."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batch import Batch

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Split(Dataset):
    """One split, stored whole. Indexing by int64 (B,) returns the whole Batch: no collation, no workers.

    images: uint8 (N, C, *S), S of two or three axes; in a batch they are in [-1, 1]. Or float32 (N, M, *s), the moments
            of such images, which a batch holds as they are
    labels: int64 (N,) class indices, or int64 (N, K) of zeros and ones, or None
    masks:  uint8 (N, 1, *S) of zeros and ones, or None
    """

    images: Tensor
    labels: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Batch:
        device = self.images.device
        if device.type == "cuda":
            # A copy from pageable memory would make the host wait for all the work that is queued on the GPU.
            indices = indices.pin_memory()
        indices = indices.to(device, non_blocking=True)
        images = self.images[indices]
        if images.dtype is torch.uint8:
            images = images.float().div_(127.5).sub_(1)
        batch: Batch = {"image": images, "id": indices}
        if self.labels is not None:
            labels = self.labels[indices]
            batch["label"] = labels.float() if labels.ndim == 2 else labels
        if self.masks is not None:
            batch["mask"] = self.masks[indices].float()
        return batch

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that this split has, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def to(self, device: torch.device | str) -> Split:
        """The same split on a device; tensors that are there already are shared, not copied."""
        return Split(**{name: value.to(device) for name, value in self.tensors().items()})

    def take(self, indices: Tensor) -> Split:
        """The samples at indices, int64 (M,), as a split of their own."""
        return Split(**{name: value[indices] for name, value in self.tensors().items()})
