"""The folders of runs, sweeps and studies: made where they are missing, and closed to other commands.

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion.errors import UserError
from diffusion.files import claim


@contextmanager
def making(folder: Path, called: str = "folder") -> Iterator[None]:
    """The folder, made if need be, for a body that makes what lies in it. Raises UserError where either cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot make the {called} {folder}: {error.strerror}; set runs_dir") from error


@contextmanager
def alone_in(lock: Path, kind: str, called: str = "folder") -> Iterator[None]:
    """The lock's folder, made if need be, and closed to other commands. Raises UserError if one is at work in it.

    kind: of what lies there, a run or a sweep
    """
    with making(lock.parent, called):
        file = claim(lock)
    if file is None:
        raise UserError(f"{kind} {lock.parent} is at work in another process: wait for it, or stop it")
    with file:
        yield
