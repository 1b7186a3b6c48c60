"""What a batch is, and what a model is told about the data: the only thing that data and models share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """One batch of B samples; a key is absent where its source has nothing to say.

    image: float32 (B, C, *S) in [-1, 1]; S is 2-D or 3-D. Of latent data the image's moments (see latents.py)
    label: int64 (B,) class index, or float32 (B, K) of zeros and ones where several classes hold at once
    mask:  float32 (B, 1, *S) of class indices 0 .. K - 1: zeros and ones where there are two
    id:    int64 (B,) index within the split; -1 of what counts for nothing, see `ImageDataModule.val_dataloader`
    """

    image: Tensor
    label: Tensor
    mask: Tensor
    id: Tensor


@dataclass(frozen=True)
class DataSpec:
    """What a network has to know of its data: shape (C, *S), and the classes, None without labels.

    ordinal: the classes are grades, in their order
    mask_classes: of the masks' pixels, with that of nothing; None without masks
    """

    shape: tuple[int, ...]
    classes: int | None
    class_names: tuple[str, ...] | None = None
    multi_label: bool = False
    ordinal: bool = False
    mask_classes: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called, by their number where they have no names; none without labels."""
        return self.class_names or tuple(f"class {k}" for k in range(self.classes or 0))


class DataError(ValueError):
    """The user's data cannot be used; the message is one line that says what is wrong and what to do."""
