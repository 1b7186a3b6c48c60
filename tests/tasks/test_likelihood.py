"""Likelihoods against what they are for data whose density is known."""

import math

import pytest
import torch

from diffusion.denoiser import Denoiser, Prediction
from diffusion.errors import UserError
from diffusion.grids import LogSNR
from diffusion.random import generator
from diffusion.schedulers import EDM, Cosine, Flow, Linear, NoiseScheduler, posterior
from diffusion.tasks.likelihood import flow_bits, level_bits, variational_bound
from tests.analytic import times

GAUSSIAN = {"weights": (1.0,), "means": (0.1,), "stds": (0.25,)}
MIXTURE = {"weights": (0.3, 0.7), "means": (-0.5, 0.4), "stds": (0.12, 0.2)}
SHAPE = (1, 8, 8)


class Independent(Denoiser):
    """The optimal denoiser of pixels that are independent, each of the same mixture of normals; elementwise."""

    def __init__(self, scheduler: NoiseScheduler, weights, means, stds):
        super().__init__()
        self.scheduler = scheduler
        self.weights, self.means, self.stds = (
            torch.tensor(v, dtype=torch.float64)[:, None] for v in (weights, means, stds)
        )
        self.covariance = True

    def predict(self, x_t, t, cond=None):
        """Also the fraction of the best covariance of short steps: SNR Var[x0 | x_t]."""
        alpha, sigma = self.scheduler.alpha(t), self.scheduler.sigma(t)
        x = x_t.double().flatten()
        variance = alpha**2 * self.stds**2 + sigma**2
        log_w = self.weights.log() - (x - alpha * self.means) ** 2 / variance / 2 - variance.log() / 2
        shares = torch.softmax(log_w, 0)
        means = self.means + alpha * self.stds**2 / variance * (x - alpha * self.means)
        mean = (shares * means).sum(0)
        spread = (shares * (self.stds**2 * sigma**2 / variance + (means - mean) ** 2)).sum(0)
        fraction = spread * alpha**2 / sigma**2 if self.covariance else None
        return Prediction(
            mean.reshape(x_t.shape).to(x_t), fraction if fraction is None else fraction.reshape(x_t.shape)
        )

    def draw(self, count: int) -> torch.Tensor:
        """Images (count, *SHAPE) of 256 levels."""
        g = generator("likelihood")
        which = torch.multinomial(self.weights[:, 0], count * 64, replacement=True, generator=g)
        x = self.means[which, 0] + self.stds[which, 0] * torch.randn(count * 64, generator=g, dtype=torch.float64)
        return ((x.clamp(-1, 1) + 1) * 127.5).round().div(127.5).sub(1).reshape(count, *SHAPE)

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """-log2 of the probability of each image's levels, a pixel."""
        bits = [level_bits(x, m.expand_as(x), s.item()) for m, s in zip(self.means, self.stds, strict=True)]
        log_p = torch.stack([w.log() - b * math.log(2) for w, b in zip(self.weights[:, 0], bits, strict=True)])
        return -torch.logsumexp(log_p, 0).flatten(1).mean(1) / math.log(2)


def offsets_and_probes(x: torch.Tensor) -> dict[str, torch.Tensor]:
    g = generator("flow")
    return {
        "offsets": torch.rand(x.shape, generator=g, dtype=torch.float64),
        "probes": torch.randint(0, 2, x.shape, generator=g).double() * 2 - 1,
    }


def normal(x: torch.Tensor):
    """Noise whose values are the normal's quantiles in random order: nearly nothing is left to chance."""
    quantiles = torch.special.ndtri((torch.arange(x.numel(), dtype=torch.float64) + 0.5) / x.numel())
    return lambda step: quantiles[torch.randperm(x.numel(), generator=generator("bound", step))].reshape(x.shape)


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize("scheduler", [EDM(), Linear(), Flow()], ids=["EDM", "Linear", "Flow"])
def test_flow_is_exact(scheduler: NoiseScheduler, data: dict):
    """Within 0.01 bits per dimension on average: of independent pixels the estimate of the trace is exact."""
    denoiser = Independent(scheduler, **data)
    x = denoiser.draw(48)
    bits, evaluations = flow_bits(denoiser, x, **offsets_and_probes(x))
    assert bits.mean().item() == pytest.approx(denoiser.exact(x).mean().item(), abs=0.01)
    assert (bits - denoiser.exact(x)).abs().max() < 0.06  # what the dequantisation moves
    assert evaluations < 500


