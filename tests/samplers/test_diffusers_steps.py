"""Steps of ddpm and ddim against diffusers' schedulers, on the same discrete table, inputs and noise."""

from functools import partial

import diffusers
import pytest
import torch

from diffusion.denoiser import NetworkDenoiser
from diffusion.parameterizations import X0, Eps, V
from diffusion.samplers import ddim, ddpm
from diffusion.schedulers import Table
from tests.analytic import Answer, times

PREDICTIONS = {"epsilon": Eps(), "v_prediction": V(), "sample": X0()}
ROWS = 1000


def theirs(kind: type, prediction: str, steps: int, table: str, **options):
    start, end = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}[table]
    scheduler = kind(
        num_train_timesteps=ROWS,
        beta_start=start,
        beta_end=end,
        beta_schedule=table,
        prediction_type=prediction,
        clip_sample=False,
        **options,
    )
    scheduler.set_timesteps(steps)
    # In float64: from their float32 table 1 - alpha_t comes out with three digits, and a step off by 4e-5.
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    return scheduler


def compare(scheduler, prediction: str, sampler, step) -> None:
    """About 50 of the steps, the last ones among them, from the same x and network answer, to 1e-5."""
    g = torch.Generator().manual_seed(4)
    rows, table = scheduler.timesteps.tolist(), Table(scheduler.betas.tolist())
    stride = rows[0] - rows[1]
    assert rows[-1] == 0
    for row in rows[: -10 : len(rows) // 40] + rows[-10:]:
        x, answer = torch.randn(2, 2, 3, 6, 6, generator=g)
        denoiser = NetworkDenoiser(table, PREDICTIONS[prediction], Answer(answer))
        grid = times((row + 1) / ROWS, max(row + 1 - stride, 0) / ROWS)
        ours = sampler(denoiser, x, grid, rng=lambda shape, row=row: noise(row, (2, *shape)))
        torch.testing.assert_close(ours, step(answer, row, x).prev_sample, rtol=1e-5, atol=1e-5)


def noise(row: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(row))


@pytest.mark.slow
@pytest.mark.parametrize("table", ["linear", "scaled_linear"])
@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_step(prediction: str, steps: int, table: str):
    scheduler = theirs(diffusers.DDPMScheduler, prediction, steps, table, variance_type="fixed_small")

    def step(answer, row, x):
        return scheduler.step(answer, row, x, generator=torch.Generator().manual_seed(row))

    compare(scheduler, prediction, ddpm, step)


@pytest.mark.slow
@pytest.mark.parametrize("table", ["linear", "scaled_linear"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_step(prediction: str, eta: float, table: str):
    scheduler = theirs(diffusers.DDIMScheduler, prediction, 50, table, set_alpha_to_one=True)

    def step(answer, row, x):
        return scheduler.step(answer, row, x, eta=eta, variance_noise=noise(row, tuple(x.shape)) if eta else None)

    compare(scheduler, prediction, partial(ddim, eta=eta), step)
