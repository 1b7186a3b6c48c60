"""Noise schedulers against their own inverse, their definitions, and the discrete tables of diffusers."""

import diffusers
import pytest
import torch

from diffusion.parameterizations.base import LOG_SNR_LIMIT
from diffusion.schedulers import EDM, Cosine, Flow, Linear, NoiseScheduler, ScaledLinear, Sigmoid
from tests.analytic import EVERY_SCHEDULER, times

VARIANTS = EVERY_SCHEDULER | {
    "EDM to 20": EDM(sigma_max=20.0, rho=3.0),
    "Cosine to -6": Cosine(log_snr_min=-6.0),
    "Linear to 10": Linear(beta_min=0.5, beta_max=10.0),
    "Sigmoid 0 3 0.3": Sigmoid(
        start=0.0, end=3.0, tau=0.3
    ),  # the three of Jabri et al. 2022, figure 3, that differ most
    "Sigmoid -3 3 0.9": Sigmoid(tau=0.9),
    "Sigmoid 0 3 1.1": Sigmoid(start=0.0, end=3.0, tau=1.1),
}
every_scheduler = pytest.mark.parametrize("scheduler", VARIANTS.values(), ids=VARIANTS.keys())


@every_scheduler
def test_data_is_at_time_zero(scheduler: NoiseScheduler):
    assert scheduler.alpha(times(0)).item() == 1
    assert scheduler.sigma(times(0)).item() == 0
    assert scheduler.log_snr(times(0)).item() == torch.inf


@every_scheduler
def test_log_snr_falls_strictly_and_is_of_alpha_and_sigma(scheduler: NoiseScheduler):
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    log_snr = scheduler.log_snr(t)
    assert (log_snr.diff() < 0).all()
    snr = (scheduler.alpha(t) / scheduler.sigma(t)) ** 2
    torch.testing.assert_close(log_snr.exp()[1:], snr[1:], rtol=1e-9, atol=1e-300)


@every_scheduler
def test_time_inverts_log_snr(scheduler: NoiseScheduler):
    """To 1e-9 of the time itself, down to t = 1e-6."""
    t = torch.cat([torch.logspace(-6, -2, 200, dtype=torch.float64), torch.linspace(0.01, 1, 500, dtype=torch.float64)])
    torch.testing.assert_close(scheduler.time(scheduler.log_snr(t)), t, rtol=1e-9, atol=0)


@every_scheduler
def test_log_snr_inverts_time(scheduler: NoiseScheduler):
    """To 1e-6 over the log-SNRs that training and sampling can visit."""
    last = scheduler.log_snr(times(1)).item()
    levels = torch.linspace(max(last, -LOG_SNR_LIMIT), LOG_SNR_LIMIT, 401, dtype=torch.float64)
    t = scheduler.time(levels)
    assert (t > 0).all() and (t < 1 + 1e-12).all()
    torch.testing.assert_close(scheduler.log_snr(t), levels, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "scheduler",
    [*VARIANTS.values(), Sigmoid(floor=0.06), Sigmoid(floor=0.5)],
    ids=[*VARIANTS.keys(), "Sigmoid floor 0.06", "Sigmoid floor 0.5"],
)
def test_time_of_levels_beyond_the_end(scheduler: NoiseScheduler):
    """Training clamps the times of log-SNRs that a schedule does not reach: they rise past 1, never NaN."""
    levels = torch.linspace(LOG_SNR_LIMIT, -LOG_SNR_LIMIT, 100, dtype=torch.float64)
    assert (scheduler.time(levels).clamp(max=1).diff() >= 0).all()


@pytest.mark.parametrize("scheduler", [Cosine(), Linear(), ScaledLinear(), Sigmoid(), VARIANTS["Cosine to -inf"]])
def test_variance_preserving(scheduler: NoiseScheduler):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(scheduler.alpha(t) ** 2 + scheduler.sigma(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize(
    ("scheduler", "beta"),
    [
        (Linear(), lambda t: 0.1 + 19.9 * t),
        (Linear(beta_min=0.5, beta_max=10.0), lambda t: 0.5 + 9.5 * t),
        (ScaledLinear(), lambda t: (0.85**0.5 + (12**0.5 - 0.85**0.5) * t) ** 2),
    ],
)
def test_alpha_is_the_numerical_integral_of_beta(scheduler: NoiseScheduler, beta):
    """alpha(t)^2 = exp(-integral of beta), by the trapezoidal rule on 20,000 intervals."""
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    integral = torch.cumulative_trapezoid(beta(t), t)
    torch.testing.assert_close(scheduler.alpha(t)[1:], torch.exp(-integral / 2), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("scheduler", "table"),
    [
        (Linear(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        (ScaledLinear(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    ],
)
def test_close_to_the_discrete_table(scheduler: NoiseScheduler, table: dict):
    """Row i of 1000 is t = (i + 1) / 1000; they differ by 0.1 in log-SNR, and 0.002 in alpha and sigma."""
    alpha2 = diffusers.DDPMScheduler(num_train_timesteps=1000, **table).alphas_cumprod.double()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(scheduler.log_snr(t), torch.logit(alpha2), rtol=0, atol=0.1)
    torch.testing.assert_close(scheduler.alpha(t), alpha2.sqrt(), rtol=0, atol=2e-3)
    torch.testing.assert_close(scheduler.sigma(t), (1 - alpha2).sqrt(), rtol=0, atol=2e-3)


def test_cosine_is_the_cosine_schedule():
    """alpha^2 = cos^2(pi t / 2), Nichol and Dhariwal 2021 without offset, where the SNR ends at zero."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    to_zero = Cosine(log_snr_min=-float("inf"))
    torch.testing.assert_close(to_zero.alpha(t), torch.cos(torch.pi / 2 * t), rtol=0, atol=1e-15)
    assert to_zero.alpha(times(1)).item() == 0
    assert Cosine(log_snr_min=-6.0).log_snr(times(1)).item() == pytest.approx(-6)


def test_sigmoid_is_the_published_gamma():
    """alpha^2 = clip((v_end - v(t)) / (v_end - v_start), floor, 1), Jabri et al. 2022, algorithm 1."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    start, end, tau = -3.0, 3.0, 0.9
    v = torch.sigmoid((torch.cat([t, times(0, 1)]) * (end - start) + start) / tau)
    gamma = ((v[-1] - v[:-2]) / (v[-1] - v[-2])).clamp(1e-9, 1)
    torch.testing.assert_close(Sigmoid(start, end, tau).alpha(t) ** 2, gamma, rtol=0, atol=2e-9)


def test_zero_terminal_snr_is_exact():
    for scheduler in (Flow(), Cosine(log_snr_min=-float("inf"))):
        assert scheduler.alpha(times(1)).item() == 0
        assert scheduler.log_snr(times(1)).item() == -torch.inf
