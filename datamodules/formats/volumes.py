"""Scans in space: one orientation for all of them, and resampling to a spacing.

Every `Volume` is (C, D, H, W) with D from the feet to the head, H from the front of the body to its back, and W from
the patient's right to the left. This is DICOM's patient coordinate system, LPS, read backwards, and it is how an axial
slice (H, W) is looked at: the front at the top, the patient's right at the left of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

LOBES = 3
"""Zeros of the Lanczos kernel on either side: its support, in samples of the coarser grid."""


@dataclass(frozen=True)
class Window:
    """The values that are shown as black to white: the values below and above are cut off.

    centre, width: in the units of the values, such as Hounsfield units
    function: how DICOM maps a value x to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3): LINEAR_EXACT is (x - centre) / width
        + 1/2; LINEAR is the same with centre - 1/2 and width - 1; SIGMOID is 1 / (1 + exp(-4 (x - centre) / width))
    """

    centre: float
    width: float
    function: str = "LINEAR_EXACT"

    def __call__(self, values: Tensor) -> Tensor:
        """Values -> [0, 1]."""
        if self.function == "SIGMOID":
            return torch.sigmoid(4 * (values - self.centre) / self.width)
        short = self.function == "LINEAR"
        # A width of 1 is legal with LINEAR, and means a threshold.
        width = max(self.width - short, 1e-6)
        return ((values - (self.centre - short / 2)) / width + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Volume:
    """A scan, or flat pictures that stand for themselves.

    values:   float32 (C, D, H, W), in the units that the file gives; the axes are those of this module
    spacing:  mm between the centres of neighbours along (D, H, W); None where the file does not say
    mask:     uint8 (1, D, H, W), class indices, or None
    flat:     D counts pictures that do not lie behind each other: radiographs, colour pictures, frames of a film
    window:   what the file itself advises
    inverted: the lowest value is white
    span:     the lowest and highest value that there can be, where normalisation is to keep all of them: colours
    """

    values: Tensor
    spacing: tuple[float, float, float] | None
    mask: Tensor | None = None
    flat: bool = False
    window: Window | None = None
    inverted: bool = False
    span: tuple[float, float] | None = None


def canonical(values: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Turn an array into the orientation of this module, and say its spacing: (C, D, H, W), mm.

    values: (C, I, J, K), an axis per column of `steps`
    steps:  (3, 3), column a is where the patient goes by one index along axis a: mm to the left, the back and the head

    Axes are exchanged and reversed, never interpolated: an oblique scan keeps its own grid, and each axis takes the
    name of the direction that it comes closest to.
    """
    lengths = np.linalg.norm(steps, axis=0)
    cosines = steps / lengths
    # Of all ways to give three axes three names, the one that agrees best; greedy choices may end with a poor last one.
    order = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[2 - row, a]) for row, a in enumerate(axes)))
    backwards = tuple(1 + row for row, axis in enumerate(order) if cosines[2 - row, axis] < 0)
    turned = np.flip(values.transpose(0, *(1 + axis for axis in order)), backwards)
    return turned, tuple(float(lengths[axis]) for axis in order)


def resample(volume: Volume, spacing: tuple[float, float, float]) -> Volume:
    """The same scan at a spacing in mm along (D, H, W), about the same centre.

    An axis of n samples at s mm becomes max(1, round(n s / t)) samples at t mm. Values are convolved, axis by axis,
    with the Lanczos kernel of three lobes, whose width is that of the coarser of the two grids: where the scan shrinks,
    what is too fine for the new grid is damped instead of aliased. Masks take the nearest value.
    """
    values, mask = volume.values, volume.mask
    here = volume.spacing or (1.0, 1.0, 1.0)
    for axis in range(1, 4):
        size, scale = values.shape[axis], spacing[axis - 1] / here[axis - 1]
        centres = _centres(size, scale)
        # A scale that differs from 1 by rounding alone would cost time and blur nothing.
        if len(centres) == size and abs(scale - 1) * size < 1e-3:
            continue
        values = torch.tensordot(values, _lanczos(centres, size, scale), dims=([axis], [1])).movedim(-1, axis)
        if mask is not None:
            mask = mask.index_select(axis, centres.floor().long().clamp(0, size - 1))
    return replace(volume, values=values.contiguous(), mask=mask, spacing=spacing)


def _centres(size: int, scale: float) -> Tensor:
    """Where the new samples lie, in samples of the old grid, whose sample i covers [i, i + 1]; float64."""
    count = max(1, round(size / scale))
    return (torch.arange(count, dtype=torch.float64) + 0.5 - count / 2) * scale + size / 2


def _lanczos(centres: Tensor, size: int, scale: float) -> Tensor:
    """Weights float32 (new, old), each row with the sum 1."""
    x = (torch.arange(size, dtype=torch.float64) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = torch.sinc(x) * torch.sinc(x / LOBES) * (x.abs() < LOBES)
    return (weights / weights.sum(1, keepdim=True)).float()
