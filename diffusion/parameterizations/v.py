"""The network predicts the velocity."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.parameterizations.base import Parameterization


@dataclass(frozen=True)
class V(Parameterization):
    """F* = alpha eps - sigma x0: skip = alpha / (alpha^2 + sigma^2), out = -sigma / (alpha^2 + sigma^2).

    Source: Salimans and Ho 2022, section 4 and appendix D.
    """

    def skip_and_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        square = alpha**2 + sigma**2
        return alpha / square, -sigma / square
