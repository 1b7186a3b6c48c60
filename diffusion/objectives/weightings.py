"""Weightings: each stated once, as the weight w(log-SNR) of the squared error of x0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers import NoiseScheduler


class Weighting(Protocol):
    """(t, scheduler, out, sd) -> w, the shape of t; out is the parameterization's coefficient, sd the data's.

    any_schedule: whether the mean over uniform times is the same for every schedule between the same two log-SNRs.
    """

    any_schedule: bool

    def __call__(self, t: Tensor, scheduler: NoiseScheduler, out: Tensor, sd: float) -> Tensor: ...


@dataclass(frozen=True)
class Simple:
    """w = 1 / out^2: flat on what the network predicts; for eps, the simple loss of Ho et al. 2020, eq. 14."""

    any_schedule = False

    def __call__(self, t: Tensor, scheduler: NoiseScheduler, out: Tensor, sd: float) -> Tensor:
        return 1 / out**2


@dataclass(frozen=True)
class MinSNR:
    """w = min(SNR, gamma). Source: Hang et al. 2023, section 3.4."""

    gamma: float = 5.0
    any_schedule = False

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise UserError(f"objective.weighting.gamma={self.gamma}: give a number above 0")

    def __call__(self, t: Tensor, scheduler: NoiseScheduler, out: Tensor, sd: float) -> Tensor:
        return scheduler.log_snr(t).exp().clamp(max=self.gamma)


@dataclass(frozen=True)
class EDM:
    """w = SNR + 1 / sd^2: flat on F, with the edm parameterization and alpha = 1.

    Source: Karras et al. 2022, table 1.
    """

    any_schedule = False

    def __call__(self, t: Tensor, scheduler: NoiseScheduler, out: Tensor, sd: float) -> Tensor:
        return scheduler.log_snr(t).exp() + 1 / sd**2


@dataclass(frozen=True)
class ELBO:
    """w = SNR |d log_snr / dt| / 2: with uniform times the mean is the bound on -log p(x0) in continuous time, in nats.

    Up to its ends, and the share of the time that lies between them. It is the integral of SNR |x0 - D|^2 / 2 over the
    log-SNR, whatever the schedule between its ends. Source: Kingma et al. 2021, eq. 17 and section 5.1.
    """

    any_schedule = True

    def __call__(self, t: Tensor, scheduler: NoiseScheduler, out: Tensor, sd: float) -> Tensor:
        return scheduler.log_snr(t).exp() * scheduler.slope(t) / 2
