"""Shards where they are read: a few open at a time, and downloaded, and deleted again, where they lie elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import get_worker_info

from datamodules.arrays.prepared import whole_file
from datamodules.arrays.stored import OnDisk
from datamodules.batch import DataError
from datamodules.fetch import TIMEOUT, fetch, md5_of
from datamodules.formats.shard_index import INDEX, MOST_BYTES, File, Index
from datamodules.formats.shard_members import Decoder, from_files, members_of

log = logging.getLogger(__name__)

WAITS = (1.0, 5.0)
"""Seconds between attempts to download: a run of days is to survive a network that fails for a moment."""
LEAST_OPEN = 16
"""So many shards of a folder may be open, or those of two windows."""


class Opened(NamedTuple):
    """A shard: its file descriptor, and where members lie, int64 (N, members of a sample, 2)."""

    file: int
    members: np.ndarray


class Places(NamedTuple):
    """How a split lies in its shards. samples: the sample at each place, int64 (n,); places: its inverse; ends: the
    first place after each shard."""

    samples: Tensor
    places: np.ndarray
    ends: np.ndarray


class ShardFiles:
    """The files of a set in a folder, or at an http address.

    path: the folder, or its address
    cache: the folder for what is found out about shards, and for downloaded ones
    cache_size: bytes of downloaded shards beyond which those that were not used for longest are deleted
    window: so many shards are used at a time, and not deleted
    DataError: there is no index, or one of no use.
    """

    def __init__(self, path: str, cache: Path, cache_size: float, window: int) -> None:
        self.remote = path.startswith(("http://", "https://"))
        self.path = path.rstrip("/") if self.remote else Path(path).expanduser()
        self.cache_size = cache_size
        text = self._download_index() if self.remote else self._read_index()
        self.index = Index.read(text, f"{self.path}/{INDEX}")
        self.endings = [self.index.image] + ([f"mask.{self.index.mask}"] if self.index.mask else [])
        # A batch on the border of two windows reads the images of both, and then the masks of both.
        self.used_now = window * len(self.endings)
        self.cache = cache / "shards" / hashlib.sha256(text).hexdigest()[:16]
        self._open: OrderedDict[tuple[str, int], Opened] = OrderedDict()
        self.labels: dict[str, Tensor] = {}
        self.places: dict[str, Places] = {}
        self._read_samples()

    def _read_index(self) -> bytes:
        path = self.path / INDEX
        try:
            if path.stat().st_size > MOST_BYTES:
                raise DataError(f"{path} is too large for an index of shards: copy it again")
            return path.read_bytes()
        except FileNotFoundError as error:
            raise DataError(
                f"{path} does not exist: give a folder of shards that was written to its end (relative paths start at "
                f"{Path.cwd()})"
            ) from error
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from error

    def _download_index(self) -> bytes:
        address = f"{self.path}/{INDEX}"
        try:
            request = urllib.request.Request(address, headers={"User-Agent": "med-diffusion"})
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                text = response.read(MOST_BYTES + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = " ".join(str(getattr(error, "reason", None) or error).split())
            raise DataError(f"{address} cannot be downloaded ({reason}): check dataset.path") from error
        if len(text) > MOST_BYTES:
            raise DataError(f"{address} is too large for an index of shards")
        return text

    def _read_samples(self) -> None:
        about = self.index.samples
        path = self._there(about)
        try:
            if not self.remote and (path.stat().st_size != about.bytes or md5_of(path) != about.md5):
                raise DataError(f"{path} is not the file that the index means, or damaged: copy or download it again")
            arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read, or is damaged: copy or download it again") from error
        for split, files in self.index.splits.items():
            counts = np.array([file.samples for file in files])
            n, samples, labels = int(counts.sum()), arrays.get(f"{split}_samples"), arrays.get(f"{split}_labels")
            if samples is None or samples.shape != (n,) or samples.dtype is not torch.int64:
                raise DataError(f"{path}, {split}: not one place for each of {n} samples: copy or download it again")
            places = np.full(n, -1, np.int64)
            places[samples.clamp(0, n - 1).numpy()] = np.arange(n)
            if (places < 0).any():
                raise DataError(f"{path}, {split}: two samples have one place: copy or download it again")
            self.places[split] = Places(samples, places, counts.cumsum())
            if labels is not None:
                self.labels[split] = labels

    def opened(self, split: str, number: int) -> Opened:
        """A shard, by its number. DataError: it is missing, damaged, or not the one that the index means."""
        key = (split, number)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        about = self.index.splits[split][number]
        path = self._there(about)
        try:
            file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            if self.remote and not path.exists():  # another process has deleted it just now
                return self.opened(split, number)
            raise DataError(f"{path} cannot be read ({error.strerror})") from error
        try:
            found = Opened(file, self._members(path, about, split, number))
        except BaseException:
            os.close(file)
            raise
        self._open[key] = found
        # A deleted shard takes its place on the disk for as long as any process has it open.
        while len(self._open) > (self.used_now if self.remote else max(LEAST_OPEN, 2 * self.used_now)):
            self._close(next(iter(self._open)))
        return found

    def _members(self, path: Path, about: File, split: str, number: int) -> np.ndarray:
        state = path.stat()
        if state.st_size != about.bytes:
            raise DataError(
                f"{path} has {state.st_size} bytes, not {about.bytes}: it is cut short or of another set; copy or "
                "download it again"
            )
        # What was downloaded has been held to its checksum, and may be downloaded again.
        stamp = 0 if self.remote else state.st_mtime_ns
        kept = self.cache / f"{about.name}.{stamp:x}.npy"
        if (members := self._kept(kept, about)) is not None:
            return members
        with self._lock():
            if (members := self._kept(kept, about)) is not None:  # from another process, in the meantime
                return members
            if not self.remote and md5_of(path) != about.md5:
                raise DataError(f"{path} has other bytes than its checksum says: copy or download it again")
            end = int(self.places[split].ends[number])
            members = members_of(path, self.places[split].samples[end - about.samples : end].tolist(), self.endings)
            try:
                with whole_file(kept) as target:
                    np.save(target, members)
            except (DataError, OSError) as error:
                log.debug("%s", error)
        return members

    def _kept(self, path: Path, about: File) -> np.ndarray | None:
        try:
            members = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = members.shape == (about.samples, len(self.endings), 2) and members.sum(-1).max() <= about.bytes
        return members if fits else None

    def _lock(self) -> AbstractContextManager:
        """What one process of this machine holds at a time, so that the others find what it did."""
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError:
            return contextlib.nullcontext()
        return FileLock(self.cache / ".lock") if os.access(self.cache, os.W_OK) else contextlib.nullcontext()

    def _there(self, about: File) -> Path:
        """Where a file can be opened, after it was downloaded if need be."""
        if not self.remote:
            path = self.path / about.name
            if not path.is_file():
                raise DataError(f"{path} is missing, but the index names it: copy or download it again")
            return path
        path = self.cache / about.name
        if not self._touch(path, about):
            with self._lock():
                if not self._touch(path, about):
                    self._make_room(about.bytes)
                    self._download(about, path)
        return path

    def _touch(self, path: Path, about: File) -> bool:
        try:
            state = path.stat()
        except FileNotFoundError:
            return False
        with contextlib.suppress(OSError):
            os.utime(path, ns=(time.time_ns(), state.st_mtime_ns))
        return state.st_size == about.bytes

    def _download(self, about: File, path: Path) -> None:
        for wait in (*WAITS, None):
            try:
                return fetch(f"{self.path}/{about.name}", path, about.md5, shown=get_worker_info() is None)
            except DataError as error:
                if wait is None:
                    raise
                log.warning("%s; trying again", error)
                time.sleep(wait)

    def _make_room(self, wanted: int) -> None:
        for path in self.cache.glob(f".*.tar.{'?' * 32}.part"):
            path.unlink()  # of a process that was killed: no other one downloads now
        used = {path: path.stat() for path in self.cache.glob("*.tar")}
        total = sum(state.st_size for state in used.values())
        window = {self.index.splits[split][number].name for split, number in list(self._open)[-self.used_now :]}
        for path in sorted(used, key=lambda path: used[path].st_atime_ns):
            if total + wanted <= self.cache_size:
                return
            if path.name not in window:
                for key in [key for key in self._open if self.index.splits[key[0]][key[1]].name == path.name]:
                    self._close(key)
                path.unlink(missing_ok=True)
                total -= used[path].st_size

    def _close(self, key: tuple[str, int]) -> None:
        os.close(self._open.pop(key).file)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}  # a process that gets a copy opens the files itself

    def __del__(self) -> None:
        for key in list(getattr(self, "_open", ())):
            self._close(key)


class ShardArray(OnDisk):
    """The images of a split, or its masks, as its shards hold them; (N, C, *S) in the order of the samples.

    What is asked for together is read shard by shard, whatever its order.
    """

    def __init__(self, files: ShardFiles, split: str, kind: str) -> None:
        index = files.index
        dtype, channels = (index.dtype, index.shape[0]) if kind == "images" else (torch.uint8, 1)
        super().__init__((len(files.places[split].places), channels, *index.shape[1:]), dtype)
        self.files, self.split, self.kind = files, split, kind
        ending, self._column = (index.image, 0) if kind == "images" else (index.mask, 1)
        self._file_type = np.dtype(np.uint8 if dtype is torch.uint8 else np.uint16)
        self._decode = Decoder(ending, (*index.shape[1:], channels), self._file_type)

    def read(self, rows: Sequence[int]) -> Tensor:
        lie = self.files.places[self.split]
        places = lie.places[np.asarray(rows, np.int64)]
        shards = np.searchsorted(lie.ends, places, side="right")
        found = np.empty((len(places), *self._decode.shape), self._file_type)
        now, names = -1, self.files.index.splits[self.split]
        for i in np.argsort(places, kind="stable").tolist():
            shard = int(shards[i])
            if shard != now:
                now, opened = shard, self.files.opened(self.split, shard)
                first = int(lie.ends[shard]) - names[shard].samples
            offset, size = opened.members[places[i] - first, self._column].tolist()
            try:
                data = os.pread(opened.file, size, offset)
            except OSError as error:
                raise DataError(f"{names[shard].name} cannot be read ({error.strerror}): check the disk") from error
            found[i] = self._decode(data, f"{self.files.path}/{names[shard].name}, sample {rows[i]}")
        if self.kind == "masks" and len(found) and int(found.max()) >= self.files.index.mask_classes:
            raise DataError(f"{self.files.path}, {self.split}: a mask holds class {found.max()}, beyond the index's")
        return from_files(found)
