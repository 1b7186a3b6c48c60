"""NIfTI volumes, with or without segmentations."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from datamodules.batch import DataError
from datamodules.files.scans import Scans
from datamodules.formats.nifti_files import SUFFIXES, read, require_nibabel
from datamodules.formats.volumes import Volume
from datamodules.table import Item, files_under

log = logging.getLogger(__name__)

SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
"""How BIDS names who was scanned."""


class Nifti(Scans):
    """All NIfTI files under a folder. A fourth axis is channels. All options: `Scans`.

    Where every name has BIDS's sub-LABEL, this is the patient; else dataset.patient says what is.

    images: pattern of the scans' paths, from the folder on, as '*_t1.nii.gz'; null: all files but the masks
    masks:  pattern of the masks' paths, as '*_seg.nii.gz' or 'labelsTr/*.nii.gz'; null: no masks. What stands for the
        asterisk in a mask's path stands for it in its scan's too, and may hold slashes
    values: what the masks hold for the classes 0, 1, ...; null: these numbers themselves
    """

    needs = "the folder that holds the NIfTI files"

    def __init__(
        self,
        images: str | None = None,
        masks: str | None = None,
        values: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for pattern in (images, masks) if masks else ():
            if pattern is None or len(re.findall(r"[*?\[]", pattern)) != 1 or "*" not in pattern:
                raise DataError("dataset.masks needs dataset.images beside it, each with one * for what they share")
        if values is not None and len(set(values)) < 2:
            raise DataError(f"dataset.values={list(values)}: give two or more different values")
        self.images, self.masks, self.values = images, masks, None if values is None else list(values)

    def decoding(self) -> dict[str, Any]:
        return super().decoding() | {"values": self.values}

    def scans(self) -> list[Item]:
        require_nibabel()
        files = [path.relative_to(self.path).as_posix() for path in files_under(self.path, SUFFIXES)]
        masks = _shared(files, self.masks) if self.masks else {}
        images = _shared(files, self.images) if self.masks else {name: name for name in self._chosen(files)}
        images = {key: name for key, name in images.items() if name not in masks.values()}
        if not images:
            raise DataError(f"{self.path} holds no NIfTI files ({', '.join(SUFFIXES)}) to train on: check dataset.path")
        if len(images) < len(files) - len(masks):
            log.info("%s: dataset.images matches %d of %d files", self.source, len(images), len(files))
        alone = [name for key, name in images.items() if self.masks and key not in masks]
        if alone:
            raise DataError(f"{self.path}: {len(alone)} of {len(images)} scans have no mask, the first {alone[0]}")
        subjects = [SUBJECT.search(name) for name in images.values()]
        known = self.patient is None and all(subjects)
        if known:
            log.info("%s: %d patients, by BIDS's names", self.source, len({subject[1] for subject in subjects}))
        return [
            Item(
                self.path / name,
                name,
                mask=self.path / masks[key] if self.masks else None,
                patient=subject[1] if known else "",
            )
            for (key, name), subject in zip(images.items(), subjects, strict=True)
        ]

    def _chosen(self, files: Sequence[str]) -> list[str]:
        return fnmatch.filter(files, self.images) if self.images else list(files)

    def volumes(self, item: Item) -> Iterator[Volume]:
        yield read(item.path, item.mask, self.values)


def _shared(files: Sequence[str], pattern: str) -> dict[str, str]:
    """Those of a pattern, by what stands for its only asterisk, which may hold slashes."""
    head, tail = pattern.split("*")
    fitting = [
        name for name in files if name.startswith(head) and name.endswith(tail) and len(name) >= len(pattern) - 1
    ]
    return {name[len(head) : len(name) - len(tail)]: name for name in fitting}
