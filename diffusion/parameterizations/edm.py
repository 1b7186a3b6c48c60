"""The network predicts what keeps its target at unit variance, for any alpha."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.parameterizations.base import Coefficients, coefficients


@dataclass(frozen=True)
class EDM:
    """skip = alpha sd^2 / (alpha^2 sd^2 + sigma^2), out = sigma sd / sqrt(alpha^2 sd^2 + sigma^2).

    For alpha = 1 these are c_skip and c_out of Karras et al. 2022, table 1.
    """

    sd: float = 0.5

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        variance = alpha**2 * self.sd**2 + sigma**2
        return coefficients(alpha * self.sd**2 / variance, sigma * self.sd / variance.sqrt(), alpha, sigma, self.sd)
