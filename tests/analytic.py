"""What the tests hold the core to: data whose denoiser and probability flow have a closed form.

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
    return {
        name: part for name, part in exported.items() if dataclasses.is_dataclass(part) and not inspect.isabstract(part)
    }


def _learned() -> NoiseScheduler:
    """A learned schedule whose shares of the time differ by a factor of three."""
    scheduler = schedulers.Learned()
    with torch.no_grad():
        scheduler.logits.copy_(torch.linspace(0, 9, len(scheduler.logits)).sin() / 2)
    return scheduler


SCHEDULERS: dict[str, NoiseScheduler] = {name: part() for name, part in _classes(schedulers).items()} | {
    "Learned": _learned()
}
ZERO_TERMINAL: dict[str, NoiseScheduler] = {
    "Flow": schedulers.Flow(),
    "Cosine to -inf": schedulers.Cosine(log_snr_min=-float("inf")),
    "ZeroTerminal": schedulers.ZeroTerminal(),
}
EVERY_SCHEDULER = SCHEDULERS | ZERO_TERMINAL
PARAMETERIZATIONS = _classes(parameterizations)
PAIRS: dict[str, tuple[NoiseScheduler, str]] = {  # eps is refused at zero terminal SNR
    f"{name}-{key}": (scheduler, name)
    for key, scheduler in EVERY_SCHEDULER.items()
    for name in PARAMETERIZATIONS
    if not (name == "Eps" and key in ZERO_TERMINAL)
}
GRIDS = {name: part for name, part in _classes(grids).items() if name != "Optimised"}  # which is measured, not made
SAMPLERS: dict[str, Callable] = {
    name: getattr(samplers, name) for name in samplers.__all__ if inspect.isfunction(getattr(samplers, name))
}


def times(*values: float) -> Tensor:
    """Times as the core wants them: float64."""
    return torch.tensor(values, dtype=torch.float64)


class GaussianDenoiser(Denoiser):
    """The optimal denoiser of x0 ~ N(mean, covariance), for x_t (B, d) float64 at times () or (B,).

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
        alpha, sigma = self.scheduler.alpha(t)[..., None], self.scheduler.sigma(t)[..., None]
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return Prediction(self.mean + ((x_t - alpha * self.mean) @ self.axes * gain) @ self.axes.T)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact solution at time s of the probability-flow ODE that passes through x_t at time t."""
        alpha_t, alpha_s = self.scheduler.alpha(t)[..., None], self.scheduler.alpha(s)[..., None]
        ratio = self._spread(s) / self._spread(t)
        return alpha_s * self.mean + ((x_t - alpha_t * self.mean) @ self.axes * ratio) @ self.axes.T

    def noised(self, z: Tensor, t: Tensor) -> Tensor:
        """A draw of x_t, made of standard normal z (B, d)."""
        return self.scheduler.alpha(t)[..., None] * self.mean + (z * self._spread(t)) @ self.axes.T

    def _spread(self, t: Tensor) -> Tensor:
        alpha, sigma = self.scheduler.alpha(t)[..., None], self.scheduler.sigma(t)[..., None]
        return (alpha**2 * self.variances + sigma**2).sqrt()


class MixtureDenoiser(Denoiser):
    """The optimal denoiser where each coordinate is drawn on its own from sum_k w_k N(m_k, s_k^2); x_t (B, d) float64.

    E[x0 | x_t] = sum_k r_k (m_k + alpha s_k^2 / v_k (x_t - alpha m_k)), v_k = alpha^2 s_k^2 + sigma^2, r_k the
    posterior of mode k. In one dimension the probability flow keeps quantiles, so that it has a closed form too.
    """

    def __init__(self, scheduler: NoiseScheduler, weights=(0.3, 0.7), means=(-0.6, 0.5), stds=(0.2, 0.35)):
        super().__init__()
        self.scheduler = scheduler
        self.weights, self.means, self.stds = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds))

    def predict(self, x_t: Tensor, t: Tensor, cond=None) -> Prediction:
        alpha, spreads = self.scheduler.alpha(t), self._spreads(t)
        away = x_t[..., None] - alpha * self.means
        posterior = torch.softmax(self.weights.log() - spreads.log() - (away / spreads) ** 2 / 2, -1)
        return Prediction((posterior * (self.means + alpha * (self.stds / spreads) ** 2 * away)).sum(-1))

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact solution at time s of the probability-flow ODE that passes through x_t at time t."""
        return self._quantile(self._share_below(x_t, t), s)

    def noised(self, z: Tensor, t: Tensor) -> Tensor:
        """A draw of x_t, made of standard normal z (B, d)."""
        return self._quantile(torch.special.ndtr(z), t)

    def _share_below(self, x: Tensor, t: Tensor) -> Tensor:
        places = (x[..., None] - self.scheduler.alpha(t) * self.means) / self._spreads(t)
        return (self.weights * torch.special.ndtr(places)).sum(-1)

    def _quantile(self, share: Tensor, t: Tensor) -> Tensor:
        high = torch.full_like(share, (8 * self._spreads(t).max() + self.means.abs().max()).item())
        low = -high
        for _ in range(60):
            middle = (low + high) / 2
            below = self._share_below(middle, t) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _spreads(self, t: Tensor) -> Tensor:
        return (self.scheduler.alpha(t) ** 2 * self.stds**2 + self.scheduler.sigma(t) ** 2).sqrt()


ANSWERS: dict[str, Callable] = {
    "Eps": lambda x, mean, a, s, sd: (x - a * mean) / s,
    "X0": lambda x, mean, a, s, sd: mean,
    "V": lambda x, mean, a, s, sd: a * (x - a * mean) / s - s * mean,
    "Flow": lambda x, mean, a, s, sd: (x - a * mean) / s - mean,
    "EDM": lambda x, mean, a, s, sd: (
        ((a**2 * sd**2 + s**2) * mean - a * sd**2 * x) / (s * sd * (a**2 * sd**2 + s**2) ** 0.5)
    ),
}
"""What a perfect network answers, as the papers define it, from x_t and E[x0 | x_t]: of every parameterization."""


class OptimalNetwork(nn.Module):
    """The perfect network of a parameterization, for images that hold the coordinates: see ANSWERS.

    It knows what any network knows, input x_t and -log_snr / 8, both in float32.
    """

    def __init__(self, exact: Denoiser, parameterization: Callable):
        super().__init__()
        self.exact, self.parameterization = exact, parameterization

    def forward(self, x: Tensor, c_noise: Tensor, cond=None) -> Tensor:
        scheduler = self.exact.scheduler
        t = scheduler.time(-8 * c_noise[0].double()).clamp(max=1)
        alpha, sigma, sd = scheduler.alpha(t), scheduler.sigma(t), self.parameterization.sd
        x_t = x.flatten(1).double() * (alpha**2 * sd**2 + sigma**2).sqrt()
        answer = ANSWERS[type(self.parameterization).__name__]
        return answer(x_t, self.exact(x_t, t), alpha, sigma, sd).reshape(x.shape)


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
