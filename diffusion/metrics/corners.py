"""Corners that an augmentation has filled with black or white, told from pictures that have a dark or white ground."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SHARE = 0.1
"""Of the shorter side: legs of the triangle that is looked at in each corner; at least 2 pixels."""
NEARLY = 4 / 255
"""Of the range: what still counts as black or white, for compression changes a little."""
GROUND = 1 / 8
"""Of the range: where corners that are not filled lie this near to the extreme, it is the pictures' ground."""
ELSEWHERE = 0.02
"""Share of the pictures without such a corner that may hold the extreme; where it is more, it is no filling."""

MOST = 1 / 3
"""Share of a picture that a filling takes at most; what takes more of them is their background."""


class Corners(NamedTuple):
    """Of N images, for each corner: black and white, whether it is filled so, bool (N, 4); mean, in [0, 1], (N, 4).

    share: of each image, how much of it is black and how much white, (N, 2).
    """

    black: Tensor
    white: Tensor
    mean: Tensor
    share: Tensor


class Filled(NamedTuple):
    """Images with a corner of one extreme value, bool (N,), and whether that is the ground of such pictures."""

    images: np.ndarray
    ground: bool


def corners_of(images: Tensor) -> Corners:
    """Of images (N, C, *S), uint8, or int16 that stands for 16 bits; of volumes the middle slice is looked at."""
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    levels = 255.0 if images.dtype is torch.uint8 else 65535.0
    least = torch.iinfo(images.dtype).min
    height, width = images.shape[2:]
    legs = min(max(2, round(SHARE * min(height, width))), height, width)
    triangle = torch.arange(legs)[:, None] + torch.arange(legs) < legs
    parts = [
        images.flip(axes)[:, :, :legs, :legs][:, :, triangle].flatten(1).float().sub(least).div(levels)
        for axes in ((), (3,), (2,), (2, 3))
    ]
    values = images.flatten(2).float().sub(least).div(levels)
    extremes = [values.amax(1) <= NEARLY, values.amin(1) >= 1 - NEARLY]
    return Corners(
        torch.stack([(part <= NEARLY).all(1) for part in parts], 1),
        torch.stack([(part >= 1 - NEARLY).all(1) for part in parts], 1),
        torch.stack([part.mean(1) for part in parts], 1),
        torch.stack([each.float().mean(1) for each in extremes], 1),
    )


def filled(corners: Corners) -> dict[str, Filled]:
    """For black and for white, which images have such a corner.

    It is the ground of the pictures, and not a filling, where the other corners of the data lie near to that extreme
    too, as in dark-field images; where the images without such a corner hold it as well, or there are none; or where
    it takes a large part of those with one, as an overexposed background does.
    """
    found = {}
    for place, (name, extreme) in enumerate({"black": 0.0, "white": 1.0}.items()):
        which = getattr(corners, name)
        without, others = ~which.any(1), (corners.mean[~which] - extreme).abs()
        ground = (
            not without.any()
            or float(others.median()) < GROUND
            or float(corners.share[without, place].mean()) > ELSEWHERE
            or (not without.all() and float(corners.share[~without, place].median()) > MOST)
        )
        found[name] = Filled(which.any(1).numpy(), bool(ground))
    return found