@pytest.mark.slow
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize("scheduler", [EDM(), Linear(), Flow()], ids=["EDM", "Linear", "Flow"])
def test_bound_is_tight_in_many_steps(scheduler: NoiseScheduler, data: dict):
    """With the best covariance within 0.01 bits per dimension of the exact value; with any other above that.

    The last noise, log-SNR 8, is larger than a level, and small beside the data.
    """
    denoiser = Independent(scheduler, **data)
    x = denoiser.draw(64)
    exact = denoiser.exact(x).mean().item()

    def bound(steps: int, variance: float | None) -> float:
        terms = variational_bound(denoiser, x, LogSNR(steps, -12, 8)(scheduler), noise=normal(x), variance=variance)
        assert terms.steps.shape == (64, steps - 1) and (terms.steps >= 0).all()
        assert terms.prior.mean() < 1e-4
        return terms.total.mean().item()

    assert bound(1000, None) == pytest.approx(exact, abs=0.01)
    learned, small, large = (bound(50, variance) for variance in (None, 0.0, 1.0))
    assert exact - 0.02 < learned < min(small, large) - 0.02  # of a Gaussian it is tight in any number of steps


def test_each_term_is_what_its_name_says():
    """One step by hand: the divergence from torch's normals, the prior, and the decoder's integral."""
    denoiser = Independent(Cosine(), **GAUSSIAN)
    denoiser.covariance = False
    x, scheduler = denoiser.draw(3), Cosine()
    grid = times(0.9, 0.5, 0.0)
    terms = variational_bound(denoiser, x, grid, noise=normal(x), variance=0.4)
    alpha, sigma = scheduler.alpha(grid), scheduler.sigma(grid)
    prior = torch.distributions.kl_divergence(
        torch.distributions.Normal(alpha[0] * x, sigma[0]), torch.distributions.Normal(0.0 * x, sigma[0])
    )
    torch.testing.assert_close(terms.prior, prior.flatten(1).mean(1) / math.log(2), rtol=1e-6, atol=0)
    x_t = alpha[0] * x + sigma[0] * normal(x)(0)
    step = posterior(scheduler, grid[0], grid[1])
    means = [step.of_x * x_t + step.of_x0 * guess for guess in (x, denoiser(x_t, grid[0]))]
    stds = [step.small.sqrt(), (step.small**0.6 * step.large**0.4).sqrt()]
    q, p = (torch.distributions.Normal(m, s.expand_as(m)) for m, s in zip(means, stds, strict=True))
    divergence = torch.distributions.kl_divergence(q, p).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(terms.steps[:, 0], divergence, rtol=1e-5, atol=1e-7)
    guess = denoiser(alpha[1] * x + sigma[1] * normal(x)(1), grid[1])
    bits = level_bits(x, guess, (sigma[1] / alpha[1]).item())
    torch.testing.assert_close(terms.decoder, bits.flatten(1).mean(1), rtol=1e-6, atol=0)


def test_levels_share_all_probability():
    """The 256 levels of one pixel sum to 1, wherever the normal lies, and far from it no level is impossible."""
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-3.0, -1.0, 0.0123, 0.999, 2.0):
        for std in (1e-3, 0.02, 0.7):
            bits = level_bits(levels, torch.full_like(levels, mean), std)
            assert torch.isfinite(bits).all()
            assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-9)


def test_a_model_that_has_diverged_is_one_line():
    class Wild(Independent):
        def predict(self, x_t, t, cond=None):
            return Prediction(x_t * math.nan)

    denoiser = Wild(EDM(), **GAUSSIAN)
    x = denoiser.draw(1)
    with pytest.raises(UserError, match="not finite"):
        flow_bits(denoiser, x, **offsets_and_probes(x))
