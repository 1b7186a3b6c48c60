"""Autoguidance against closed forms: Gaussian data as two denoisers see them, of which one is wrong."""

import math

import pytest
import torch
from torch import Tensor

from diffusion.denoiser import Denoiser, Prediction
from diffusion.errors import UserError
from diffusion.guidance import Autoguidance
from diffusion.samplers import dpmpp_2m
from diffusion.schedulers import Cosine, Flow
from tests.analytic import COVARIANCE, MEAN, GaussianDenoiser, times

WRONG = (0.1, 0.2, -0.4)
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pair(scheduler=None, **wrong) -> tuple[GaussianDenoiser, GaussianDenoiser]:
    scheduler = scheduler or Cosine()
    return GaussianDenoiser(scheduler), GaussianDenoiser(scheduler, **wrong)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.95])
def test_two_means_make_a_third(scale, t):
    """Of one covariance: the guided denoiser is the optimal one of the mean m_w + scale (m - m_w)."""
    strong, weak = pair(mean=WRONG)
    mean = tuple(w + scale * (m - w) for m, w in zip(MEAN, WRONG, strict=True))
    found = Autoguidance(strong, weak, scale)(X, times(t)[0])
    torch.testing.assert_close(found, GaussianDenoiser(Cosine(), mean)(X, times(t)[0]))


def test_two_covariances_make_a_narrower_one():
    """The score is scale times one's and 1 - scale times the other's: so are the precisions of x_t."""
    scheduler, scale, t = Cosine(), 2.0, times(0.4)[0]
    wide = (2 * torch.tensor(COVARIANCE)).tolist()
    strong, weak = pair(scheduler, covariance=wide)
    alpha, sigma = scheduler.alpha(t), scheduler.sigma(t)
    precisions = [torch.linalg.inv(alpha**2 * d.covariance + sigma**2 * torch.eye(3)) for d in (strong, weak)]
    precision = scale * precisions[0] + (1 - scale) * precisions[1]
    score = -(X - alpha * strong.mean) @ precision
    torch.testing.assert_close(Autoguidance(strong, weak, scale)(X, t), (X + sigma**2 * score) / alpha)
    assert (torch.linalg.eigvalsh(precision) > torch.linalg.eigvalsh(precisions[0])).all()


def test_samples_are_of_the_mean_that_is_led_away_from_the_weak_one():
    strong, weak = pair(mean=WRONG)
    grid = torch.linspace(0.99, 0.01, 200, dtype=torch.float64)
    exact = GaussianDenoiser(Cosine(), tuple(w + 1.5 * (m - w) for m, w in zip(MEAN, WRONG, strict=True)))
    found = dpmpp_2m(Autoguidance(strong, weak, 1.5), X, grid)
    torch.testing.assert_close(found, exact.flow(X, grid[0], grid[-1]), rtol=0, atol=2e-3)
    assert (found - strong.flow(X, grid[0], grid[-1])).abs().max() > 0.1


@pytest.mark.parametrize(("scale", "low", "high"), [(1.0, 0.0, math.inf), (3.0, 1.0, 2.0), (3.0, 0.1, 0.9)])
def test_without_guidance_the_weak_one_is_not_asked(scale, low, high):
    strong, weak = pair(Flow(), mean=WRONG)
    t = times(0.5)[0]  # sigma / alpha = 1
    assert torch.equal(Autoguidance(strong, weak, scale, low, high)(X, t), strong(X, t))
    assert weak.evaluations == 0


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (0.5, 2.0), (0.0, math.inf)])
def test_inside_the_interval_both_are_asked_once(low, high):
    strong, weak = pair(Flow(), mean=WRONG)
    t = times(0.5)[0]
    found = Autoguidance(strong, weak, 3.0, low, high)(X, t)
    assert (strong.evaluations, weak.evaluations) == (1, 1)
    torch.testing.assert_close(found, 3 * strong(X, t) - 2 * weak(X, t))


def test_samples_at_times_on_both_sides_of_the_interval_are_guided_each_by_its_own():
    strong, weak = pair(Flow(), mean=WRONG)
    guided, t = Autoguidance(strong, weak, 3.0, 0.5, 2.0), times(0.1, 0.5, 0.6, 0.9, 1.0)
    inside = torch.tensor([False, True, True, False, False])
    led = weak(X, t) + 3 * (strong(X, t) - weak(X, t))
    torch.testing.assert_close(guided(X, t), torch.where(inside[:, None], led, strong(X, t)))
    asked = weak.evaluations
    assert torch.equal(guided(X, t[[0, 0, 3, 3, 4]]), strong(X, t[[0, 0, 3, 3, 4]]))
    assert weak.evaluations == asked


def test_at_zero_terminal_snr():
    strong, weak = pair(Flow(), mean=WRONG)
    found = Autoguidance(strong, weak, 2.0)(X, times(1)[0])
    torch.testing.assert_close(found, (2 * torch.tensor(MEAN) - torch.tensor(WRONG)).double().expand(5, 3))


def test_both_are_told_the_condition_and_the_covariance_is_the_models_own():
    class Told(Denoiser):
        def __init__(self, fraction: float):
            super().__init__()
            self.scheduler, self.fraction = Cosine(), fraction

        def predict(self, x_t: Tensor, t: Tensor, cond=None) -> Prediction:
            return Prediction(x_t + cond["label"][:, None], torch.full_like(x_t, self.fraction))

    cond = {"label": torch.arange(5)}
    found = Autoguidance(Told(0.3), Told(0.9), 4.0).predict(X, times(0.5)[0], cond)
    torch.testing.assert_close(found.mean, X + cond["label"][:, None])
    assert (found.fraction == 0.3).all()


def test_it_needs_no_labels():
    assert Autoguidance.lacks(None, 0.0) is None


@pytest.mark.parametrize("keys", [{"scale": math.inf}, {"scale": math.nan}, {"low": -1.0}, {"low": 2.0, "high": 1.0}])
def test_values_out_of_range(keys):
    with pytest.raises(UserError, match=r"guidance\."):
        Autoguidance(*pair(), **keys)
