"""Scheduler x parameterization x sampler x {2-D, 3-D}: every cell draws the right data, or says why it cannot."""

import re
from functools import cache

import pytest
import torch

from diffusion.denoiser import Denoiser, NetworkDenoiser, Prediction
from diffusion.errors import UserError
from diffusion.grids import LogSNR
from diffusion.schedulers import NoiseScheduler
from tests.analytic import (
    EVERY_SCHEDULER,
    PARAMETERIZATIONS,
    SAMPLERS,
    ZERO_TERMINAL,
    GaussianDenoiser,
    MixtureDenoiser,
    OptimalNetwork,
    is_stochastic,
)

pytestmark = pytest.mark.slow

MEAN = (0.3, -0.5, 0.1, 0.0)
COVARIANCE = ((0.30, 0.10, 0.0, 0.0), (0.10, 0.20, -0.05, 0.0), (0.0, -0.05, 0.1, 0.05), (0.0, 0.0, 0.05, 0.25))
MODES = {"weights": (0.5, 0.2, 0.3), "means": (-0.8, 0.0, 0.7), "stds": (0.10, 0.05, 0.08)}
SHAPES = {"2-D": (1, 2, 2), "3-D": (2, 1, 2, 1)}
STEPS = 24
DRAWN = 100
"""Images of the mixture, of four coordinates each."""


class Both(Denoiser):
    """Gaussian data in the first `probes` rows of a batch, the mixture in the others."""

    def __init__(self, scheduler: NoiseScheduler, probes: int):
        super().__init__()
        self.scheduler, self.probes = scheduler, probes
        self.gaussian = GaussianDenoiser(scheduler, MEAN, COVARIANCE)
        self.mixture = MixtureDenoiser(scheduler, **MODES)

    def predict(self, x_t, t, cond=None) -> Prediction:
        rows = x_t[: self.probes], x_t[self.probes :]
        return Prediction(torch.cat([self.gaussian(rows[0], t), self.mixture(rows[1], t)]))


class Remembered(NoiseScheduler):
    """A scheduler that computes each number once: all cells ask it for the same ones."""

    def __init__(self, scheduler: NoiseScheduler):
        self.found: dict[tuple[str, float], torch.Tensor] = {}
        self.scheduler = scheduler

    def alpha(self, t):
        return self._once("alpha", t)

    def sigma(self, t):
        return self._once("sigma", t)

    def log_snr(self, t):
        return self._once("log_snr", t)

    def time(self, log_snr):
        return self._once("time", log_snr)

    def _once(self, name: str, argument: torch.Tensor) -> torch.Tensor:
        key = name, argument.shape, *argument.flatten().tolist()
        if key not in self.found:
            self.found[key] = getattr(self.scheduler, name)(argument)
        return self.found[key]


REMEMBERED = {key: Remembered(scheduler) for key, scheduler in EVERY_SCHEDULER.items()}


