"""What the sources of scans share: how a volume becomes samples, and a table of labels for files and folders."""

from __future__ import annotations

import itertools
import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from datamodules.batch import DataError
from datamodules.files.base import FilesDataModule
from datamodules.formats.cuts import Cut
from datamodules.formats.volumes import Volume
from datamodules.table import Item, read_csv, split_named

log = logging.getLogger(__name__)


class Scans(FilesDataModule):
    """Scans, cut into slices or patches; all of a scan, and all scans of a patient, stay on one side of a split.

    output, size, axis, spacing, window, percentiles, least: see `cuts.Cut`
    labels: a CSV file with the columns path, from the data's folder on, and as far as they are there label, patient and
        split. A path is that of a file, or of a folder for all that lies in it; the closest one counts. Scans that it
        does not name are left out
    """

    needs = "the folder that holds the scans"
    at_once = 4

    def __init__(
        self,
        output: str = "slices",
        size: int = 64,
        axis: str = "axial",
        spacing: float | Sequence[float | None] | None = None,
        window: Sequence[float] | str | None = None,
        percentiles: Sequence[float] = (0.5, 99.5),
        least: float = 0.02,
        labels: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.cut = Cut(output, size, axis, spacing, window, percentiles, least)
        self.label_file = Path(labels).expanduser() if labels else None

    @abstractmethod
    def volumes(self, item: Item) -> Iterator[Volume]:
        """What a file, or a series, holds. DataError: it cannot be read."""

    @abstractmethod
    def scans(self) -> list[Item]:
        """All scans, in an order that never changes. DataError where there are none."""

    def members(self, item: Item) -> Sequence[Path]:
        """The files of a scan."""
        return [item.path]

    def decoding(self) -> dict[str, Any]:
        return asdict(self.cut)

    def decode(self, item: Item) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        found = 0
        for number, volume in enumerate(self.volumes(item)):
            name = f"{item.name} volume {number}" if number else item.name
            for sample in self.cut.samples(volume, name):
                found += 1
                yield sample
        if not found:
            log.warning("%s: nothing in it reaches dataset.least=%g, so it gives no samples", item.name, self.cut.least)

    def items(self) -> list[Item]:
        items = self.scans()
        return items if self.label_file is None else self._labelled(items, self.label_file)

    def _labelled(self, items: Sequence[Item], table: Path) -> list[Item]:
        rows = {}
        for number, row in enumerate(read_csv(table, ["path"]), start=2):
            row = {key: value if key == "path" else value.strip() for key, value in row.items()}
            path, where = PurePosixPath(row["path"].strip().replace("\\", "/")).as_posix(), f"{table}, line {number}"
            if path in rows:
                raise DataError(f"{where}: {path} is named in line {rows[path][0]} already: leave one of them out")
            rows[path] = number, row
        found, used = [], set()
        for item in items:
            paths = self._closest(item, rows)
            used.update(paths)
            labels = {rows[path][1].get("label") or None for path in paths}
            if len(labels) > 1:
                first, second = (rows[path][0] for path in paths[:2])
                raise DataError(f"{table}, lines {first} and {second}: files of one scan, {item.name}, differ in label")
            if paths:
                number, row = rows[paths[0]]
                split = split_named(row["split"], f"{table}, line {number}") if row.get("split") else None
                found.append(replace(item, label=labels.pop(), split=split, patient=row.get("patient") or item.patient))
        lost = [path for path in rows if path not in used]
        if lost:
            raise DataError(
                f"{table}, line {rows[lost[0]][0]}: no scan under {self.path} lies at {lost[0]}: correct it"
            )
        if len(found) < len(items):
            log.warning(
                "%s does not name %d of %d scans: they are left out", table, len(items) - len(found), len(items)
            )
        return found

    def _closest(self, item: Item, rows: dict[str, Any]) -> list[str]:
        """The rows' paths that mean a scan: those of its files, or else of the closest folder around it."""
        files = [path.relative_to(self.path).as_posix() for path in self.members(item)]
        named = [path for path in (item.name, *files) if path in rows]
        folders = (folder.as_posix() for folder in PurePosixPath(files[0]).parents)
        return list(dict.fromkeys(named)) or list(itertools.islice((path for path in folders if path in rows), 1))
