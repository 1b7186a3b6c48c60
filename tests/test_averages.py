"""Power-function averages: their profile, their length, and how well stored ones make up others."""

import math

import pytest
import torch

from diffusion.averages import combination, decay, exponent
from diffusion.errors import UserError


def profile(tau: torch.Tensor, t: float, gamma: float) -> torch.Tensor:
    return torch.where(tau <= t, (gamma + 1) * (tau / t) ** gamma / t, 0.0)


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.1, 6.94)])
def test_the_exponents_that_the_paper_gives(length, gamma):
    assert exponent(length) == pytest.approx(gamma, abs=5e-3)


@pytest.mark.parametrize("length", [0.01, 0.08, 0.25])
def test_the_length_is_the_profiles_standard_deviation(length):
    tau = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    p = profile(tau, 1.0, exponent(length)) / 400_000
    mean = (p * tau).sum()
    assert math.sqrt((p * (tau - mean) ** 2).sum()) == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize("length", [0, -0.1, 0.009, 0.26, 1, True, "x", None, math.nan])
def test_a_length_that_is_none(length):
    with pytest.raises(UserError, match=r"ema=.*from 0\.01 to 0\.25"):
        exponent(length)


def test_the_recursion_gives_each_step_the_integral_of_its_place():
    gamma, steps = exponent(0.15), 50
    counted = torch.zeros(steps, dtype=torch.float64)
    for step in range(1, steps + 1):
        own = torch.zeros(steps, dtype=torch.float64)
        own[step - 1] = 1
        counted = torch.lerp(own, counted, decay(step, gamma))
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (gamma + 1)
    torch.testing.assert_close(counted, edges.diff())


def test_a_stored_average_is_found_again():
    steps, gammas = [10, 10, 17, 17, 30, 30], [exponent(0.05), exponent(0.1)] * 3
    shares, missed = combination(steps, gammas, 30, exponent(0.1))
    torch.testing.assert_close(shares, torch.tensor([0, 0, 0, 0, 0, 1.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert missed < 1e-6


@pytest.mark.parametrize("length", [0.03, 0.07, 0.2])
def test_what_is_missed_is_the_distance_of_the_profiles_and_the_least(length):
    """Against a fine grid: the distance is the one that is told, and no neighbour of the same sum is nearer."""
    steps = [40, 40, 60, 60, 100, 100]
    gammas, gamma = [exponent(0.05), exponent(0.1)] * 3, exponent(length)
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) * (100 / 200_000)
    wanted = profile(tau, 100, gamma)
    stored = torch.stack([profile(tau, step, g) for step, g in zip(steps, gammas, strict=True)])

    def distance(shares: torch.Tensor) -> float:
        return float((wanted - shares @ stored).norm() / wanted.norm())

    shares, missed = combination(steps, gammas, 100, gamma)
    assert float(shares.sum()) == pytest.approx(1)
    assert missed == pytest.approx(distance(shares), rel=1e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        move = torch.randn(6, generator=rng, dtype=torch.float64)
        assert distance(shares + 1e-2 * (move - move.mean())) > missed


def test_neighbouring_steps_of_a_long_training():
    """Nearly the same functions: the system is singular to working precision, the answer is not."""
    steps = [round(1e6 / 1.15**k) for k in range(24)][::-1]
    steps = [step for step in [*steps, 1_000_001] for _ in range(2)]
    shares, missed = combination(steps, [exponent(0.05), exponent(0.1)] * 25, 1_000_001, exponent(0.15))
    assert float(shares.sum()) == pytest.approx(1, abs=1e-6) and shares.abs().max() < 10
    assert missed < 0.05
