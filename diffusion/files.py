"""Files that are either whole or not there, and files that one process at a time has."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def replace_file(path: Path, write: Callable[[Path], None], keep: Path | None = None) -> None:
    """Let `write` make a temporary file beside `path`, bring it to the disk, then rename it to `path`.

    A kill at any moment leaves the old file, under its name or as `keep`, or the new one. If `write` raises, the
    temporary file is removed and the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def claim(path: Path, wait: bool = False) -> IO | None:
    """The file, made if need be, open and locked until it is closed or this process ends.

    wait: while another process has it, rather than to answer None
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _sync_folder(folder: Path) -> None:
    """Bring the names themselves to the disk, where the system lets a folder be opened."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed calls of `replace_file` have left; no other process may be writing there."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink()
