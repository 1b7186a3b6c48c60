"""The straight path of flow matching."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers.base import NoiseScheduler


@dataclass(frozen=True)
class Flow(NoiseScheduler):
    """alpha = 1 - u, sigma = u, u = shift t / (1 + (shift - 1) t); zero terminal SNR.

    shift 1 is u = t (Lipman et al. 2023; Liu et al. 2023, rectified flow); larger images want sides / 64 or so, which
    subtracts 2 log(shift) from the log-SNR (Esser et al. 2024, section 5.3.2). Raises UserError unless shift > 0.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise UserError(f"scheduler.shift={self.shift}: give a number above 0")

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def time(self, log_snr: Tensor) -> Tensor:
        u = torch.sigmoid(-log_snr / 2)
        return u / (self.shift - (self.shift - 1) * u)
