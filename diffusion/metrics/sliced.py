"""How far apart two sets of images are in their pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.metrics.bootstrap import Estimate
from diffusion.random import generator

DIRECTIONS = 256
AT_ONCE = 32
"""Directions that are in memory at once."""


def sliced_wasserstein(a: Tensor, b: Tensor, seed: int = 0) -> Estimate:
    """The mean over random directions of the Wasserstein-1 distance between projected images, in units of [0, 1].

    Images a uint8 (N, C, *S) and b (M, C, *S), N and M alike or not. Directions u are uniform on the unit sphere of all
    pixel values (Rabin et al. 2011; Bonneel et al. 2015): images that differ by a constant are about sqrt(2 / pi) of it
    apart, whatever their size. Along one direction the distance is int |F - G| dz, of the distribution functions of
    u'x; the influence of x is int_x^inf sign(F - G) dz less its mean.
    """
    a, b = (x.flatten(1).float() / 255 for x in (a, b))
    size = a.shape[1]
    directions = torch.randn(size, DIRECTIONS, generator=generator("sliced wasserstein", seed, size))
    directions /= directions.norm(dim=0)
    total, to_a, to_b = 0.0, torch.zeros(len(a), dtype=torch.float64), torch.zeros(len(b), dtype=torch.float64)
    for part in directions.split(AT_ONCE, 1):
        values = torch.cat([a @ part, b @ part]).double().T.contiguous()
        values, order = values.sort(1)
        weight = torch.where(order < len(a), 1 / len(a), -1 / len(b))
        gaps, difference = values.diff(dim=1), weight.cumsum(1)[:, :-1]
        # Where the functions are equal only rounding is left of their difference, and has no sign.
        sign = torch.where(difference.abs() < 1e-12, 0.0, difference.sign())
        total += float((difference.abs() * gaps).sum())
        rest = torch.zeros_like(values)
        rest[:, :-1] = (sign * gaps).flip(1).cumsum(1).flip(1)
        influence = torch.zeros_like(values).scatter_(1, order, rest).sum(0)
        to_a += influence[: len(a)]
        to_b -= influence[len(a) :]
    influences = tuple(((each - each.mean()) / DIRECTIONS).numpy() for each in (to_a, to_b))
    return Estimate(total / DIRECTIONS, influences, least=0.0)
