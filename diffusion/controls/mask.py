"""control=mask: the class of each place."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.controls.base import Control
from diffusion.errors import UserError


class Mask(Control):
    """K maps of zeros and ones, one for each class of the masks. Raises UserError for data without masks."""

    source = "mask"

    def __init__(self, spec: DataSpec):
        super().__init__(spec)
        if spec.mask_classes is None:
            raise UserError("control=mask needs data with masks: dataset=masks, or a table with a column of masks")
        self.values = spec.mask_classes

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        return F.one_hot(batch["mask"][:, 0].long(), self.values).movedim(-1, 1).float()

    def shown(self, controls: Tensor) -> Tensor:
        return controls.argmax(1, keepdim=True) * (2.0 / max(1, self.values - 1)) - 1
