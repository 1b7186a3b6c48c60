"""The network predicts the direction from data to noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.parameterizations.base import Parameterization


@dataclass(frozen=True)
class Flow(Parameterization):
    """F* = eps - x0: skip = 1 / (alpha + sigma), out = -sigma / (alpha + sigma). Source: Lipman et al. 2023."""

    def skip_and_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        total = alpha + sigma
        return 1 / total, -sigma / total
