"""Times at equal distance in the angle between data and noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.grids.base import check_steps
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Angle:
    """The scheduler's own angle at t = 1, then `steps` equal parts of it down to 0, on any scheduler.

    angle = arctan(sigma / (alpha level)), so that half of a long schedule's steps lie below the noise level `level`. In
    it the probability flow of Gaussian data of standard deviation `level` turns evenly, and DDIM errs alike in each
    step. For level = 1 it is the uniform grid of the cosine schedule (Salimans and Ho 2022, section 3). Raises
    UserError unless level > 0.
    """

    steps: int = 4
    level: float = 1.0

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not self.level > 0:
            raise UserError(f"grid.level={self.level}: give a noise level above 0, as 0.5")

    def __call__(self, scheduler: NoiseScheduler) -> Tensor:
        end = angle(scheduler, torch.ones((), dtype=torch.float64), self.level)
        inner = at_angle(scheduler, torch.linspace(end, 0, self.steps + 1, dtype=torch.float64)[1:-1], self.level)
        return torch.cat([inner.new_ones(1), inner, inner.new_zeros(1)])


def angle(scheduler: NoiseScheduler, t: Tensor, level: float = 1.0) -> Tensor:
    """arctan(sigma / (alpha level)) in [0, pi / 2], float64 with the shape of t."""
    return torch.atan2(scheduler.sigma(t), level * scheduler.alpha(t))


def at_angle(scheduler: NoiseScheduler, angles: Tensor, level: float = 1.0) -> Tensor:
    """The times at angles between 0 and the scheduler's last, both left out."""
    return scheduler.time(-2 * torch.log(level * torch.tan(angles)))
