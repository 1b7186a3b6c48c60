"""How near completions are to the truth, in the part that was unknown."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.metrics.similarity import scales, ssim_map


def hole_metrics(originals: Tensor, completions: Tensor, unknown: Tensor) -> dict[str, Tensor]:
    """Figures of the unknown pixels of each image, values (N,) float64, by name.

    mse, mae: mean of (x - x')^2 and |x - x'| on the scale [0, 1], over channels and unknown pixels.
    psnr: -10 log10(mse) in dB; infinity for an exact completion.
    ssim: mean over the unknown pixels of the map of structural similarity, whose window sees known pixels around them;
        left out where the images are smaller than the window.

    originals, completions: uint8 (N, C, *S); unknown: bool (N, 1, *S), some of each image.
    """
    x, y = originals.cpu().double() / 255, completions.cpu().double() / 255
    mse, mae = within((x - y).square(), unknown), within((x - y).abs(), unknown)
    found = {"mse": mse, "psnr": 10 * mse.reciprocal().log10(), "mae": mae}
    return found | ({"ssim": within(ssim_map(x, y), unknown)} if scales(originals.shape[1:]) else {})


def spread(completions: Tensor, unknown: Tensor) -> Tensor:
    """How far several completions lie apart, (N,): the root mean square of their standard deviation on [0, 1].

    The standard deviation is over K, unbiased in its square; the mean over channels and unknown pixels. Where the model
    is right it is the error of a mean of many completions. completions: uint8 (K, N, C, *S), K >= 2.
    """
    return within((completions.double() / 255).var(0), unknown).sqrt()


def within(values: Tensor, unknown: Tensor) -> Tensor:
    """The mean of values (N, C, *S) over channels and the pixels where `unknown`, bool (N, 1, *S), holds; (N,)."""
    weights = unknown.cpu().expand_as(values).double()
    return (torch.where(weights > 0, values, 0.0).flatten(1).sum(1)) / weights.flatten(1).sum(1)
