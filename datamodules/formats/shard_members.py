"""What lies in a shard: a tar file in WebDataset's layout, and how an image becomes one of its members."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays.stored import npy_header
from datamodules.batch import DataError

ENDINGS = ("png", "npy", "mask.png", "mask.npy", "cls", "json")
AGAIN = "copy or download it again"


def key_of(sample: int) -> str:
    """The name of a sample's members, before their endings: its place in the split."""
    return f"{sample:09d}"


def to_files(values: Tensor) -> np.ndarray:
    """uint8 or int16 (N, C, *S) -> uint8 or uint16 (N, *S, C), as the members hold it."""
    array = values.movedim(1, -1).contiguous().numpy()
    return array if array.dtype == np.uint8 else array.view(np.uint16) ^ np.uint16(1 << 15)


def from_files(array: np.ndarray) -> Tensor:
    """The inverse of `to_files`."""
    values = array if array.dtype == np.uint8 else (array ^ np.uint16(1 << 15)).view(np.int16)
    return torch.from_numpy(values).movedim(-1, 1).contiguous()


def encoded(array: np.ndarray, ending: str) -> bytes:
    """The bytes of a member, png or npy, for an array (*S, C)."""
    from PIL import Image

    target = io.BytesIO()
    if ending == "npy":
        np.save(target, array, allow_pickle=False)
    else:
        # The lowest level: on microscopy its files are 2% larger than the usual one's, and open in half the time.
        Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(target, "PNG", compress_level=1)
    return target.getvalue()


class Decoder:
    """Turns members of one ending back into arrays, all of one shape (*S, C) and type."""

    def __init__(self, ending: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.ending, self.shape, self.dtype = ending, shape, dtype
        self._size = int(np.prod(shape)) * dtype.itemsize
        self._head = b""

    def __call__(self, data: bytes, where: str) -> np.ndarray:
        """The array. DataError: it is something else, and says so before it is unpacked."""
        return self._npy(data, where) if self.ending == "npy" else self._png(data, where)

    def _npy(self, data: bytes, where: str) -> np.ndarray:
        # To read a header takes longer than to read the image, and all have the same.
        if not self._head or not data.startswith(self._head):
            file = io.BytesIO(data)
            shape, dtype = npy_header(file, where, in_place=True)
            if (shape, dtype) != (self.shape, self.dtype):
                raise DataError(f"{where} holds {dtype} of shape {shape}, not {self.dtype} of {self.shape}: {AGAIN}")
            self._head = data[: file.tell()]
        if len(data) != len(self._head) + self._size:
            raise DataError(f"{where} is cut short, or longer than its header says: {AGAIN}")
        return np.frombuffer(data, self.dtype, offset=len(self._head)).reshape(self.shape)

    def _png(self, data: bytes, where: str) -> np.ndarray:
        from PIL import Image

        height, width, channels = self.shape
        mode = {1: "L", 3: "RGB"}[channels]
        try:
            # Size and mode are looked at before any pixel: a small file can claim a picture that fills the memory.
            if data[16:24] != struct.pack(">II", width, height):
                raise ValueError("another size")
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                if picture.size != (width, height) or picture.mode != mode:
                    raise ValueError("another size or mode")
                return np.asarray(picture).reshape(self.shape)
        except Exception as error:  # a damaged file can make its readers raise anything
            raise DataError(f"{where} is no PNG of {width} x {height} pixels ({mode}), or damaged: {AGAIN}") from error


def members_of(path: Path, samples: Sequence[int], endings: Sequence[str]) -> np.ndarray:
    """Where the members of each sample lie: int64 (N, len(endings), 2), the first byte and the number of bytes.

    samples: those that the shard must hold, in their order
    endings: of the members that are wanted
    DataError, which names the file: it is no tar, is cut short, or holds anything but plain members of these samples.
    """
    found = np.zeros((len(samples), len(endings), 2), np.int64)
    size, place, now, seen = path.stat().st_size, -1, "", set()
    try:
        # "r:" unpacks nothing: a compressed tar is refused.
        with tarfile.open(path, "r:") as file:
            while (member := file.next()) is not None:
                file.members.clear()  # or the list of all members would stay
                key, _, ending = member.name.partition(".")
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or ending not in ENDINGS:
                    raise DataError(f"{path} holds {member.name!a}, which is no plain member of a sample: {AGAIN}")
                if member.size < 0 or member.offset_data + member.size > size:
                    raise DataError(f"{path} is cut short in {member.name!a}: {AGAIN}")
                if key != now:
                    place, now, seen = place + 1, key, set()
                if place >= len(samples) or key != key_of(samples[place]) or ending in seen:
                    raise DataError(f"{path} holds {member.name!a}, which is not what the index says: {AGAIN}")
                seen.add(ending)
                if ending in endings:
                    found[place, endings.index(ending)] = member.offset_data, member.size
    except DataError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no tar file, or damaged: {AGAIN}") from error
    if not found[..., 1].all():
        lost = samples[int(np.argmin(found[..., 1].all(1)))]
        raise DataError(f"{path} lacks {' or '.join(endings)} of sample {key_of(lost)}: {AGAIN}")
    return found
