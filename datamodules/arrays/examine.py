"""The rules that the splits of every source keep, in one place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datamodules.arrays.split import LEVELS, SPLITS, Split
from datamodules.arrays.stored import OnDisk, blocks_of
from datamodules.batch import DataError, DataSpec


def examine(
    source: str,
    splits: Mapping[str, Split],
    class_names: tuple[str, ...] | None = None,
    ordinal: bool = False,
    mask_classes: int | None = None,
) -> DataSpec:
    """Hold the splits to the rules, and say what a network has to know of them.

    The rules: train, val and test are there and not empty; images are uint8, or int16, (N, C, *S) of one shape
    in all splits; either all splits have labels or none has, one per image; the training labels are 0 .. K - 1
    without a gap (K as many as there are class names, where they are known) and the other splits hold no
    further ones; rows of several labels are zeros and ones of one width; masks are uint8 in the shape of the
    images, and those of val and test hold no class that those of train lack.

    mask_classes: of the masks, where it is known; else all of them are read
    DataError names the source, the split and the broken rule.
    """
    for name in SPLITS:
        if name not in splits:
            raise DataError(f"{source}: there is no split '{name}'; train, val and test are all needed")
        _check_images(f"{source}, {name}", splits[name].images, splits["train"].images)
        _check_masks(f"{source}, {name}", splits[name], splits["train"])
    shape = tuple(splits["train"].images.shape[1:])
    mask_classes = mask_classes or _count_mask_classes(source, splits)
    labels = {name: splits[name].labels for name in SPLITS}
    if all(value is None for value in labels.values()):
        return DataSpec(shape, classes=None, mask_classes=mask_classes)
    for name in SPLITS:
        _check_labels(f"{source}, {name}", labels[name], labels["train"])
        check_count(f"{source}, {name}", splits[name])
    multi_label = labels["train"].ndim == 2
    classes = labels["train"].shape[1] if multi_label else _count_classes(source, labels)
    if class_names is not None and len(class_names) != classes:
        raise DataError(
            f"{source}, train: the labels span {classes} classes, but {len(class_names)} are known: check the file"
        )
    return DataSpec(shape, classes, class_names, multi_label, ordinal, mask_classes)


def check_count(where: str, split: Split) -> None:
    """DataError unless there are as many labels as images."""
    if split.labels is not None and split.labels.shape[:1] != split.images.shape[:1]:
        raise DataError(f"{where}: {len(split)} images but labels of shape {_size(split.labels)}: give one per image")


def _check_images(where: str, images: Tensor | OnDisk, train: Tensor | OnDisk) -> None:
    if images.dtype not in LEVELS:
        hint = "scale them to 0..255, round, and save them as uint8"
        raise DataError(f"{where}: images are {_name(images.dtype)}, but uint8 is needed: {hint}")
    if images.dtype != train.dtype:
        raise DataError(
            f"{where}: images are {_name(images.dtype)}, but in train {_name(train.dtype)}: save them alike"
        )
    if images.ndim not in (4, 5):
        raise DataError(
            f"{where}: images of shape {_size(images)} are neither 2-D (N, C, H, W) nor 3-D (N, C, D, H, W)"
        )
    if images.numel() == 0:
        raise DataError(f"{where}: the split is empty, shape {_size(images)}: give it at least one image")
    if images.shape[1:] != train.shape[1:]:
        raise DataError(
            f"{where}: images of shape {_size(images[0])}, but in train {_size(train[0])} (channels first): "
            "resize all splits alike"
        )


def _check_masks(where: str, split: Split, train: Split) -> None:
    if split.masks is None and train.masks is None:
        return
    if split.masks is None or train.masks is None:
        raise DataError(f"{where}: masks in one split and none in another: give them to all splits or to none")
    if split.masks.shape != (len(split), 1, *split.images.shape[2:]):
        raise DataError(f"{where}: masks of shape {_size(split.masks)} do not fit images {_size(split.images)}")
    if split.masks.dtype is not torch.uint8:
        raise DataError(f"{where}: masks are {_name(split.masks.dtype)}, but must be uint8 class indices, 0, 1, ...")


def _count_mask_classes(source: str, splits: Mapping[str, Split]) -> int | None:
    if splits["train"].masks is None:
        return None
    most = {name: max(int(block.max()) for block in blocks_of(splits[name].masks)) for name in SPLITS}
    for name in SPLITS:
        if most[name] > max(most["train"], 1):
            raise DataError(
                f"{source}, {name}: the masks hold class {most[name]}, but those of train {most['train']} at most: "
                "correct them, or add such images to train"
            )
    if most["train"] >= 32:
        raise DataError(
            f"{source}, train: the masks hold values up to {most['train']}: number their classes 0, 1, ... (32 at most)"
        )
    return max(most["train"], 1) + 1


def _check_labels(where: str, labels: Tensor | None, train: Tensor | None) -> None:
    if labels is None or train is None:
        raise DataError(f"{where}: labels in one split and none in another: give them to all splits or to none")
    if labels.dtype is not torch.int64:
        raise DataError(
            f"{where}: labels are {_name(labels.dtype)}, but whole numbers are needed: save them as integers"
        )
    if labels.ndim not in (1, 2) or labels.shape[1:] != train.shape[1:] or 0 in labels.shape:
        raise DataError(
            f"{where}: labels of shape {_size(labels)}: give one per image, (N,) or (N, 1), or a row of "
            "zeros and ones, (N, K), the same in all splits"
        )
    if labels.ndim == 2 and (labels.min() < 0 or labels.max() > 1):
        raise DataError(f"{where}: a row of {labels.shape[1]} labels per image must hold zeros and ones only")


def _count_classes(source: str, labels: Mapping[str, Tensor]) -> int:
    known = labels["train"].unique()
    if not torch.equal(known, torch.arange(len(known))):
        raise DataError(
            f"{source}, train: the {len(known)} classes are numbered {int(known[0])} to {int(known[-1])}: "
            f"number them 0 to {len(known) - 1} without a gap"
        )
    for name, value in labels.items():
        strange = value[(value < 0) | (value >= len(known))]
        if len(strange):
            raise DataError(
                f"{source}, {name}: label {int(strange[0])} is out of range, train has 0 to {len(known) - 1} "
                "only: correct it, or add such images to train"
            )
    return len(known)


def _size(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
