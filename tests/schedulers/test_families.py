"""Schedules made of others, of tables, and by learning: their published definitions."""

import copy

import diffusers
import pytest
import torch

from diffusion.errors import UserError
from diffusion.objectives import ELBO
from diffusion.schedulers import (
    EDM,
    Cosine,
    Flow,
    Learned,
    Linear,
    ScaledLinear,
    Shifted,
    Table,
    ZeroTerminal,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)
from tests.analytic import EVERY_SCHEDULER, times

T = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)


@pytest.mark.parametrize(
    ("betas", "options"),
    [
        (linear_betas(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        (scaled_linear_betas(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (cosine_betas(), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["linear", "scaled_linear", "cosine"],
)
def test_tables_are_those_of_diffusers(betas, options):
    theirs = diffusers.DDPMScheduler(num_train_timesteps=1000, **options)
    rows = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(torch.tensor(betas), theirs.betas, rtol=1e-5, atol=1e-7)
    alpha2 = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
    torch.testing.assert_close(Table(betas).alpha(rows) ** 2, alpha2, rtol=1e-9, atol=0)


def test_a_table_is_linear_in_log_snr_between_its_rows_and_ends_in_the_data():
    table = Table([0.1, 0.2, 0.4])
    rows = table.log_snr(times(1 / 3, 2 / 3, 1))
    torch.testing.assert_close(table.log_snr(times(0.5)), (rows[0] + rows[1])[None] / 2, rtol=1e-12, atol=0)
    ratio = table.sigma(times(0.1, 0.2)) / table.alpha(times(0.1, 0.2))
    assert (ratio[1] / ratio[0]).item() == pytest.approx(2)


@pytest.mark.parametrize("betas", [[], [0.1], [0.1, 1.0], [0.0, 0.1], [0.1, "a"]])
def test_a_table_that_is_none_is_refused(betas):
    with pytest.raises(UserError, match=r"scheduler\.betas"):
        Table(betas)


def test_rescaling_is_the_published_one():
    """Lin et al. 2024, algorithm 1, on the table of alpha: shifted to end at 0, scaled to begin as it did."""
    base = ScaledLinear()
    alpha = base.alpha(torch.cat([times(0), T, times(1)]))
    expected = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    torch.testing.assert_close(ZeroTerminal(base).alpha(T), expected[1:-1], rtol=1e-12, atol=0)
    assert ZeroTerminal(base).alpha(times(1)).item() == 0
    assert ZeroTerminal(base).sigma(times(1)).item() == pytest.approx(1)


def test_shifting_gives_larger_images_the_noise_of_the_reference():
    """log_snr(t) of Hoogeboom et al. 2023, eq. 3: -2 log tan(pi t / 2) + 2 log(64 / 256)."""
    shifted = Shifted(Cosine(log_snr_min=-float("inf")), size=256)
    expected = -2 * torch.log(torch.tan(torch.pi * T / 2)) + 2 * torch.log(torch.tensor(64 / 256, dtype=torch.float64))
    torch.testing.assert_close(shifted.log_snr(T), expected, rtol=1e-9, atol=1e-9)
    plain = Shifted(Linear(), size=64)
    torch.testing.assert_close(plain.log_snr(T), Linear().log_snr(T), rtol=0, atol=0)


def test_the_shift_of_flow_is_one_in_log_snr_too():
    """Esser et al. 2024, eq. 23: t -> m t / (1 + (m - 1) t)."""
    torch.testing.assert_close(Flow(3.0).sigma(T), 3 * T / (1 + 2 * T), rtol=1e-12, atol=0)
    shift = Flow(3.0).log_snr(T) - Flow().log_snr(T)
    torch.testing.assert_close(shift, torch.full_like(T, -2 * torch.log(torch.tensor(3.0)).item()), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ZeroTerminal(EDM()),
        lambda: Shifted(Flow()),
        lambda: Shifted(Learned()),
        lambda: Shifted(Cosine(), size=0),
        lambda: Flow(0.0),
        lambda: Learned(high=-9.0, low=13.0),
        lambda: Learned(pieces=1),
    ],
)
def test_what_means_nothing_is_refused(make):
    with pytest.raises(UserError, match="scheduler"):
        make()


@pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
def test_slope_is_the_derivative_even_without_gradients(scheduler):
    scheduler = copy.deepcopy(scheduler)
    t = torch.linspace(0.0503, 0.9503, 7, dtype=torch.float64)  # between the knots of those that have knots
    step = 1e-6
    expected = -(scheduler.log_snr(t + step) - scheduler.log_snr(t - step)) / (2 * step)
    with torch.inference_mode():
        found = scheduler.slope(t)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_learned_schedule_spends_its_time_where_the_loss_is():
    """An error with a narrow peak: afterwards every time has about the same loss, and the mean is as before."""

    def error(log_snr):
        return 0.1 + torch.exp(-((log_snr - 3) ** 2))

    def losses(t):
        return error(scheduler.log_snr(t)) * scheduler.slope(t)

    scheduler = Learned()
    t = torch.linspace(0.01, 0.99, 400, dtype=torch.float64)
    before = losses(t)
    optimizer = torch.optim.Adam(scheduler.parameters(), lr=0.05)
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        u = 0.001 + 0.999 * torch.rand(64, generator=g, dtype=torch.float64)
        optimizer.zero_grad()
        scheduler.own_loss(u, losses(u)).backward()
        optimizer.step()
    after = losses(t)
    assert before.std() / before.mean() > 0.8 and after.std() / after.mean() < 0.35
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=0.05)
    # The error is 0.1 almost everywhere, and a tenth of the time is even.
    assert scheduler.slope(scheduler.time(times(3))) < 0.5 * scheduler.slope(scheduler.time(times(-6)))


def test_the_bound_is_the_same_for_every_schedule():
    """For D = 0 the integral of SNR x0^2 / 2 over the log-SNR is x0^2 (SNR(high) - SNR(low)) / 2."""
    for scheduler in (Linear(), Cosine(), EVERY_SCHEDULER["Learned"], EVERY_SCHEDULER["Table"]):
        ends = scheduler.time(times(3, -9))
        t = torch.lerp(ends[0], ends[1], (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
        mean = ELBO()(t, scheduler, times(1), 0.5).mean() * (ends[1] - ends[0])
        assert mean.item() == pytest.approx((torch.exp(times(3)) - torch.exp(times(-9))).item() / 2, rel=1e-4)
