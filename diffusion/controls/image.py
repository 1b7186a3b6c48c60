"""control=image and control=low_resolution: the image itself, or what a coarser one shows of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.controls.base import Control
from diffusion.errors import UserError


class Image(Control):
    """The image, in [-1, 1]: for a model that makes something else of it, as its mask."""

    def __init__(self, spec: DataSpec):
        super().__init__(spec)
        self.values = spec.shape[0]

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["image"].float()

    def shown(self, controls: Tensor) -> Tensor:
        return controls


class LowResolution(Image):
    """The means of blocks of factor^n places, each at all its places.

    Raises UserError where a side is no multiple of the factor.
    """

    def __init__(self, spec: DataSpec, factor: int = 4):
        super().__init__(spec)
        if type(factor) is not int or factor < 2 or any(side % factor for side in spec.shape[1:]):
            raise UserError(
                f"control.factor={factor}: give a whole number of at least 2 that divides "
                f"{'x'.join(map(str, spec.shape[1:]))}"
            )
        self.factor = factor

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        images = super().__call__(batch)
        pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[images.ndim - 2]
        return F.interpolate(pool(images, self.factor), scale_factor=self.factor, mode="nearest")
