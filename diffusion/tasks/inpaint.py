"""Complete images of which a part is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.denoiser import Cond
from diffusion.generative import GenerativeModel, noised
from diffusion.guidance import Known
from diffusion.samplers import OnStep
from diffusion.samplers.resampled import Resampled


@torch.no_grad()
def inpaint(
    generative: GenerativeModel,
    images: Tensor,
    unknown: Tensor,
    cond: Cond | None = None,
    *,
    seeds: Sequence[int],
    times: int = 1,
    stride: int = 1,
    on_step: OnStep | None = None,
) -> Tensor:
    """One completion of each image (B, C, *S) in [-1, 1]; what is `unknown`, bool (B, 1, *S), is never looked at.

    The known part is held by `Known`, and every stride of the grid is walked `times` times (`Resampled`). The answer is
    the model's in all places, and equals the images where they are known in pixel space. In latents a place is known
    where all pixels that it covers are; the others are encoded as `filled` has them, and drawn. Completion i depends on
    seeds[i], its condition, mask and known pixels alone.
    """
    device = generative.to_device()
    rng = generative.noise(seeds)
    y = generative.encode(filled(images, unknown))
    known = covered(~unknown, y.shape[2:]).to(device)
    y = torch.where(known, y, 0.0)
    scheduler, grid = generative.denoiser.scheduler, generative.grid(generative.denoiser.scheduler)
    x = noised(scheduler, y, rng(y.shape[1:]), grid[0])
    held = replace(
        generative,
        denoiser=Known(generative.denoiser, y, known),
        sampler=Resampled(generative.sampler, times, stride),
    )
    return held.decode(held.solve(x, grid, cond, rng=rng, on_step=on_step))


def filled(images: Tensor, unknown: Tensor) -> Tensor:
    """The images (B, C, *S) with each unknown pixel as near to the known ones around it as a blur carries them.

    Pixels next to known ones get their mean; these count as known to the next ones, until none is left.
    """
    known = (~unknown).to(images.dtype)
    images = torch.where(unknown, 0.0, images)
    pool = {4: F.avg_pool2d, 5: F.avg_pool3d}[images.ndim]
    for _ in range(max(images.shape[2:])):
        share = pool(known, 3, 1, 1)
        new = (known == 0) & (share > 0)
        images = torch.where(new, pool(images, 3, 1, 1) / share.clamp(min=1e-6), images)
        known = torch.where(new, 1.0, known)
    return images


def covered(known: Tensor, size: Sequence[int]) -> Tensor:
    """Where all pixels below a place of a coarser map are known: bool (B, 1, *S) -> (B, 1, *size)."""
    pool = {4: F.adaptive_max_pool2d, 5: F.adaptive_max_pool3d}[known.ndim]
    return pool((~known).float(), tuple(size)) == 0


def biharmonic(images: Tensor, unknown: Tensor) -> Tensor:
    """The unknown part as the smoothest continuation of the known one: scikit-image's, of each channel by itself.

    images: uint8 (N, C, H, W); unknown: bool (N, 1, H, W). Source: Damelin and Hoang 2018.
    """
    from skimage.restoration import inpaint_biharmonic

    found = [
        torch.from_numpy(inpaint_biharmonic(image.numpy() / 255, mask[0].numpy(), channel_axis=0))
        for image, mask in zip(images.cpu(), unknown.cpu(), strict=True)
    ]
    return torch.stack(found).clamp(0, 1).mul(255).round().to(torch.uint8)
