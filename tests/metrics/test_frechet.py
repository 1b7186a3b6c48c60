"""The Fréchet distance against its closed form."""

import math

import pytest
import torch

from diffusion.errors import UserError
from diffusion.metrics import frechet_distance


def features(mean: torch.Tensor, root: torch.Tensor, n: int = 400, seed: int = 0) -> torch.Tensor:
    """Features of exactly this mean, and of covariance root root'."""
    white = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    white = white - white.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(white.T.cov()), white.T, upper=False)
    return mean.double() + (root.double() @ white).T


def test_covariances_that_commute():
    """|m|^2 + sum (s_a - s_b)^2 for standard deviations s along common axes."""
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, -1.0])
    std_a, std_b = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 1.0, 0.5])
    a, b = features(mean_a, std_a.diag()), features(mean_b, std_b.diag(), n=300, seed=1)
    assert frechet_distance(a, b) == pytest.approx(1 + 9 + 4 + 1, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(15, rel=1e-9)


def test_covariances_that_do_not_commute():
    """In two dimensions tr (S_a S_b)^(1/2) = (tr S_a S_b + 2 (det S_a S_b)^(1/2))^(1/2)."""
    root_a, root_b = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [-3.0, 0.5]])
    a, b = features(torch.zeros(2), root_a), features(torch.zeros(2), root_b, seed=1)
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    both = cov_a @ cov_b
    cross = math.sqrt(both.trace() + 2 * math.sqrt(both.det()))
    assert frechet_distance(a, b) == pytest.approx(float(cov_a.trace() + cov_b.trace()) - 2 * cross, rel=1e-6)


def test_a_mean_far_from_zero_drowns_nothing():
    offset = torch.full((3,), 1e6)
    a, b = features(offset, torch.eye(3)), features(offset, 2 * torch.eye(3), seed=1)
    assert frechet_distance(a, b) == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("n", [2, 5, 100])
def test_the_same_features_are_at_no_distance(n):
    same = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    distance = frechet_distance(same, same)
    assert isinstance(distance, float)
    assert 0 <= distance < 1e-5


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match="at least 2"):
        frechet_distance(torch.zeros(5, 2), torch.zeros(1, 2))
