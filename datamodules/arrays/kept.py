"""The samples of some classes, as data of one kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from datamodules.arrays.split import SPLITS, Split
from datamodules.batch import DataError, DataSpec


def kept_rows(source: str, splits: Mapping[str, Split], spec: DataSpec, only: Sequence[int | str]) -> dict[str, Tensor]:
    """The places, int64 (M,), of the samples of these classes in each split; of rows of labels, that hold no others.

    only: classes by number or name. Where several classes may hold at once, none of them may be named: `[]` keeps the
        samples that are of no class.
    DataError: the data have no labels, there is no such class, or a split keeps nothing.
    """
    if spec.classes is None:
        raise DataError(f"dataset.only={list(only)}: {source} has no labels to choose by; leave it out")
    classes = [number_of(source, spec, name) for name in only]
    rows = {}
    for name in SPLITS:
        labels = splits[name].labels
        if spec.multi_label:
            others = [k for k in range(spec.classes) if k not in classes]
            held = ~labels[:, others].bool().any(1)
        else:
            held = torch.isin(labels, torch.tensor(classes, dtype=labels.dtype))
        rows[name] = held.nonzero().flatten()
        if not len(rows[name]):
            raise DataError(f"dataset.only={list(only)} leaves nothing of {source}, {name}: choose other classes")
    return rows


def number_of(source: str, spec: DataSpec, name: int | str, key: str = "dataset.only") -> int:
    """The number of a class that a user names. DataError if there is none."""
    names = spec.names
    if type(name) is int and 0 <= name < len(names):
        return name
    if isinstance(name, str) and name in names:
        return names.index(name)
    raise DataError(
        f"{key}: {source} has no class {name}; it has "
        + ", ".join(f"{k} ({n})" if spec.class_names else str(k) for k, n in enumerate(names))
    )


def without_classes(spec: DataSpec) -> DataSpec:
    """The spec of the same images where no class is told from another."""
    return replace(spec, classes=None, class_names=None, multi_label=False, ordinal=False)
