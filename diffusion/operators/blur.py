"""Out of focus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.operators.base import Operator, check_between


@dataclass(frozen=True)
class Blur(Operator):
    """A Gaussian blur of `width` pixels, the standard deviation, along each axis.

    At the edge the pixels that are there are averaged with the weights that they have. Raises UserError for a width
    that is not above 0.
    """

    width: float = 1.5
    seen_as = "blurred"

    def __post_init__(self) -> None:
        check_between("width", self.width, 0, 1000)

    def __call__(self, images: Tensor) -> Tensor:
        for axis in range(2, images.ndim):
            matrix = self.matrix(images.shape[axis]).to(images)
            images = (images.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
        return images

    def matrix(self, side: int) -> Tensor:
        """The blur along an axis, (side, side) float64; its rows sum to 1."""
        places = torch.arange(side, dtype=torch.float64)
        return torch.softmax(-(((places - places[:, None]) / self.width) ** 2) / 2, 1)

    def picture(self, measured: Tensor, shape: Sequence[int]) -> Tensor:
        return measured
