"""The network predicts the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.parameterizations.base import Coefficients, coefficients


@dataclass(frozen=True)
class X0:
    """F* = x0: skip = 0, out = 1. Source: Ho et al. 2020, section 3.2; Salimans and Ho 2022, section 4."""

    sd: float = 0.5

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        return coefficients(torch.zeros_like(alpha), torch.ones_like(alpha), alpha, sigma, self.sd)
