"""Images read at moved places: one affine map and one field of displacements, in one interpolation.

Places are (x, y) in pixels from the centre of the image's plane, y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.devices import to_device

WIDTH = 0.75
"""Standard deviation of a control point's Gaussian, over the distance of two control points."""


def warp(
    images: Tensor,
    linear: Tensor,
    shift: Tensor,
    field: Tensor | None = None,
    outside: Literal["border", "reflection"] = "reflection",
) -> Tensor:
    """The images, read at linear @ place - shift + field, bilinearly.

    images (B, C, *S) in [-1, 1], linear (B, 2, 2), shift (B, 2) and field (B, H, W, 2) in pixels -> as the images.
    Volumes are moved slice by slice, alike in all slices. What comes from outside repeats the border, or is a mirror.
    """
    height, width = images.shape[-2:]
    x, y = (torch.arange(side, device=images.device) - (side - 1) / 2 for side in (width, height))
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (H, W, 2)
    read = torch.einsum("bij,hwj->bhwi", linear, places) - shift[:, None, None]
    if field is not None:
        read = read + field
    flat = images.reshape(len(images), -1, height, width)
    moved = F.grid_sample(flat, 2 * read / extent(images), mode="bilinear", padding_mode=outside, align_corners=False)
    # Weights that sum to a little more than 1 would leave the range.
    return moved.reshape(images.shape).clamp(-1, 1)


def extent(images: Tensor) -> Tensor:
    """Width and height in pixels, (2,), as the images are and where they are."""
    return to_device(torch.tensor([images.shape[-1], images.shape[-2]]), images.device, images.dtype)


def rotation(angle: Tensor) -> Tensor:
    """Maps (B, 2, 2) whose images are turned by the angles (B,), in radians, counter-clockwise."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def stretch(x: Tensor, y: Tensor) -> Tensor:
    """Maps (B, 2, 2) that keep areas: the exponentials of [[x, y], [y, -x]], x and y (B,)."""
    size = torch.hypot(x, y)
    # sinh(size) / size is 1 at 0.
    ratio = torch.where(size > 0, size.sinh() / size.clamp(min=1e-12), 1.0)
    return torch.stack(
        [torch.stack([size.cosh() + ratio * x, ratio * y], 1), torch.stack([ratio * y, size.cosh() - ratio * x], 1)], 1
    )


def smooth_field(controls: Tensor, size: Sequence[int]) -> Tensor:
    """Standard normal controls (B, 2, n, n) -> a smooth Gaussian field (B, H, W, 2) of unit variance everywhere.

    The n x n control points lie evenly from border to border, and each spreads as a Gaussian.
    """
    rows, columns = (to_device(_weights(controls.shape[-1], side), controls.device, controls.dtype) for side in size)
    return torch.einsum("hi,bkij,wj->bhwk", rows, controls, columns)


def _weights(points: int, side: int) -> Tensor:
    """(side, points); the squares of each row sum to 1, which makes the variance 1 also between the points."""
    distance = torch.linspace(0, points - 1, side, dtype=torch.float64)[:, None] - torch.arange(points)
    weights = torch.exp(-((distance / WIDTH) ** 2) / 2)
    return (weights / weights.norm(dim=1, keepdim=True)).float()
