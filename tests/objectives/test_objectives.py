"""Objectives: published weights and time densities, and the loss against its definition on x0."""

import pytest
import torch

from diffusion.denoiser import NetworkDenoiser
from diffusion.objectives import EDM, LogitNormal, LogNormal, MinSNR, Objective, Simple, UniformTime
from diffusion.parameterizations import EDM as EDMParameterization
from diffusion.parameterizations import X0, Eps, V
from diffusion.parameterizations import Flow as FlowParameterization
from diffusion.schedulers import EDM as VarianceExploding
from diffusion.schedulers import Cosine, Flow, NoiseScheduler, Sigmoid
from tests.analytic import EVERY_SCHEDULER, PAIRS, PARAMETERIZATIONS, Answer, times

DENSITIES = {"uniform": UniformTime(), "log-normal": LogNormal(), "logit-normal": LogitNormal()}
WEIGHTINGS = {"simple": Simple(), "min_snr": MinSNR(), "edm": EDM()}
every_density = pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES.keys())
every_scheduler = pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
every_pair = pytest.mark.parametrize(("scheduler", "name"), PAIRS.values(), ids=PAIRS.keys())
T = times(0.1, 0.3, 0.5, 0.8)
SD = 0.5


def draws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0, noise and the answer of a network."""
    g = torch.Generator().manual_seed(2)
    return torch.randn(3, 4, 2, 5, 5, generator=g).unbind()


def loss(scheduler, parameterization, weighting) -> torch.Tensor:
    x0, noise, answer = draws()
    denoiser = NetworkDenoiser(scheduler, parameterization, Answer(answer))
    return Objective(UniformTime(), weighting).loss(denoiser, x0, noise, T, None)


def square(x: torch.Tensor) -> torch.Tensor:
    return x.square().flatten(1).mean(1)


@pytest.mark.parametrize(
    ("parameterization", "target"),
    [
        (Eps(SD), lambda x0, eps, a, s: eps),
        (X0(SD), lambda x0, eps, a, s: x0),
        (V(SD), lambda x0, eps, a, s: a * eps - s * x0),
        (FlowParameterization(SD), lambda x0, eps, a, s: eps - x0),
    ],
)
def test_simple_is_the_mean_squared_error_of_what_is_predicted(parameterization, target):
    """For eps the simple loss of Ho et al. 2020; the answer is per sample."""
    x0, noise, answer = draws()
    alpha, sigma = (c(T).float()[:, None, None, None] for c in (Cosine().alpha, Cosine().sigma))
    expected = square(answer - target(x0, noise, alpha, sigma))
    torch.testing.assert_close(loss(Cosine(), parameterization, Simple()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize(
    ("parameterization", "published"),
    [
        (Eps(SD), lambda snr, gamma: torch.minimum(snr, gamma) / snr),
        (X0(SD), lambda snr, gamma: torch.minimum(snr, gamma)),
        (V(SD), lambda snr, gamma: torch.minimum(snr, gamma) / (snr + 1)),
    ],
)
def test_min_snr_has_the_published_weights(parameterization, published, gamma: float):
    """On the error of what is predicted, where alpha^2 + sigma^2 = 1: Hang et al. 2023, section 3.4."""
    snr = (Cosine().alpha(T) / Cosine().sigma(T)) ** 2
    assert (snr > gamma).any() and (snr < gamma).any()
    weights = loss(Cosine(), parameterization, MinSNR(gamma)) / loss(Cosine(), parameterization, Simple())
    torch.testing.assert_close(weights.double(), published(snr, times(gamma)), rtol=1e-5, atol=1e-6)


def test_edm_has_the_published_weight():
    """(sigma^2 + sd^2) / (sigma sd)^2 on the error of x0 where alpha = 1: Karras et al. 2022, table 1."""
    scheduler = VarianceExploding()
    sigma = scheduler.sigma(T)
    weight = EDM()(T, scheduler, times(1), SD)
    torch.testing.assert_close(weight, (sigma**2 + SD**2) / (sigma * SD) ** 2)


def test_edm_is_flat_on_the_network_of_edm():
    x0, noise, answer = draws()
    sigma = VarianceExploding().sigma(T).float()[:, None, None, None]
    target = (sigma / SD * x0 - SD * noise) / (SD**2 + sigma**2).sqrt()
    found = loss(VarianceExploding(), EDMParameterization(SD), EDM())
    torch.testing.assert_close(found, square(answer - target), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS.keys())
@every_pair
def test_loss_is_the_weighted_error_of_x0(scheduler: NoiseScheduler, name: str, weighting):
    """w |D(x_t) - x0|^2, the denoiser written out in float64 with the same answer of the network."""
    x0, noise, answer = (x.double() for x in draws())
    parameterization = PARAMETERIZATIONS[name](sd=SD)
    alpha, sigma = scheduler.alpha(T), scheduler.sigma(T)
    c = parameterization(alpha, sigma)

    def each(value):
        return value[:, None, None, None]

    mean = each(c.skip) * (each(alpha) * x0 + each(sigma) * noise) + each(c.out) * answer
    expected = weighting(T, scheduler, c.out, SD) * square(mean - x0)
    torch.testing.assert_close(loss(scheduler, parameterization, weighting).double(), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    "scheduler",
    [*EVERY_SCHEDULER.values(), Sigmoid(floor=0.06)],
    ids=[*EVERY_SCHEDULER.keys(), "Sigmoid floor 0.06"],
)
@every_density
def test_times_are_where_training_can_be(density, scheduler: NoiseScheduler):
    """For u = 0 and just under 1 too: in (0, 1], and log-SNR within +-20."""
    u = torch.cat([times(0, 1e-300, 1e-12, 1 - 1e-12, 1 - 2**-53), torch.linspace(0.001, 0.999, 99).double()])
    t = Objective(density, Simple()).time(u, scheduler)
    assert t.shape == u.shape and t.dtype == torch.float64
    assert (t > 0).all() and (t <= 1).all()
    assert (scheduler.log_snr(t).abs() <= 20 + 1e-6).all()


@every_pair
def test_loss_is_finite_at_both_ends(scheduler: NoiseScheduler, name: str):
    x0, noise, answer = (x[:2] for x in draws())
    denoiser = NetworkDenoiser(scheduler, PARAMETERIZATIONS[name](sd=SD), Answer(answer))
    for weighting in WEIGHTINGS.values():
        objective = Objective(UniformTime(), weighting)
        t = objective.time(times(0, 1 - 2**-53), scheduler)
        assert objective.loss(denoiser, x0, noise, t, None).isfinite().all()


@every_scheduler
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 0.8)])
def test_log_normal(scheduler: NoiseScheduler, mean: float, std: float):
    """log(sigma / alpha) has the stated mean and standard deviation, by 20,000 even quantiles, to 0.1%."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    level = -scheduler.log_snr(LogNormal(mean, std)(u, scheduler)) / 2
    assert level.mean().item() == pytest.approx(mean, abs=1e-3)
    assert level.std().item() == pytest.approx(std, rel=1e-3)


def test_logit_normal():
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    logit = torch.logit(LogitNormal(0.5, 0.7)(u, Flow()))
    assert logit.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert logit.std().item() == pytest.approx(0.7, rel=1e-3)


@every_scheduler
def test_uniform_time(scheduler: NoiseScheduler):
    """t = u, but for the ends that training leaves out."""
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    t = Objective(UniformTime(), Simple()).time(u, scheduler)
    visible = scheduler.log_snr(u).abs() < 20
    assert torch.equal(t[visible], u[visible]) and visible.sum() > 80


@every_density
def test_noise_rises_with_u(density):
    """The caller's stratified numbers become stratified noise levels on every scheduler."""
    u = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    assert all((density(u, scheduler).diff() > 0).all() for scheduler in EVERY_SCHEDULER.values())


def test_the_condition_reaches_the_network():
    x0, noise, answer = draws()
    network = Answer(answer)
    cond = {"label": torch.arange(4)}
    Objective(UniformTime(), Simple()).loss(NetworkDenoiser(Cosine(), V(SD), network), x0, noise, T, cond)
    assert network.calls[0][2] is cond
