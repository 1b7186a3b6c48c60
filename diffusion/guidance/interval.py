"""The noise levels at which a guidance acts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Interval:
    """The times where low < sigma / alpha <= high; at alpha = 0 the level is infinite, and inside where high is.

    Source: Kynkaanniemi et al. 2024. Raises UserError unless 0 <= low < high.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise UserError(f"guidance.low={self.low} and guidance.high={self.high}: give 0 <= low < high")

    def holds(self, scheduler: NoiseScheduler, t: Tensor) -> bool:
        """Whether the times of a call, () or (B,), are inside.

        Raises ValueError where some are and some are not: the times of a sampler's step are one.
        """
        level = torch.exp(-scheduler.log_snr(t) / 2)
        inside = (self.low < level) & (level <= self.high)
        if inside.any() and not inside.all():
            raise ValueError("the times of one call lie on both sides of the guidance interval")
        return bool(inside.all())
