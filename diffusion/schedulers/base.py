"""What a noise scheduler is: x_t = alpha(t) x0 + sigma(t) eps, t in [0, 1], t = 0 the data."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffusion.errors import UserError


class NoiseScheduler(ABC):
    """The forward process q(x_t | x0) = N(alpha(t) x0, sigma(t)^2).

    Every scheduler has alpha(0) = 1 and sigma(0) = 0, and a log-SNR that falls strictly in t. Times, and what comes
    from them, are float64 tensors of any shape: near the ends of the schedule float32 loses the answer.
    """

    learns = False
    """Whether the schedule has parameters, which `own_loss` trains."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data at time t in [0, 1]; the shape of t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at time t in [0, 1]; the shape of t."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`; outside the schedule's range it may leave [0, 1]."""

    def log_snr(self, t: Tensor) -> Tensor:
        """2 (log alpha(t) - log sigma(t)): +inf at t = 0, -inf where the terminal SNR is zero."""
        return 2 * (torch.log(self.alpha(t)) - torch.log(self.sigma(t)))

    def slope(self, t: Tensor) -> Tensor:
        """-d log_snr / dt at t, float64 with its shape: how fast the noise grows."""
        with torch.inference_mode(False), torch.enable_grad():
            t = t.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_snr(t).sum(), t)
        return -slope

    def own_loss(self, t: Tensor, losses: Tensor) -> Tensor | float:
        """What a schedule with parameters descends, (), given the model's losses (B,) at times t (B,); 0 without."""
        return 0.0


class VariancePreserving(NoiseScheduler):
    """alpha^2 + sigma^2 = 1, stated through the log-SNR: alpha^2 = sigmoid(log_snr)."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at time t."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.log_snr(t)).sqrt()


class IntegratedBeta(VariancePreserving):
    """alpha^2 = exp(-B(t)) with B(t) the integral of a rate beta over [0, t] (Song et al. 2021, eq. 11 and 29)."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t), with B(0) = 0."""

    @abstractmethod
    def integral_inverse(self, value: Tensor) -> Tensor:
        """The t at which B(t) = value."""

    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(torch.expm1(self.integral(t)))

    def time(self, log_snr: Tensor) -> Tensor:
        return self.integral_inverse(torch.logaddexp(torch.zeros_like(log_snr), -log_snr))


def check_base(base: NoiseScheduler) -> None:
    """Raises UserError unless a scheduler can be made of `base`: alpha^2 + sigma^2 = 1, and nothing in it learns."""
    t = torch.tensor(0.5, dtype=torch.float64)
    if base.learns or abs((base.alpha(t) ** 2 + base.sigma(t) ** 2).item() - 1) > 1e-6:
        raise UserError(
            f"scheduler.base: {type(base).__name__} does not preserve variance (alpha^2 + sigma^2 = 1), or learns; "
            "use Linear, ScaledLinear, Cosine, Sigmoid or Table"
        )
