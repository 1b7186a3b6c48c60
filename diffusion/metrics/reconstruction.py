"""How close reconstructions are to their originals, image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.errors import UserError

WINDOW = 11
"""Side of the Gaussian window of SSIM, in pixels; its standard deviation is 1.5."""
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The weights of the scales, the finest first (Wang, Simoncelli and Bovik 2003, section 3.2)."""
MOST_VALUES = 1 << 20
"""Values of a batch, or one image: SSIM holds some twenty times as many."""


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
    """How many scales of SSIM images of shape (C, *S) have room for, 0 to 5: sides of 11, 22, 44, 99 and 176 pixels.

    The window has to fit into the coarsest scale, and torchmetrics asks for a side of 11 (scales - 1)^2 too.
    """
    side = min(shape[1:])
    fits = (side >= WINDOW * max(2 ** (n - 1), (n - 1) ** 2) for n in range(1, len(SCALES) + 1))
    return sum(fits)


def _metrics(originals: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    from torchmetrics.functional import image as functional

    # SSIM in float32, which is right to about 1e-5: float64 convolutions take twenty times as long.
    x, y = originals.float() / 255, reconstructions.float() / 255
    mse = ((originals.double() - reconstructions.double()) / 255).square().flatten(1).mean(1)
    found = {"mse": mse, "psnr": 10 * mse.reciprocal().log10()}
    number = scales(originals.shape[1:])
    if number >= 1:
        ssim = functional.structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")
        found["ssim"] = ssim.double()
    if number >= 2:
        betas = tuple(weight / sum(SCALES[:number]) for weight in SCALES[:number])
        ms_ssim = functional.multiscale_structural_similarity_index_measure(
            y, x, data_range=1.0, reduction="none", betas=betas, normalize="relu"
        )
        found["ms_ssim"] = ms_ssim.double()
    before, after = _gradient(x), _gradient(y)
    found["sharpness"] = torch.where(before == after, 1.0, after / before)
    return found


def _gradient(images: Tensor) -> Tensor:
    """The mean length of the gradient of each image (B, C, *S), (B,) float64.

    The mean is over channels and the pixels that have a next one along each axis; an axis of one pixel has no slope.
    """
    axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
    inner = tuple(slice(-1) if axis in axes else slice(None) for axis in range(images.ndim))
    # Differences to the next pixel, not over two pixels, which would not see a checkerboard.
    squares = (images.diff(dim=axis, append=images.narrow(axis, -1, 1))[inner].square() for axis in axes)
    return sum(squares, torch.zeros_like(images[inner])).sqrt().double().flatten(1).mean(1)
