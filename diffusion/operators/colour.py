"""Without colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffusion.errors import UserError
from diffusion.operators.base import Operator


@dataclass(frozen=True)
class Colour(Operator):
    """The mean over the channels. Raises UserError for images of one."""

    seen_as = "grey"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean(1, keepdim=True)

    def picture(self, measured: Tensor, shape: Sequence[int]) -> Tensor:
        return measured.expand(-1, *shape)

    def check(self, shape: Sequence[int]) -> None:
        if shape[0] < 2:
            raise UserError("operator=colour: the images of this run have one channel; choose another operator")
