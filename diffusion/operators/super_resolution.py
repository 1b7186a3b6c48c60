"""Fewer pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from diffusion.errors import UserError
from diffusion.operators.base import Operator


@dataclass(frozen=True)
class SuperResolution(Operator):
    """The mean over blocks of `factor` pixels along each axis; a block that is cut off by the edge is of fewer.

    Raises UserError for a factor below 2, or larger than a side.
    """

    factor: int = 4
    seen_as = "nearest"

    def __post_init__(self) -> None:
        if type(self.factor) is not int or self.factor < 2:
            raise UserError(f"operator.factor={self.factor}: give a whole number, 2 or more")

    def __call__(self, images: Tensor) -> Tensor:
        pool = {4: F.avg_pool2d, 5: F.avg_pool3d}[images.ndim]
        return pool(images, self.factor, ceil_mode=True)

    def picture(self, measured: Tensor, shape: Sequence[int]) -> Tensor:
        return self._enlarged(measured, shape, "nearest")

    def interpolated(self, measured: Tensor, shape: Sequence[int]) -> dict[str, Tensor]:
        mode = {4: "bicubic", 5: "trilinear"}[measured.ndim]
        return {mode: self._enlarged(measured, shape, mode)}

    def check(self, shape: Sequence[int]) -> None:
        if self.factor > min(shape[1:]):
            raise UserError(f"operator.factor={self.factor}: the images have a side of {min(shape[1:])} pixels")

    def _enlarged(self, measured: Tensor, shape: Sequence[int], mode: str) -> Tensor:
        found = F.interpolate(measured, scale_factor=self.factor, mode=mode)
        return found[(..., *(slice(side) for side in shape[1:]))]
