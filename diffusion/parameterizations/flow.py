"""The network predicts the direction from data to noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.parameterizations.base import Coefficients, coefficients


@dataclass(frozen=True)
class Flow:
    """F* = eps - x0: skip = 1 / (alpha + sigma), out = -sigma / (alpha + sigma). Source: Lipman et al. 2023."""

    sd: float = 0.5

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        total = alpha + sigma
        return coefficients(1 / total, -sigma / total, alpha, sigma, self.sd)
