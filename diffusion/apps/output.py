"""Where a task writes, on what it computes, and how it shows that it is getting on."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from diffusion.errors import Helped, UserError
from diffusion.metrics.bootstrap import Interval, interval
from diffusion.processes import place

_made: list[Path] = []
"""Folders that `output_folder` has made since `tidy` was entered, the innermost first."""


@contextmanager
def tidy() -> Iterator[None]:
    """Remove the output folders that were made inside, and are empty, where what is inside does not end well."""
    _made.clear()
    try:
        yield
    except BaseException:
        for folder in _made:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        raise


def output_folder(path: str | Path, overwrite: bool) -> Path:
    """Make the folder. Raises UserError if it holds something and may not be overwritten, or cannot be made."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"out={path} is a file: give a folder")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise UserError(f"out={path} holds results already: give another out=, or overwrite=true")
    if place()[0] > 0:
        return path  # the first process makes it, and writes
    _made.extend(folder for folder in (path, *path.parents) if not folder.exists())
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={path} cannot be made: {error.strerror}") from error
    return path


def leave_to_the_first() -> None:
    """What follows is for the first of several processes; the others have Helped, which is raised in them."""
    if place()[0] > 0:
        raise Helped


def entry(found: Interval, n: int) -> dict[str, float | int]:
    """A figure as it is written: value, ends of the interval, number of images."""
    return {**{key: float(value) for key, value in found._asdict().items()}, "n": n}


def summary(values: Tensor, seed: int) -> dict[str, float | None]:
    """The mean with its 95% bootstrap interval; infinite values, as the PSNR of a perfect image, are left out."""
    values = values[values.isfinite()]
    if not len(values):
        return {"value": None, "low": None, "high": None}
    return {name: float(value) for name, value in interval(values.numpy(), seed=seed)._asdict().items()}


def best_device(name: str) -> torch.device:
    """ "auto" is CUDA, else Apple's MPS, else the CPU. Raises UserError for a device that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there.get(name.split(":")[0], False):
        raise UserError(f"device={name} is not here; there are: {', '.join(d for d in there if there[d])}")
    return torch.device(name)


def write_cases(path: Path, index: Tensor, labels: Tensor | None, found: dict[str, Tensor]) -> None:
    """One row for each image: its place in the split, its label, its figures."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "label", *found])
        for i, place in enumerate(index.tolist()):
            label = "" if labels is None else " ".join(map(str, labels[i].flatten().tolist()))
            rows.writerow([place, label, *(f"{float(values[i]):.6g}" for values in found.values())])


def mask_levels(classes: int) -> list[int]:
    """The grey values of classes 0, 1, ... in pictures of masks, as far apart as can be: what dataset.values takes."""
    return [255 * k // max(1, classes - 1) for k in range(classes)]


def emptied(folder: Path) -> Path:
    """The folder, made anew: what an earlier task has written there would pass for this one's."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def progress() -> Progress:
    """A bar on standard error: what, how many of how many, the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=place()[0] > 0,
    )
