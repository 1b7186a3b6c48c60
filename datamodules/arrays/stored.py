"""Arrays that stay in their file, and are read where they are asked for."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import DataError

BLOCK_BYTES = 1 << 26


class OnDisk(ABC):
    """An array (N, ...) that is read from files where it is asked for.

    Indexed like a tensor along its first axis - by an int, a slice, or int64 (B,) - it gives a tensor. What is made of
    it, in this process or another, opens the files itself.

    shape: (n, ...), n the items in the files
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype = torch.Size(shape), dtype
        self._rows: Tensor | None = None

    @abstractmethod
    def read(self, rows: range | list[int]) -> Tensor:
        """The items at these places of the files. DataError: they cannot be read."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def numel(self) -> int:
        return self.shape.numel()

    def __getitem__(self, places: int | slice | Tensor) -> Tensor:
        if isinstance(places, int):
            return self._at([range(len(self))[places]])[0]
        if isinstance(places, slice):
            return self._at(range(len(self))[places])
        if places.dtype is torch.bool:
            places = places.nonzero().squeeze(1)
        return self._at([range(len(self))[place] for place in places.tolist()])

    def _at(self, rows: range | list[int]) -> Tensor:
        if self._rows is not None:
            rows = self._rows[torch.as_tensor(rows, dtype=torch.int64)].tolist()
        return self.read(rows)

    def blocks(self) -> Iterator[Tensor]:
        """The whole array in order, in tensors of at most 64 MiB (or one item)."""
        item = self.shape[1:].numel() * self.dtype.itemsize
        size = max(1, BLOCK_BYTES // max(item, 1))
        return (self[start : start + size] for start in range(0, len(self), size))

    def load(self) -> Tensor:
        """The whole array in memory."""
        return self[:]

    def only(self, rows: Tensor) -> OnDisk:
        """The items at rows, int64 (M,), as an array of their own that stays in the files."""
        part = copy.copy(self)
        part._rows = rows if self._rows is None else self._rows[rows]
        part.shape = torch.Size([len(rows), *self.shape[1:]])
        return part


class Stored(OnDisk):
    """An array (N, ...) in a file, in C order, from byte `offset` on; channels are moved first where they lie last.

    It reads, and does not map: pages of a mapped file count as memory of the process, and a shuffled epoch touches
    them all.

    path: the file
    dtype: of the items, in the byte order of the machine
    shape: of the array as it lies in the file
    channels_last: whether the last axis is to be moved to place 1
    DataError: the file is gone, or shorter than the array.
    """

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        offset: int = 0,
        channels_last: bool = False,
    ) -> None:
        n, *rest = shape
        super().__init__((n, rest[-1], *rest[:-1]) if channels_last else (n, *rest), dtype)
        self.path, self.offset, self.channels_last = Path(path), offset, channels_last
        self._layout = tuple(shape)
        self._file: int | None = None
        self._bytes = int(np.prod(rest, dtype=np.int64)) * dtype.itemsize

    def with_one_channel(self) -> Stored:
        """Items (*S) as (1, *S), of an array that holds all of the file's."""
        n, *rest = self._layout
        return Stored(self.path, self.dtype, (n, 1, *rest), self.offset)

    def read(self, rows: range | list[int]) -> Tensor:
        found = torch.empty(len(rows), *self._layout[1:], dtype=self.dtype)
        target = memoryview(found.numpy()).cast("B") if found.numel() else memoryview(b"")
        for start, first, count in runs(rows):
            self._fill(target[start * self._bytes : (start + count) * self._bytes], self.offset + first * self._bytes)
        return found.movedim(-1, 1).contiguous() if self.channels_last else found

    def _fill(self, target: memoryview, offset: int) -> None:
        while len(target):
            # One call reads 2 GiB at most.
            done = os.preadv(self._descriptor(), [target], offset)
            if done == 0:
                raise DataError(f"{self.path} is shorter than when it was opened: was it changed? Start again")
            target, offset = target[done:], offset + done

    def _descriptor(self) -> int:
        if self._file is None:
            try:
                self._file = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise DataError(f"{self.path} cannot be read ({error.strerror}): was it moved? Start again") from error
        return self._file

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}  # a process that gets a copy opens the file itself

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)


def runs(rows: range | list[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of neighbours in `rows`: (place in rows, first row, how many)."""
    if isinstance(rows, range):
        if rows.step == 1:
            yield 0, rows.start, len(rows)
            return
        rows = list(rows)
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield start, rows[start], end - start
            start = end


def blocks_of(values: Tensor | OnDisk) -> Iterator[Tensor]:
    """An array's items in order, a block at a time, wherever it lies."""
    if isinstance(values, OnDisk):
        yield from values.blocks()
    elif len(values):
        yield from values.split(max(1, BLOCK_BYTES // max(values[0].numel() * values.element_size(), 1)))


def npy_header(file: BinaryIO, where: str, in_place: bool = False) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype at the head of an npy file; the file's position is then the first byte of the array.

    in_place: the bytes are to be used as they lie there: C order, and the machine's byte order
    DataError: it is no npy file, or of objects, or not as it must lie.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise DataError(f"{where} is damaged, or no npy file: copy or download it again") from error
    if dtype.hasobject:
        raise DataError(f"{where} holds pickled objects, which are refused: save plain arrays of one shape")
    if in_place and fortran and len(shape) > 1:
        raise DataError(f"{where} is saved in Fortran order: save numpy.ascontiguousarray of it")
    if in_place and not dtype.isnative:
        raise DataError(f"{where} has the byte order of another machine: save it as {dtype.newbyteorder('=')}")
    return shape, dtype
