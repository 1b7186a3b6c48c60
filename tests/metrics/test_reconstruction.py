"""Metrics of reconstructions against scikit-image and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from diffusion.errors import UserError
from diffusion.metrics import left_out, psnr_of, reconstruction_metrics
from diffusion.metrics.similarity import SCALES, scales

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


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_as_in_torchmetrics(shape):
    originals, noisy = pair(shape)
    x, y = originals.double() / 255, noisy.double() / 255
    expected = structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")
    assert reconstruction_metrics(originals, noisy)["ssim"].tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_ssim_within_the_border_as_in_scikit_image():
    """Where all of the border is alike and exact, SSIM is 1 there, and elsewhere what scikit-image says."""
    originals, _ = pair((1, 24, 24), n=1)
    inner = (0, 0, slice(10, 14), slice(10, 14))
    spoilt = originals.clone()
    spoilt[inner] = 255 * (originals[inner] < 128)
    x, y = originals[0, 0].numpy(), spoilt[0, 0].numpy()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = 1 - (1 - structural_similarity(x, y, **options)) * (14 / 24) ** 2
    assert expected < 0.99
    assert reconstruction_metrics(originals, spoilt)["ssim"].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 22, 31), (1, 45, 47), (2, 176, 180), (1, 22, 23, 24)])
def test_ms_ssim_as_in_torchmetrics(shape):
    originals, noisy = pair(shape, n=2)
    x, y = originals.double() / 255, noisy.double() / 255
    betas = SCALES[: scales(shape)]
    betas = tuple(weight / sum(betas) for weight in betas)
    expected = multiscale_structural_similarity_index_measure(y, x, data_range=1.0, reduction="none", betas=betas)
    # torchmetrics holds the weights in float32.
    assert reconstruction_metrics(originals, noisy)["ms_ssim"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


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
        (87, 3),
        (88, 4),
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
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_unequal_shapes():
    with pytest.raises(UserError, match="pairs"):
        reconstruction_metrics(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(("mse", "expected"), [(1.0, 0.0), (0.01, 20.0), (0.0, math.inf)])
def test_psnr_of_a_mean_error(mse, expected):
    assert psnr_of(mse) == pytest.approx(expected)
