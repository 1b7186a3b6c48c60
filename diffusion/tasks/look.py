"""One look at the images of a data set: what the checks before training need to know of each, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.metrics.corners import Corners, corners_of
from diffusion.metrics.duplicates import digests, hashes, thumbnails
from diffusion.random import generator

SPLITS = ("train", "val", "test")
BLOCK_BYTES = 1 << 25
VALUES = 1 << 28
"""Values that are counted, at most."""


@dataclass(frozen=True)
class Looked:
    """What was seen of N images, ordered by split and row.

    part: int64 (N,), the split, a place in SPLITS; row: int64 (N,), the place in it
    total: images of each split
    low, high: int64 (N,), the smallest and the largest value, 0 to levels - 1
    counts: int64 (levels,), how often each value is there, in the first `counted` images that were looked at
    thumbs: uint8, for comparisons; hashes, digests: see metrics.duplicates; corners: see metrics.corners
    """

    part: Tensor
    row: Tensor
    total: dict[str, int]
    low: Tensor
    high: Tensor
    counts: Tensor
    counted: int
    thumbs: Tensor
    hashes: Tensor
    digests: list[bytes]
    corners: Corners

    def __len__(self) -> int:
        return len(self.part)

    @property
    def constant(self) -> Tensor:
        """Which images have one value everywhere, bool (N,)."""
        return self.low == self.high


def look(
    datamodule: pl.LightningDataModule,
    most: int,
    seconds: float,
    seed: int = 0,
    on_done: Callable[[int, int], None] | None = None,
) -> Looked:
    """Look at the images of all splits: at up to `most`, drawn at random, and at no more than `seconds` allow.

    `on_done` is told how many of how many images are done.
    """
    splits = {name: datamodule.split(name) for name in SPLITS}
    total = {name: len(split) for name, split in splits.items()}
    part = torch.repeat_interleave(torch.arange(len(SPLITS)), torch.tensor(list(total.values())))
    row = torch.cat([torch.arange(n) for n in total.values()])
    chosen = torch.randperm(len(part), generator=generator("doctor", seed))[:most]
    first = splits["train"].images[:1]
    levels, size = 1 << (8 * first.element_size()), max(1, first.numel() * first.element_size())
    counts, counted, found = torch.zeros(levels, dtype=torch.int64), 0, []
    start = time.monotonic()
    for some in chosen.split(max(1, BLOCK_BYTES // size)):
        for k, name in enumerate(SPLITS):
            rows = row[some[part[some] == k]].sort().values
            if len(rows) == 0:
                continue
            images = splits[name].images[rows].cpu()
            found.append((torch.full_like(rows, k), rows, *_seen(images)))
            if counted * first.numel() < VALUES:
                counts, counted = counts + _counts(images, levels), counted + len(images)
        done = sum(len(each[0]) for each in found)
        if on_done is not None:
            on_done(done, len(chosen))
        if time.monotonic() - start > seconds:
            break
    parts, rows, low, high, thumbs, hashed, *corners = (
        torch.cat(each) for each in zip(*(each[:-1] for each in found), strict=True)
    )
    order = (parts * (1 << 40) + rows).argsort()
    digested = [digest for each in found for digest in each[-1]]
    return Looked(
        parts[order],
        rows[order],
        total,
        low[order],
        high[order],
        counts,
        counted,
        thumbs[order],
        hashed[order],
        [digested[i] for i in order.tolist()],
        Corners(*(each[order] for each in corners)),
    )


def _seen(images: Tensor) -> tuple:
    least = torch.iinfo(images.dtype).min
    flat = images.flatten(1)
    # Grey levels from 0 to 255, whatever the images are kept in.
    thumbs = thumbnails(images).sub(least).mul(255 / (torch.iinfo(images.dtype).max - least)).round().to(torch.uint8)
    ends = flat.amin(1).long() - least, flat.amax(1).long() - least
    return *ends, thumbs, hashes(thumbs), *corners_of(images), digests(images)


def _counts(images: Tensor, levels: int) -> Tensor:
    least = torch.iinfo(images.dtype).min
    counts = torch.zeros(levels, dtype=torch.int64)
    for piece in images.flatten().split(1 << 22):
        counts += torch.bincount(piece.int() - least if least else piece, minlength=levels)
    return counts
