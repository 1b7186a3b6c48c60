"""How far apart two sets of images are in their pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.metrics.bootstrap import Estimate
from diffusion.random import generator

DIRECTIONS = 256
AT_ONCE = 32
"""Directions that are in memory at once."""
IMAGES_AT_ONCE = 256


def sliced_wasserstein(a: Tensor, b: Tensor, seed: int = 0) -> Estimate:
    """The mean over random directions of the Wasserstein-1 distance between projected images, in units of [0, 1].

    Images a uint8 (N, C, *S) and b (M, C, *S), N and M alike or not. Directions u are uniform on the unit sphere of all
    pixel values (Rabin et al. 2011; Bonneel et al. 2015): images that differ by a constant are about sqrt(2 / pi) of it
    apart, whatever their size. Along one direction the distance is int |F - G| dz, of the distribution functions of
    u'x; the influence of x is int_x^inf sign(F - G) dz less its mean.
    """
    size, count_a, count_b = a[0].numel(), len(a), len(b)
    directions = torch.randn(size, DIRECTIONS, generator=generator("sliced wasserstein", seed, size))
    directions /= directions.norm(dim=0)
    total, to_a, to_b = 0.0, torch.zeros(count_a, dtype=torch.float64), torch.zeros(count_b, dtype=torch.float64)
    for part in directions.split(AT_ONCE, 1):
        values = torch.cat([_projected(a, part), _projected(b, part)]).double().T.contiguous()
        values, order = values.sort(1)
        gaps = values.diff(dim=1)
        # N M (F - G) in whole numbers, so that it is 0 where it should be.
        difference = torch.where(order < count_a, count_b, -count_a).cumsum(1)[:, :-1]
        total += float((difference.abs() * gaps).sum()) / (count_a * count_b)
        rest = torch.zeros_like(values)
        rest[:, :-1] = (difference.sign() * gaps).flip(1).cumsum(1).flip(1)
        influence = torch.zeros_like(values).scatter_(1, order, rest).sum(0)
        to_a += influence[:count_a]
        to_b -= influence[count_a:]
    influences = tuple(((each - each.mean()) / DIRECTIONS).numpy() for each in (to_a, to_b))
    return Estimate(total / DIRECTIONS, influences, least=0.0)


def _projected(images: Tensor, directions: Tensor) -> Tensor:
    """Images uint8 (N, C, *S) on [0, 1] along directions (D, L), (N, L); not all of them are float at once."""
    return torch.cat([part.flatten(1).float() / 255 @ directions for part in images.split(IMAGES_AT_ONCE)])
