"""Reader of files in MedMNIST's layout: an npz of {train,val,test}_images and {train,val,test}_labels."""

from __future__ import annotations

import logging
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays.examine import check_count
from datamodules.arrays.order import epoch_order
from datamodules.arrays.prepared import check_room, whole_file
from datamodules.arrays.split import SPLITS, Split
from datamodules.arrays.stored import BLOCK_BYTES, Stored, npy_header
from datamodules.batch import DataError
from datamodules.progress import with_progress

log = logging.getLogger(__name__)


def read(path: Path, memory: float = math.inf, cache: Path | None = None) -> dict[str, Split]:
    """Read the splits of a file, channels moved first.

    Images: (N, H, W) is grey; of four axes, a last one of at most 4 is channels, (N, H, W, C), and a longer
    one is space, (N, D, H, W) in grey; (N, D, H, W, C) is 3-D with channels.
    Labels: (N,) or (N, 1) are classes, (N, K) are rows of zeros and ones; they may be left out.
    Without val, a tenth of train is set apart for it, class by class.

    memory: GiB up to which the images are read into memory. Of a larger file, images that are not compressed
            (numpy.savez) are read where they lie, batch by batch; compressed ones are unpacked once, into `cache`
    DataError: the file is missing, no npz, cut short or damaged, lacks images, or holds objects (which are
    never unpickled); there is no room to unpack it. Types, shapes and ranges are for `examine.examine` to judge.
    """
    with _opened(path) as file:
        members = _members(path, file)
        large = sum(member.bytes for member in members.values()) > memory * 2**30
        if large and cache is not None:
            arrays = {key: _stored(path, cache, file, key, member) for key, member in members.items()}
        else:
            arrays = {key: _whole(path, file, key) for key in members}
    splits = {}
    for name in SPLITS:
        if f"{name}_images" in arrays:
            labels = arrays.get(f"{name}_labels")
            images = _channels_first(f"{path}, {name}", arrays[f"{name}_images"])
            splits[name] = Split(images, None if labels is None else _labels(f"{path}, {name}", labels))
    if "val" not in splits:
        check_count(f"{path}, train", splits["train"])
        splits["train"], splits["val"] = _set_apart(splits["train"])
        log.info("%s has no val_images: %d of train are set apart for it", path, len(splits["val"]))
    return splits


@dataclass(frozen=True)
class Member:
    """An array in an npz file, as its header describes it; offset is that of its items within the member."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file as a zip archive; whatever its readers raise becomes a DataError."""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path} is no npz file, or cut short: save it with numpy.savez, or copy it again")
            with zipfile.ZipFile(file) as archive:
                yield archive
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is damaged: copy or download it again") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path (relative ones start at {Path.cwd()})") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder: name the npz file in it") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): check the disk and the permissions"
        ) from error


def _members(path: Path, file: zipfile.ZipFile) -> dict[str, Member]:
    found = {name.removesuffix(".npy"): name for name in file.namelist()}
    needed = [f"{name}_images" for name in SPLITS if name != "val" or "val_labels" in found]
    missing = [key for key in needed if key not in found]
    if missing:
        held = ", ".join(map(ascii, list(found)[:8])) or "nothing"
        raise DataError(f"{path} lacks {' and '.join(missing)} (it holds {held}): save it in MedMNIST's layout")
    members = {}
    for key in (f"{name}_{kind}" for name in SPLITS for kind in ("images", "labels")):
        if key in found:
            where = f"{path}, {key}"
            if not found[key].endswith(".npy"):
                raise DataError(f"{where} is not an array: save it with numpy.savez")
            with file.open(found[key]) as stream:
                shape, dtype = npy_header(stream, where)
                members[key] = Member(file.getinfo(found[key]), shape, dtype, stream.tell())
            if dtype.kind not in "biuf":
                raise DataError(f"{where} has the type {dtype}: save images as uint8 and labels as integers")
            if members[key].bytes + members[key].offset != members[key].info.file_size:
                raise DataError(f"{path} is damaged: copy or download it again")
    return members


def _whole(path: Path, file: zipfile.ZipFile, key: str) -> np.ndarray:
    with file.open(f"{key}.npy") as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    # Torch knows the byte order of the machine only.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _stored(path: Path, cache: Path, file: zipfile.ZipFile, key: str, member: Member) -> np.ndarray | Stored:
    """The array where it lies, or where it was unpacked to; labels in memory."""
    where = f"{path}, {key}"
    if key.endswith("_labels"):
        if member.bytes > 1 << 30:
            raise DataError(f"{where} claims {member.bytes / 2**30:.0f} GiB of labels: copy or download it again")
        return _whole(path, file, key)
    if member.dtype != np.uint8:
        raise DataError(f"{where}: images are {member.dtype}, but uint8 is needed: scale them to 0..255, and round")
    with file.open(member.info) as stream:
        npy_header(stream, where, in_place=True)
    last = _layout(where, member.shape) == "channels last"
    if member.info.compress_type == zipfile.ZIP_STORED:
        return Stored(path, torch.uint8, member.shape, _start(path, member.info) + member.offset, last)
    state = path.stat()
    name = f"{path.stem}_{member.info.CRC:08x}_{state.st_size}_{key}.bin"
    if not (cache / name).is_file() or (cache / name).stat().st_size != member.bytes:
        check_room(cache, member.bytes, where)
        log.info("%s is larger than dataset.memory: it is unpacked once, to %s", where, cache / name)
        with whole_file(cache / name) as target, file.open(member.info) as stream:
            stream.read(member.offset)
            for _ in with_progress(f"unpacking {key}", range(-(-member.bytes // BLOCK_BYTES))):
                target.write(stream.read(BLOCK_BYTES))
    return Stored(cache / name, torch.uint8, member.shape, channels_last=last)


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: its own header may be longer than the directory's."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name + extra


def _channels_first(where: str, array: np.ndarray | Stored) -> Tensor | Stored:
    if isinstance(array, Stored):
        # Grey images lack the axis of channels in the file.
        return array if array.channels_last else array.with_one_channel()
    images = torch.from_numpy(array)
    return images.unsqueeze(1) if _layout(where, array.shape) == "grey" else images.movedim(-1, 1).contiguous()


def _layout(where: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[1] <= 4 < shape[-1]:
        raise DataError(
            f"{where}: images of shape {shape} seem to have their channels first: move them last, (N, H, W, C)"
        )
    if len(shape) == 3 or (len(shape) == 4 and shape[-1] > 4):
        return "grey"
    if len(shape) in (4, 5):
        return "channels last"
    raise DataError(f"{where}: images of shape {shape} are neither (N, H, W[, C]) nor (N, D, H, W[, C])")


def _labels(where: str, array: np.ndarray) -> Tensor:
    labels = torch.from_numpy(array)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    return labels if labels.is_floating_point() else labels.long()


def _set_apart(train: Split) -> tuple[Split, Split]:
    order = epoch_order(len(train), seed=0, epoch=0)
    # By class, so that a rare one never leaves train altogether.
    kinds = torch.zeros(len(train)) if train.labels is None or train.labels.ndim > 1 else train.labels[order]
    members = [order[kinds == kind] for kind in kinds.unique()]
    chosen = torch.cat([rows[: len(rows) // 10] for rows in members] or [order])
    if len(chosen) == 0:
        chosen = order[:1]
    kept = torch.ones(len(train), dtype=torch.bool)
    kept[chosen] = False
    rows = torch.arange(len(train))
    return train.only(rows[kept]), train.only(rows[~kept])
