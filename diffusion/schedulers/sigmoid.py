"""The sigmoid schedule of Jabri et al. 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers.base import VariancePreserving


@dataclass(frozen=True)
class Sigmoid(VariancePreserving):
    """1 - alpha^2 = (1 - floor) (s(u(t)) - s(u(0))) / (s(u(1)) - s(u(0))), u(t) = (start + t (end - start)) / tau.

    s is the logistic function. `floor` is alpha^2 at t = 1, where the paper clips. Source: Jabri et al. 2022,
    algorithm 1; Chen 2023, algorithm 1.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    floor: float = 1e-9

    def __post_init__(self) -> None:
        if not (self.tau > 0 and self.start < self.end and 0 < self.floor < 1):
            raise UserError(
                f"scheduler.tau={self.tau} start={self.start} end={self.end} floor={self.floor}: "
                "give tau > 0, start < end and a floor between 0 and 1"
            )

    def log_snr(self, t: Tensor) -> Tensor:
        low, high = self._ends()
        logistic = torch.sigmoid((self.start + t * (self.end - self.start)) / self.tau)
        # Two forms of the fraction, each from the near end, so that alpha^2 does not cancel at t = 1.
        sigma2 = (1 - self.floor) * (logistic - low) / (high - low)
        alpha2 = self.floor + (1 - self.floor) * (high - logistic) / (high - low)
        return torch.log(alpha2) - torch.log(sigma2)

    def time(self, log_snr: Tensor) -> Tensor:
        low, high = self._ends()
        logistic = low + (high - low) * torch.sigmoid(-log_snr) / (1 - self.floor)
        # Beyond t = 1 the fraction may pass 1, and the time is then infinite.
        return (torch.logit(logistic.clamp(max=1.0)) * self.tau - self.start) / (self.end - self.start)

    def _ends(self) -> tuple[float, float]:
        return 1 / (1 + math.exp(-self.start / self.tau)), 1 / (1 + math.exp(-self.end / self.tau))
