"""What a set of shards says of itself: index.json, from which all is known before a shard is opened."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from datamodules.arrays.split import SPLITS
from datamodules.batch import DataError

INDEX = "index.json"
VERSION = 1
"""To be raised with every change of what the files mean: sets of another version are refused."""
MOST_BYTES = 1 << 28
"""An index that is larger is none."""
MOST_VALUES = 1 << 31
"""An image that claims more values is none."""
TYPES = {8: torch.uint8, 16: torch.int16}


@dataclass(frozen=True)
class File:
    """A file of the set: its name within the folder, and what its bytes must be. samples: those that it holds."""

    name: str
    samples: int
    bytes: int
    md5: str


@dataclass(frozen=True)
class Index:
    """All that is known without opening a shard.

    shape: (C, *S) of an image
    bits: 8 or 16
    image, mask: the endings of their members, png or npy; mask is None without masks
    mask_classes, class_names, ordinal: as in DataSpec
    std, fingerprint: of the data that were written, and so of these
    samples: the file of the samples' places and labels
    splits: the shards of train, val and test
    """

    shape: tuple[int, ...]
    bits: int
    image: str
    mask: str | None
    mask_classes: int | None
    class_names: tuple[str, ...] | None
    ordinal: bool
    std: float
    fingerprint: str
    samples: File
    splits: Mapping[str, tuple[File, ...]]

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[self.bits]

    def text(self) -> str:
        """index.json."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, text: bytes, where: str) -> Index:
        """The index that `text` holds. DataError, which names `where`, if it is none, or of another version."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no index of shards, or damaged: copy or download it again") from error
        if not isinstance(values, dict) or "version" not in values:
            raise DataError(f"{where} is no index of shards, or damaged: copy or download it again")
        version = values.pop("version")
        if version != VERSION:
            raise DataError(
                f"{where} is of version {version}, and this program reads version {VERSION}: write the shards anew, or "
                "install the program that wrote them"
            )
        try:
            return cls._checked(**values)
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"{where} does not hold together ({error}): copy or download it again") from error

    @classmethod
    def _checked(cls, shape: Any, class_names: Any, samples: Any, splits: Any, **rest: Any) -> Index:
        _need(isinstance(shape, list) and len(shape) in (3, 4), "the shape of an image is not three or four numbers")
        _need(all(type(side) is int and side > 0 for side in shape), "a side is not a whole number above 0")
        _need(math.prod(shape) <= MOST_VALUES, "the images are too large")
        index = cls(
            tuple(shape),
            class_names=None if class_names is None else tuple(class_names),
            samples=_file(samples),
            splits={name: tuple(map(_file, splits[name])) for name in SPLITS},
            **rest,
        )
        _need(index.bits in TYPES, "bits are not 8 or 16")
        _need(index.image in ("png", "npy") and index.mask in (None, "png", "npy"), "an ending is not png or npy")
        flat = len(shape) == 3
        _need(index.image == "npy" or (flat and shape[0] in (1, 3) and index.bits == 8), "such images are no PNG")
        _need(index.mask != "png" or flat, "such masks are no PNG")
        _need((index.mask is None) == (index.mask_classes is None), "masks without their number of classes")
        _need(index.mask is None or (type(index.mask_classes) is int and 2 <= index.mask_classes <= 32), "mask classes")
        _need(type(index.ordinal) is bool, "ordinal is not true or false")
        _need(all(isinstance(name, str) for name in index.class_names or ()), "a class name is no text")
        _need(isinstance(index.std, float) and 0 < index.std < 1.01, "no standard deviation")
        _need(_is("[0-9a-f]{16}", index.fingerprint), "no fingerprint")
        names = [file.name for file in (index.samples, *(file for files in index.splits.values() for file in files))]
        _need(len(set(names)) == len(names), "two files have one name")
        _need(all(index.splits.values()), "a split has no shards")
        return index


def _file(values: Mapping[str, Any]) -> File:
    file = File(**values)
    # A name with a slash, or that begins with a dot, could lead out of the folder.
    _need(_is(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", file.name), f"no plain file name: {file.name!r}")
    _need(type(file.samples) is int and file.samples > 0, f"{file.name} holds no samples")
    _need(type(file.bytes) is int and file.bytes > 0, f"{file.name} holds no bytes")
    _need(_is("[0-9a-f]{32}", file.md5), f"{file.name} has no md5")
    return file


def _is(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
