"""A progress bar for what takes longer than expected."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

PATIENCE = 3.0
"""Seconds without a progress bar."""
Item = TypeVar("Item")


def with_progress(title: str, items: Iterable[Item], total: int | None = None) -> Iterator[Item]:
    """The items, with a progress bar and the time left on standard error from when they have taken a while."""
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True))
    task = progress.add_task(title, total=len(items) if total is None else total)  # type: ignore[arg-type]
    start, shown = time.monotonic(), False
    try:
        for item in items:
            yield item
            progress.advance(task)
            if not shown and time.monotonic() - start > PATIENCE:
                progress.start()
                shown = True
    finally:
        if shown:
            progress.stop()
