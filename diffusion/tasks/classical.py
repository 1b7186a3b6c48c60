"""Classical denoisers, from scikit-image, with their parameters chosen for the data: the baselines of `denoise`.

Images are float (N, C, *S) on the scale [-1, 1], S of two or three axes; all channels have noise of one level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

Settings = Mapping[str, float]

WEIGHTS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2, 3.0)
"""Of total variation, in units of the noise."""
STRENGTHS = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.2)
"""The bandwidth h of non-local means, in units of the noise."""
PATCHES = {4: ((3, 5), (3, 9), (5, 9)), 5: ((3, 2), (3, 3))}
"""Patch size and search distance of non-local means, for images and for volumes."""


def total_variation(images: Tensor, level: float, weight: float) -> Tensor:
    """argmin_u |u - y|^2 / 2 + w TV(u), w = weight * level, channel by channel. Source: Chambolle 2004."""
    from skimage.restoration import denoise_tv_chambolle

    return _each(images, lambda image: denoise_tv_chambolle(image, weight * level, channel_axis=0))


def non_local_means(images: Tensor, level: float, strength: float, patch: int, distance: int) -> Tensor:
    """A mean of pixels weighted by exp(-max(d^2 - 2 level^2, 0) / h^2), h = strength * level, d^2 of their patches.

    The level is known to it, channels are compared together. Source: Buades et al. 2011, as scikit-image has it.
    """
    from skimage.restoration import denoise_nl_means

    def one(image: np.ndarray) -> np.ndarray:
        options = {"h": strength * level, "sigma": level, "fast_mode": True}
        # Of an image with an axis for its only channel scikit-image gives back the transpose.
        if len(image) == 1:
            return denoise_nl_means(image[0], patch, distance, **options)[None]
        return denoise_nl_means(image, patch, distance, channel_axis=0, **options)

    return _each(images, one)


DENOISERS: dict[str, Callable[..., Tensor]] = {"tv": total_variation, "nlm": non_local_means}


def settings_of(name: str, axes: int) -> list[Settings]:
    """What is tried for one of `DENOISERS` on tensors of so many axes."""
    if name == "tv":
        return [{"weight": weight} for weight in WEIGHTS]
    return [
        {"strength": strength, "patch": patch, "distance": distance}
        for strength, (patch, distance) in product(STRENGTHS, PATCHES[axes])
    ]


def tuned(
    name: str, clean: Tensor, noisy: Tensor, level: float, on_try: Callable[[], None] | None = None
) -> tuple[Settings, float]:
    """The settings whose result has the highest mean PSNR (clipped to [-1, 1], in dB), and that figure."""
    best: tuple[float, Settings] = (-np.inf, {})
    for settings in settings_of(name, clean.ndim):
        found = DENOISERS[name](noisy, level, **settings).clamp(-1, 1)
        psnr = -10 * ((found - clean).double().square().flatten(1).mean(1) / 4).log10().mean().item()
        best = max(best, (psnr, settings), key=lambda pair: pair[0])
        if on_try is not None:
            on_try()
    return best[1], best[0]


def _each(images: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    found: Sequence[np.ndarray] = [function(image) for image in images.double().numpy()]
    return torch.from_numpy(np.stack(found)).float()
