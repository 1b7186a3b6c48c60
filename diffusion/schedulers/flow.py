"""The straight path of flow matching."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.schedulers.base import NoiseScheduler


@dataclass(frozen=True)
class Flow(NoiseScheduler):
    """alpha = 1 - t, sigma = t; zero terminal SNR. Source: Lipman et al. 2023; Liu et al. 2023 (rectified flow)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)
