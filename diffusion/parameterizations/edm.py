"""The network predicts what keeps its target at unit variance, for any alpha."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.parameterizations.base import Parameterization


@dataclass(frozen=True)
class EDM(Parameterization):
    """skip = alpha sd^2 / (alpha^2 sd^2 + sigma^2), out = sigma sd / sqrt(alpha^2 sd^2 + sigma^2).

    For alpha = 1 these are c_skip and c_out of Karras et al. 2022, table 1.
    """

    def skip_and_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = alpha**2 * self.sd**2 + sigma**2
        return alpha * self.sd**2 / variance, sigma * self.sd / variance.sqrt()
