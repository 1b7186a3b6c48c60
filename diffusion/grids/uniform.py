"""Times at equal distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.grids.base import check_steps
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Uniform:
    """t_i = 1 - i / steps."""

    steps: int = 50

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def __call__(self, scheduler: NoiseScheduler) -> Tensor:
        return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
