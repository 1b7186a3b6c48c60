"""Stochastic samplers: the mean and covariance of what they draw, exactly and by Monte Carlo."""

import math
from functools import partial

import pytest
import torch

from diffusion.denoiser import Prediction
from diffusion.errors import UserError
from diffusion.grids import Karras, LogSNR
from diffusion.random import SampleNoise
from diffusion.samplers import ddim, ddpm, euler, heun
from diffusion.samplers.churn import Churn
from diffusion.schedulers import EDM, Flow, NoiseScheduler, posterior
from tests.analytic import EVERY_SCHEDULER, SAMPLERS, GaussianDenoiser, is_stochastic, times

pytestmark = pytest.mark.slow

CHURNED = {
    "euler churn": partial(euler, churn=20.0),
    "heun churn": partial(heun, churn=20.0, churn_low=0.05, churn_high=20.0),
}
STOCHASTIC = {name: sampler for name, sampler in SAMPLERS.items() if is_stochastic(sampler)} | {
    "ddim eta=1": partial(ddim, eta=1.0),
    "ddim eta=0.5": partial(ddim, eta=0.5),
}
every_scheduler = pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
every_sampler = pytest.mark.parametrize("name", STOCHASTIC)
ALL = STOCHASTIC | CHURNED
every_noisy_sampler = pytest.mark.parametrize("name", ALL)


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
def test_weak_order(name: str, scheduler: NoiseScheduler):
    """Without sampling error: the mean is right; twice the steps halve the covariance's error, or quarter 2M's."""
    denoiser = GaussianDenoiser(scheduler)
    found = []
    for steps in (50, 100, 200):
        grid = LogSNR(steps, low=-8, high=14)(scheduler)
        mean, covariance = moments(STOCHASTIC[name], denoiser, grid)
        torch.testing.assert_close(mean, denoiser.mean, rtol=0, atol=0.02)
        found.append((covariance - denoiser.covariance).norm().item())
    assert found[-1] < 0.025
    factor = 4 if name == "dpmpp_2m_sde" else 2
    assert [found[0] / found[1], found[1] / found[2]] == pytest.approx([factor, factor], rel=0.1)


@every_noisy_sampler
@pytest.mark.parametrize("key", ["EDM", "Flow", "Linear"])
def test_monte_carlo(name: str, key: str):
    """4,000 seeded samples of 1,000 steps: mean and covariance of the data within 4 standard errors.

    Of a mean that is sqrt(C_ii / n), of a covariance sqrt((C_ii C_jj + C_ij^2) / n).
    """
    count, denoiser = 4_000, GaussianDenoiser(EVERY_SCHEDULER[key])
    grid = Karras(1000, 0.005, 40.0)(denoiser.scheduler)
    g = torch.Generator().manual_seed(17)
    start = denoiser.noised(torch.randn(count, 3, generator=g, dtype=torch.float64), grid[0])
    x = ALL[name](denoiser, start, grid, rng=lambda shape: torch.randn(count, *shape, generator=g))
    c = denoiser.covariance
    error_of_mean = (c.diag() / count).sqrt()
    error_of_covariance = ((c.diag()[:, None] * c.diag() + c**2) / count).sqrt()
    assert ((x.mean(0) - denoiser.mean).abs() < 4 * error_of_mean).all()
    assert ((x.T.cov() - c).abs() < 4 * error_of_covariance).all()


