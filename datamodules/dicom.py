"""DICOM series and pictures."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.arrays.prepared import whole_file
from datamodules.batch import DataError
from datamodules.files.scans import Scans
from datamodules.formats.dicom_files import Series, find
from datamodules.formats.dicom_pixels import read
from datamodules.formats.volumes import Volume
from datamodules.table import Item, file_state, files_under

log = logging.getLogger(__name__)

VERSION = 1
"""To be raised with every change of how files are put together to series."""


class Dicom(Scans):
    """All DICOM images under a folder, whatever their names, put together by their headers to series.

    A patient is who has a PatientID, or else a study: compared in memory, and not kept. All options: `Scans`.

    modality: only images of this one, such as CT or MR; null: all, which then have to come in one number of channels
    """

    needs = "the folder that holds the DICOM files"

    def __init__(self, modality: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.modality = modality
        self._series: dict[str, Series] = {}

    def scans(self) -> list[Item]:
        series = self._found()
        self._series = {one.name: one for one in series}
        groups = {one.group for one in series}
        log.info("%s: %d series of %d patients", self.source, len(series), len(groups))
        if len(groups) == 1 and len(series) > 1 and self.patient is None:
            log.warning("%s: all series carry one PatientID: if that is not so, set dataset.patient", self.source)
        return [Item(one.files[0], one.name, patient=one.group) for one in series]

    def _found(self) -> list[Series]:
        """What `find` finds, kept in the cache for the next time, because there may be very many headers to read.

        The cache holds names of files, and nothing that headers say.
        """
        skip = self.unreadable == "skip"
        files = [(str(path), *file_state(path)) for path in files_under(self.path, ())]
        about = json.dumps([VERSION, str(self.path.absolute()), self.modality, skip, files])
        kept = self.cache / f"series-{hashlib.sha256(about.encode()).hexdigest()[:24]}.json"
        try:
            rows = json.loads(kept.read_text())
            return [Series(tuple(self.path / file for file in row.pop("files")), **row) for row in rows]
        except (OSError, ValueError, TypeError, KeyError):
            series = find(self.path, self.modality, skip)
        rows = [
            {"files": [path.relative_to(self.path).as_posix() for path in one.files]}
            | {"name": one.name, "group": one.group, "flat": one.flat}
            for one in series
        ]
        try:
            with whole_file(kept) as file:
                file.write(json.dumps(rows).encode())
        except DataError as error:
            log.warning("%s; headers are read each time", error)
        return series

    def members(self, item: Item) -> Sequence[Path]:
        return self._series[item.name].files

    def volumes(self, item: Item) -> Iterator[Volume]:
        return read(self._series[item.name])

    def _key(self, items: Sequence[Item]) -> str:
        digest = hashlib.sha256(super()._key(items).encode())
        for item in items:
            for path in self.members(item):
                digest.update(repr((path.name, *file_state(path))).encode())
        return digest.hexdigest()[:24]
