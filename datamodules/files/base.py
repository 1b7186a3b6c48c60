"""What all sources of image files share: their table, their split, their classes, and the arrays made of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.arrays.prepared import Prepared, Writer
from datamodules.arrays.split import SPLITS, Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError
from datamodules.files.partition import partition, read_splits
from datamodules.progress import with_progress
from datamodules.table import Item, natural_key

if TYPE_CHECKING:
    from datamodules.files.survey import Survey

log = logging.getLogger(__name__)

VERSION = 1
"""To be raised with every change of what files become: what was prepared by another version is made anew."""
NAMED = 5
"""Files that a message names before it counts the rest."""


class FilesDataModule(ImageDataModule):
    """Images from files that `items` lists and `decode` opens, each once: what they become is kept in `cache`.

    path: the data's folder, or file
    val, test: shares of the files, stratified by class; see `partition`
    split_seed: of that division; not the seed of training, so that runs of other seeds see the same split
    splits: a CSV file with the columns path and split, instead of the shares; each run holds such a file
    patient: regular expression; what it finds in a file's path from the data's folder on (its first group, if it has
        one) is the patient, who stays on one side of the split. null: each file is of a patient of its own
    unreadable: refuse, or skip: leave files that cannot be read out, and say so
    memory: GiB up to which the images are held in memory; more are read from the cache batch by batch
    cache: folder for the prepared images
    DataError: from `load`, for whatever is wrong with files, table or split.
    """

    needs = "the folder that holds the images"
    at_once = 64
    """Files that are decoded at a time: what they become is in memory together."""

    def __init__(
        self,
        path: str | None = None,
        val: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
        splits: str | None = None,
        patient: str | None = None,
        unreadable: str = "refuse",
        memory: float = 4.0,
        cache: str = "~/.cache/med-diffusion",
        **options: int,
    ) -> None:
        super().__init__(**options)
        if not path:
            raise DataError(f"dataset.path is not set: add dataset.path=PATH, {self.needs}")
        for name, value in {"path": path, "patient": patient, "splits": splits, "cache": cache}.items():
            if not isinstance(value, str | None):
                raise DataError(f"dataset.{name}={value}: give a text (in quotes, if it reads as something else)")
        if unreadable not in ("refuse", "skip"):
            raise DataError(f"dataset.unreadable={unreadable}: use refuse or skip")
        if memory < 0:
            raise DataError(f"dataset.memory={memory}: give GiB, 0 or more")
        try:
            self.patient = re.compile(patient) if patient else None
        except re.error as error:
            raise DataError(f"dataset.patient={patient} is no regular expression ({error})") from error
        self.path = Path(path).expanduser()
        self.source = str(self.path)
        self.val, self.test, self.split_seed, self.unreadable = val, test, split_seed, unreadable
        self.split_file = Path(splits).expanduser() if splits else None
        self.memory, self.cache = memory, Path(cache).expanduser()
        self._prepared: Prepared | None = None

    @abstractmethod
    def items(self) -> list[Item]:
        """The files, in an order that never changes. DataError where there are none."""

    @abstractmethod
    def decode(self, item: Item) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """What a file becomes: names, images uint8 or int16 (C, *S), and masks uint8 (1, *S). Called in threads.

        DataError: the file cannot be read.
        """

    @abstractmethod
    def decoding(self) -> dict[str, Any]:
        """All options that `decode` depends on, as plain values."""

    def size_in_file(self, item: Item) -> tuple[int, int] | None:
        """Width and height of the picture that a file holds; None where that is unknown, or the file is none."""
        return None

    without: Collection[str] = ()
    """Names of files that are left out."""

    def listed(self) -> list[Item]:
        """The items with their patients, and with their splits where these are given."""
        items = self.items()
        if self.patient:
            items = [replace(item, patient=_found(self.patient, item.name)) for item in items]
        if self.split_file:
            items = read_splits(self.split_file, items)
        elif len(items) < len(SPLITS):
            raise DataError(f"{self.source} holds {len(items)} images: at least one for each of train, val and test")
        return [item for item in items if item.name not in self.without]

    def divided(self) -> list[Item]:
        """The items with their patients and splits, ordered by split and name."""
        return partition(self.listed(), self.val, self.test, self.split_seed)

    def survey(self, seconds: float | None = None) -> Survey:
        from datamodules.files.survey import survey

        return survey(self, seconds)

    def load(self) -> dict[str, Split]:
        self._prepared = self._prepare()
        more = self._prepared.more
        if more["skipped"]:
            log.warning("%s: %d files cannot be read and are left out: %s", self.source, *_some(more["skipped"]))
        if more["classes"] is not None:
            self.class_names = tuple(more["classes"])
        return self._prepared.splits(self.memory)

    def _prepare(self) -> Prepared:
        items = self.divided()
        label = Labeller(self.source, items)
        return Prepared.of(self.cache, self._key(items), lambda writer: self._write(writer, items, label))

    def _key(self, items: Sequence[Item]) -> str:
        files = [item.state() for item in items]
        about = [VERSION, type(self).__name__, str(self.path.absolute()), self.decoding(), self.unreadable, files]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]

    def _write(self, writer: Writer, items: list[Item], label: Callable[[Item], Tensor | None]) -> dict[str, Any]:
        log.info("%s: preparing %d files", self.source, len(items))
        unreadable: dict[str, str] = {}
        for item, found in with_progress("preparing images", self.decoded(items), total=len(items)):
            if isinstance(found, DataError):
                unreadable[item.name] = str(found)
                continue
            for name, image, mask in found:
                writer.add(item.split, name, image, label(item), mask)
        if unreadable and (self.unreadable == "refuse" or len(unreadable) == len(items)):
            count, names = _some(list(unreadable))
            raise DataError(
                f"{count} of {len(items)} files cannot be read: {names}; the first: {next(iter(unreadable.values()))}. "
                "Mend them, or leave them out by dataset.unreadable=skip"
            )
        rows = [[item.name, item.split, item.label or ""] for item in items if item.name not in unreadable]
        return {"classes": label.classes, "files": rows, "skipped": list(unreadable)} | self.about()

    def about(self) -> dict[str, Any]:
        """What else is kept with the prepared images, after all files were decoded."""
        return {}

    def decoded(self, items: Sequence[Item]) -> Iterator[tuple[Item, list | DataError]]:
        """Each item with all that `decode` makes of it, or with the error."""

        def decode(item: Item) -> Any:
            try:
                return list(self.decode(item))
            except DataError as error:
                return error

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4) as pool:
            rest = iter(items)
            # A few at a time, so that no more than these are in memory.
            while some := list(itertools.islice(rest, self.at_once)):
                yield from zip(some, pool.map(decode, some), strict=True)

    @property
    def names(self) -> dict[str, list[str]]:
        self.setup()
        return self.kept(self._prepared.names)

    @property
    def files(self) -> list[tuple[str, str, str]]:
        self.setup()
        return [tuple(row) for row in self._prepared.more["files"]]

    def fact(self, name: str, compute: Callable[[], Any]) -> Any:
        self.setup()
        return self._prepared.fact(name, compute)


class Labeller:
    """Item -> its label as a tensor; `classes` are the names, None without labels.

    DataError: some items have labels and others none, or val or test hold a class that train lacks.
    """

    def __init__(self, source: str, items: Sequence[Item]) -> None:
        given = [item for item in items if item.label is not None]
        self.classes: list[str] | None = None
        if not given:
            return
        if len(given) < len(items):
            lost = next(item.name for item in items if item.label is None)
            raise DataError(f"{source}: {lost} has no label, but others have: give all of them one, or none")
        self.several = any("|" in item.label for item in given)
        classes = {name: {label for item in given if item.split == name for label in item.labels} for name in SPLITS}
        self.classes = sorted(classes["train"], key=natural_key)
        for name in ("val", "test"):
            unknown = sorted(classes[name] - classes["train"], key=natural_key)
            if unknown:
                raise DataError(
                    f"{source}: class {unknown[0]} is in {name}, but not in train: leave it out, or add some to train"
                )
        self._index = {name: place for place, name in enumerate(self.classes)}

    def __call__(self, item: Item) -> Tensor | None:
        if self.classes is None:
            return None
        places = torch.tensor([self._index[name] for name in item.labels], dtype=torch.int64)
        return torch.zeros(len(self.classes), dtype=torch.int64).index_fill(0, places, 1) if self.several else places[0]


def _found(pattern: re.Pattern, name: str) -> str:
    match = pattern.search(name)
    if match is None:
        raise DataError(f"dataset.patient={pattern.pattern} finds no patient in {name}: correct the pattern")
    patient = match.group(1) if pattern.groups else match.group()
    if not patient:
        raise DataError(
            f"dataset.patient={pattern.pattern} finds nothing in {name}: let it match one character or more"
        )
    return patient


def _some(names: Sequence[str]) -> tuple[int, str]:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return len(names), ", ".join(names[:NAMED]) + more
