"""Choose images, and send them through a codec and back."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.codecs import Codec
from diffusion.tasks.sample import to_uint8


def evenly_spaced(n: int, count: int) -> Tensor:
    """The places, int64 and rising, of up to `count` of n images: one in each of as many parts of equal length.

    Where in its part, says the golden ratio: at equal distances, images whose order has a period, as crops have that
    are taken row by row, would again and again be of the same column.
    """
    count = min(count, n)
    part = torch.arange(count + 1) * n // max(count, 1)
    share = (torch.arange(count, dtype=torch.float64) * (math.sqrt(5) - 1) / 2) % 1
    return part[:-1] + (share * part.diff()).long()


def members_of(labels: Tensor | None, spec: DataSpec) -> dict[str, Tensor]:
    """Which images are of each class, bool (N,), by the class's name; an image of several is in each."""
    if labels is None or spec.classes is None:
        return {}
    hot = labels.bool() if labels.ndim == 2 else labels[:, None] == torch.arange(spec.classes)
    return {name: hot[:, k] for k, name in enumerate(spec.names) if hot[:, k].any()}


def reconstruct(
    codec: Codec,
    images: Tensor,
    batch_size: int,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """decode(encode(x)) of each image, both uint8 (N, C, *S) on the CPU; the latents are the means of the posteriors.

    `on_batch` is told after each batch how many images are done. Raises UserError if what comes back is not finite.
    """
    found = []
    for batch in images.split(batch_size):
        pixels = batch.to(device).float() / 127.5 - 1
        found.append(to_uint8(codec.decode(codec.encode(pixels))).cpu())
        if on_batch is not None:
            on_batch(sum(map(len, found)))
    return torch.cat(found)
