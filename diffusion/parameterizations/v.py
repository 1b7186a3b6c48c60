"""The network predicts the velocity."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.parameterizations.base import Coefficients, coefficients


@dataclass(frozen=True)
class V:
    """F* = alpha eps - sigma x0: skip = alpha / (alpha^2 + sigma^2), out = -sigma / (alpha^2 + sigma^2).

    Source: Salimans and Ho 2022, section 4 and appendix D.
    """

    sd: float = 0.5

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        square = alpha**2 + sigma**2
        return coefficients(alpha / square, -sigma / square, alpha, sigma, self.sd)
