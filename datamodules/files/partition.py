"""Which files train, validate and test: by ratio, class by class, with every patient on one side only."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from datamodules.arrays.order import epoch_order
from datamodules.arrays.split import SPLITS
from datamodules.batch import DataError
from datamodules.table import Item, read_csv, split_named

log = logging.getLogger(__name__)


def partition(items: Sequence[Item], val: float, test: float, seed: int) -> list[Item]:
    """The items, each with its split; those that have one already keep it.

    Where no item has a split, groups are dealt to the splits largest first, in an order that hangs on (seed, group)
    alone, each to the split that lacks most of its classes: so every class is divided in the same ratio as nearly as
    its groups allow, and the first of a rare class go to train. Where the items have splits but none for val, the
    share `val` of train is dealt to it; without a test split likewise.

    val, test: shares of all items, in (0, 1), together below 1
    DataError: a share out of range; a group in two given splits; a split that stays empty.
    """
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise DataError(f"dataset.val={val} and dataset.test={test}: give shares above 0, together below 1")
    given = {item.split for item in items} - {None}
    if given and "train" not in given:
        raise DataError(f"the given splits are {', '.join(sorted(given))}, without train: give it too")
    if given and any(item.split is None for item in items):
        lost = next(item.name for item in items if item.split is None)
        raise DataError(f"{lost} has no split, but others have: give all of them one, or none")
    if not given:
        items = _dealt(items, {"train": 1 - val - test, "val": val, "test": test}, seed)
    for name, share in (("val", val), ("test", test)):
        if name not in {item.split for item in items} and given:
            kept = [item for item in items if item.split != "train"]
            train = [item for item in items if item.split == "train"]
            items = kept + _dealt(train, {"train": 1 - share, name: share}, seed)
            log.info("there is no split %s: %d of train are set apart for it", name, _count(items, name))
    _check(items, bool(given))
    return sorted(items, key=in_order)


def in_order(item: Item) -> tuple[int, str]:
    """A key that sorts items by split and name."""
    return SPLITS.index(item.split), item.name


def _dealt(items: Sequence[Item], shares: dict[str, float], seed: int) -> list[Item]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    total = _counts(items)
    lacking = {name: {label: share * count for label, count in total.items()} for name, share in shares.items()}
    files = {name: share * len(items) for name, share in shares.items()}
    found = []
    for group in sorted(groups, key=lambda group: (-len(groups[group]), _hash(seed, group))):
        counts = _counts(groups[group])

        def need(name: str, counts: Counter = counts) -> tuple[float, float]:
            # In shares of a class, so that a rare one weighs as much as a frequent one; of splits that lack a class
            # alike, the one that lacks more files. Rounded, for sums of shares are equal up to their last bits.
            of_classes = sum(count * lacking[name][label] / total[label] for label, count in counts.items())
            return round(of_classes, 9), round(files[name], 9)

        chosen = max(shares, key=need)
        for label, count in counts.items():
            lacking[chosen][label] -= count
        files[chosen] -= len(groups[group])
        found += [replace(item, split=chosen) for item in groups[group]]
    for name in shares:
        if not _count(found, name):
            spare = _spare(found)
            found = [replace(item, split=name) if item.group == spare else item for item in found]
    return found


def _spare(items: Sequence[Item]) -> str | None:
    """The last group of train that is not all that train has of a class, or None."""
    train = [item for item in items if item.split == "train"]
    total = _counts(train)
    for group in dict.fromkeys(item.group for item in reversed(train)):
        counts = _counts([item for item in train if item.group == group])
        if all(count < total[label] for label, count in counts.items()):
            return group
    return None


def _counts(items: Sequence[Item]) -> Counter:
    return Counter(label for item in items for label in item.labels)


def _hash(seed: int, group: str) -> bytes:
    # Names of files need not be UTF-8.
    return hashlib.blake2b(f"{seed} split {group}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _count(items: Sequence[Item], split: str) -> int:
    return sum(item.split == split for item in items)


def torn(items: Sequence[Item]) -> dict[str, list[tuple[str, str]]]:
    """Of each patient with files in several given splits, the names and splits of these files."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for item in items:
        if item.split is not None:
            groups[item.group].append((item.name, item.split))
    return {group: files for group, files in groups.items() if len({split for _, split in files}) > 1}


def _check(items: Sequence[Item], given: bool) -> None:
    patients = torn(items)
    if patients:
        first = next(iter(patients.values()))[0][0]
        raise DataError(
            f"{len(patients)} patients are in several splits, one with {first}: a model that has seen a patient is not "
            "tested on them; mend the given splits, or leave them out"
        )
    for name in SPLITS:
        if not _count(items, name):
            count = len({item.group for item in items})
            whose = "given splits leave" if given else f"{count} files or patients are too few: they leave"
            raise DataError(f"the {whose} {name} empty: give more, or other shares dataset.val and dataset.test")


def read_splits(path: Path, items: Sequence[Item]) -> list[Item]:
    """The items with the splits of a file with the columns path and split; the others are left out, and counted.

    DataError: the file breaks a rule of `read_csv`, names a split or a file that is not there, or a file twice.
    """
    known = {item.name: item for item in items}
    found: dict[str, Item] = {}
    for number, row in enumerate(read_csv(path, ["path", "split"]), start=2):
        name, where = row["path"], f"{path}, line {number}"
        name = name if name in known else name.strip()
        if name not in known:
            raise DataError(f"{where}: {name} is not among the {len(known)} files of the data set: correct it")
        if name in found:
            raise DataError(f"{where}: {name} is named a second time: leave one of them")
        found[name] = replace(known[name], split=split_named(row["split"].strip(), where))
    if len(found) < len(known):
        log.warning("%s leaves %d of %d files out", path, len(known) - len(found), len(known))
    return list(found.values())


def rows_by_ratio(n: int, labels: Tensor | None, val: float, test: float, seed: int) -> dict[str, Tensor]:
    """Rows of the splits of n samples that have no names, each class divided alike; in ascending order.

    labels: int64 (n,), or None. val, test: shares, of which test may be 0: then it is empty.
    DataError: a share is out of range, or leaves a split empty.
    """
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise DataError(f"dataset.val={val} and dataset.test={test}: give shares above 0, together below 1")
    order = epoch_order(n, seed, 0)
    kinds = torch.zeros(n, dtype=torch.int64) if labels is None else labels[order]
    parts: dict[str, list[Tensor]] = {name: [] for name in SPLITS}
    for kind in kinds.unique():
        members = order[kinds == kind]
        first, second = round(len(members) * test), round(len(members) * (test + val))
        for name, rows in zip(("test", "val", "train"), members.tensor_split([first, second]), strict=True):
            parts[name].append(rows)
    found = {name: torch.cat(rows).sort().values for name, rows in parts.items()}
    for name, rows in found.items():
        if len(rows) == 0 and not (name == "test" and test == 0):
            raise DataError(f"{n} images leave {name} empty: give more, or other shares dataset.val and dataset.test")
    return found
