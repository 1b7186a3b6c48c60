"""The training objective: w out^2 |F - F*|^2, which is w |D(x_t) - x0|^2 without its cancellation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Cond, NetworkDenoiser, estimate, scale
from diffusion.errors import UserError
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

    def check(self, denoiser: NetworkDenoiser, pixels: bool) -> None:
        """Raises UserError where the objective cannot train this denoiser, of pixels or of latents."""
        if denoiser.scheduler.learns and not self.weighting.any_schedule:
            raise UserError("scheduler=learned would change what this objective asks for: use objective=elbo")

    def time(self, u: Tensor, scheduler: NoiseScheduler) -> Tensor:
        """Uniform numbers u (B,) float64 in [0, 1) -> times (B,) float64 in (0, 1]."""
        return held(self.times(u, scheduler), scheduler, self.log_snr_limit)

    def loss(self, denoiser: NetworkDenoiser, x0: Tensor, noise: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """The loss of each sample, (B,) float32: the mean over its values.

        x0 and noise (B, C, *S) float32, t (B,) float64 in (0, 1]. Where cond["known"] (B, 1, *S) says which pixels are
        known, the others are 0 in x_t and in no loss, so that nothing depends on what x0 holds there.
        """
        known = (cond or {}).get("known")
        x0 = only(x0, known)
        alpha, sigma, c = denoiser.coefficients(t)
        of_x0, of_noise = (1 - c.skip * alpha) / c.out, -c.skip * sigma / c.out
        weight = self.weighting(t, denoiser.scheduler, c.out, denoiser.parameterization.sd) * c.out**2
        target = scale(of_x0, x0) * x0 + scale(of_noise, x0) * noise
        x_t = only(scale(alpha, x0) * x0 + scale(sigma, x0) * noise, known)
        answer, fraction = denoiser.raw(x_t, c, cond)
        error = mean_over((answer - target).square(), known)
        loss = scale(weight, error) * error
        if self.bound is not None:
            mean = estimate(x_t, c, answer.detach())
            loss = loss + self.bound(denoiser.scheduler, t, x0, mean, fraction)
        return loss


def only(values: Tensor, known: Tensor | None) -> Tensor:
    """The values (B, C, *S), with 0 wherever `known` (B, 1, *S), if given, is false."""
    return values if known is None else torch.where(known, values, 0.0)


def mean_over(values: Tensor, known: Tensor | None) -> Tensor:
    """The mean of each sample's values (B, C, *S), (B,): of the known ones, and 0 where none are."""
    if known is None:
        return values.flatten(1).mean(1)
    count = known.flatten(1).sum(1) * values.shape[1]
    return only(values, known).flatten(1).sum(1) / count.clamp(min=1)
