"""How close reconstructions are to their originals, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.errors import UserError

WINDOW = 11
"""Side of the Gaussian window of SSIM, in pixels; its standard deviation is 1.5."""
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The weights of the scales, the finest first (Wang, Simoncelli and Bovik 2003, section 3.2)."""
MOST_VALUES = 1 << 20
"""Values of a batch, or one image: some ten times as many are in memory at once."""


def reconstruction_metrics(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """What becomes of each image: values (N,) float64, by name, for images uint8 (N, C, *S), S of two or three axes.

    mse: mean((x - x')^2) on the scale [0, 1].
    psnr: -10 log10(mse) in dB; infinity for an exact reconstruction.
    ssim: in [-1, 1], 1 for an exact reconstruction: Gaussian window of 11 pixels and sigma = 1.5, K = (0.01, 0.03),
        mean over channels and all positions, with the image mirrored at its border (Wang et al. 2004, eq. 13).
    ms_ssim: in [0, 1]: the product over scales of the contrast and structure terms, that of the coarsest scale times
        the luminance, each to the power of its weight (Wang et al. 2003, eq. 7); a term below 0 counts as 0. Only as
        many of the five scales as fit (see `scales`), their weights divided by their sum.
    sharpness: mean |grad x'| / mean |grad x|, grad the differences to the next pixel along each axis: 1 is as sharp as
        the original, less is blurred, more is noisy. Infinity where the original alone is flat, 1 where both are.

    SSIM is scikit-image's, in float64: torchmetrics' gives the same, but its float32 is off by 0.002 where images are
    flat and bright, and its float64 takes seconds for a volume.

    A metric that the images are too small for is left out, see `left_out`. Raises UserError for unequal shapes.
    """
    if originals.shape != reconstructions.shape:
        raise UserError(
            f"originals of shape {tuple(originals.shape)}, but reconstructions of shape "
            f"{tuple(reconstructions.shape)}: give pairs of images"
        )
    size = max(1, MOST_VALUES // math.prod(originals.shape[1:]))
    batches = [_metrics(x, y) for x, y in zip(originals.split(size), reconstructions.split(size), strict=True)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def psnr_of(mse: float) -> float:
    """-10 log10(mse) in dB, for an error on the scale [0, 1]; infinity for none.

    The PSNR of a mean error is not the mean of the PSNRs: it is lower, and finite unless all images are exact.
    """
    return 10 * math.log10(1 / mse) if mse > 0 else math.inf


def left_out(shape: Sequence[int]) -> dict[str, str]:
    """The metrics that images of shape (C, *S) are too small for, each with the reason."""
    number, side = scales(shape), min(shape[1:])
    reasons = {}
    if number < 1:
        reasons["ssim"] = f"a side of {side} pixels is smaller than the window of {WINDOW}"
    if number < 2:
        reasons["ms_ssim"] = f"a side of {side} pixels is smaller than {2 * WINDOW}, which two scales need"
    return reasons


def scales(shape: Sequence[int]) -> int:
    """How many scales of SSIM images of shape (C, *S) have room for, 0 to 5: sides of 11, 22, 44, 88 and 176 pixels."""
    side = min(shape[1:])
    return sum(side >= WINDOW * 2**n for n in range(len(SCALES)))


def _metrics(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    x, y = originals.cpu().double() / 255, reconstructions.cpu().double() / 255
    mse = (x - y).square().flatten(1).mean(1)
    before, after = _gradient(x), _gradient(y)
    found = {"mse": mse, "psnr": 10 * mse.reciprocal().log10()}
    number = scales(originals.shape[1:])
    if number >= 1:
        found["ssim"] = _of_each(_ssim, x, y)
    if number >= 2:
        found["ms_ssim"] = _ms_ssim(x, y, number)
    return {**found, "sharpness": torch.where(before == after, 1.0, after / before)}


def _of_each(metric: Callable[[np.ndarray, np.ndarray], float], x: Tensor, y: Tensor) -> Tensor:
    return torch.tensor([metric(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)], dtype=torch.float64)


def _similarity(x: np.ndarray, y: np.ndarray, **options: float) -> float:
    """SSIM of two images (C, *S), the mean over channels and the positions where the window fits."""
    from skimage.metrics import structural_similarity

    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(x, y, data_range=1.0, channel_axis=0, **window, **options))


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
    border = [(0, 0)] + [(WINDOW // 2, WINDOW // 2)] * (x.ndim - 1)
    return _similarity(np.pad(x, border, mode="reflect"), np.pad(y, border, mode="reflect"))


def _contrast(x: np.ndarray, y: np.ndarray) -> float:
    """The contrast and structure terms alone, where the window fits."""
    # With a constant that is large beside the means, the luminance term is 1.
    return _similarity(x, y, K1=1e6)


def _ms_ssim(x: Tensor, y: Tensor, number: int) -> Tensor:
    halved = {4: F.avg_pool2d, 5: F.avg_pool3d}[x.ndim]
    product = torch.ones(len(x), dtype=torch.float64)
    for scale, weight in enumerate(SCALES[:number]):
        last = scale == number - 1
        product *= _of_each(_ssim if last else _contrast, x, y).relu() ** (weight / sum(SCALES[:number]))
        x, y = (x, y) if last else (halved(x, 2), halved(y, 2))
    return product


def _gradient(images: Tensor) -> Tensor:
    """The mean length of the gradient of each image (B, C, *S), (B,).

    The mean is over channels and the pixels that have a next one along each axis; an axis of one pixel has no slope.
    """
    axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
    inner = tuple(slice(-1) if axis in axes else slice(None) for axis in range(images.ndim))
    # Differences to the next pixel, not over two pixels, which would not see a checkerboard.
    squares = (images.diff(dim=axis, append=images.narrow(axis, -1, 1))[inner].square() for axis in axes)
    return sum(squares, torch.zeros_like(images[inner])).sqrt().flatten(1).mean(1)
