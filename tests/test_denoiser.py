"""NetworkDenoiser: how coefficients, times and conditions reach the network."""

import pytest
import torch

from diffusion.denoiser import NetworkDenoiser, scale
from diffusion.parameterizations import EDM, V
from diffusion.schedulers import Cosine
from tests.analytic import Answer, times


def make(answer: float = 0.5) -> tuple[NetworkDenoiser, Answer]:
    network = Answer(torch.tensor(answer))
    return NetworkDenoiser(Cosine(), EDM(sd=0.5), network), network


@pytest.mark.parametrize("sides", [(4,), (4, 4), (2, 4, 4)])
def test_one_time_for_all_equals_a_time_each(sides: tuple[int, ...]):
    denoiser, network = make()
    x = torch.randn(3, 2, *sides, generator=torch.Generator().manual_seed(0))
    together = denoiser(x, times(0.3)[0])
    apart = denoiser(x, times(0.3, 0.3, 0.3))
    assert torch.equal(together, apart)
    assert all(c_noise.shape == (3,) and c_noise.dtype == torch.float32 for _, c_noise, _ in network.calls)


def test_each_sample_has_its_own_coefficients():
    denoiser, _ = make()
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t = times(0.1, 0.5, 0.9)
    alone = torch.cat([denoiser(x[i : i + 1], t[i]) for i in range(3)])
    torch.testing.assert_close(denoiser(x, t), alone)


def test_the_condition_reaches_the_network():
    denoiser, network = make()
    cond = {"label": torch.tensor([1])}
    denoiser(torch.zeros(1, 1, 4, 4), times(0.5)[0], cond)
    assert network.calls[0][2] is cond


def test_coefficients_are_exact_at_small_noise():
    """At sigma = 1e-3 the edm target errs by less than 1e-6: float32 coefficients would err by 1e-4."""
    denoiser, _ = make()
    t = denoiser.scheduler.time(times(-2 * torch.log(torch.tensor(1e-3)).item()))
    alpha, sigma, c = denoiser.coefficients(t)
    x0, eps = times(0.8), times(-1.3)
    target = scale((1 - c.skip * alpha) / c.out, x0) * x0 - scale(c.skip * sigma / c.out, x0) * eps
    expected = (sigma / 0.5 * x0 - alpha * 0.5 * eps) / (alpha**2 * 0.25 + sigma**2).sqrt()
    assert (target - expected).abs().item() < 1e-6


def test_forward_is_the_mean_of_predict():
    denoiser = NetworkDenoiser(Cosine(), V(sd=0.5), Answer(torch.tensor(0.2)))
    x = torch.ones(2, 1, 2, 2)
    prediction = denoiser.predict(x, times(0.4)[0])
    assert torch.equal(denoiser(x, times(0.4)[0]), prediction.mean) and prediction.fraction is None


def test_answers_are_float32_when_the_network_is_not():
    denoiser = NetworkDenoiser(Cosine(), V(sd=0.5), Answer(torch.tensor(0.2, dtype=torch.bfloat16)))
    assert denoiser(torch.ones(2, 1, 2, 2), times(0.4)[0]).dtype == torch.float32


@pytest.mark.parametrize(("shape", "expected"), [((), ()), ((3,), (3, 1, 1, 1))])
def test_scale_shapes(shape: tuple, expected: tuple):
    scaled = scale(torch.ones(shape, dtype=torch.float64), torch.zeros(3, 2, 5, 5))
    assert scaled.shape == expected and scaled.dtype == torch.float32
