"""Variants of real images: which are to be drawn, and drawing them batch by batch.

Source: Trabucco et al. 2024 (DA-Fusion): real images of a class, redrawn by SDEdit at strengths drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.random import generator, seed_of

Redraw = Callable[[Tensor, float, Tensor | None, Sequence[int]], Tensor]
"""Images (B, C, H, W) in about [-1, 1], strength, their classes int64 (B,) or None, a seed for each -> other images."""


class Variant(NamedTuple):
    """One image to be made.

    row: of its original, among those that get variants. number: 1, 2, ... strength: see `generative.time_of`.
    """

    row: int
    number: int
    strength: float
    seed: int


def planned(places: Sequence[int], variants: int, strengths: Sequence[float], seed: int) -> list[Variant]:
    """The variants 1 ... `variants` of the images at these places of a split, image by image.

    Each image takes the strengths in a random order, then all again in another: each is as frequent as the others, and
    its place in the order is uniform. Strength and seed depend on (seed, place, number) and the strengths alone.
    """
    found = []
    for row, place in enumerate(places):
        for k in range(variants):
            again, position = divmod(k, len(strengths))
            order = torch.randperm(len(strengths), generator=generator("augment", seed, place, "strengths", again))
            strength = strengths[int(order[position])]
            found.append(Variant(row, k + 1, strength, seed_of("augment", seed, place, k + 1)))
    return found


def drawn(
    redraw: Redraw,
    images: Callable[[Tensor], Tensor],
    labels: Tensor | None,
    plan: Sequence[Variant],
    batch_size: int,
) -> Iterator[tuple[Variant, Tensor]]:
    """The variants of a plan, each (C, H, W); those of one strength together, the smallest first.

    images: rows int64 (B,) -> the originals (B, C, H, W); labels: of all originals.
    """
    for strength in sorted({variant.strength for variant in plan}):
        some = [variant for variant in plan if variant.strength == strength]
        for first in range(0, len(some), batch_size):
            part = some[first : first + batch_size]
            rows = torch.tensor([variant.row for variant in part])
            told = None if labels is None else labels[rows]
            yield from zip(part, redraw(images(rows), strength, told, [v.seed for v in part]), strict=True)
