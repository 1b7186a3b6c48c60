"""Choose images, and send them through a codec and back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.codecs import Codec
from diffusion.tasks.sample import to_uint8


def evenly_spaced(n: int, count: int) -> Tensor:
    """The places, int64, of up to `count` of n images, from the first to the last at equal distances."""
    return torch.linspace(0, n - 1, min(count, n)).round().long()


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
