"""Deterministic samplers against the exact probability flow of Gaussian data, on every scheduler."""

import re

import pytest
import torch

from diffusion.grids import Karras, LogSNR, Uniform
from diffusion.samplers import ddim, heun
from diffusion.schedulers import NoiseScheduler
from tests.analytic import EVERY_SCHEDULER, SAMPLERS, ZERO_TERMINAL, GaussianDenoiser, is_stochastic, times

DETERMINISTIC = {name: sampler for name, sampler in SAMPLERS.items() if not is_stochastic(sampler)}
every_scheduler = pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
every_sampler = pytest.mark.parametrize("name", DETERMINISTIC)


def karras(scheduler: NoiseScheduler, steps: int) -> torch.Tensor:
    """EDM's levels from 40, or the scheduler's highest, to 0.02, without the jump to 0."""
    return Karras(steps + 1, 0.02, 40.0)(scheduler)[:-1]


def even_times(scheduler: NoiseScheduler, steps: int) -> torch.Tensor:
    """Times at equal distance between log-SNR -4 and 3."""
    start, end = scheduler.time(times(-4, 3)).tolist()
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def normal(count: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def errors(sampler, scheduler: NoiseScheduler, grid_of) -> list[float]:
    """Root mean square distance from the exact flow, with 32, 64 and 128 steps."""
    denoiser = GaussianDenoiser(scheduler)
    found = []
    for steps in (32, 64, 128):
        grid = grid_of(scheduler, steps)
        x = denoiser.noised(normal(), grid[0])
        found.append((sampler(denoiser, x, grid) - denoiser.flow(x, grid[0], grid[-1])).square().mean().sqrt().item())
    return found


@pytest.mark.slow
@every_scheduler
@every_sampler
@pytest.mark.parametrize("grid_of", [karras, even_times])
def test_order(name: str, scheduler: NoiseScheduler, grid_of):
    """The order that the sampler's docstring states, within 0.05 (order 1) or 0.2, and small errors."""
    sampler = DETERMINISTIC[name]
    stated = re.search(r"[Oo]rder (\d)", sampler.__doc__ or "")
    assert stated, f"the docstring of {name} does not state its order: write 'Order N'"
    order = int(stated[1])
    e = torch.tensor(errors(sampler, scheduler, grid_of))
    measured = torch.log2(e[:-1] / e[1:])
    assert ((measured - order).abs() < (0.05 if order == 1 else 0.2)).all(), measured.tolist()
    assert e[0] < {1: 0.1, 2: 0.03}.get(order, 0.03)


@every_scheduler
@every_sampler
@pytest.mark.parametrize("grid", [Karras(60), LogSNR(60), Uniform(60)], ids=["Karras", "LogSNR", "Uniform"])
def test_samples_have_the_mean_and_covariance_of_the_data(name: str, scheduler: NoiseScheduler, grid):
    """All the way to sigma = 0 in 60 steps: within 0.02 of the mean and 0.04 of the covariance.

    The denoiser is affine, and so is the sampler: its answers to 0 and to the unit vectors give the mean and
    the covariance of its samples exactly.
    """
    denoiser = GaussianDenoiser(scheduler)
    t = grid(scheduler)
    probes = torch.cat([torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)])
    answers = DETERMINISTIC[name](denoiser, denoiser.noised(probes, t[0]), t)
    mean, response = answers[0], answers[1:] - answers[0]
    torch.testing.assert_close(mean, denoiser.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(response.T @ response, denoiser.covariance, rtol=0, atol=0.04)


@every_sampler
@pytest.mark.parametrize("scheduler", ZERO_TERMINAL.values(), ids=ZERO_TERMINAL.keys())
def test_zero_terminal_snr(name: str, scheduler: NoiseScheduler):
    """Where alpha(1) = 0 the first step is a DDIM step, and the whole stays near the exact flow."""
    denoiser, x, sampler = GaussianDenoiser(scheduler), normal(), DETERMINISTIC[name]
    first = times(1, 0.8)
    torch.testing.assert_close(sampler(denoiser, x, first), ddim(denoiser, x, first), rtol=0, atol=0)
    grid = torch.linspace(1, 0.02, 65, dtype=torch.float64)
    assert (sampler(denoiser, x, grid) - denoiser.flow(x, grid[0], grid[-1])).abs().max() < 0.05


@every_sampler
def test_last_step_to_data_is_the_denoiser(name: str):
    denoiser = GaussianDenoiser(EVERY_SCHEDULER["Cosine"])
    x, grid = normal(), times(0.3, 0)
    torch.testing.assert_close(DETERMINISTIC[name](denoiser, x, grid), denoiser(x, grid[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "evaluations"), [("ddim", 10), ("dpmpp_2m", 10), ("heun", 19)])
def test_evaluations(name: str, evaluations: int):
    """Of a grid of 10 steps to sigma = 0, as the docstrings state."""
    denoiser = GaussianDenoiser(EVERY_SCHEDULER["EDM"])
    SAMPLERS[name](denoiser, normal(2), Uniform(10)(denoiser.scheduler))
    assert denoiser.evaluations == evaluations


@pytest.mark.parametrize("name", SAMPLERS)
def test_on_step_sees_every_step(name: str):
    """Its index, x after it, and an estimate of x0; the last x is the answer."""
    denoiser, seen = GaussianDenoiser(EVERY_SCHEDULER["Cosine"]), []
    grid = Uniform(7)(denoiser.scheduler)
    g = torch.Generator().manual_seed(1)
    answer = SAMPLERS[name](
        denoiser,
        normal(4),
        grid,
        rng=lambda shape: torch.randn(4, *shape, generator=g),
        on_step=lambda i, x, mean: seen.append((i, x.clone(), mean.clone())),
    )
    assert [i for i, _, _ in seen] == list(range(7))
    assert torch.equal(seen[-1][1], answer)
    torch.testing.assert_close(seen[-1][2], answer, rtol=1e-6, atol=1e-6)
    assert not torch.equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("steps", [18, 36])
def test_heun_on_the_grid_of_edm(steps: int):
    """At least as accurate as the design's prototype: errors of 5.1e-2 and 1.4e-2."""
    denoiser = GaussianDenoiser(EVERY_SCHEDULER["EDM"])
    grid = Karras(steps)(denoiser.scheduler)[:-1]
    x = denoiser.noised(normal(), grid[0])
    error = (heun(denoiser, x, grid) - denoiser.flow(x, grid[0], grid[-1])).square().mean().sqrt().item()
    assert error < {18: 5.1e-2, 36: 1.4e-2}[steps]
