"""The network predicts the noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.parameterizations.base import Parameterization


@dataclass(frozen=True)
class Eps(Parameterization):
    """F* = eps: skip = 1 / alpha, out = -sigma / alpha. Singular at alpha = 0. Source: Ho et al. 2020, eq. 11."""

    def skip_and_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / alpha, -sigma / alpha
