"""Times at equal distance in their square root."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.grids.base import check_steps
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Quadratic:
    """t_i = (1 - i / steps)^2: more of the steps near the data. Source: Song et al. 2021 (DDIM), appendix D.2."""

    steps: int = 50

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def __call__(self, scheduler: NoiseScheduler) -> Tensor:
        return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64) ** 2
