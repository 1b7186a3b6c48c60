"""What trains a student of few steps: to jump at once to where its teacher would arrive in many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, NetworkDenoiser, scale
from diffusion.errors import UserError
from diffusion.generative import evaluating
from diffusion.grids import TimeGrid, angle, at_angle
from diffusion.objectives.weightings import Weighting
from diffusion.samplers.base import transfer
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Distillation:
    """w |D(x_t) - D*|^2, D* the x0 with which one step of DDIM arrives where many small ones do; for an `Objective`.

    `grid` divides the time into segments, each of them one step of the student, and `substeps` each segment into parts
    of equal angle arctan(sigma / alpha), one of whose upper ends t is. With s the lower end of its part and e that of
    its segment, the teacher T takes x_t to x_s, and the student itself, in evaluation mode and without gradient, x_s to
    x_e, both by a step of DDIM. The x0 whose step leads from x_t to that x_e is a mean of the two answers,

        D* = q T(x_t) + (1 - q) D(x_s),    q = (r_s - r_t) / (r_e - r_t),    r = alpha / sigma,

    and the teacher's alone where s = e. From there what is right spreads upwards, until `ddim` on `grid` draws what the
    teacher's probability flow does. Source: Heek, Hoogeboom and Salimans 2024 (Multistep Consistency Models), algorithm
    1 with DDIM; one segment is consistency distillation (Song et al. 2023), one substep copies the teacher's own D.

    teacher: of the student's scheduler and space, guided or not; it gets no gradient. None where nothing is trained.

    Raises UserError for fewer substeps than 1.
    """

    teacher: Denoiser | None
    grid: TimeGrid
    weighting: Weighting
    substeps: int = 8
    bound = None

    def __post_init__(self) -> None:
        if self.substeps < 1:
            raise UserError(
                f"model.substeps={self.substeps}: give 1 or more, the teacher's steps for one of the student"
            )

    def check(self, denoiser: NetworkDenoiser, pixels: bool) -> None:
        """Any denoiser can be a student."""

    def time(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        """Uniform numbers u (B,) float64 in [0, 1) -> upper ends of parts, (B,) float64 in (0, 1]."""
        parts = self.parts(scheduler)[1:].to(u.device)
        return parts[(u * len(parts)).long().clamp(max=len(parts) - 1)]

    def parts(self, scheduler: NoiseScheduler) -> Tensor:
        """The ends of all parts, rising from 0: (grid.steps * substeps + 1,) float64, among them the grid's times."""
        ends = self.grid(scheduler).flip(0)
        angles, shares = angle(scheduler, ends), torch.arange(1, self.substeps, dtype=torch.float64) / self.substeps
        inner = at_angle(scheduler, torch.lerp(angles[:-1, None], angles[1:, None], shares))
        # To the bit, for at these times the student is asked.
        return torch.cat([ends[:1], torch.cat([inner, ends[1:, None]], 1).flatten()])

    def loss(self, denoiser: NetworkDenoiser, x0: Tensor, noise: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """The loss of each sample, (B,) float32: the mean over its values.

        x0 and noise (B, C, *S) float32, t (B,) float64 in (0, 1]; what lies above the grid's first time is one part.
        """
        alpha, sigma, c = denoiser.coefficients(t)
        x_t = scale(alpha, x0) * x0 + scale(sigma, x0) * noise
        target = self.target(denoiser, x_t, t, cond)
        error = (denoiser(x_t, t, cond) - target).square().flatten(1).mean(1)
        return scale(self.weighting(t, denoiser.scheduler, c.out, denoiser.parameterization.sd), error) * error

    @torch.no_grad()
    def target(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """D* (B, C, *S) for x_t at times t (B,)."""
        scheduler = denoiser.scheduler
        s, e = below(self.parts(scheduler), t), below(self.grid(scheduler).flip(0), t)
        taught = self.teacher(x_t, t, cond)
        inside = s > e
        if not inside.any():
            return taught
        s = torch.where(inside, s, t)  # where its answer goes unused, the student is asked at a time that it knows
        x_s = transfer(scheduler, x_t, taught, t, s)
        with evaluating(denoiser):
            own = denoiser(x_s, s, cond)
        r_t, r_s, r_e = (scheduler.alpha(each) / scheduler.sigma(each) for each in (t, s, e))
        q = scale(torch.where(inside, (r_s - r_t) / (r_e - r_t), 1.0), own)
        return q * taught + (1 - q) * own


def below(times: Tensor, t: Tensor) -> Tensor:
    """The last of the rising times that lies below t, for each t (B,)."""
    times = times.to(t.device)
    return times[torch.searchsorted(times, t) - 1]
