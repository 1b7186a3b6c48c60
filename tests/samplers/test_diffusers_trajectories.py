"""Whole trajectories against the schedulers of diffusers: one nonlinear network, one discrete table, one noise."""

import math
from functools import partial
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import Tensor, nn

from diffusion.denoiser import NetworkDenoiser
from diffusion.parameterizations import Eps, Flow
from diffusion.samplers import ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, euler, heun, unipc
from diffusion.schedulers import Flow as FlowScheduler
from diffusion.schedulers import Table, linear_betas
from tests.analytic import times

ROWS, SHAPE = 1000, (2, 3, 8, 8)
TABLE = Table(linear_betas())
NOISES = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(60)]


class Nonlinear(nn.Module):
    """What no sampler can be right on by chance: it bends in x, and moves with the noise level."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(8, 3, 3, 3, generator=g) / 5, torch.randn(3, 8, 3, 3, generator=g) / 8]

    def forward(self, x: Tensor, c_noise: Tensor, cond=None) -> Tensor:
        inner = torch.conv2d(x, self.weights[0], padding=1) + 3 * c_noise.reshape(-1, 1, 1, 1)
        return torch.conv2d(torch.tanh(inner), self.weights[1], padding=1) + 0.7 * x * torch.sigmoid(c_noise.mean())


NETWORK = Nonlinear()


def theirs(kind: type, steps: int, **options):
    """A scheduler of diffusers on the same table, which in its own float32 has three digits at small times."""
    scheduler = kind(num_train_timesteps=ROWS, beta_schedule="linear", **options)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(TABLE.betas, dtype=torch.float64), 0)
    scheduler.set_timesteps(steps)
    return scheduler


def walked(scheduler, x: Tensor, step) -> Tensor:
    """Down all timesteps of diffusers, with the network asked as a pipeline would."""
    for i, row in enumerate(scheduler.timesteps):
        level = -TABLE.log_snr(times((row.item() + 1) / ROWS)) / 8
        answer = NETWORK(scheduler.scale_model_input(x, row), level.float())
        x = step(answer, row, x, i).prev_sample
    return x


def ours(sampler, x: Tensor, rows: list[int], end: float = 0.0) -> Tensor:
    denoiser, draws = NetworkDenoiser(TABLE, Eps(scale_input=False), NETWORK), iter(NOISES)
    return sampler(denoiser, x, times(*((row + 1) / ROWS for row in rows), end), rng=lambda shape: next(draws))


def agree(a: Tensor, b: Tensor) -> None:
    assert b.std() > 0.05
    torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4)


CLIPPED = {"clip_sample": False, "timestep_spacing": "leading"}


@pytest.mark.parametrize("steps", [10, 50])
def test_ddpm(steps: int):
    scheduler = theirs(diffusers.DDPMScheduler, steps, variance_type="fixed_small", **CLIPPED)
    # It draws from a generator, and none at the last step: let it draw what ours does.
    x = NOISES[-1]
    rows, draws = scheduler.timesteps.tolist(), iter(NOISES)
    module = diffusers.schedulers.scheduling_ddpm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *_, **__: next(draws))
        found = walked(scheduler, x, lambda answer, row, x, i: scheduler.step(answer, row, x))
    agree(ours(ddpm, x, rows), found)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float):
    scheduler, x = theirs(diffusers.DDIMScheduler, 20, set_alpha_to_one=True, **CLIPPED), NOISES[-1]

    def step(answer, row, x, i):
        return scheduler.step(answer, row, x, eta=eta, variance_noise=NOISES[i] if eta else None)

    agree(ours(partial(ddim, eta=eta), x, scheduler.timesteps.tolist()), walked(scheduler, x, step))


@pytest.mark.parametrize("steps", [6, 20, 50])
@pytest.mark.parametrize(
    ("sampler", "algorithm"), [(dpmpp_2m, "dpmsolver++"), (dpmpp_2m_sde, "sde-dpmsolver++")], ids=["2m", "2m_sde"]
)
def test_dpm_solver(sampler, algorithm: str, steps: int):
    kind, x = diffusers.DPMSolverMultistepScheduler, NOISES[-1]
    scheduler = theirs(kind, steps, algorithm_type=algorithm, solver_order=2, final_sigmas_type="zero")

    def step(answer, row, x, i):
        return scheduler.step(answer, row, x, variance_noise=NOISES[i])

    agree(ours(sampler, x, scheduler.timesteps.tolist()), walked(scheduler, x, step))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [6, 20, 50])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc(order: int, steps: int, corrector: bool):
    """To the table's first row. Without the corrector it is ddim, dpmpp_2m or dpmpp_3m."""
    kind, x = diffusers.UniPCMultistepScheduler, NOISES[-1]
    options = {} if corrector else {"disable_corrector": list(range(steps))}
    options |= {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": order}
    scheduler = theirs(kind, steps, **options)
    sampler = partial(unipc, order=order) if corrector else (ddim, dpmpp_2m, dpmpp_3m)[order - 1]
    found = walked(scheduler, x, lambda answer, row, x, i: scheduler.step(answer, row, x))
    agree(ours(sampler, x, scheduler.timesteps.tolist(), end=1 / ROWS), found)


@pytest.mark.parametrize("steps", [8, 16])
@pytest.mark.parametrize(
    ("sampler", "kind"), [(euler, "EulerDiscreteScheduler"), (heun, "HeunDiscreteScheduler")], ids=["euler", "heun"]
)
def test_in_sigma_over_alpha(sampler, kind: str, steps: int):
    """Karras' methods; diffusers keeps x / alpha. From sigma = 100 alpha on, where our Heun begins to correct."""
    scheduler = theirs(getattr(diffusers, kind), steps, timestep_spacing="leading")
    rows = list(dict.fromkeys(scheduler.timesteps.long().tolist()))
    assert len(rows) == steps
    x = NOISES[-1]
    alpha = math.sqrt(scheduler.alphas_cumprod[rows[0]])
    found = walked(scheduler, x / alpha, lambda answer, row, x, i: scheduler.step(answer, row, x))
    agree(ours(sampler, x, rows), found)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_euler(shift: float):
    scheduler, x = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), NOISES[-1]
    scheduler.set_timesteps(20)
    denoiser = NetworkDenoiser(FlowScheduler(), Flow(scale_input=False), NETWORK)
    grid = scheduler.sigmas.double()
    found = x
    for (t, _), row in zip(pairwise(grid), scheduler.timesteps, strict=True):
        answer = NETWORK(found, denoiser.coefficients(t)[2].noise.float())
        found = scheduler.step(answer, row, found).prev_sample
    agree(euler(denoiser, x, grid), found)
