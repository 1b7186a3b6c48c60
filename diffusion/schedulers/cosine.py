"""The cosine schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.schedulers.base import NoiseScheduler


@dataclass(frozen=True)
class Cosine(NoiseScheduler):
    """alpha = cos(angle t), sigma = sin(angle t), so log_snr = -2 log tan(angle t).

    The angle at t = 1 is atan(exp(-log_snr_min / 2)): just under pi / 2, where Nichol and Dhariwal 2021 (eq. 17)
    clip beta at 0.999 instead. log_snr_min = -inf gives zero terminal SNR. Source of this form: Hoogeboom et al.
    2023, section 2.
    """

    log_snr_min: float = -15.0

    def alpha(self, t: Tensor) -> Tensor:
        # The sine of the rest of the angle: cos(pi / 2) is 6e-17 in floating point, and zero terminal SNR means 0.
        return torch.sin(math.pi / 2 - self._angle() * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle() * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-log_snr / 2)) / self._angle()

    def _angle(self) -> float:
        return math.pi / 2 - math.atan(math.exp(self.log_snr_min / 2))
