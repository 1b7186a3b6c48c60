"""The network predicts the noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.parameterizations.base import Coefficients, coefficients


@dataclass(frozen=True)
class Eps:
    """F* = eps: skip = 1 / alpha, out = -sigma / alpha. Singular at alpha = 0. Source: Ho et al. 2020, eq. 11."""

    sd: float = 0.5

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        return coefficients(1 / alpha, -sigma / alpha, alpha, sigma, self.sd)
