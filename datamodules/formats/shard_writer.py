"""Writing shards: the samples of a source, mixed, in tar files that any reader of WebDataset reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from datamodules.arrays.order import permutation
from datamodules.arrays.split import SPLITS, Split
from datamodules.batch import DataError, DataSpec
from datamodules.fetch import md5_of
from datamodules.formats.shard_index import INDEX, File, Index
from datamodules.formats.shard_members import encoded, key_of, to_files
from datamodules.part import Part
from datamodules.progress import with_progress

if TYPE_CHECKING:
    from datamodules.base import ImageDataModule

SAMPLES = "samples.safetensors"
HEADER = 512
"""Bytes of a tar file for each member beside its own, which are filled up to as many."""
AT_ONCE = 256
"""Samples that are read from the source together."""


def write_source(source: ImageDataModule, folder: Path, n: int | None = None, **options: Any) -> dict[str, Any]:
    """`write` the data of a source, or n samples of each split; what index.json holds.

    DataError: n samples lack a class. Nothing is written then.
    """
    if n is not None:
        rows = {name: min(n, len(source.split(name))) for name in SPLITS}
        some = {
            name: source.split(name).only(torch.arange(m) * len(source.split(name)) // m) for name, m in rows.items()
        }
        part = Part(source.source, some, class_names=source.class_names)
        part.ordinal = source.ordinal
        try:
            part.setup()
        except DataError as error:
            raise DataError(f"n={n} are too few: {error}") from error
        source = part
    splits = {name: source.split(name) for name in SPLITS}
    return asdict(write(folder, splits, source.spec, source.std(), source.fingerprint(), **options))


def write(
    folder: Path,
    splits: Mapping[str, Split],
    spec: DataSpec,
    std: float,
    fingerprint: str,
    seed: int = 0,
    shard_size: float = 100.0,
    encoding: str = "npy",
) -> Index:
    """Write the splits into the folder in place of what was written there before; index.json last, which makes a set.

    The training samples are shuffled, so that neighbours are a fair mix; the others stay in their order.

    spec, std, fingerprint: what the source says of the splits
    seed: of that shuffle
    shard_size: MB of a shard, before compression
    encoding: png where it can hold the images (8 bits, 2-D, 1 or 3 channels), or npy
    DataError: the extra `shards` is not installed.
    """
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise DataError(
            'shards are written by webdataset, which is not installed: python -m pip install -e ".[shards]"'
        ) from error
    # Without a time and a user, so that the same samples are the same bytes.
    writer = partial(TarWriter, encoder=False, mtime=0, user="", group="")
    remove(folder)
    images, masks = splits["train"].images, splits["train"].masks
    flat = images.ndim == 4 and encoding == "png"
    image_ending = "png" if flat and images.shape[1] in (1, 3) and images.dtype is torch.uint8 else "npy"
    mask_ending = None if masks is None else "png" if flat else "npy"
    one = images[0].numel() * images.dtype.itemsize + (0 if masks is None else masks[0].numel()) + 4 * HEADER
    count = max(1, int(shard_size * 1e6 / one))
    files, arrays = {}, {}
    for name in SPLITS:
        n = len(splits[name])
        samples = permutation(n, f"{seed} shards") if name == "train" else torch.arange(n)
        parts = samples.tensor_split(math.ceil(n / count))
        files[name] = tuple(
            _shard(folder / f"{name}-{k:06d}.tar", splits[name], part, image_ending, mask_ending, writer)
            for k, part in with_progress(f"writing {name}", enumerate(parts), total=len(parts))
        )
        arrays[f"{name}_samples"] = samples
        if splits[name].labels is not None:
            arrays[f"{name}_labels"] = splits[name].labels.contiguous()
    (folder / SAMPLES).write_bytes(save(arrays))
    index = Index(
        shape=spec.shape,
        bits=8 * images.dtype.itemsize,
        image=image_ending,
        mask=mask_ending,
        mask_classes=spec.mask_classes,
        class_names=spec.class_names,
        ordinal=spec.ordinal,
        std=std,
        fingerprint=fingerprint,
        samples=_file(folder / SAMPLES, sum(map(len, splits.values()))),
        splits=files,
    )
    part = folder / f".{INDEX}.part"
    with part.open("w") as file:
        file.write(index.text())
        _to_disk(file)
    os.replace(part, folder / INDEX)
    return index


def remove(folder: Path) -> None:
    """Delete what `write` has written there before: the index first, so that no half of a set passes for a whole."""
    (folder / INDEX).unlink(missing_ok=True)
    for path in [folder / SAMPLES, *(path for name in SPLITS for path in folder.glob(f"{name}-??????.tar"))]:
        path.unlink(missing_ok=True)


def _shard(
    path: Path, split: Split, samples: Tensor, image_ending: str, mask_ending: str | None, writer: Callable[..., Any]
) -> File:
    with path.open("wb") as file:
        with writer(file) as shard:
            for some in samples.split(AT_ONCE):
                images = to_files(split.images[some])
                masks = None if split.masks is None else to_files(split.masks[some])
                for i, sample in enumerate(some.tolist()):
                    members = {image_ending: encoded(images[i], image_ending)}
                    if masks is not None:
                        members[f"mask.{mask_ending}"] = encoded(masks[i], mask_ending)
                    if split.labels is not None:
                        ending = "json" if split.labels.ndim == 2 else "cls"
                        members[ending] = json.dumps(split.labels[sample].tolist()).encode()
                    shard.write({"__key__": key_of(sample), **members})
        _to_disk(file)
    return _file(path, len(samples))


def _file(path: Path, samples: int) -> File:
    return File(path.name, samples, path.stat().st_size, md5_of(path))


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
