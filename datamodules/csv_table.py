"""Pictures that a table lists, with labels, masks, patients and splits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datamodules.batch import DataError
from datamodules.masks import MaskedPictures
from datamodules.table import Item, inside, read_csv, split_named

COLUMNS = ("path", "label", "mask", "patient", "split")


class CsvTable(MaskedPictures):
    """The pictures of a CSV file: column path, and as far as they are there label, mask, patient and split.

    Several labels of one picture are joined by |. An empty mask is background. Other columns are not read.

    root: the folder that paths start from, and that they may not leave; null: the folder of the table
    columns: what the table calls a column, where that is another name: {label: diagnosis}
    """

    needs = "the CSV file"

    def __init__(self, root: str | None = None, columns: dict[str, str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(columns, (dict, type(None))):
            raise DataError(f"dataset.columns={columns}: give names of columns, as {{label: diagnosis}}")
        unknown = set(columns or {}) - set(COLUMNS)
        if unknown:
            raise DataError(f"dataset.columns: {unknown.pop()} is none of {', '.join(COLUMNS)}")
        self.columns = {name: (columns or {}).get(name, name) for name in COLUMNS}
        self.root = Path(root).expanduser() if root else self.path.parent
        self._named = set(columns or {})

    def items(self) -> list[Item]:
        rows = read_csv(self.path, [self.columns[name] for name in ("path", *sorted(self._named))])
        found, lines = [], {}
        several = any("|" in row.get(self.columns["label"], "") for row in rows)
        for number, row in enumerate(rows, start=2):
            where = f"{self.path}, line {number}"
            path, label, mask, patient, split = (row.get(self.columns[name], "").strip() for name in COLUMNS)
            if not path:
                raise DataError(f"{where}: the path is empty")
            file = inside(self.root, row[self.columns["path"]], where)
            name = file.relative_to(os.path.normpath(self.root)).as_posix()
            if name in lines:
                raise DataError(f"{where}: {path} is named in line {lines[name]} already: leave one of them out")
            lines[name] = number
            # Where several labels can hold at once, none can too.
            known = label or (several and self.columns["label"] in row)
            found.append(
                Item(
                    file,
                    name,
                    label=label if known else None,
                    mask=inside(self.root, mask, where) if mask else None,
                    patient=patient,
                    split=split_named(split, where) if split else None,
                )
            )
        self._missing(found)
        return found

    def _missing(self, items: list[Item]) -> None:
        paths = [path for item in items for path in (item.path, item.mask) if path is not None]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DataError(
                f"{self.path}: {len(missing)} of {len(paths)} files do not exist, the first {missing[0]}: check the "
                "paths, or dataset.root"
            )
