"""Deterministic samplers against exact probability flows, on every scheduler."""

import math
import re
from functools import partial
from itertools import pairwise

import pytest
import torch

from diffusion.errors import UserError
from diffusion.grids import Karras, LogSNR, Uniform
from diffusion.samplers import ddim, dpmpp_3m, euler, heun, midpoint, unipc
from diffusion.samplers.base import transfer
from diffusion.samplers.exponential import blend, moments, weights
from diffusion.samplers.inversion import ddim_inversion
from diffusion.schedulers import EDM, Flow, NoiseScheduler
from tests.analytic import (
    EVERY_SCHEDULER,
    SAMPLERS,
    ZERO_TERMINAL,
    GaussianDenoiser,
    MixtureDenoiser,
    is_stochastic,
    times,
)

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


def errors(sampler, denoiser, grid_of, counts: tuple[int, ...]) -> torch.Tensor:
    """Root mean square distance from the exact flow, with these numbers of steps."""
    found = []
    for steps in counts:
        grid = grid_of(denoiser.scheduler, steps)
        x = denoiser.noised(normal(), grid[0])
        found.append((sampler(denoiser, x, grid) - denoiser.flow(x, grid[0], grid[-1])).square().mean().sqrt().item())
    return torch.tensor(found)


def slopes(errors: torch.Tensor) -> torch.Tensor:
    """The measured order, of each doubling of the steps."""
    return torch.log2(errors[:-1] / errors[1:])


@pytest.mark.slow
@every_scheduler
@every_sampler
@torch.no_grad()
def test_order(name: str, scheduler: NoiseScheduler):
    """The order that the sampler's docstring states, within 0.05 (order 1) or 0.25, and small errors.

    The data are a mixture: on Gaussian data, whose flow is linear, the midpoint method happens to be of order 3.
    """
    sampler = DETERMINISTIC[name]
    stated = re.search(r"[Oo]rder (\d)", sampler.__doc__ or "")
    assert stated, f"the docstring of {name} does not state its order: write 'Order N'"
    order = int(stated[1])
    # An error of order 4 soon reaches that of the float32 coefficients.
    e = errors(sampler, MixtureDenoiser(scheduler), karras, (32, 64, 128) if order < 4 else (32, 64))
    assert ((slopes(e) - order).abs() < (0.05 if order == 1 else 0.25)).all(), slopes(e).tolist()
    assert e[0] < {1: 0.05, 2: 0.01}.get(order, 0.003)


@pytest.mark.slow
@every_scheduler
@every_sampler
@torch.no_grad()
def test_order_in_even_times(name: str, scheduler: NoiseScheduler):
    """From log-SNR -4, where the first step of a multistep sampler, of order 1, is felt: the whole is of order 2."""
    sampler = DETERMINISTIC[name]
    order = min(2, int(re.search(r"[Oo]rder (\d)", sampler.__doc__)[1]))
    e = errors(sampler, GaussianDenoiser(scheduler), even_times, (32, 64, 128))
    assert (slopes(e) > order - 0.4).all() or e[0] < 1e-5, slopes(e).tolist()
    assert e[0] < {1: 0.05, 2: 0.01}[order]


@pytest.mark.parametrize(("order", "measured"), [(1, 2), (2, 3), (3, 4)])
@torch.no_grad()
def test_the_corrector_of_unipc_adds_one_to_the_order(order: int, measured: int):
    e = errors(partial(unipc, order=order), MixtureDenoiser(EVERY_SCHEDULER["EDM"]), karras, (32, 64, 128))
    assert ((slopes(e) - measured).abs() < 0.25).all(), slopes(e).tolist()


