"""The denoiser: noise scheduler + parameterization + network -> E[x0 | x_t].

Samplers, guidance, objectives and tasks know nothing else of a model. Times are float64 tensors, () or (B,), best on
the CPU: the coefficients are computed where the times are, and only their float32 values travel to the images'
device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.devices import to_device
from diffusion.errors import UserError
from diffusion.parameterizations import Coefficients, Parameterization
from diffusion.schedulers import NoiseScheduler

Cond = Mapping[str, Tensor]


class Prediction(NamedTuple):
    """mean = E[x0 | x_t], and where the covariance is learned its place between the two bounds, both (B, C, *S).

    fraction v: the variance of the reverse step to any s < t is beta^v beta~^(1 - v) of the step's `Posterior`
    (Nichol and Dhariwal 2021, eq. 15).
    """

    mean: Tensor
    fraction: Tensor | None = None

    def variance(self, asked: float | None) -> float | Tensor:
        """The fraction to use: the one that is asked for, else the learned one, else 0."""
        return asked if asked is not None else 0.0 if self.fraction is None else self.fraction


class Denoiser(nn.Module, ABC):
    """Trained networks, analytic toys and guidance wrappers alike."""

    scheduler: NoiseScheduler

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        """E[x0 | x_t] for x_t (B, C, *S) at times t, () or (B,) in (0, 1]."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.predict(x_t, t, cond).mean


class NetworkDenoiser(Denoiser):
    """D(x_t) = skip x_t + out F(input x_t, noise, cond), F the network.

    With a learned `covariance` the network answers with twice the channels: F, and the logit of `Prediction.fraction`.
    Raises UserError if the parameterization is singular at t = 1, as eps is where the terminal SNR is zero.
    """

    def __init__(
        self,
        scheduler: NoiseScheduler,
        parameterization: Parameterization,
        network: nn.Module,
        covariance: bool = False,
    ):
        super().__init__()
        self.scheduler = scheduler
        self.parameterization = parameterization
        self.network = network
        self.covariance = covariance
        _, _, at_end = self.coefficients(torch.ones((), dtype=torch.float64))
        if not all(torch.isfinite(c) for c in at_end):
            raise UserError(
                f"parameterization {type(parameterization).__name__} divides by alpha, and scheduler "
                f"{type(scheduler).__name__} ends at alpha = 0 (zero terminal SNR): "
                "choose parameterization=v, x0, flow or edm"
            )

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Coefficients]:
        """alpha, sigma and the four coefficients at t, float64 with the shape and on the device of t."""
        alpha, sigma = self.scheduler.alpha(t), self.scheduler.sigma(t)
        return alpha, sigma, self.parameterization(alpha, sigma)

    def raw(self, x_t: Tensor, c: Coefficients, cond: Cond | None = None) -> tuple[Tensor, Tensor | None]:
        """F(input x_t, noise, cond), and the fraction where the covariance is learned; float32 (B, C, *S)."""
        # Not len(x_t): in an exported graph that would be a constant.
        noise = to_device(c.noise, x_t.device, torch.float32).expand(x_t.shape[0])
        answer = self.network(scale(c.input, x_t) * x_t, noise, cond).float()
        if not self.covariance:
            return answer, None
        answer, logit = answer.chunk(2, 1)
        return answer, torch.sigmoid(logit)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        _, _, c = self.coefficients(t)
        answer, fraction = self.raw(x_t, c, cond)
        return Prediction(estimate(x_t, c, answer), fraction)


def estimate(x_t: Tensor, c: Coefficients, answer: Tensor) -> Tensor:
    """D = skip x_t + out F, (B, C, *S), of what the network answers."""
    return scale(c.skip, x_t) * x_t + scale(c.out, x_t) * answer


def scale(c: Tensor, like: Tensor) -> Tensor:
    """Coefficients, () or (B,), as float32 on the device of `like` (B, ...), shaped to multiply it."""
    return to_device(c, like.device, torch.float32).reshape(c.shape + (1,) * (like.ndim - 1) if c.ndim else ())
