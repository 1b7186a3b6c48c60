"""How alike two images are in their structure: SSIM and its multi-scale form.

The work is scikit-image's, in float64: torchmetrics' gives the same, but its float32 is off by 0.002 where images are
flat and bright, and its float64 takes seconds for a volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
"""Side of the Gaussian window of SSIM, in pixels; its standard deviation is 1.5."""
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The weights of the scales, the finest first (Wang, Simoncelli and Bovik 2003, section 3.2)."""


def scales(shape: Sequence[int]) -> int:
    """How many scales of SSIM images of shape (C, *S) have room for, 0 to 5: sides of 11, 22, 44, 88 and 176 pixels."""
    side = min(shape[1:])
    return sum(side >= WINDOW * 2**n for n in range(len(SCALES)))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of each pair of images (N, C, *S) float64 in [0, 1], (N,) in [-1, 1].

    Gaussian window of 11 pixels and sigma = 1.5, K = (0.01, 0.03), mean over channels and all positions, with the image
    mirrored at its border (Wang et al. 2004, eq. 13).
    """
    return _of_each(_mirrored, x, y)


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """SSIM around each pixel, whose mean is `ssim`: (N, C, *S) float64 for such images in [0, 1]."""
    inner = (slice(None), *[slice(WINDOW // 2, -(WINDOW // 2))] * (x.ndim - 2))
    maps = [_similarity(*_padded(a, b), full=True)[1][inner] for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    return torch.from_numpy(np.stack(maps))


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale SSIM of each pair of images (N, C, *S) float64 in [0, 1], (N,) in [0, 1].

    The product over scales of the contrast and structure terms, that of the coarsest scale times the luminance, each to
    the power of its weight (Wang et al. 2003, eq. 7); a term below 0 counts as 0. Only as many of the five scales as
    fit (see `scales`), at least one, their weights divided by their sum.
    """
    number = scales(x.shape[1:])
    halved = {4: F.avg_pool2d, 5: F.avg_pool3d}[x.ndim]
    product = torch.ones(len(x), dtype=torch.float64)
    for scale, weight in enumerate(SCALES[:number]):
        last = scale == number - 1
        product *= _of_each(_mirrored if last else _contrast, x, y).relu() ** (weight / sum(SCALES[:number]))
        x, y = (x, y) if last else (halved(x, 2), halved(y, 2))
    return product


def _of_each(metric: Callable[[np.ndarray, np.ndarray], float], x: Tensor, y: Tensor) -> Tensor:
    return torch.tensor([metric(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)], dtype=torch.float64)


def _similarity(x: np.ndarray, y: np.ndarray, **options: float) -> Any:
    """SSIM of two images (C, *S), the mean over channels and the positions where the window fits; its map if `full`."""
    from skimage.metrics import structural_similarity

    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(x, y, data_range=1.0, channel_axis=0, **window, **options)


def _mirrored(x: np.ndarray, y: np.ndarray) -> float:
    return _similarity(*_padded(x, y))


def _padded(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    border = [(0, 0)] + [(WINDOW // 2, WINDOW // 2)] * (x.ndim - 1)
    return np.pad(x, border, mode="reflect"), np.pad(y, border, mode="reflect")


def _contrast(x: np.ndarray, y: np.ndarray) -> float:
    """The contrast and structure terms alone, where the window fits."""
    # With a constant that is large beside the means, the luminance term is 1.
    return _similarity(x, y, K1=1e6)
