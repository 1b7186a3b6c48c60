"""Files of a data set as a table: what each one is, before any is opened."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from datamodules.arrays.split import SPLITS
from datamodules.batch import DataError

SPLIT_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
"""What folders and tables call the splits."""
LITTER = ("__MACOSX",)
"""Folders that archives leave behind."""


@dataclass(frozen=True)
class Item:
    """One file, or what is read as one.

    path: of the image
    name: what people know it by, relative to the data's folder, in split files and messages
    label: the class, several joined by |, or None
    mask: path of the mask, or None
    patient: what must stay on one side of a split; the name where nothing else is known
    split: train, val or test where that is given
    """

    path: Path
    name: str
    label: str | None = None
    mask: Path | None = None
    patient: str = ""
    split: str | None = None

    @property
    def group(self) -> str:
        return self.patient or self.name

    @property
    def labels(self) -> list[str]:
        """The single labels; one, None, where there is no label."""
        return [None] if self.label is None else [part.strip() for part in self.label.split("|") if part.strip()]

    def state(self) -> list[Any]:
        """All that what is made of the item hangs on, as plain values. DataError: its files cannot be reached."""
        found = [self.name, self.label, self.split]
        for path in (self.path, self.mask):
            if path is not None:
                found += [str(path.absolute()), *file_state(path)]
        return found


def file_state(path: Path) -> tuple[int, int]:
    """Size and time of the last change. DataError: the file cannot be reached."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    return found.st_size, found.st_mtime_ns


def files_under(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """All files with one of the suffixes (lower case, with the dot), in sorted order; hidden ones are left out.

    Symbolic links are followed. DataError: the folder is not there or cannot be read, or links go in a circle.
    """
    return sorted(path for path in _walk(folder, ()) if not suffixes or path.name.lower().endswith(tuple(suffixes)))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    try:
        real = folder.resolve(strict=True)
        if real in above:
            raise DataError(f"{folder} is a symbolic link to {real}, which holds it: a circle; remove the link")
        with os.scandir(folder) as found:
            entries = sorted(
                (e for e in found if not e.name.startswith(".") and e.name not in LITTER), key=lambda e: e.name
            )
    except FileNotFoundError as error:
        raise DataError(f"{folder} does not exist: check the path (relative ones start at {Path.cwd()})") from error
    except NotADirectoryError as error:
        raise DataError(f"{folder} is a file: give the folder that holds the images") from error
    except (OSError, RuntimeError) as error:  # the latter of links that point at each other, before Python 3.13
        raise DataError(f"{folder} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    for entry in sorted(entries, key=lambda entry: entry.name):
        path = folder / entry.name
        if entry.is_symlink() and not os.path.exists(path):
            raise DataError(f"{path} is a symbolic link that leads nowhere: remove it, or restore the file")
        if entry.is_dir():
            yield from _walk(path, (*above, real))
        else:
            yield path


def split_folders(folder: Path, names: Sequence[PurePath]) -> bool:
    """Whether the files lie in folders that are called train, and val or test, or both.

    names: from `folder` on. DataError: they do, but others lie beside these folders.
    """
    firsts = {name.parts[0] if len(name.parts) > 1 else "" for name in names}
    splits = {first: SPLIT_NAMES[first.lower()] for first in firsts if first.lower() in SPLIT_NAMES}
    if len(splits) < 2 or "train" not in splits.values():
        return False
    odd = sorted(firsts - splits.keys())
    if odd:
        what = f"the folder {odd[0]} lies" if odd[0] else f"{next(n for n in names if len(n.parts) == 1)} lies"
        raise DataError(f"{folder}: {what} beside the splits {', '.join(sorted(splits))}: move it away, or into them")
    return True


def inside(root: Path, name: str, where: str) -> Path:
    """The path that `name` means, from `root` on; Windows's separators do too. DataError if it leads out of root."""
    path = Path(os.path.normpath(root / name))
    if "\\" in name and not path.exists():
        path = Path(os.path.normpath(root / name.replace("\\", "/")))
    if not path.is_relative_to(os.path.normpath(root)):
        raise DataError(f"{where}: {name} leads out of {root}: name files in it, or set dataset.root to a folder above")
    return path


def read_csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table with a header, in UTF-8; separated by comma, semicolon or tab.

    DataError: no such file, not text, a needed column is missing, a row has another number of fields, or no rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path (relative ones start at {Path.cwd()})") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder: name the CSV file") from error
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as a table in UTF-8: save it as CSV") from error
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    if "\0" in text:
        raise DataError(f"{path} cannot be read as a table in UTF-8: save it as CSV")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        lines = [(reader.line_num, fields) for fields in reader if fields]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: this is no row of a table ({error})") from error
    columns = [name.strip() for name in lines[0][1]] if lines else []
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(f"{path} has no column {' and '.join(missing)} (it has {', '.join(columns) or 'none'})")
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} has two columns of one name: {', '.join(columns)}")
    rows = []
    for number, fields in lines[1:]:
        if len(fields) != len(columns):
            raise DataError(f"{path}, line {number}: the row has not {len(columns)} fields as the header has")
        rows.append(dict(zip(columns, fields, strict=True)))
    if not rows:
        raise DataError(f"{path} has a header, but no rows")
    return rows


def split_named(name: str, where: str) -> str:
    """train, val or test, of any usual spelling. DataError for another name."""
    if name.lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: there is no split '{name}': use {', '.join(SPLITS)}")
    return SPLIT_NAMES[name.lower()]


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers within texts by their value: grade2 before grade10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", text)]
