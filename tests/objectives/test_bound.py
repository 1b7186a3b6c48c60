"""The bound that trains a learned covariance, against torch's normals and the covariance of Gaussian data."""

import math

import pytest
import torch

from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.grids import Karras, LogSNR, Uniform
from diffusion.objectives import Bound, Objective, Simple, UniformTime, step_divergence
from diffusion.parameterizations import V
from diffusion.schedulers import EDM, Cosine, Linear, NoiseScheduler, posterior
from tests.analytic import EVERY_SCHEDULER, times

every_scheduler = pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())


def draws(count: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randn(count, 2, 4, 4, generator=g, dtype=torch.float64) for _ in range(3)]


@every_scheduler
@pytest.mark.parametrize(("start", "stop"), [(0.9, 0.85), (0.5, 0.1)])
def test_divergence_is_that_of_two_normals(scheduler: NoiseScheduler, start: float, stop: float):
    (x0, mean, logit), (t, s) = draws(), times(start, stop)
    v, step = torch.sigmoid(logit), posterior(scheduler, t, s)
    q = torch.distributions.Normal(step.of_x0 * x0, step.small.sqrt())
    p = torch.distributions.Normal(
        step.of_x0 * mean, (v * step.large.log() + (1 - v) * step.small.log()).mul(0.5).exp()
    )
    expected = torch.distributions.kl_divergence(q, p).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(step_divergence(step, x0, mean, v), expected, rtol=1e-5, atol=1e-7)


@every_scheduler
def test_the_posterior_is_that_of_two_noisings(scheduler: NoiseScheduler):
    """Bayes by precision: q(x_s | x_t, x0) from q(x_s | x0) and q(x_t | x_s)."""
    t, s = times(0.8, 0.3)
    alpha_t, alpha_s, sigma_t, sigma_s = scheduler.alpha(t), scheduler.alpha(s), scheduler.sigma(t), scheduler.sigma(s)
    slope, large = alpha_t / alpha_s, sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    precision = 1 / sigma_s**2 + slope**2 / large
    found = posterior(scheduler, t, s)
    torch.testing.assert_close(found.large, large, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.small, 1 / precision, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.of_x, slope / large / precision, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.of_x0, alpha_s / sigma_s**2 / precision, rtol=1e-9, atol=0)


@pytest.mark.parametrize("grid", [Uniform(10), Karras(10), LogSNR(10)], ids=["Uniform", "Karras", "LogSNR"])
@pytest.mark.parametrize("scheduler", [EDM(), Linear()], ids=["EDM", "Linear"])
def test_the_step_goes_to_the_next_time_of_the_grid(scheduler: NoiseScheduler, grid):
    """At the grid's times exactly; the last two have no step that can be learned."""
    t = grid(scheduler)
    s, inside = Bound(grid)._next(t[:-1], scheduler)
    assert inside.tolist() == [True] * 9 + [False]
    torch.testing.assert_close(s[:9], t[1:10], rtol=1e-9, atol=1e-15)
    between, _ = Bound(grid)._next((t[:8] + t[1:9]) / 2, scheduler)
    torch.testing.assert_close(between, (t[1:9] + t[2:10]) / 2, rtol=1e-9, atol=1e-15)


class Head(torch.nn.Module):
    """F = 0 everywhere, and one logit for all."""

    def __init__(self):
        super().__init__()
        self.logit, self.f = torch.nn.Parameter(torch.zeros(())), torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, c_noise, cond=None):
        return torch.cat([self.f.expand(x.shape), self.logit.expand(x.shape)], 1)


def test_the_gradient_reaches_the_covariance_alone():
    """The hybrid loss minus the simple one moves the logit, not F; and the simple part not the logit."""
    network, (x0, noise, _) = Head(), (x.float() for x in draws())
    denoiser = NetworkDenoiser(Cosine(), V(1.0), network, covariance=True)
    t = times(0.2, 0.5, 0.8)
    gradients = []
    for bound in (None, Bound(Uniform(50))):
        loss = Objective(UniformTime(), Simple(), bound=bound).loss(denoiser, x0, noise, t, None).mean()
        gradients.append(torch.autograd.grad(loss, [network.f, network.logit], allow_unused=True))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert not gradients[0][1] and gradients[1][1].abs() > 0


def test_its_minimum_is_the_covariance_of_the_data():
    """For x0 ~ N(0, c) and D = 0 the best variance is beta~ + of_x0^2 c: Bao et al. 2022, theorem 1."""
    g = torch.Generator().manual_seed(0)
    x0 = 0.4 * torch.randn(4096, 1, 2, 2, generator=g, dtype=torch.float64)
    t, s = times(0.6, 0.5)
    step = posterior(Cosine(), t, s)
    best = torch.log((step.small + step.of_x0**2 * x0.square().mean()) / step.small) / torch.log(
        step.large / step.small
    )
    v = best.clone().requires_grad_()
    step_divergence(step, x0, torch.zeros_like(x0), v).mean().backward()
    assert 0 < best < 1 and v.grad.abs() < 1e-6
    for other in (best - 0.05, best + 0.05):
        worse = step_divergence(step, x0, torch.zeros_like(x0), other).mean()
        assert worse > step_divergence(step, x0, torch.zeros_like(x0), best).mean()


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"grid": Uniform(1)}])
def test_what_trains_nothing_is_refused(wrong: dict):
    with pytest.raises(UserError, match=r"objective\.bound\."):
        Bound(**{"grid": Uniform(10), **wrong})
