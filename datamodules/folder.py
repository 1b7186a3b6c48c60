"""Pictures in folders: one folder a class."""

from __future__ import annotations

from pathlib import Path, PurePath

from datamodules.batch import DataError
from datamodules.files.picture_files import PictureFiles
from datamodules.formats.pictures import SUFFIXES
from datamodules.table import SPLIT_NAMES, Item, files_under, split_folders


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
        divided = split_folders(self.path, names)
        return [self._item(path, name, divided) for path, name in zip(files, names, strict=True)]

    def _item(self, path: Path, name: PurePath, divided: bool) -> Item:
        split = SPLIT_NAMES[name.parts[0].lower()] if divided else None
        folders = name.parts[1:-1] if divided else name.parts[:-1]
        if folders and "|" in folders[0]:
            raise DataError(
                f"{self.path}: the class {folders[0]} holds |, which joins several labels: rename the folder"
            )
        return Item(path, name.as_posix(), label=folders[0] if folders else None, split=split)
