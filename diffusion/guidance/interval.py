"""The noise levels at which a guidance acts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.devices import to_device
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

    def holds(self, scheduler: NoiseScheduler, t: Tensor) -> Tensor:
        """Which of the times, () or (B,), are inside: bool of their shape."""
        level = torch.exp(-scheduler.log_snr(t) / 2)
        return (self.low < level) & (level <= self.high)


def among(inside: Tensor, guided: Tensor, plain: Tensor) -> Tensor:
    """`guided` (B, C, *S) for the samples that are inside, bool () or (B,), and `plain` for the others."""
    shape = inside.shape + (1,) * (guided.ndim - 1) if inside.ndim else ()
    return torch.where(to_device(inside, guided.device).reshape(shape), guided, plain)
