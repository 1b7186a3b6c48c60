"""The network predicts the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.parameterizations.base import Parameterization


@dataclass(frozen=True)
class X0(Parameterization):
    """F* = x0: skip = 0, out = 1. Source: Ho et al. 2020, section 3.2; Salimans and Ho 2022, section 4."""

    def skip_and_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(alpha)