@every_noisy_sampler
def test_noise_is_required_and_decides_the_sample(name: str):
    denoiser = GaussianDenoiser(Flow())
    x, grid = torch.zeros(2, 3, dtype=torch.float64), times(1, 0.5, 0.2, 0)
    with pytest.raises(ValueError, match="rng"):
        ALL[name](denoiser, x, grid)
    first, again, other = (ALL[name](denoiser, x, grid, rng=SampleNoise(s)) for s in ([1, 2], [1, 2], [1, 3]))
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_ddpm_is_ddim_at_eta_one():
    denoiser = GaussianDenoiser(Flow())
    x, grid = torch.zeros(2, 3, dtype=torch.float64), times(1, 0.5, 0.2, 0)
    torch.testing.assert_close(
        ddpm(denoiser, x, grid, rng=SampleNoise([1, 2])),
        ddim(denoiser, x, grid, eta=1.0, rng=SampleNoise([1, 2])),
        rtol=1e-6,
        atol=1e-6,
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


@every_scheduler
@pytest.mark.parametrize("name", CHURNED)
def test_churn_leaves_the_data_as_they_are(name: str, scheduler: NoiseScheduler):
    """Mean and covariance without sampling error: 400 steps, so that fresh noise comes in and is taken out again."""
    denoiser = GaussianDenoiser(scheduler)
    mean, covariance = moments(CHURNED[name], denoiser, LogSNR(400, low=-8, high=14)(scheduler))
    torch.testing.assert_close(mean, denoiser.mean, rtol=0, atol=0.01)
    assert (covariance - denoiser.covariance).norm() < 0.02


@every_scheduler
def test_churn_adds_the_noise_of_the_forward_process(scheduler: NoiseScheduler):
    """x_t of its marginal becomes x_t' of its marginal, sigma / alpha having grown by 1 + min(churn / steps, 0.414)."""
    for amount, factor in ((2.0, 1.2), (50.0, 2**0.5)):
        stir = Churn(10, amount, 0.0, float("inf"), 1.0, lambda shape: torch.ones(1, *shape, dtype=torch.float64))
        t = scheduler.time(times(1.0))[0]
        x, back = stir(scheduler, torch.zeros(1, 1, dtype=torch.float64), t)
        assert scheduler.log_snr(back).item() == pytest.approx(1 - 2 * math.log(factor), abs=1e-6)
        kept = (scheduler.alpha(back) / scheduler.alpha(t) * scheduler.sigma(t)) ** 2
        assert (kept + x.square()).item() == pytest.approx(scheduler.sigma(back).item() ** 2, rel=1e-5)


def test_churn_keeps_to_its_levels_and_to_the_schedule():
    drawn = []

    def rng(shape):
        drawn.append(shape)
        return torch.ones(1, *shape)

    scheduler, x = EDM(sigma_max=10.0), torch.zeros(1, 1)
    stir = Churn(10, 4.0, 0.5, 20.0, 1.0, rng)
    for sigma, expected in ((10.0, 10.0), (9.0, 10.0), (1.0, 1.4), (0.4, 0.4)):
        _, back = stir(scheduler, x, scheduler.time(times(-2 * math.log(sigma)))[0])
        assert scheduler.sigma(back).item() == pytest.approx(expected)
    assert len(drawn) == 2


@pytest.mark.parametrize(
    "keys", [{"churn": -1.0}, {"churn_low": 2.0, "churn_high": 1.0}, {"churn_low": -1.0}, {"churn_noise": 0.0}]
)
@pytest.mark.parametrize("sampler", [euler, heun])
def test_churn_that_means_nothing_is_refused(sampler, keys):
    with pytest.raises(UserError, match=r"sampler\.churn"):
        sampler(GaussianDenoiser(Flow()), torch.zeros(1, 3), times(1, 0.5), **keys)


class Spread(GaussianDenoiser):
    """Also answers a fraction, another for each coordinate."""

    fraction = times(0.0, 0.4, 1.0)

    def predict(self, x_t, t, cond=None):
        return Prediction(super().predict(x_t, t).mean, self.fraction.expand(x_t.shape))


@pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
@pytest.mark.parametrize("variance", [0.0, 0.5, 1.0, None])
def test_ddpm_draws_with_the_variance_that_is_asked_for(scheduler: NoiseScheduler, variance: float | None):
    """beta^v beta~^(1 - v) of the step (Nichol and Dhariwal 2021, eq. 15); without a number the learned v, or 0."""
    grid, x = times(0.7, 0.5), torch.zeros(1, 3, dtype=torch.float64)
    t, s = grid
    alpha, sigma = scheduler.alpha(grid), scheduler.sigma(grid)
    beta = sigma[0] ** 2 - (alpha[0] / alpha[1] * sigma[1]) ** 2
    small = beta * sigma[1] ** 2 / sigma[0] ** 2
    for denoiser, learned in ((GaussianDenoiser(scheduler), torch.zeros(3)), (Spread(scheduler), Spread.fraction)):
        silent, noisy = (
            ddpm(denoiser, x, grid, variance=variance, rng=lambda shape, level=level: torch.full((1, *shape), level))
            for level in (0.0, 1.0)
        )
        v = learned if variance is None else torch.full((3,), variance)
        expected = (beta**v * small ** (1 - v)).sqrt()
        torch.testing.assert_close((noisy - silent)[0], expected.double(), rtol=1e-5, atol=0)
        step = posterior(scheduler, t, s)
        mean = step.of_x * x + step.of_x0 * denoiser(x, t)
        torch.testing.assert_close(silent, mean, rtol=1e-5, atol=1e-6)