def halved_curvature(denoiser, x, grid) -> torch.Tensor:
    """dpmpp_3m with half of the second derivative: the third-order update of diffusers' DPMSolverMultistepScheduler."""
    scheduler = denoiser.scheduler
    levels, means = (scheduler.log_snr(grid) / 2).tolist(), []
    for i, (t, s) in enumerate(pairwise(grid)):
        means = [denoiser(x, t), *means[:2]]
        estimate = blend(means, levels[i::-1][: len(means)], *levels[i : i + 2])
        if len(means) == 3:
            h, (a, b) = levels[i + 1] - levels[i], ((levels[i - j] - levels[i]) for j in (1, 2))
            slope = [(mean - means[0]) / at for mean, at in zip(means[1:], (a, b), strict=True)]
            curvature = 2 * (slope[0] - slope[1]) / (a - b)
            estimate = estimate - moments(h, 3)[2] / moments(h, 3)[0] * h**2 * curvature / 4
        x = transfer(scheduler, x, estimate, t, s)
    return x


def test_half_of_the_second_derivative_is_of_second_order():
    """What the docstring of dpmpp_3m says of the published update, and that it is the one of diffusers."""
    denoiser = MixtureDenoiser(EVERY_SCHEDULER["EDM"])
    exact, halved = (errors(sampler, denoiser, karras, (64, 128, 256)) for sampler in (dpmpp_3m, halved_curvature))
    assert ((slopes(exact) - 3).abs() < 0.25).all() and ((slopes(halved) - 2).abs() < 0.25).all()
    assert halved[-1] > 5 * exact[-1]


@pytest.mark.slow
@every_scheduler
@every_sampler
@pytest.mark.parametrize("grid", [Karras(60), LogSNR(60), Uniform(60)], ids=["Karras", "LogSNR", "Uniform"])
def test_samples_have_the_mean_and_covariance_of_the_data(name: str, scheduler: NoiseScheduler, grid):
    """All the way to sigma = 0 in 60 steps: within 0.02 of the mean and 0.05 of the covariance.

    The denoiser is affine, and so is the sampler: its answers to 0 and to the unit vectors give the mean and
    the covariance of its samples exactly.
    """
    denoiser = GaussianDenoiser(scheduler)
    t = grid(scheduler)
    probes = torch.cat([torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)])
    answers = DETERMINISTIC[name](denoiser, denoiser.noised(probes, t[0]), t)
    mean, response = answers[0], answers[1:] - answers[0]
    torch.testing.assert_close(mean, denoiser.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(response.T @ response, denoiser.covariance, rtol=0, atol=0.05)


@pytest.mark.slow
@every_sampler
@pytest.mark.parametrize("scheduler", ZERO_TERMINAL.values(), ids=ZERO_TERMINAL.keys())
def test_zero_terminal_snr(name: str, scheduler: NoiseScheduler):
    """Where alpha(1) = 0 the first step is DDIM's, or the midpoint's; the whole stays near the exact flow."""
    denoiser, x, sampler = GaussianDenoiser(scheduler), normal(), DETERMINISTIC[name]
    if sampler is not midpoint:
        first = times(1, 0.8)
        torch.testing.assert_close(sampler(denoiser, x, first), ddim(denoiser, x, first), rtol=0, atol=0)
    grid = torch.linspace(1, 0.02, 65, dtype=torch.float64)
    assert (sampler(denoiser, x, grid) - denoiser.flow(x, grid[0], grid[-1])).abs().max() < 0.05


@every_sampler
def test_last_step_to_data_is_the_denoiser(name: str):
    """Of the midpoint, D at the time extrapolated through the middle to 0: 2 D_m - D."""
    denoiser = GaussianDenoiser(Flow())
    x, (t, middle, end) = normal(), times(0.3, 0.15, 0)
    expected = denoiser(x, t)
    if name == "midpoint":
        expected = 2 * denoiser(ddim(denoiser, x, torch.stack([t, middle])), middle) - expected
    answer = DETERMINISTIC[name](denoiser, x, torch.stack([t, end]))
    torch.testing.assert_close(answer, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("heun", 19), ("midpoint", 20), *((name, 10) for name in SAMPLERS if name not in ("heun", "midpoint"))],
)
def test_evaluations(name: str, evaluations: int):
    """Of a grid of 10 steps to sigma = 0, as the docstrings state."""
    denoiser = GaussianDenoiser(EVERY_SCHEDULER["EDM"])
    SAMPLERS[name](denoiser, normal(2), Uniform(10)(denoiser.scheduler), rng=lambda shape: normal(2))
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


