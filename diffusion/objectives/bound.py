"""What trains a learned covariance: the variational bound, with the mean held still."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import scale
from diffusion.devices import to_device
from diffusion.errors import UserError
from diffusion.grids import TimeGrid
from diffusion.schedulers import NoiseScheduler, Posterior, posterior


@dataclass(frozen=True)
class Bound:
    """weight * steps * KL(q(x_s | x_t, x0) || N(mean, beta^v beta~^(1 - v))) in bits per dimension, v learned.

    s is the time one step of `grid` after t; t itself may lie between the grid's times. The last two times of a grid,
    at which a sampler jumps to sigma = 0, have no such term. The gradient reaches v alone, not the mean. Source: Nichol
    and Dhariwal 2021, section 3.1 and eq. 16, with their weight of 0.001. Raises UserError for a weight that is not
    positive, or a grid of fewer than 2 steps.
    """

    grid: TimeGrid
    weight: float = 0.001

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"objective.bound.weight={self.weight}: give a number above 0, or another objective")
        if self.grid.steps < 2:
            raise UserError(f"objective.bound.grid.steps={self.grid.steps}: give 2 or more")

    def __call__(self, scheduler: NoiseScheduler, t: Tensor, x0: Tensor, mean: Tensor, fraction: Tensor) -> Tensor:
        """The term of each sample, (B,) float32: x0, mean and fraction (B, C, *S), t (B,) float64."""
        s, inside = self._next(t, scheduler)
        step = posterior(scheduler, t, s)
        divergence = step_divergence(step, x0, mean.detach(), fraction)
        return torch.where(to_device(inside, x0.device), self.weight * self.grid.steps * divergence, 0.0)

    def _next(self, t: Tensor, scheduler: NoiseScheduler) -> tuple[Tensor, Tensor]:
        """The time one step later, and whether it lies above the last jump; where not, a stand-in below t."""
        grid = self.grid(scheduler)[:-1].to(t.device)
        low = torch.searchsorted(-grid, -t, right=True).clamp(1, len(grid) - 1)
        share = ((grid[low - 1] - t) / (grid[low - 1] - grid[low])).clamp(0, 1)
        place = low - 1 + share + 1
        inside = place <= len(grid) - 1
        after = place.long().clamp(max=len(grid) - 2)
        s = torch.lerp(grid[after], grid[after + 1], place - after)
        return torch.where(inside, s, t / 2), inside


def step_divergence(step: Posterior, x0: Tensor, mean: Tensor, fraction: Tensor | float) -> Tensor:
    """KL(q(x_s | x_t, x0) || N(of_x x_t + of_x0 mean, large^v small^(1 - v))), bits per dimension, (B,) float32.

    v = fraction. For two Gaussians it is (v r + exp(-v r) (1 + of_x0^2 (x0 - mean)^2 / small) - 1) / 2 nats, r =
    log(large / small). Source: Ho et al. 2020, eq. 5.
    """
    r = fraction * scale(torch.log(step.large / step.small), x0)
    error = scale(step.of_x0**2 / step.small, x0) * (x0 - mean).square()
    nats = (r + torch.expm1(-r) + torch.exp(-r) * error) / 2
    return nats.flatten(1).mean(1) / math.log(2)
