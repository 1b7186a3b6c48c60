"""Posterior sampling of linear measurements, against Gaussian data, for which it is exact."""

import pytest
import torch

from diffusion.denoiser import Prediction
from diffusion.errors import UserError
from diffusion.guidance import Measured
from diffusion.guidance.measured import conjugate_gradients
from diffusion.samplers import ddpm, heun
from tests.analytic import EVERY_SCHEDULER, SCHEDULERS, GaussianDenoiser, times

MATRIX = torch.tensor([[1.0, 0.5, -1.0], [0.0, 1.0, 0.3]], dtype=torch.float64)
Y = torch.tensor([0.5, -0.2], dtype=torch.float64)
NOISE = 0.2


def measure(x: torch.Tensor) -> torch.Tensor:
    return x @ MATRIX.T


def posterior(mean: torch.Tensor, covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (B, 3) and covariance of x given Y, where x ~ N(mean, covariance)."""
    gain = covariance @ MATRIX.T @ torch.linalg.inv(MATRIX @ covariance @ MATRIX.T + NOISE**2 * torch.eye(2))
    return mean + (Y - mean @ MATRIX.T) @ gain.T, covariance - gain @ MATRIX @ covariance


def grid_of(scheduler, steps: int) -> torch.Tensor:
    return torch.cat([scheduler.time(torch.linspace(-8, 12, steps, dtype=torch.float64)), times(0)])


@pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER)
def test_it_is_the_mean_given_both(scheduler):
    """E[x0 | x_t, y], by conditioning the normal p(x0 | x_t) on y; with or without gradients."""
    exact, g = GaussianDenoiser(scheduler), torch.Generator().manual_seed(0)
    for t in times(0.05, 0.3, 0.7):
        x = torch.randn(6, 3, generator=g, dtype=torch.float64)
        alpha, sigma = scheduler.alpha(t), scheduler.sigma(t)
        c = exact.covariance
        given = c - alpha**2 * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(3)) @ c
        wanted, _ = posterior(exact(x, t), given)
        guided = Measured(exact, measure, Y.expand(6, 2), NOISE, iterations=2)
        with torch.inference_mode():
            found = guided(x, t)
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["EDM", "Cosine", "Flow", "Linear"])
def test_a_sampler_draws_the_posterior(key):
    """Heun's map is affine: where 0 and the axes go says what it draws. To 0.005, and 0.001 of a covariance of 0.06."""
    scheduler = EVERY_SCHEDULER[key]
    exact, grid = GaussianDenoiser(scheduler), grid_of(scheduler, 60)
    probes = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double() * scheduler.sigma(grid[0])
    found = heun(Measured(exact, measure, Y.expand(4, 2), NOISE, iterations=2), probes, grid)
    matrix, (mean, covariance) = found[1:] - found[0], posterior(exact.mean[None], exact.covariance)
    torch.testing.assert_close(found[:1], mean, rtol=0, atol=0.005)
    torch.testing.assert_close(matrix.T @ matrix, covariance, rtol=0, atol=0.001)


@pytest.mark.slow
def test_ancestral_sampling_draws_it_too():
    """2,000 draws of 200 steps: mean within 4 standard errors, covariance within 0.006 of 0.06."""
    n, scheduler, g = 2000, SCHEDULERS["EDM"], torch.Generator().manual_seed(0)
    exact, grid = GaussianDenoiser(scheduler), grid_of(scheduler, 200)

    def rng(shape):
        return torch.randn(n, *shape, generator=g, dtype=torch.float64)

    x = rng((3,)) * scheduler.sigma(grid[0])
    found = ddpm(Measured(exact, measure, Y.expand(n, 2), NOISE, iterations=2), x, grid, rng=rng)
    mean, covariance = posterior(exact.mean[None], exact.covariance)
    assert ((found.mean(0) - mean[0]).abs() < 4 * (covariance.diag() / n).sqrt() + 0.005).all()
    assert (found.T.cov() - covariance).abs().max() < 0.006
    assert (exact.covariance - covariance).abs().max() > 0.1


def test_a_measurement_that_bends_is_followed_by_its_slope():
    """h(x) = tanh(x) for small x is x; the answer is that of the slope at D, not of the identity."""
    exact, x, t = GaussianDenoiser(SCHEDULERS["EDM"]), torch.zeros(1, 3, dtype=torch.float64), times(0.5)[0]
    mean = exact(x, t)
    slope = 1 - torch.tanh(mean) ** 2
    y = torch.tanh(mean) + 0.01
    found = Measured(exact, torch.tanh, y, 0.3, iterations=3)(x, t)
    linear = Measured(exact, lambda z: slope * z, slope * mean + 0.01, 0.3, iterations=3)(x, t)
    torch.testing.assert_close(found, linear)


def test_a_measurement_through_attention_can_be_followed():
    """As that of a decoder's output may be: it is differentiated twice."""

    def attend(x: torch.Tensor) -> torch.Tensor:
        tokens = x.float().reshape(len(x), 1, 3, 1).repeat(1, 1, 1, 4)
        return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0, :, 0].double()

    exact, x = GaussianDenoiser(SCHEDULERS["EDM"]), torch.ones(1, 3, dtype=torch.float64)
    t, y = times(0.5)[0], torch.full((1, 3), 0.2, dtype=torch.float64)
    plain, guided = exact(x, t), Measured(exact, attend, y, 0.1)(x, t)
    assert (attend(guided) - y).norm() < (attend(plain) - y).norm()


def test_where_the_noisy_image_says_nothing_the_model_is_left_alone():
    scheduler, x = EVERY_SCHEDULER["Flow"], torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    exact = GaussianDenoiser(scheduler)
    found = Measured(exact, measure, Y.expand(2, 2), NOISE)(x, times(1.0)[0])
    assert torch.equal(found, exact(x, times(1.0)[0]))


def test_a_learned_variance_is_kept():
    class Learned(GaussianDenoiser):
        def predict(self, x_t, t, cond=None):
            return Prediction(super().predict(x_t, t).mean, torch.full_like(x_t, 0.3))

    found = Measured(Learned(SCHEDULERS["EDM"]), measure, Y.expand(1, 2), NOISE).predict(
        torch.zeros(1, 3), times(0.5)[0]
    )
    assert (found.fraction == 0.3).all()


def test_conjugate_gradients_solve_each_sample_by_itself():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(3, 5, 5, generator=g, dtype=torch.float64)
    matrix = root @ root.mT + 0.5 * torch.eye(5)
    b = torch.randn(3, 5, generator=g, dtype=torch.float64)
    b[1] = 0
    found = conjugate_gradients(lambda v: (matrix @ v[..., None])[..., 0], b, 5)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b))


def test_conjugate_gradients_stop_where_a_matrix_is_not_positive():
    found = conjugate_gradients(lambda v: v * torch.tensor([[-1.0], [2.0]]), torch.ones(2, 4), 3)
    assert torch.equal(found, torch.tensor([[0.0] * 4, [0.5] * 4]))


@pytest.mark.parametrize(
    ("options", "said"), [({"noise": 0.0}, "noise=0"), ({"noise": 1.0, "iterations": 0}, "iterations")]
)
def test_what_means_nothing_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Measured(GaussianDenoiser(SCHEDULERS["EDM"]), measure, Y, **options)
