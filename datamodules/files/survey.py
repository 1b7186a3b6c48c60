"""Every file of a data set looked at by itself: what is wrong with each, and the data that the others make."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.arrays.split import SPLITS, Split
from datamodules.batch import DataError
from datamodules.files.partition import torn
from datamodules.part import Part
from datamodules.progress import with_progress
from datamodules.table import Item

if TYPE_CHECKING:
    from datamodules.files.base import FilesDataModule

BITS = {torch.uint8: 8, torch.int16: 16}
Sample = tuple[str, Tensor, Tensor | None]
"""Name, image and mask, as `FilesDataModule.decode` gives them."""


@dataclass(frozen=True)
class FileFacts:
    """What a file is.

    bits, shape: of the images that it becomes, (C, *S); None where it cannot be read or gives no images
    size: width and height of the picture in the file, where it is one
    error: why it cannot be read
    """

    name: str
    split: str
    label: str | None
    group: str
    bits: int | None = None
    shape: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    error: str | None = None

    @property
    def kind(self) -> tuple[int | None, tuple[int, ...] | None]:
        return self.bits, self.shape


@dataclass(frozen=True)
class Survey:
    """What the files of a data set are.

    files: those that were opened, ordered by split and name
    unopened: how many more there are, for which there was no time
    torn: patients on several sides of the given split: the names and splits of their files, which are left out
    problems: what else the data module refuses, one line each
    kind: bits and shape of most files; files of others are left out
    data: the data set that is left, in memory; None where that is none
    """

    files: list[FileFacts]
    unopened: int = 0
    torn: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)
    problems: Sequence[str] = ()
    kind: tuple[int | None, tuple[int, ...] | None] = (None, None)
    data: Part | None = None


def survey(source: FilesDataModule, seconds: float | None = None) -> Survey:
    """Open the files, all of them, or in a random order as many as `seconds` and the memory of `source` allow.

    DataError: there are no files, or their table or split cannot be read.
    """
    sides = torn(source.listed())
    source.without = {name for files in sides.values() for name, _ in files}
    try:
        items, problems = _labelled(source, source.divided())
    except DataError as error:
        if not sides:
            raise
        return Survey([], torn=sides, problems=[str(error)])
    facts, samples = _opened(source, items, seconds)
    kinds = Counter(fact.kind for fact in facts for _ in samples.get(fact.name, ()))
    kind = kinds.most_common(1)[0][0] if kinds else (None, None)
    fine = {fact.name for fact in facts if fact.kind == kind}
    kept = [item for item in items if item.name in fine]
    try:
        data = _data(source, kept, samples)
    except DataError as error:
        data, problems = None, [*problems, str(error)]
    return Survey(facts, len(items) - len(facts), sides, problems, kind, data)


def _labelled(source: FilesDataModule, items: list[Item]) -> tuple[list[Item], list[str]]:
    """The items that can have a label together, and what is wrong with the others."""
    from datamodules.files.base import Labeller

    try:
        Labeller(source.source, items)
        return items, []
    except DataError as error:
        return _alike(items), [str(error)]


def _alike(items: list[Item]) -> list[Item]:
    """Those with a label, where some have one; of them, those whose class train has too."""
    found = [item for item in items if item.label is not None]
    trained = {label for item in found if item.split == "train" for label in item.label.split("|")}
    return [item for item in found if set(item.label.split("|")) <= trained]


def _opened(
    source: FilesDataModule, items: Sequence[Item], seconds: float | None
) -> tuple[list[FileFacts], dict[str, list[Sample]]]:
    order = list(items)
    random.Random(0).shuffle(order)
    facts: dict[str, FileFacts] = {}
    samples: dict[str, list[Sample]] = {}
    start, room = time.monotonic(), source.memory * 2**30
    for item, found in with_progress("opening files", source.decoded(order), total=len(order)):
        fact = FileFacts(item.name, item.split, item.label, item.group)
        if isinstance(found, DataError):
            facts[item.name] = replace(fact, error=str(found))
        else:
            image = found[0][1] if found else None
            known = {} if image is None else {"bits": BITS[image.dtype], "shape": tuple(image.shape)}
            facts[item.name] = replace(fact, size=source.size_in_file(item), **known)
            samples[item.name] = found
            room -= sum(image.numel() * image.element_size() for _, image, _ in found)
        if room < 0 or (seconds is not None and time.monotonic() - start > seconds):
            break
    return [facts[item.name] for item in items if item.name in facts], samples


def _data(source: FilesDataModule, items: list[Item], samples: Mapping[str, list[Sample]]) -> Part:
    from datamodules.files.base import Labeller

    items = _alike(items) if any(item.label is not None for item in items) else items
    label = Labeller(source.source, items)
    splits, names = {}, {}
    for name in SPLITS:
        rows = [(item, *sample) for item in items if item.split == name for sample in samples[item.name]]
        if not rows:
            raise DataError(f"{source.source}: no file that can be used is left in {name}")
        masks = [mask for *_, mask in rows]
        splits[name] = Split(
            torch.stack([image for _, _, image, _ in rows]),
            None if label.classes is None else torch.stack([label(item) for item, *_ in rows]),
            None if masks[0] is None else torch.stack(masks),
        )
        names[name] = [of_sample for _, of_sample, _, _ in rows]
    classes = None if label.classes is None else tuple(label.classes)
    part = Part(source.source, splits, names, classes, **source.options)
    part.setup()
    return part
