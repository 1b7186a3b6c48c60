"""Time grids: the contract of all of them on every scheduler, and the published formulas."""

import pytest
import torch

from diffusion.errors import UserError
from diffusion.grids import Angle, Karras, LogSNR, Optimised, Quadratic, Uniform
from diffusion.schedulers import EDM, Cosine, Flow, Linear, NoiseScheduler
from tests.analytic import EVERY_SCHEDULER, GRIDS, times

every_scheduler = pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@every_scheduler
@every_grid
@pytest.mark.parametrize("steps", [1, 2, 17, 1000])
def test_contract(grid: type, scheduler: NoiseScheduler, steps: int):
    t = grid(steps=steps)(scheduler)
    assert t.shape == (steps + 1,) and t.dtype == torch.float64 and t.device.type == "cpu"
    assert (t.diff() < 0).all()
    assert t[0] <= 1 and t[-1] == 0
    assert scheduler.sigma(t[:-1]).float().min() > 0


@every_grid
@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(grid: type, steps: int):
    with pytest.raises(UserError, match=f"steps={steps}"):
        grid(steps=steps)


@pytest.mark.parametrize(
    ("grid", "wrong"),
    [
        (Karras, {"sigma_min": 0.0}),
        (Karras, {"sigma_min": 90.0}),
        (LogSNR, {"low": 3.0, "high": 3.0}),
        (Angle, {"level": 0.0}),
    ],
)
def test_empty_ranges_are_refused(grid: type, wrong: dict):
    with pytest.raises(UserError, match=next(iter(wrong))):
        grid(**wrong)


def karras_sigmas(steps: int, low: float, high: float, rho: float) -> torch.Tensor:
    """Karras et al. 2022, eq. 5, without the last 0."""
    i = torch.arange(steps, dtype=torch.float64)
    return (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


@pytest.mark.parametrize(("steps", "low", "high", "rho"), [(18, 0.002, 80.0, 7.0), (40, 0.01, 50.0, 3.0)])
@pytest.mark.parametrize("scheduler", [EDM(), Flow(), Linear(beta_max=40.0)], ids=["EDM", "Flow", "Linear"])
def test_karras_is_the_published_formula(scheduler: NoiseScheduler, steps: int, low: float, high: float, rho: float):
    """On any scheduler, as the levels sigma / alpha."""
    t = Karras(steps, low, high, rho)(scheduler)[:-1]
    levels = scheduler.sigma(t) / scheduler.alpha(t)
    torch.testing.assert_close(levels, karras_sigmas(steps, low, high, rho), rtol=1e-9, atol=0)


def test_uniform_on_edm_is_karras_to_zero():
    """Uniform times on the EDM scheduler are eq. 5 with sigma_min = 0."""
    levels = EDM().sigma(Uniform(steps=18)(EDM()))
    torch.testing.assert_close(levels, karras_sigmas(19, 0.0, 80.0, 7.0), rtol=1e-12, atol=1e-30)


def test_karras_begins_at_the_end_of_a_short_schedule():
    scheduler = EDM(sigma_max=10.0)
    assert scheduler.sigma(Karras()(scheduler))[0].item() == pytest.approx(10)


@every_scheduler
def test_log_snr_grid_is_even(scheduler: NoiseScheduler):
    levels = scheduler.log_snr(LogSNR(steps=25, low=-4, high=8)(scheduler)[:-1])
    torch.testing.assert_close(levels.diff(), torch.full((24,), 0.5, dtype=torch.float64), rtol=0, atol=1e-6)
    assert levels[0].item() == pytest.approx(-4)


@every_scheduler
def test_angle_is_the_uniform_grid_of_the_cosine_schedule(scheduler: NoiseScheduler):
    """Levels tan(i pi / 2n), from where the scheduler ends, which may be infinite."""
    t = Angle(steps=6)(scheduler)
    end = torch.atan2(scheduler.sigma(times(1)), scheduler.alpha(times(1)))
    levels = scheduler.sigma(t[1:]) / scheduler.alpha(t[1:])
    torch.testing.assert_close(levels, torch.tan(end * torch.arange(5, -1, -1) / 6), rtol=1e-6, atol=1e-12)
    assert t[0] == 1
    torch.testing.assert_close(Angle(steps=6)(Cosine()), Uniform(steps=6)(Cosine()), rtol=1e-9, atol=1e-12)


def test_half_of_the_angles_lie_below_the_level():
    levels = EDM(sigma_max=1e9).sigma(Angle(steps=4, level=0.3)(EDM(sigma_max=1e9)))
    torch.testing.assert_close(levels[1:], 0.3 * times(1 + 2**0.5, 1, 2**0.5 - 1, 0), rtol=1e-6, atol=1e-12)


def test_uniform():
    torch.testing.assert_close(Uniform(steps=4)(Flow()), times(1, 0.75, 0.5, 0.25, 0), rtol=0, atol=0)


def test_quadratic():
    torch.testing.assert_close(Quadratic(steps=4)(Flow()), times(1, 0.5625, 0.25, 0.0625, 0), rtol=0, atol=0)


@every_scheduler
def test_optimised_visits_its_log_snrs(scheduler: NoiseScheduler):
    t = Optimised(3, (-4.0, 0.5, 6.0))(scheduler)
    torch.testing.assert_close(scheduler.log_snr(t[:-1]), times(-4, 0.5, 6), rtol=0, atol=1e-6)
    assert t[-1] == 0 and (t.diff() < 0).all()


@pytest.mark.parametrize(
    ("levels", "said"), [(None, "tune_grid run=RUN_DIR steps=3"), ((1.0, 2.0), "steps=3"), ((1.0, 3.0, 2.0), "rising")]
)
def test_optimised_without_what_was_measured_is_refused(levels, said):
    with pytest.raises(UserError, match=said):
        Optimised(3, levels)
