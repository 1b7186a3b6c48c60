"""Files from the network that are either whole or absent."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
import uuid
from pathlib import Path
from typing import BinaryIO

from datamodules.batch import DataError

# For the connection and for each wait for bytes: without a network, the user is to know soon.
TIMEOUT = 10.0
BLOCK = 1 << 20


def md5_of(path: Path) -> str:
    """The md5 of a file, in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fetch(address: str, path: Path, md5: str, shown: bool = True) -> None:
    """Download address to path with a progress bar, if `shown`; path appears only once its bytes have this md5.

    DataError: no network, a refusal, a transfer that is cut short, other bytes than expected, or no room to
    write them. Path is then as it was before, and nothing is left beside it.
    """
    # A name of its own for each process: several may download at once, and the last to rename wins.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            found = _stream(address, file, path.name if shown else None)
            file.flush()
            os.fsync(file.fileno())
        if found != md5:
            raise ValueError(f"its bytes have the md5 {found}")
        os.replace(part, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} is wanted (md5 {md5}) and could not be downloaded ({' '.join(str(reason).split())}): "
            f"get {address} and put it there"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _stream(address: str, file: BinaryIO, title: str | None) -> str:
    """Copy the bytes of address into file, and return their md5; without a title nothing is shown."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress

    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(address, headers={"User-Agent": "med-diffusion"})
    columns = (*Progress.get_default_columns(), DownloadColumn())
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0)
        with Progress(*columns, console=Console(stderr=True), disable=title is None) as progress:
            task = progress.add_task(title or "", total=total or None)
            done = 0
            while block := response.read(BLOCK):
                file.write(block)
                digest.update(block)
                done += len(block)
                progress.update(task, completed=done)
    if done < total:
        raise ValueError(f"the transfer was cut short, {done} of {total} bytes")
    return digest.hexdigest()
