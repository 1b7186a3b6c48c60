"""The training objective: w out^2 |F - F*|^2, which is w |D(x_t) - x0|^2 without its cancellation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.denoiser import Cond, NetworkDenoiser, estimate, scale
from diffusion.objectives.bound import Bound
from diffusion.objectives.times import TimeDensity, held
from diffusion.objectives.weightings import Weighting
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class Objective:
    """A time density, a weighting, and the loss that they make; `bound` trains a learned covariance beside it.

    Times are held where |log-SNR| <= log_snr_limit.
    """

    times: TimeDensity
    weighting: Weighting
    log_snr_limit: float = 20.0
    bound: Bound | None = None

    def time(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        """Uniform numbers u (B,) float64 in [0, 1) -> times (B,) float64 in (0, 1]."""
        return held(self.times(u, scheduler), scheduler, self.log_snr_limit)

    def loss(self, denoiser: NetworkDenoiser, x0: Tensor, noise: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """The loss of each sample, (B,) float32: the mean over its values.

        x0 and noise (B, C, *S) float32, t (B,) float64 in (0, 1].
        """
        alpha, sigma, c = denoiser.coefficients(t)
        of_x0, of_noise = (1 - c.skip * alpha) / c.out, -c.skip * sigma / c.out
        weight = self.weighting(t, denoiser.scheduler, c.out, denoiser.parameterization.sd) * c.out**2
        target = scale(of_x0, x0) * x0 + scale(of_noise, x0) * noise
        x_t = scale(alpha, x0) * x0 + scale(sigma, x0) * noise
        answer, fraction = denoiser.raw(x_t, c, cond)
        error = (answer - target).square().flatten(1).mean(1)
        loss = scale(weight, error) * error
        if self.bound is not None:
            mean = estimate(x_t, c, answer.detach())
            loss = loss + self.bound(denoiser.scheduler, t, x0, mean, fraction)
        return loss
