"""Metrics of reconstructions against scikit-image and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffusion.errors import UserError
from diffusion.metrics import left_out, psnr_of, reconstruction_metrics
from diffusion.metrics.reconstruction import SCALES, scales

SHAPES = [(1, 28, 28), (3, 23, 40), (1, 11, 12), (1, 12, 13, 14), (2, 11, 22, 13)]


def pair(shape, n=3, noise=20.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images, and noisy copies."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(n, *shape)), [0, 0] + [2] * (len(shape) - 1))
    originals = 128 + 50 * smooth / smooth.std()
    noisy = originals + noise * rng.normal(size=originals.shape)
    return tuple(torch.from_numpy(x.round().clip(0, 255).astype(np.uint8)) for x in (originals, noisy))


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_and_psnr_as_in_scikit_image(shape):
    originals, noisy = pair(shape)
    found = reconstruction_metrics(originals, noisy)
    for i, (x, y) in enumerate(zip(originals.numpy(), noisy.numpy(), strict=True)):
        assert found["mse"][i].item() == pytest.approx(((x / 255 - y / 255) ** 2).mean(), rel=1e-12)
        assert found["psnr"][i].item() == pytest.approx(peak_signal_noise_ratio(x, y), rel=1e-12)


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM at every position by scikit-image, which leaves out a border: so the images are mirrored into it."""
    pad = [(0, 0)] + [(5, 5)] * (x.ndim - 1)
    x, y = (np.pad(image / 255, pad, mode="reflect") for image in (x, y))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return structural_similarity(x, y, channel_axis=0, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_as_in_scikit_image(shape):
    originals, noisy = pair(shape)
    found = reconstruction_metrics(originals, noisy)["ssim"]
    expected = [ssim(x, y) for x, y in zip(originals.numpy(), noisy.numpy(), strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 22, 30), (1, 22, 23, 24)])
def test_ms_ssim_of_two_scales(shape):
    """The contrast at full size, within the border, times the SSIM at half size."""
    originals, noisy = pair(shape, n=2)
    found = reconstruction_metrics(originals, noisy)["ms_ssim"]
    weight = SCALES[0] / (SCALES[0] + SCALES[1])
    axes = range(1, len(shape))
    for i, (x, y) in enumerate((a / 255, b / 255) for a, b in zip(originals.numpy(), noisy.numpy(), strict=True)):
        means = [
            gaussian_filter(v, [0] + [1.5] * len(axes), truncate=3.5, mode="mirror")
            for v in (x, y, x * x, y * y, x * y)
        ]
        contrast = (2 * (means[4] - means[0] * means[1]) + 0.03**2) / (
            means[2] - means[0] ** 2 + means[3] - means[1] ** 2 + 0.03**2
        )
        inner = contrast[(slice(None), *[slice(5, -5)] * len(axes))].mean()
        pool = {2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}[len(axes)]
        x2, y2 = (255 * pool(torch.from_numpy(image)[None], 2)[0].numpy() for image in (x, y))
        assert found[i].item() == pytest.approx(inner**weight * ssim(x2, y2) ** (1 - weight), abs=1e-4)


@pytest.mark.parametrize(
    ("side", "number"),
    [
        (1, 0),
        (10, 0),
        (11, 1),
        (21, 1),
        (22, 2),
        (28, 2),
        (43, 2),
        (44, 3),
        (98, 3),
        (99, 4),
        (175, 4),
        (176, 5),
        (900, 5),
    ],
)
def test_as_many_scales_as_fit(side, number):
    shape = (1, side, 2 * side)
    assert scales(shape) == scales((1, 900, 900, side)) == number
    if side <= 176:
        found = reconstruction_metrics(*pair(shape, n=1))
        assert set(left_out(shape)) == {"mse", "psnr", "ssim", "ms_ssim", "sharpness"} - set(found)
        assert ("ssim" in found, "ms_ssim" in found) == (number >= 1, number >= 2)
        assert all(value.dtype is torch.float64 and value.shape == (1,) for value in found.values())


def test_what_is_left_out_says_why():
    assert left_out((1, 28, 28)) == {}
    assert "10" in left_out((1, 28, 10, 28))["ssim"] and "22" in left_out((3, 20, 20))["ms_ssim"]


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 22, 22, 22)])
@pytest.mark.parametrize("flat", [False, True])
def test_an_exact_reconstruction(shape, flat):
    originals = torch.full((2, *shape), 250, dtype=torch.uint8) if flat else pair(shape, n=2)[0]
    found = reconstruction_metrics(originals, originals)
    expected = {"mse": 0.0, "psnr": math.inf, "ssim": 1.0, "ms_ssim": 1.0, "sharpness": 1.0}
    assert {name: value.tolist() for name, value in found.items()} == {
        k: pytest.approx([v] * 2) for k, v in expected.items()
    }


def test_what_is_the_opposite_has_no_multi_scale_similarity_and_no_nan():
    originals, _ = pair((1, 28, 28))
    found = reconstruction_metrics(originals, 255 - originals)
    assert found["ms_ssim"].tolist() == [0.0] * 3
    assert found["ssim"].max() < 0


def test_sharpness_of_a_ramp_is_its_slope():
    x, y = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    originals, steeper = (3 * x + 4 * y)[None, None], (12 * x + 9 * y)[None, None]
    found = reconstruction_metrics(originals.byte(), steeper.byte())["sharpness"]
    assert found.tolist() == pytest.approx([15 / 5])


def test_sharpness_tells_blur_from_noise():
    originals, noisy = pair((1, 28, 28))
    blurred = torch.from_numpy(gaussian_filter(originals.numpy(), [0, 0, 1.5, 1.5]))
    assert reconstruction_metrics(originals, blurred)["sharpness"].max() < 0.9
    assert reconstruction_metrics(originals, noisy)["sharpness"].min() > 1.5


def test_sharpness_of_flat_images():
    flat, board = torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.eye(4, dtype=torch.uint8)[None, None]
    assert reconstruction_metrics(flat, flat + 9)["sharpness"].tolist() == [1.0]
    assert reconstruction_metrics(flat, board)["sharpness"].tolist() == [math.inf]
    assert reconstruction_metrics(board, flat)["sharpness"].tolist() == [0.0]
    one_row = torch.tensor([0, 2, 4], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert reconstruction_metrics(one_row, 2 * one_row)["sharpness"].tolist() == pytest.approx([2.0])


def test_the_batches_that_memory_allows_change_nothing(monkeypatch):
    originals, noisy = pair((1, 28, 28), n=7)
    whole = reconstruction_metrics(originals, noisy)
    monkeypatch.setattr("diffusion.metrics.reconstruction.MOST_VALUES", 3 * 28 * 28)
    parts = reconstruction_metrics(originals, noisy)
    assert all(torch.allclose(parts[name], whole[name], atol=1e-5) for name in whole)


def test_unequal_shapes():
    with pytest.raises(UserError, match="pairs"):
        reconstruction_metrics(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(("mse", "expected"), [(1.0, 0.0), (0.01, 20.0), (0.0, math.inf)])
def test_psnr_of_a_mean_error(mse, expected):
    assert psnr_of(mse) == pytest.approx(expected)
