"""The posterior of one reverse step, q(x_s | x_t, x0), of any scheduler and any s < t."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.schedulers.base import NoiseScheduler


class Posterior(NamedTuple):
    """q(x_s | x_t, x0) = N(of_x x_t + of_x0 x0, small), each float64 with the shape of the times.

    small is beta~, the variance where x0 is known; large is beta = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, that of
    q(x_t | x_s), and the variance of the reverse step where the data are white noise. The best variance of a model lies
    between them. Source: Ho et al. 2020, eq. 7 and section 3.2, for any alpha and sigma.
    """

    of_x: Tensor
    of_x0: Tensor
    small: Tensor
    large: Tensor


def posterior(scheduler: NoiseScheduler, t: Tensor, s: Tensor) -> Posterior:
    """The posterior of the step from time t to s < t, float64 () or (B,); small is 0 at s = 0."""
    alpha_t, alpha_s = scheduler.alpha(t), scheduler.alpha(s)
    sigma_t, sigma_s = scheduler.sigma(t), scheduler.sigma(s)
    kept = (sigma_s / sigma_t) ** 2
    # 1 - SNR_t / SNR_s, which loses its digits in a short step if it is subtracted.
    lost = -torch.expm1(scheduler.log_snr(t) - scheduler.log_snr(s))
    large = sigma_t**2 * lost
    return Posterior(of_x=alpha_t / alpha_s * kept, of_x0=alpha_s * lost, small=large * kept, large=large)