def test_midpoint_on_the_flow_scheduler_is_the_plain_one_in_time():
    """x += (s - t) v(x + (s - t) / 2 v(x, t), (s + t) / 2), v = (x - D) / t, from t = 1 to 0."""
    denoiser, x, grid = MixtureDenoiser(Flow()), normal(), Uniform(8)(Flow())

    def velocity(x, t):
        return (x - denoiser(x, t)) / t

    plain = x
    for t, s in pairwise(grid):
        plain = plain + (s - t) * velocity(plain + (s - t) / 2 * velocity(plain, t), (s + t) / 2)
    torch.testing.assert_close(midpoint(denoiser, x, grid), plain, rtol=1e-5, atol=1e-5)


@every_scheduler
def test_euler_without_churn_is_ddim(scheduler: NoiseScheduler):
    denoiser, grid = MixtureDenoiser(scheduler), Uniform(8)(scheduler)
    x = denoiser.noised(normal(), grid[0])
    torch.testing.assert_close(euler(denoiser, x, grid), ddim(denoiser, x, grid), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("places", [(0.0,), (0.0, -1.3), (0.0, -0.8, -2.0), (0.0, 1.0), (0.0, -0.7, 1.0)])
@pytest.mark.parametrize("h", [1e-3, 0.3, 2.0, 9.0])
def test_weights_integrate_polynomials(places: tuple[float, ...], h: float):
    """Of as many powers as there are places, against a fine sum; with two places the middle stands for the mean."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = torch.exp(h * (u - 1))
    found = torch.tensor(weights(places, h), dtype=torch.float64)
    for power in range(len(places)):
        mean = 0.5**power if len(places) == 2 else ((u**power * density).sum() / density.sum()).item()
        total = (found * torch.tensor(places, dtype=torch.float64) ** power).sum().item()
        assert total == pytest.approx(mean, rel=1e-8)


@pytest.mark.parametrize("h", [1e-4, 0.1, 1.0, 3.9, 4.1, 30.0, 300.0])
def test_moments_satisfy_their_recursion(h: float):
    found = moments(h, 4)
    assert found[0] == pytest.approx(-math.expm1(-h) / h, rel=1e-12)
    for k in range(1, 4):
        assert h * found[k] + k * found[k - 1] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("order", [0, 4, 2.5])
def test_unipc_refuses_an_order(order):
    with pytest.raises(UserError, match=f"order={order}"):
        unipc(GaussianDenoiser(EDM()), normal(), times(1, 0), order=order)


@pytest.mark.slow
@every_scheduler
@torch.no_grad()
def test_inversion_comes_back_with_order_one(scheduler: NoiseScheduler):
    """Data to noise to data: twice the steps halve the distance from the start, and that to the exact noise."""
    denoiser, found = MixtureDenoiser(scheduler), []
    for steps in (64, 128, 256):
        grid = karras(scheduler, steps)
        x = denoiser.noised(normal(), grid[-1])
        noise = ddim_inversion(denoiser, x, grid)
        back = (ddim(denoiser, noise, grid) - x).square().mean().sqrt()
        away = (noise - denoiser.flow(x, grid[-1], grid[0])).square().mean().sqrt() / scheduler.sigma(grid[0])
        found.append(torch.stack([back, away]))
    e = torch.stack(found)
    assert ((slopes(e) - 1).abs() < 0.15).all(), slopes(e).tolist()
    assert (e[-1] < 0.02).all()


def test_inversion_does_not_begin_at_the_data():
    denoiser = GaussianDenoiser(EVERY_SCHEDULER["Cosine"])
    with pytest.raises(ValueError, match="sigma = 0"):
        ddim_inversion(denoiser, normal(), Uniform(4)(denoiser.scheduler))
    seen = []
    ddim_inversion(denoiser, normal(), times(0.9, 0.5, 0.1), on_step=lambda i, x, mean: seen.append(i))
    assert seen == [0, 1]
