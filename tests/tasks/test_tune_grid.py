"""Tuning a grid: it is nearer to the fine reference than those that it began from, on a model that is known exactly."""

from functools import partial

import pytest
import torch

from diffusion.codecs import Identity
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.grids import Karras, LogSNR, Optimised, Uniform
from diffusion.samplers import ddim, ddpm, dpmpp_2m, heun
from diffusion.schedulers import EDM, Flow, Linear
from diffusion.tasks.tune_grid import RANGES, check_deterministic, moved, runs_of, tune
from diffusion.tasks.tune_grid_figure import save_grids
from tests.analytic import MixtureDenoiser

SEEDS = list(range(40))


def generative(sampler=dpmpp_2m, scheduler=None, grid=None) -> GenerativeModel:
    return GenerativeModel(MixtureDenoiser(scheduler or EDM()), Identity(), sampler, grid or Uniform(18))


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [EDM(), Flow(), Linear()], ids=["EDM", "Flow", "Linear"])
def test_no_known_grid_is_nearer(scheduler):
    """Than the tuned one, in five steps of 2M, also on other noise; and the errors are those of the samples."""
    model, ran = generative(scheduler=scheduler), []
    found = tune(model, (3,), 5, None, SEEDS, batch_size=16, on_run=lambda: ran.append(1))
    assert len(found.levels) == 5 and len(ran) <= runs_of(5)
    fine = GenerativeModel(model.denoiser, Identity(), heun, Karras(200, 0.002, 80.0))

    def error(grid, seeds=SEEDS) -> float:
        few = GenerativeModel(model.denoiser, Identity(), dpmpp_2m, grid)
        return (few.sample((3,), seeds=seeds) - fine.sample((3,), seeds=seeds)).square().mean(1).sqrt().mean().item()

    assert error(Optimised(5, found.levels)) == pytest.approx(found.errors["optimised"].mean().item(), rel=0.1)
    assert error(Uniform(5)) == pytest.approx(found.errors["own"].mean().item(), rel=0.1)
    others = [Uniform(5), LogSNR(5), *(Karras(5, *one) for one in RANGES)]
    for seeds in (SEEDS, range(1000, 1200)):
        assert error(Optimised(5, found.levels), seeds) < min(error(grid, seeds) for grid in others)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_fewest_steps(steps):
    found = tune(generative(ddim), (3,), steps, None, SEEDS[:4])
    assert len(found.levels) == steps
    assert found.errors["optimised"].mean() <= found.errors["own"].mean()


@pytest.mark.parametrize("sampler", [ddpm, partial(ddim, eta=0.5)])
def test_a_sampler_that_draws_noise_is_refused(sampler):
    with pytest.raises(UserError, match="noise"):
        check_deterministic(generative(sampler))


def test_moves_keep_the_order():
    for i in range(3):
        for trial in moved([-4.0, 0.0, 1.0], i, 0.5):
            assert trial == sorted(trial)
            assert sum(a != b for a, b in zip(trial, [-4.0, 0.0, 1.0], strict=True)) == 1


def test_the_figure_is_drawn(tmp_path):
    grids = {"optimised": [-4.0, 0.0, 5.0], "uniform in t": torch.linspace(-8, 6, 3).tolist()}
    save_grids("3 steps", grids, {"optimised": 0.01}, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 5000
