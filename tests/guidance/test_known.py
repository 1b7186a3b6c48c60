"""Inpainting by replacement, and resampling, against Gaussian data, whose conditionals have a closed form."""

import pytest
import torch

from diffusion.errors import UserError
from diffusion.generative import noised
from diffusion.guidance import Known
from diffusion.samplers import ddpm, dpmpp_2m, heun
from diffusion.samplers.resampled import Resampled
from tests.analytic import EVERY_SCHEDULER, SAMPLERS, GaussianDenoiser, times

KNOWN = torch.tensor([True, False, False])
VALUE = 0.9


def rng_of(n: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(n, *shape, generator=g, dtype=torch.float64)


def grid_of(scheduler, steps: int = 30) -> torch.Tensor:
    first = max(-8.0, scheduler.log_snr(times(1.0)).item())
    return torch.cat([scheduler.time(torch.linspace(first, 10, steps, dtype=torch.float64)).clamp(max=1), times(0)])


def completions(sampler, scheduler, n: int = 4000, steps: int = 30) -> torch.Tensor:
    """Draws (n, 3) whose first coordinate is known to be VALUE."""
    denoiser, rng, grid = GaussianDenoiser(scheduler), rng_of(n), grid_of(scheduler, steps)
    y = torch.tensor([VALUE, 0.0, 0.0], dtype=torch.float64).expand(n, 3)
    x = noised(scheduler, y, rng((3,)), grid[0])
    return sampler(Known(denoiser, y, KNOWN), x, grid, rng=rng)


def errors(found: torch.Tensor) -> tuple[float, float]:
    """How far mean and covariance of the rest are from the conditional normal's, in the largest entry."""
    exact = GaussianDenoiser(EVERY_SCHEDULER["EDM"])
    gain = exact.covariance[1:, 0] / exact.covariance[0, 0]
    mean = exact.mean[1:] + gain * (VALUE - exact.mean[0])
    covariance = exact.covariance[1:, 1:] - gain[:, None] * exact.covariance[0, 1:]
    rest = found[:, 1:]
    return (rest.mean(0) - mean).abs().max().item(), (rest.T.cov() - covariance).abs().max().item()


@pytest.mark.parametrize("key", EVERY_SCHEDULER)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_ends_at_what_is_known(name, key):
    for times_, stride in ((1, 1), (2, 3)):
        sampler = Resampled(SAMPLERS[name], times_, stride)
        found = completions(sampler, EVERY_SCHEDULER[key], n=5, steps=7)
        torch.testing.assert_close(found[:, 0], torch.full((5,), VALUE).double(), rtol=0, atol=1e-6)
        assert found.isfinite().all()


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m", "heun"])
def test_the_known_part_is_noised_as_the_data_are(name):
    """On the way it is a draw of q(x_t | y): mean alpha y and variance sigma^2, to 4 standard errors of 4,000."""
    scheduler, seen = EVERY_SCHEDULER["Cosine"], []
    grid = grid_of(scheduler)

    def sampler(denoiser, x, grid, cond=None, *, rng=None, on_step=None):
        return SAMPLERS[name](denoiser, x, grid, rng=rng, on_step=lambda i, x, mean: seen.append(x[:, 0]))

    completions(sampler, scheduler)
    for x, t in zip(seen[:-1:7], grid[1:-1:7], strict=True):
        sigma = scheduler.sigma(t).item()
        assert x.mean().item() == pytest.approx(scheduler.alpha(t).item() * VALUE, abs=4 * sigma / 4000**0.5)
        assert x.std().item() == pytest.approx(sigma, rel=4 / 8000**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [heun, dpmpp_2m, ddpm])
def test_resampling_brings_it_to_the_conditional(sampler):
    """Replacement alone errs by half of what the known part says (0.2); twelve walks leave less than a third of it.

    The covariance is within 0.04 of 0.17: ancestral steps as wide as these lose so much of it.
    """
    scheduler = EVERY_SCHEDULER["EDM"]
    once, more, most = (errors(completions(Resampled(sampler, r, 3), scheduler)) for r in (1, 4, 12))
    assert once[0] > 0.07 and more[0] < 0.6 * once[0] and most[0] < 0.3 * once[0]
    assert most[1] < 0.04


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_resampling_alone_changes_no_distribution(name):
    """Nothing known: mean and covariance of the data, to 4 standard errors of 4,000 draws."""
    n, scheduler = 4000, EVERY_SCHEDULER["Linear"]
    denoiser, rng, grid = GaussianDenoiser(scheduler), rng_of(n), grid_of(scheduler, 80)
    found = Resampled(SAMPLERS[name], 3, 2)(denoiser, rng((3,)) * scheduler.sigma(grid[0]), grid, rng=rng)
    assert (found.mean(0) - denoiser.mean).abs().max() < 0.035
    assert (found.T.cov() - denoiser.covariance).abs().max() < 0.03


def test_once_is_the_sampler_itself():
    scheduler = EVERY_SCHEDULER["EDM"]
    assert torch.equal(completions(Resampled(dpmpp_2m), scheduler, 3), completions(dpmpp_2m, scheduler, 3))


@pytest.mark.parametrize(("times_", "stride", "ends", "steps"), [(1, 4, True, 30), (3, 4, True, 88), (3, 1, False, 87)])
def test_its_steps_are_counted(times_, stride, ends, steps):
    scheduler, said = EVERY_SCHEDULER["EDM"], []
    grid = grid_of(scheduler) if ends else grid_of(scheduler)[:-1]
    resampled, rng = Resampled(ddpm, times_, stride), rng_of(2)
    resampled(GaussianDenoiser(scheduler), rng((3,)), grid, rng=rng, on_step=lambda i, *_: said.append(i))
    assert said == list(range(steps)) and resampled.steps(grid) == steps


def test_what_means_nothing_is_refused():
    with pytest.raises(UserError, match="resample=0"):
        Resampled(heun, 0)
    with pytest.raises(UserError, match="stride=0"):
        Resampled(heun, 2, 0)
    with pytest.raises(ValueError, match="rng"):
        Resampled(heun, 2)(GaussianDenoiser(EVERY_SCHEDULER["EDM"]), torch.zeros(1, 3), times(0.5, 0))
