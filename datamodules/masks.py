"""Pictures with masks that lie beside them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.arrays.split import Split
from datamodules.batch import DataError
from datamodules.files.partition import in_order
from datamodules.files.picture_files import PictureFiles
from datamodules.formats.pictures import SUFFIXES, read_mask
from datamodules.progress import with_progress
from datamodules.settings import is_numbers
from datamodules.table import SPLIT_NAMES, Item, files_under, split_folders

log = logging.getLogger(__name__)

IMAGE_FOLDERS, MASK_FOLDERS = ("images", "image", "imgs", "img"), ("masks", "mask", "labels", "label", "annotations")
LEAST_SHARE = 0.01
"""Of the pixels above zero, for a value to be a class: compression and resizing leave a rim of others."""
NEAR = 16
"""Values that differ by no more are one class, smeared, unless all values are so small that they number classes."""
MOST_CLASSES = 32
LOOKED_AT = 256


class MaskedPictures(PictureFiles):
    """Pictures, some or all with masks.

    values: the values of the masks' classes 0, 1, 2, ..., as [0, 128, 255]; a pixel of another value is of the class
        whose value is nearest. null: 0, and what makes up at least a hundredth of the other pixels of 256 masks
    """

    def __init__(self, values: Sequence[int] | None = None, **options: Any) -> None:
        super().__init__(**options)
        if values is not None and (not is_numbers(values) or len(values) < 2 or list(values) != sorted(set(values))):
            raise DataError(f"dataset.values={values}: give two or more values, each above the one before")
        self.values = None if values is None else list(values)
        self._said: str | None = None

    def decoding(self) -> dict[str, Any]:
        return super().decoding() | {"values": self.values}

    def divided(self) -> list[Item]:
        items = super().divided()
        masked = [item for item in items if item.mask is not None]
        if masked and len(masked) < len(items):
            lost = next(item.name for item in items if item.mask is None)
            raise DataError(f"{self.source}: {lost} has no mask, but others have: give all of them one, or none")
        return items

    def decoded(self, items: Sequence[Item]) -> Iterator[tuple[Item, list | DataError]]:
        masked = [item for item in items if item.mask is not None]
        if masked:
            self.mask_values = self.values or self._values_of(sorted(masked, key=in_order))
        return super().decoded(items)

    def about(self) -> dict[str, Any]:
        return super().about() | {"mask_values": self._said}

    def load(self) -> dict[str, Split]:
        splits = super().load()
        kept = self._prepared.more.get("mask_values")
        if kept and self._said is None:
            log.warning("%s: %s", self.source, kept)
        return splits

    def _values_of(self, items: Sequence[Item]) -> list[int]:
        counts = np.zeros(1 << 16, np.int64)
        chosen = [items[place] for place in np.unique(np.linspace(0, len(items) - 1, LOOKED_AT).round().astype(int))]
        for item in with_progress("looking at masks", chosen):
            counts += np.bincount(read_mask(item.mask).ravel(), minlength=1 << 16)
        others = counts[1:].sum()
        if others == 0:
            raise DataError(f"{self.source}: the masks are empty, {len(chosen)} of them are 0 everywhere")
        values = _peaks(counts, LEAST_SHARE * others)
        if len(values) < 2:
            raise DataError(
                f"{self.source}: no value of the masks fills a hundredth of what is not 0, so they are no classes: set "
                "dataset.values, as [0,255] where all above 127 is one class"
            )
        if len(values) > MOST_CLASSES:
            raise DataError(
                f"{self.source}: the masks hold {len(values)} frequent values, too many for classes: set dataset.values"
            )
        rest = counts.sum() - counts[values].sum()
        self._said = f"mask values {', '.join(map(str, values))} are classes 0 to {len(values) - 1}" + (
            f"; {rest / counts.sum():.2%} of the pixels have others, and become the nearest (or set dataset.values)"
            if rest
            else ""
        )
        log.warning("%s: %s", self.source, self._said)
        return values


def _peaks(counts: np.ndarray, least: float) -> list[int]:
    """0, and the values that at least `least` pixels have; of large ones NEAR to each other the most frequent."""
    frequent = [int(value) for value in np.argsort(-counts, kind="stable") if counts[value] >= least]
    near = NEAR if max(frequent, default=0) >= MOST_CLASSES else 0
    found = [0]
    for value in frequent:
        if all(abs(value - other) > near for other in found):
            found.append(value)
    return sorted(found)


class Masks(MaskedPictures):
    """Pairs of pictures and masks in one folder, or in two within it.

    Two files are a pair if their names agree without suffix, and without the word mask, in the same folder or with the
    folders images and masks for each other. Where pictures and masks lie in one folder, `images` and `masks` tell them
    apart.

    images, masks: patterns of file names, as *.bmp and *_mask.png; null: what lies in folders images and masks
    """

    def __init__(self, images: str | None = None, masks: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.images, self.masks = images, masks

    def items(self) -> list[Item]:
        files = [path.relative_to(self.path) for path in files_under(self.path, SUFFIXES)]
        if not files:
            raise DataError(f"{self.path} holds no pictures ({', '.join(SUFFIXES)}): check dataset.path")
        masks = [name for name in files if self._is(name, self.masks, MASK_FOLDERS, not_=None)]
        taken = set(masks) if self.masks != self.images else set()
        images = [n for n in files if self._is(n, self.images, IMAGE_FOLDERS, not_=self.masks) and n not in taken]
        if not images or not masks or set(images) & set(masks):
            raise DataError(
                f"{self.path}: {len(images)} images and {len(masks)} masks are found among {len(files)} pictures: tell "
                "them apart by folders images/ and masks/, or by \"dataset.images='*.bmp'\" \"dataset.masks='*.png'\""
            )
        pairs: dict[tuple[str, ...], Path] = {}
        for name in masks:
            if _key(name) in pairs:
                raise DataError(
                    f"{self.path}: {pairs[_key(name)]} and {name} are both masks of one picture: remove one"
                )
            pairs[_key(name)] = name
        alone = [name for name in images if _key(name) not in pairs]
        if alone:
            raise DataError(f"{self.path}: {len(alone)} of {len(images)} images have no mask, the first {alone[0]}")
        if len(pairs) > len(images):
            log.warning("%s: %d masks have no image, and are not used", self.path, len(pairs) - len(images))
        divided = split_folders(self.path, images)
        return [
            Item(
                self.path / name,
                name.as_posix(),
                mask=self.path / pairs[_key(name)],
                split=SPLIT_NAMES[name.parts[0].lower()] if divided else None,
            )
            for name in images
        ]

    def _is(self, name: Path, pattern: str | None, folders: Sequence[str], not_: str | None) -> bool:
        if pattern is not None:
            return name.match(pattern)
        if not_ is not None:
            return not name.match(not_)
        return any(part.lower() in folders for part in name.parts[:-1])


def _key(name: Path) -> tuple[str, ...]:
    """What the names of a picture and its mask have in common."""
    folders = [part for part in name.parts[:-1] if part.lower() not in IMAGE_FOLDERS + MASK_FOLDERS]
    return (*folders, re.sub(r"^mask[_\-. ]+|[_\-. ]?mask(?=[_\-. ]|$)", "", name.stem, flags=re.IGNORECASE))
