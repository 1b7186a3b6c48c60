"""Parts of an image that are unknown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.errors import UserError

SHARES = {"center": 0.25, "half": 0.5, "random": 0.5}
"""The named masks, and the share of the image that each hides unless another is asked for."""


def unknown(
    name: str, size: Sequence[int], share: float | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Which pixels are unknown, bool of `size` *S.

    center: a box in the middle, its sides in the proportions of the image's; half: the right end of the last axis;
    random: as many pixels, drawn by `generator`. Each hides `share` of the pixels, rounded to whole pixels (center: of
    each side), at least one and not all. Raises UserError for another name, or a share outside (0, 1).
    """
    if name not in SHARES:
        raise UserError(f"mask={name}: give center, half, random, or a file")
    share = SHARES[name] if share is None else share
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise UserError(f"share={share}: give the share of the image that is unknown, above 0 and below 1")
    found = torch.zeros(*size, dtype=torch.bool)
    if name == "random":
        places = torch.randperm(found.numel(), generator=generator)
        found.view(-1)[places[: _within(share * found.numel(), found.numel())]] = True
    elif name == "half":
        found[..., -_within(share * size[-1], size[-1]) :] = True
    else:
        sides = [_within(share ** (1 / len(size)) * side, side) for side in size]
        found[tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(size, sides, strict=True))] = True
    return found


def _within(wanted: float, side: int) -> int:
    return min(max(1, round(wanted)), max(1, side - 1))
