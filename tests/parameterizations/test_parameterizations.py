"""Parameterizations: the denoiser of the exact target is x0, and the target is the textbook's."""

import pytest
import torch

from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.parameterizations import EDM, Eps
from diffusion.schedulers import EDM as VarianceExploding
from diffusion.schedulers import NoiseScheduler
from tests.analytic import PAIRS, PARAMETERIZATIONS, ZERO_TERMINAL, Answer, times

TEXTBOOK = {  # what the network predicts; EDM: (x0 - c_skip x_t) / c_out of Karras et al. 2022 at alpha = 1
    "Eps": lambda x0, eps, a, s, sd: eps,
    "X0": lambda x0, eps, a, s, sd: x0,
    "V": lambda x0, eps, a, s, sd: a * eps - s * x0,
    "Flow": lambda x0, eps, a, s, sd: eps - x0,
    "EDM": lambda x0, eps, a, s, sd: (s / sd * x0 - a * sd * eps) / (a**2 * sd**2 + s**2).sqrt(),
}
every_parameterization = pytest.mark.parametrize("name", PARAMETERIZATIONS)
every_pair = pytest.mark.parametrize(("scheduler", "name"), PAIRS.values(), ids=PAIRS.keys())
SD = 0.7


def levels(scheduler: NoiseScheduler) -> torch.Tensor:
    """Times at log-SNRs of -20 ... 20, as far as the schedule goes, and its end."""
    t = scheduler.time(torch.linspace(-20, 20, 41, dtype=torch.float64))
    return torch.cat([t[t < 1], times(1)])


def draws() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.rand(2, 1, 8, 8, generator=g) * 2 - 1, torch.randn(2, 1, 8, 8, generator=g)


@every_pair
def test_target_is_the_textbook_one(scheduler: NoiseScheduler, name: str):
    """F* = ((1 - skip alpha) / out) x0 - (skip sigma / out) eps, to 1e-10 in float64, at every level."""
    t = levels(scheduler)[:, None]
    alpha, sigma = scheduler.alpha(t), scheduler.sigma(t)
    c = PARAMETERIZATIONS[name](sd=SD)(alpha, sigma)
    x0, eps = (x.double().flatten() for x in draws())
    target = (1 - c.skip * alpha) / c.out * x0 - c.skip * sigma / c.out * eps
    expected = TEXTBOOK[name](x0, eps, alpha, sigma, SD).expand_as(target)
    torch.testing.assert_close(target, expected, rtol=1e-10, atol=1e-10)


@every_pair
def test_exact_target_gives_x0(scheduler: NoiseScheduler, name: str):
    """To 1e-5 through the float32 images of NetworkDenoiser, at every level.

    Where |out| = sigma / alpha passes 10 (eps alone) the rounding of x_t to float32 is divided by alpha, so
    the bound is 1e-6 |out| there: eight roundings of the noise.
    """
    x0, eps = draws()
    for t in levels(scheduler):
        alpha, sigma = scheduler.alpha(t), scheduler.sigma(t)
        target = TEXTBOOK[name](x0.double(), eps.double(), alpha, sigma, SD).float()
        x_t = (alpha * x0.double() + sigma * eps.double()).float()
        denoiser = NetworkDenoiser(scheduler, PARAMETERIZATIONS[name](sd=SD), Answer(target))
        out = denoiser.coefficients(t)[2].out.abs().item()
        error = (denoiser(x_t, t) - x0).abs().max().item()
        assert error < max(1e-5, 1e-6 * out), f"log-SNR {scheduler.log_snr(t).item():.1f}"
        assert name == "Eps" or out < 10


@every_pair
def test_network_input_has_unit_variance(scheduler: NoiseScheduler, name: str):
    t = levels(scheduler)
    alpha, sigma = scheduler.alpha(t), scheduler.sigma(t)
    c = PARAMETERIZATIONS[name](sd=SD)(alpha, sigma)
    torch.testing.assert_close(c.input**2 * (alpha**2 * SD**2 + sigma**2), torch.ones_like(t))


@every_pair
def test_input_scale_one_changes_nothing_else(scheduler: NoiseScheduler, name: str):
    t = levels(scheduler)
    alpha, sigma = scheduler.alpha(t), scheduler.sigma(t)
    scaled, plain = (PARAMETERIZATIONS[name](sd=SD, scale_input=scale)(alpha, sigma) for scale in (True, False))
    assert torch.equal(plain.input, torch.ones_like(t))
    assert all(torch.equal(getattr(scaled, key), getattr(plain, key)) for key in ("skip", "out", "noise"))


@every_pair
def test_noise_level_is_finite_and_rises(scheduler: NoiseScheduler, name: str):
    """Also at t = 0 and at zero terminal SNR, where the log-SNR is infinite."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    noise = PARAMETERIZATIONS[name](sd=SD)(scheduler.alpha(t), scheduler.sigma(t)).noise
    assert noise.isfinite().all() and (noise.diff() >= 0).all() and (noise.abs() <= 2.5).all()
    inside = scheduler.log_snr(t).abs() < 20
    assert (noise[inside].diff() > 0).all()


def test_edm_has_the_published_coefficients():
    """c_skip, c_out, c_in and c_noise of Karras et al. 2022, table 1, on their scheduler."""
    t = times(0.3, 0.5, 0.8, 1)
    sigma = VarianceExploding().sigma(t)
    c = EDM(sd=0.5)(torch.ones_like(t), sigma)
    torch.testing.assert_close(c.skip, 0.25 / (sigma**2 + 0.25))
    torch.testing.assert_close(c.out, sigma * 0.5 / (sigma**2 + 0.25).sqrt())
    torch.testing.assert_close(c.input, 1 / (sigma**2 + 0.25).sqrt())
    torch.testing.assert_close(c.noise, sigma.log() / 4)


@pytest.mark.parametrize("scheduler", ZERO_TERMINAL.values(), ids=ZERO_TERMINAL.keys())
@every_parameterization
def test_zero_terminal_snr_refuses_eps_alone(scheduler: NoiseScheduler, name: str):
    """By one line that names what to choose in its place."""
    parameterization = PARAMETERIZATIONS[name](sd=SD)
    if not isinstance(parameterization, Eps):
        NetworkDenoiser(scheduler, parameterization, torch.nn.Identity())
        return
    with pytest.raises(UserError) as caught:
        NetworkDenoiser(scheduler, parameterization, torch.nn.Identity())
    message = str(caught.value)
    assert "\n" not in message and type(scheduler).__name__ in message
    assert all(choice in message.split("parameterization=")[1] for choice in ("v", "x0", "flow", "edm"))
