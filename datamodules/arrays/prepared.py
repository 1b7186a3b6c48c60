"""Splits that were decoded once and lie in a folder, ready to be read: what files of many formats become."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from datamodules.arrays.split import SPLITS, Split
from datamodules.arrays.stored import Stored
from datamodules.batch import DataError

log = logging.getLogger(__name__)

INDEX = "index.json"
TYPES = {"uint8": torch.uint8, "int16": torch.int16, "int64": torch.int64}
ABANDONED = 86400.0
"""Seconds after which nobody writes any more to what is not whole."""
LEAST_FREE = 1 << 30
"""Bytes that stay free on the disk."""


class Writer:
    """Takes the samples of the splits one by one, in their order, and appends them to files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, list[str]] = {name: [] for name in SPLITS}
        self._files: dict[str, Any] = {}
        self._arrays: dict[str, dict[str, Any]] = {}

    def add(
        self, split: str, name: str, image: Tensor, label: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """image uint8 or int16 (C, *S), label int64 () or (K,), mask uint8 (1, *S), under a name for people.

        DataError: the sample differs from those before it in shape or type, or the disk is full.
        """
        for kind, value in {"images": image, "labels": label, "masks": mask}.items():
            if value is not None:
                self._append(f"{split}_{kind}", name, value)
        self.names[split].append(name)

    def _append(self, key: str, name: str, value: Tensor) -> None:
        about = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        known = self._arrays.setdefault(key, {**about, "n": 0})
        if {**about, "n": known["n"]} != known:
            raise DataError(
                f"{name} becomes {about['dtype']} of shape {tuple(about['shape'])}, but the files before it "
                f"{known['dtype']} of {tuple(known['shape'])}: convert it (of pictures dataset.channels=3 and "
                "dataset.bits=8 do), or leave it out"
            )
        if key not in self._files:
            self._files[key] = (self.folder / f"{key}.bin").open("wb")
        self._files[key].write(value.contiguous().numpy().tobytes())
        known["n"] += 1

    def index(self) -> dict[str, Any]:
        """What was written, after the bytes are on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {"arrays": self._arrays, "names": self.names}

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class Prepared:
    """A folder of prepared splits: raw arrays, an index, and what was computed from them.

    names: of the samples of each split. more: what `make` returned
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / INDEX).read_text())
        self.names, self.more, self._arrays = (index[key] for key in ("names", "more", "arrays"))

    @classmethod
    def of(cls, cache: Path, key: str, make: Callable[[Writer], dict[str, Any]]) -> Prepared:
        """The folder CACHE/KEY, made by `make` where it is not there yet; it appears whole or not at all.

        make: adds all samples, and returns what else the index is to hold.
        DataError: the folder cannot be written.
        """
        folder = cache / key
        if not (folder / INDEX).is_file():
            for left in cache.glob(f".{key}.*.part"):  # by a process that was killed
                if left.stat().st_mtime < time.time() - ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
            # A name of its own for each process: several may prepare at once, and the first to rename wins.
            part = cache / f".{key}.{uuid.uuid4().hex}.part"
            try:
                part.mkdir(parents=True)
                with closing(Writer(part)) as writer:
                    more = make(writer)
                    (part / INDEX).write_text(json.dumps(writer.index() | {"more": more}))
                if not (folder / INDEX).is_file():
                    shutil.rmtree(folder, ignore_errors=True)
                    os.rename(part, folder)
            except OSError as error:
                if not (folder / INDEX).is_file():
                    raise DataError(
                        f"{cache} cannot hold the prepared images ({error.strerror or error}): "
                        "set dataset.cache to a folder with room"
                    ) from error
            finally:
                shutil.rmtree(part, ignore_errors=True)
        try:
            return cls(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is damaged: delete it, and it is made anew") from error

    def splits(self, memory: float) -> dict[str, Split]:
        """The splits, in memory if their images and masks are at most `memory` GiB, else as stored arrays.

        DataError: a file is gone or cut short.
        """
        found: dict[str, dict[str, Stored | Tensor]] = {}
        for key, about in self._arrays.items():
            split, kind = key.split("_")
            path = self.folder / f"{key}.bin"
            array = Stored(path, TYPES[about["dtype"]], (about["n"], *about["shape"]))
            if not path.is_file() or path.stat().st_size != array.numel() * array.dtype.itemsize:
                raise DataError(f"{path} is missing or cut short: delete {self.folder}, and it is made anew")
            found.setdefault(split, {})[kind] = array
        whole = fits(memory, *(array for arrays in found.values() for array in arrays.values()))
        return {
            split: Split(**{k: a.load() if whole or k == "labels" else a for k, a in arrays.items()})
            for split, arrays in found.items()
        }

    def fact(self, name: str, compute: Callable[[], Any]) -> Any:
        """A number or text computed from the data, once."""
        path = self.folder / f"{name}.json"
        with contextlib.suppress(OSError, ValueError):  # not there yet, or damaged
            return json.loads(path.read_text())
        value = compute()
        try:
            with whole_file(path) as file:
                file.write(json.dumps(value).encode())
        except DataError as error:
            log.warning("%s; it is computed each time", error)
        return value


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that appears under `path` once it is complete. DataError if it cannot be written."""
    # A name of its own for each process: several may write at once, and the last to rename wins.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}): set dataset.cache to a folder with room"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def fits(memory: float, *arrays: Stored | Tensor) -> bool:
    """Whether the arrays together are at most `memory` GiB."""
    return sum(array.numel() * array.dtype.itemsize for array in arrays) <= memory * 2**30


def check_room(folder: Path, size: int, what: str) -> None:
    """DataError unless the disk of `folder` has room for `size` bytes, and 1 GiB to spare."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if size + LEAST_FREE > free:
        raise DataError(
            f"{what} takes {size / 2**30:.1f} GiB unpacked, but {there} has {free / 2**30:.1f} GiB free: set "
            "dataset.cache to a folder with more room"
        )
