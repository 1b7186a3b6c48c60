"""Pictures in folders: one folder a class."""

from __future__ import annotations

from pathlib import Path, PurePath

from datamodules.batch import DataError
from datamodules.files.picture_files import PictureFiles
from datamodules.formats.pictures import SUFFIXES
from datamodules.table import SPLIT_NAMES, Item, files_under


class Folder(PictureFiles):
    """A folder of pictures, labelled by the folders that they lie in.

    path/CLASS/.../FILE, or path/SPLIT/CLASS/.../FILE with splits named train, val (valid, validation) and test; a
    folder without folders has no labels. All options: `PictureFiles` and `FilesDataModule`.
    """

    def items(self) -> list[Item]:
        files = files_under(self.path, SUFFIXES)
        if not files:
            raise DataError(f"{self.path} holds no pictures ({', '.join(SUFFIXES)}): check dataset.path")
        names = [path.relative_to(self.path) for path in files]
        splits = {name.parts[0] for name in names if len(name.parts) > 1}
        divided = (
            bool(splits) and all(name.lower() in SPLIT_NAMES for name in splits) and "train" in map(_split, splits)
        )
        return [self._item(path, name, divided) for path, name in zip(files, names, strict=True)]

    def _item(self, path: Path, name: PurePath, divided: bool) -> Item:
        split = _split(name.parts[0]) if divided and len(name.parts) > 1 else None
        folders = name.parts[1:-1] if divided else name.parts[:-1]
        return Item(path, name.as_posix(), label=folders[0] if folders else None, split=split)


def _split(name: str) -> str | None:
    return SPLIT_NAMES.get(name.lower())
