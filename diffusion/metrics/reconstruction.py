"""How close reconstructions are to their originals, image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.metrics.similarity import WINDOW, ms_ssim, scales, ssim

MOST_VALUES = 1 << 20
"""Values of a batch, or one image: some ten times as many are in memory at once."""


def reconstruction_metrics(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """What becomes of each image: values (N,) float64, by name, for images uint8 (N, C, *S), S of two or three axes.

    mse: mean((x - x')^2) on the scale [0, 1].
    psnr: -10 log10(mse) in dB; infinity for an exact reconstruction.
    ssim, ms_ssim: structural similarity, see `similarity`; 1 for an exact reconstruction.
    sharpness: mean |grad x'| / mean |grad x|, grad the differences to the next pixel along each axis: 1 is as sharp as
        the original, less is blurred, more is noisy. Infinity where the original alone is flat, 1 where both are.

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


def _metrics(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    x, y = originals.cpu().double() / 255, reconstructions.cpu().double() / 255
    mse = (x - y).square().flatten(1).mean(1)
    before, after = _gradient(x), _gradient(y)
    found = {"mse": mse, "psnr": 10 * mse.reciprocal().log10()}
    number = scales(originals.shape[1:])
    if number >= 1:
        found["ssim"] = ssim(x, y)
    if number >= 2:
        found["ms_ssim"] = ms_ssim(x, y)
    return {**found, "sharpness": torch.where(before == after, 1.0, after / before)}


def _gradient(images: Tensor) -> Tensor:
    """The mean length of the gradient of each image (B, C, *S), (B,).

    The mean is over channels and the pixels that have a next one along each axis; an axis of one pixel has no slope.
    """
    axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
    inner = tuple(slice(-1) if axis in axes else slice(None) for axis in range(images.ndim))
    # Differences to the next pixel, not over two pixels, which would not see a checkerboard.
    squares = (images.diff(dim=axis, append=images.narrow(axis, -1, 1))[inner].square() for axis in axes)
    return sum(squares, torch.zeros_like(images[inner])).sqrt().flatten(1).mean(1)