@cache
def start(key: str, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid, and noised images of the mixture at its first time, as many of them in each quantile, (DRAWN, 4)."""
    grid, g = LogSNR(steps, low=-9.0, high=9.0)(REMEMBERED[key]), torch.Generator().manual_seed(3)
    even = torch.stack([torch.randperm(DRAWN, generator=g) for _ in range(4)], 1)
    mixture = MixtureDenoiser(REMEMBERED[key], **MODES)
    return grid, mixture.noised(torch.special.ndtri((even + 0.5).double() / DRAWN), grid[0])


def sampled(sampler, key: str, exact: Both, parameterization, shape: tuple[int, ...], steps: int):
    """The answers to no noise, and to each unit vector of the start and of each draw, (probes, 4); and of the mixture.

    The denoiser of Gaussian data is affine, and so is a sampler: its answers give the exact mean and covariance of what
    it draws.
    """
    denoiser = NetworkDenoiser(exact.scheduler, parameterization, OptimalNetwork(exact, parameterization))
    (grid, noised), g = start(key, steps), torch.Generator().manual_seed(4)
    first = iter(range(1, exact.probes, 4))

    def units() -> torch.Tensor:
        rows, row = torch.zeros(exact.probes, 4, dtype=torch.float64), next(first)
        rows[row : row + 4] = torch.eye(4)
        return rows

    answers = sampler(
        denoiser,
        torch.cat([exact.gaussian.noised(units(), grid[0]), noised]).reshape(-1, *shape),
        grid,
        rng=lambda _: torch.cat([units(), torch.randn(DRAWN, 4, generator=g)]).reshape(-1, *shape),
    ).flatten(1)
    return answers[: exact.probes], answers[exact.probes :]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS.keys())
@pytest.mark.parametrize("key", EVERY_SCHEDULER)
@torch.no_grad()
def test_cell(key: str, kind: type, name: str, shape: tuple[int, ...]):
    """In 12 and in 24 steps to sigma = 0, without sampling error where the data are Gaussian.

    - Gaussian data: the mean; the covariance, whose error falls with the steps, and of which nothing is left but a few
      percent when the two are extrapolated by the sampler's order to infinitely many steps
    - a mixture of three modes in each coordinate: nearly all within 4 standard deviations of one, the share of each
      within 4 standard errors
    """
    scheduler, sampler, parameterization = REMEMBERED[key], SAMPLERS[name], kind(sd=0.5)
    if kind.__name__ == "Eps" and key in ZERO_TERMINAL:
        with pytest.raises(UserError, match="zero terminal SNR"):
            NetworkDenoiser(scheduler, parameterization, torch.nn.Identity())
        return
    stated = re.search(r"[Oo]rder (\d)", sampler.__doc__)
    stochastic = is_stochastic(sampler)
    order = 1 if stochastic else int(stated[1])
    found = []
    for steps in (STEPS // 2, STEPS):
        exact = Both(scheduler, probes=1 + 4 * (steps if stochastic else 1))
        answers, drawn = sampled(sampler, key, exact, parameterization, shape, steps)
        response = answers[1:] - answers[0]
        found.append(response.T @ response)
    torch.testing.assert_close(answers[0], exact.gaussian.mean, rtol=0, atol=0.01)
    covariance = exact.gaussian.covariance
    few, many = ((c - covariance).norm() / covariance.norm() for c in found)
    assert many < 0.01 or few / many > 1.5, (few, many)
    limit = found[1] + (found[1] - found[0]) / (2**order - 1)
    assert (limit - covariance).norm() / covariance.norm() < (0.12 if stochastic else 0.03)
    modes = exact.mixture
    away, nearest = (drawn[..., None] - modes.means).abs().min(-1)
    assert (away < 4 * modes.stds[nearest]).double().mean() > 0.9
    shares = torch.stack([(nearest == k).double().mean() for k in range(len(modes.weights))])
    error = (modes.weights * (1 - modes.weights) / drawn.numel()).sqrt()
    assert ((shares - modes.weights).abs() < 4 * error).all(), shares.tolist()


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if not is_stochastic(sampler)])
@pytest.mark.parametrize("kind", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS.keys())
@pytest.mark.parametrize("key", EVERY_SCHEDULER)
@torch.no_grad()
def test_order_of_a_cell(key: str, kind: type, name: str):
    """From 16 to 32 steps, even in log-SNR between -4 and 3, the distance from the exact flow falls by the order.

    It may fall by up to one order more: of Gaussian data the midpoint method's second-order term is small.
    """
    if kind.__name__ == "Eps" and key in ZERO_TERMINAL:
        return  # refused, as the cells above show
    scheduler, sampler, parameterization = REMEMBERED[key], SAMPLERS[name], kind(sd=0.5)
    exact = GaussianDenoiser(scheduler, MEAN, COVARIANCE)
    denoiser = NetworkDenoiser(scheduler, parameterization, OptimalNetwork(exact, parameterization))
    z = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in (16, 32):
        grid = scheduler.time(torch.linspace(-4, 3, steps + 1, dtype=torch.float64))
        x = exact.noised(z, grid[0])
        answer = sampler(denoiser, x.reshape(-1, 1, 2, 2), grid).flatten(1)
        errors.append((answer - exact.flow(x, grid[0], grid[-1])).square().mean().sqrt())
    order = int(re.search(r"[Oo]rder (\d)", sampler.__doc__)[1])
    assert order - 0.1 < torch.log2(errors[0] / errors[1]) < order + 1.02, errors
