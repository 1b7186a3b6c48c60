"""Figures of the unknown part, against those of whole images and planted errors."""

import pytest
import torch

from diffusion.metrics.hole import hole_metrics, spread
from diffusion.metrics.reconstruction import reconstruction_metrics


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randint(0, 256, shape, generator=g, dtype=torch.uint8) for _ in range(2))


@pytest.mark.parametrize("shape", [(3, 2, 14, 17), (2, 1, 12, 12, 13)])
def test_where_all_is_unknown_they_are_those_of_the_image(shape):
    x, y = pair(*shape)
    found = hole_metrics(x, y, torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool))
    wanted = reconstruction_metrics(x, y)
    for name in ("mse", "psnr", "ssim"):
        torch.testing.assert_close(found[name], wanted[name])


def test_the_known_part_counts_for_nothing():
    x, y = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8), torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    unknown = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    unknown[..., 4:8, 4:8] = True
    y[..., 4:8, 4:8] = 151  # by 51 of 255: a fifth
    y[..., 12:, 12:] = 0
    found = hole_metrics(x, y, unknown)
    assert found["mae"].item() == pytest.approx(0.2) and found["mse"].item() == pytest.approx(0.04)
    assert found["psnr"].item() == pytest.approx(13.979, abs=1e-3)


def test_small_images_have_no_ssim():
    x, y = pair(1, 1, 8, 8)
    assert "ssim" not in hole_metrics(x, y, torch.ones(1, 1, 8, 8, dtype=torch.bool))


def test_the_spread_is_the_standard_deviation_of_the_hole():
    unknown = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    unknown[..., :2] = True
    several = torch.zeros(2, 1, 3, 4, 4, dtype=torch.uint8)
    several[1, ..., :2] = 51
    several[1, ..., 2:] = 255
    assert spread(several, unknown).item() == pytest.approx(0.2 / 2**0.5)
