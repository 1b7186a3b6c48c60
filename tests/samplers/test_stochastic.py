"""Stochastic samplers: the mean and covariance of what they draw, exactly and by Monte Carlo."""

from functools import partial

import pytest
import torch

from diffusion.grids import Karras, LogSNR
from diffusion.random import SampleNoise
from diffusion.samplers import ddim, ddpm
from diffusion.schedulers import Flow, NoiseScheduler
from tests.analytic import EVERY_SCHEDULER, SAMPLERS, GaussianDenoiser, is_stochastic, times

pytestmark = pytest.mark.slow

STOCHASTIC = {name: sampler for name, sampler in SAMPLERS.items() if is_stochastic(sampler)} | {
    "ddim eta=1": partial(ddim, eta=1.0),
    "ddim eta=0.5": partial(ddim, eta=0.5),
}
every_scheduler = pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
every_sampler = pytest.mark.parametrize("name", STOCHASTIC)


def moments(sampler, denoiser: GaussianDenoiser, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact mean and covariance of a sampler's draws, where sampler and denoiser are affine.

    Row 0 answers to no noise at all, each other row to one unit vector, of the start or of one step's draw.
    """
    steps, size = len(grid) - 1, len(denoiser.mean)
    rows = 1 + size * (1 + steps)
    probes = torch.zeros(rows, size, dtype=torch.float64)
    probes[1 : 1 + size] = torch.eye(size)
    draws = iter(range(steps))

    def rng(shape):
        noise = torch.zeros(rows, *shape)
        first = 1 + size * (1 + next(draws))
        noise[first : first + size] = torch.eye(size)
        return noise

    answers = sampler(denoiser, denoiser.noised(probes, grid[0]), grid, rng=rng)
    response = answers[1:] - answers[0]
    return answers[0], response.T @ response


@every_scheduler
@every_sampler
def test_weak_order_is_one(name: str, scheduler: NoiseScheduler):
    """Without sampling error: twice the steps halve the covariance's error, to 10%; the mean is right."""
    denoiser = GaussianDenoiser(scheduler)
    found = []
    for steps in (50, 100, 200):
        grid = LogSNR(steps, low=-8, high=14)(scheduler)
        mean, covariance = moments(STOCHASTIC[name], denoiser, grid)
        torch.testing.assert_close(mean, denoiser.mean, rtol=0, atol=0.02)
        found.append((covariance - denoiser.covariance).norm().item())
    assert found[-1] < 0.025
    assert found[0] / found[1] == pytest.approx(2, rel=0.1) and found[1] / found[2] == pytest.approx(2, rel=0.1)


@every_sampler
@pytest.mark.parametrize("key", ["EDM", "Flow", "Linear"])
def test_monte_carlo(name: str, key: str):
    """4,000 seeded samples of 1,000 steps: mean and covariance of the data within 4 standard errors.

    Of a mean that is sqrt(C_ii / n), of a covariance sqrt((C_ii C_jj + C_ij^2) / n).
    """
    count, denoiser = 4_000, GaussianDenoiser(EVERY_SCHEDULER[key])
    grid = Karras(1000, 0.005, 40.0)(denoiser.scheduler)
    g = torch.Generator().manual_seed(17)
    start = denoiser.noised(torch.randn(count, 3, generator=g, dtype=torch.float64), grid[0])
    x = STOCHASTIC[name](denoiser, start, grid, rng=lambda shape: torch.randn(count, *shape, generator=g))
    c = denoiser.covariance
    error_of_mean = (c.diag() / count).sqrt()
    error_of_covariance = ((c.diag()[:, None] * c.diag() + c**2) / count).sqrt()
    assert ((x.mean(0) - denoiser.mean).abs() < 4 * error_of_mean).all()
    assert ((x.T.cov() - c).abs() < 4 * error_of_covariance).all()


@every_sampler
def test_noise_is_required_and_decides_the_sample(name: str):
    denoiser = GaussianDenoiser(Flow())
    x, grid = torch.zeros(2, 3, dtype=torch.float64), times(1, 0.5, 0.2, 0)
    with pytest.raises(ValueError, match="rng"):
        STOCHASTIC[name](denoiser, x, grid)
    first, again, other = (STOCHASTIC[name](denoiser, x, grid, rng=SampleNoise(s)) for s in ([1, 2], [1, 2], [1, 3]))
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_ddpm_is_ddim_at_eta_one():
    denoiser = GaussianDenoiser(Flow())
    x, grid = torch.zeros(2, 3, dtype=torch.float64), times(1, 0.5, 0.2, 0)
    assert torch.equal(
        ddpm(denoiser, x, grid, rng=SampleNoise([1, 2])),
        ddim(denoiser, x, grid, eta=1.0, rng=SampleNoise([1, 2])),
    )


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7])
def test_eta_scales_the_injected_noise(eta: float):
    """A step's noise enters with eta times the posterior's standard deviation: Song et al. 2021, eq. 16."""
    denoiser = GaussianDenoiser(EVERY_SCHEDULER["Cosine"])
    t, s = times(0.7, 0.5)
    x = torch.zeros(1, 3, dtype=torch.float64)
    silent, noisy = (
        ddim(
            denoiser,
            x,
            times(0.7, 0.5),
            eta=eta,
            rng=lambda shape, level=level: torch.full((1, *shape), level),
        )
        for level in (0.0, 1.0)
    )
    alpha_t, alpha_s = denoiser.scheduler.alpha(t), denoiser.scheduler.alpha(s)
    expected = eta * ((1 - alpha_s**2) / (1 - alpha_t**2) * (1 - alpha_t**2 / alpha_s**2)).sqrt()
    torch.testing.assert_close(noisy - silent, expected.expand(1, 3), rtol=1e-6, atol=1e-9)
