"""What the tests hold the core to: Gaussian data, whose denoiser and probability flow have a closed form.

Also the lists of parts that the tests walk: a new scheduler, parameterization, grid or sampler is tested
at once.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from diffusion import grids, parameterizations, samplers, schedulers
from diffusion.denoiser import Denoiser, Prediction
from diffusion.schedulers import NoiseScheduler

MEAN = (0.3, -0.5, 0.1)
COVARIANCE = ((0.30, 0.10, 0.00), (0.10, 0.20, -0.05), (0.00, -0.05, 0.02))


def _classes(module: ModuleType) -> dict[str, type]:
    """The concrete parts of a package: what it exports, without protocols, abstract bases and tuples."""
    exported = {name: getattr(module, name) for name in module.__all__}
    return {name: part for name, part in exported.items() if dataclasses.is_dataclass(part)}


SCHEDULERS: dict[str, NoiseScheduler] = {name: part() for name, part in _classes(schedulers).items()}
ZERO_TERMINAL: dict[str, NoiseScheduler] = {
    "Flow": schedulers.Flow(),
    "Cosine to -inf": schedulers.Cosine(log_snr_min=-float("inf")),
}
EVERY_SCHEDULER = SCHEDULERS | ZERO_TERMINAL
PARAMETERIZATIONS = _classes(parameterizations)
PAIRS: dict[str, tuple[NoiseScheduler, str]] = {  # eps is refused at zero terminal SNR
    f"{name}-{key}": (scheduler, name)
    for key, scheduler in EVERY_SCHEDULER.items()
    for name in PARAMETERIZATIONS
    if not (name == "Eps" and key in ZERO_TERMINAL)
}
GRIDS = _classes(grids)
SAMPLERS: dict[str, Callable] = {
    name: getattr(samplers, name) for name in samplers.__all__ if inspect.isfunction(getattr(samplers, name))
}


def times(*values: float) -> Tensor:
    """Times as the core wants them: float64."""
    return torch.tensor(values, dtype=torch.float64)


class GaussianDenoiser(Denoiser):
    """The optimal denoiser of x0 ~ N(mean, covariance), for x_t (B, d) float64.

    E[x0 | x_t] = mean + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha mean).
    """

    def __init__(self, scheduler: NoiseScheduler, mean=MEAN, covariance=COVARIANCE):
        super().__init__()
        self.scheduler = scheduler
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.covariance = torch.tensor(covariance, dtype=torch.float64)
        self.variances, self.axes = torch.linalg.eigh(self.covariance)
        self.evaluations = 0

    def predict(self, x_t: Tensor, t: Tensor, cond=None) -> Prediction:
        self.evaluations += 1
        alpha, sigma = self.scheduler.alpha(t), self.scheduler.sigma(t)
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return Prediction(self.mean + ((x_t - alpha * self.mean) @ self.axes * gain) @ self.axes.T)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact solution at time s of the probability-flow ODE that passes through x_t at time t."""
        alpha_t, alpha_s = self.scheduler.alpha(t), self.scheduler.alpha(s)
        ratio = self._spread(s) / self._spread(t)
        return alpha_s * self.mean + ((x_t - alpha_t * self.mean) @ self.axes * ratio) @ self.axes.T

    def noised(self, z: Tensor, t: Tensor) -> Tensor:
        """A draw of x_t, made of standard normal z (B, d)."""
        return self.scheduler.alpha(t) * self.mean + (z * self._spread(t)) @ self.axes.T

    def _spread(self, t: Tensor) -> Tensor:
        return (self.scheduler.alpha(t) ** 2 * self.variances + self.scheduler.sigma(t) ** 2).sqrt()


class Answer(nn.Module):
    """A network that always gives the same answer, and remembers what it was asked."""

    def __init__(self, answer: Tensor):
        super().__init__()
        self.answer = answer
        self.calls: list[tuple] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond=None) -> Tensor:
        self.calls.append((x, c_noise, cond))
        return self.answer.expand(x.shape)


def is_stochastic(sampler: Callable) -> bool:
    """Whether a sampler refuses to run without noise."""
    denoiser = GaussianDenoiser(SCHEDULERS["Cosine"])
    try:
        sampler(denoiser, torch.zeros(1, 3, dtype=torch.float64), times(0.9, 0.5))
    except ValueError:
        return True
    return False


def randomise(module: nn.Module, seed: int = 0, std: float = 0.15) -> nn.Module:
    """Give the parameters of a module that start at zero random values, so that no part of it is silent."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.where(parameter == 0, torch.randn(parameter.shape, generator=g) * std, parameter))
    return module
