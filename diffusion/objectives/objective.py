"""The training objective: w out^2 |F - F*|^2, which is w |D(x_t) - x0|^2 without its cancellation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Cond, NetworkDenoiser, scale
from diffusion.objectives.times import TimeDensity
from diffusion.objectives.weightings import Weighting
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Objective:
    """A time density, a weighting, and the loss that they make.

    Times are held where |log-SNR| <= log_snr_limit: at sigma = 0 the target is 0 / 0, and a uniform number can be 0.
    """

    times: TimeDensity
    weighting: Weighting
    log_snr_limit: float = 20.0

    def time(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        """Uniform numbers u (B,) float64 in [0, 1) -> times (B,) float64 in (0, 1]."""
        limits = scheduler.time(torch.tensor([self.log_snr_limit, -self.log_snr_limit], dtype=torch.float64))
        return self.times(u, scheduler).clamp(limits[0], limits[1].clamp(max=1.0))

    def loss(self, denoiser: NetworkDenoiser, x0: Tensor, noise: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """The loss of each sample, (B,) float32: the mean over its values.

        x0 and noise (B, C, *S) float32, t (B,) float64 in (0, 1].
        """
        alpha, sigma, c = denoiser.coefficients(t)
        log_snr = denoiser.scheduler.log_snr(t)
        of_x0, of_noise = (1 - c.skip * alpha) / c.out, -c.skip * sigma / c.out
        weight = self.weighting(log_snr, c.out, denoiser.parameterization.sd) * c.out**2
        target = scale(of_x0, x0) * x0 + scale(of_noise, x0) * noise
        x_t = scale(alpha, x0) * x0 + scale(sigma, x0) * noise
        error = (denoiser.raw(x_t, c, cond) - target).square().flatten(1).mean(1)
        return scale(weight, error) * error
