"""Learning without labels: two views of one image are to be alike, and unlike those of other images.

Shapes below: B images, C channels, S = (H, W) or (D, H, W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.1
REACH = 7
"""A view is shifted by up to one part in this many of each side."""
CONTRAST, BRIGHTNESS, NOISE = 0.4, 0.2, 0.05


def nt_xent(a: Tensor, b: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The normalised temperature-scaled cross-entropy of two views a and b of B images, (B, P) each, B > 1; a scalar.

    The mean over the 2 B views i, of which j is the other view of the same image, of
    -log(exp(s_ij / t) / sum_(k != i) exp(s_ik / t)), s the cosine similarity (Chen et al. 2020, eq. 1).
    """
    views = F.normalize(torch.cat([a, b]), dim=1)
    similarities = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(len(views), device=views.device).roll(len(a))
    return F.cross_entropy(similarities, other)


def view(images: Tensor, rng: torch.Generator) -> Tensor:
    """Another view of images (B, C, *S) in [-1, 1]: shifted, flipped along each axis or not, of other contrast and
    brightness, and with a little noise; each image by draws of its own. `rng` is on the CPU.
    """
    count, axes = len(images), range(2, images.ndim)
    each = [count, *[1] * (images.ndim - 1)]
    images = shifted(images, offsets(count, [side // REACH for side in images.shape[2:]], rng).to(images.device))
    for axis in axes:
        flip = torch.randint(2, each, generator=rng).bool().to(images.device)
        images = torch.where(flip, images.flip(axis), images)
    contrast, brightness = (2 * torch.rand(2, *each, generator=rng) - 1).to(images.device)
    noise = torch.randn(images.shape, generator=rng).to(images.device)
    return (images * (CONTRAST * contrast).exp() + BRIGHTNESS * brightness + NOISE * noise).clamp(-1, 1)


def offsets(count: int, reach: list[int], rng: torch.Generator) -> Tensor:
    """Random shifts, int64 (count, len(reach)), each of up to its axis's reach to either side."""
    return torch.stack([torch.randint(-r, r + 1, (count,), generator=rng) for r in reach], 1)


def shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Each image (B, C, *S) moved by its row of offsets, int64 (B, len(S)) in pixels; the border is repeated."""
    for axis, offset in enumerate(offsets.unbind(1), start=2):
        side = images.shape[axis]
        places = (torch.arange(side, device=images.device) - offset[:, None]).clamp(0, side - 1)
        along = [len(images), *(side if i == axis else 1 for i in range(1, images.ndim))]
        images = images.gather(axis, places.view(along).expand_as(images))
    return images
