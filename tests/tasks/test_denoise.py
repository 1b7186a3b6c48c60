"""Denoising, held to the posterior of Gaussian data, which is known."""

import pytest
import torch

from diffusion.codecs import Identity
from diffusion.denoiser import Denoiser, Prediction
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.grids import LogSNR
from diffusion.samplers import dpmpp_2m_sde
from diffusion.schedulers import EDM, Cosine, Flow
from diffusion.tasks.denoise import (
    candidate_levels,
    denoised,
    estimated_levels,
    expected_residuals,
    level_time,
    noise_of,
    posterior_draws,
    posterior_mean,
    residuals,
)
from tests.analytic import COVARIANCE, EVERY_SCHEDULER, MEAN, GaussianDenoiser

LEVEL = 0.4
C = torch.tensor(COVARIANCE, dtype=torch.float64)
M = torch.tensor(MEAN, dtype=torch.float64)


class Images(Denoiser):
    """The Gaussian denoiser for images (B, 3, *S), each of whose places holds the three coordinates."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler, self.exact = scheduler, GaussianDenoiser(scheduler)

    def predict(self, x_t, t, cond=None):
        triples = x_t.movedim(1, -1)
        return Prediction(self.exact(triples.reshape(-1, 3).double(), t).reshape(triples.shape).movedim(-1, 1).float())


def generative(scheduler, steps=60) -> GenerativeModel:
    return GenerativeModel(Images(scheduler), Identity(), dpmpp_2m_sde, LogSNR(steps))


def images(values: torch.Tensor) -> torch.Tensor:
    return values.float()[..., None, None]


def posterior(y: torch.Tensor, level: float = LEVEL) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (3,) and covariance (3, 3) of x0 given y = x0 + level eps."""
    gain = C @ torch.linalg.inv(C + level**2 * torch.eye(3).double())
    return M + gain @ (y.double() - M), C - gain @ C


@pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
def test_the_mean_is_that_of_the_posterior_under_every_schedule(scheduler):
    y = torch.tensor([0.9, -0.2, 0.4])
    found = posterior_mean(generative(scheduler), images(y[None]), LEVEL)
    torch.testing.assert_close(found.flatten().double(), posterior(y)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheduler", [EDM(), Cosine(), Flow()], ids=["EDM", "Cosine", "Flow"])
def test_draws_have_mean_and_covariance_of_the_posterior(scheduler):
    """6,400 draws for one y: the standard error of a mean is below 0.005, that of a covariance below 0.003."""
    y = torch.tensor([0.9, -0.2, 0.4])
    model, repeated = generative(scheduler, 200), images(y).expand(2, -1, 40, 40)
    found = posterior_draws(model, repeated, LEVEL, seeds=[0, 1], draws=2).movedim(2, -1).reshape(-1, 3).double()
    mean, covariance = posterior(y)
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.015)
    torch.testing.assert_close(found.T.cov(), covariance, rtol=0, atol=0.008)


def test_the_parts_fit_together():
    """The average and the spread are of the draws, the mean needs none, and the spread needs two."""
    y, model = images(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))), generative(EDM(), 12)
    draws = posterior_draws(model, y, LEVEL, seeds=range(4), draws=3)
    found = denoised(model, y, LEVEL, seeds=range(4), draws=3)
    assert torch.equal(found.sample, draws[0]) and torch.equal(found.average, draws.mean(0))
    torch.testing.assert_close(found.spread**2, draws.var(0))
    assert torch.equal(found.mean, posterior_mean(model, y, LEVEL))
    assert denoised(model, y, LEVEL, seeds=range(4), draws=0)[1:] == (None, None, None)
    assert denoised(model, y, LEVEL, seeds=range(4), draws=1).spread is None


def test_a_draw_depends_on_its_image_and_seed_alone():
    y, model = images(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))), generative(EDM(), 12)
    whole = posterior_draws(model, y, LEVEL, seeds=[5, 6, 7, 8], draws=2)
    alone = posterior_draws(model, y[2:3], LEVEL, seeds=[7], draws=1)
    torch.testing.assert_close(alone[0, 0], whole[0, 2])
    assert not torch.allclose(whole[0], whole[1])


def test_noise_depends_on_seed_and_place():
    whole = noise_of((3, 4, 4), 0, [3, 4, 5])
    assert torch.equal(noise_of((3, 4, 4), 0, [4])[0], whole[1])
    assert not torch.equal(noise_of((3, 4, 4), 1, [4])[0], whole[1])


def test_a_level_beyond_the_schedule_is_refused():
    assert EDM().sigma(level_time(EDM(), 0.3)).item() == pytest.approx(0.3)
    with pytest.raises(UserError, match="noise=100: the schedule of this run ends at 80"):
        level_time(EDM(), 100)


def test_the_level_is_found():
    """Of 40 images of 300 values each; noise of 0.05 is less than what the images themselves have in any direction."""
    generator = torch.Generator().manual_seed(1)
    factor = torch.linalg.cholesky(C)

    def clean(n):
        z = torch.randn(n, 10, 10, 3, generator=generator, dtype=torch.float64)
        return (M + z @ factor.T).movedim(-1, 1).float()

    model, levels = generative(EDM(), 20), candidate_levels(EDM())
    expected = expected_residuals(model, clean(100), levels, None, seed=3, batch_size=64)
    for level in (0.05, 0.23, 0.9):
        x0 = clean(40)
        noisy = x0 + level * torch.randn(x0.shape, generator=generator)
        found = estimated_levels(residuals(model, noisy, levels, None, 16), expected, levels)
        assert found.mean().item() == pytest.approx(level, rel=0.06)
        assert (found / level - 1).square().mean().sqrt() < 0.25


def test_an_estimate_is_held_within_the_candidates():
    levels, expected = [0.1, 0.2, 0.4], torch.tensor([1.0, 2.0, 4.0]).double()
    found = torch.tensor([[0.5, 0.5, 0.5], [9.0, 9.0, 9.0], [2.0, 2.0, 2.0], [2.0, 8**0.5, 8**0.5]]).double()
    torch.testing.assert_close(
        estimated_levels(found, expected, levels), torch.tensor([0.1, 0.4, 0.2, 0.08**0.5], dtype=torch.float64)
    )
