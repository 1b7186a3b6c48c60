"""Random numbers that depend on named keys alone, never on global state, rank or batch layout.

A key is any tuple of plain values, for example (seed, "train", step). Noise for a batch is drawn in fixed
blocks of `BLOCK` places of the global batch, one generator a block, so that any slice of the batch can be drawn
alone: 1, 2 or 4 processes, and any accumulation, see the same numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.devices import to_device

BLOCK = 8

Noise = Callable[[Sequence[int]], Tensor]
"""Standard normal noise for a batch: the shape of one sample (C, *S) -> (B, C, *S)."""

Draw = Callable[[int, Sequence[int], torch.Generator], Tensor]
"""Noise of mean 0 and variance 1 for so many samples of a shape (C, *S), on the generator's device; float32."""


def seed_of(*key: object) -> int:
    """A 63-bit seed from a key: the first bytes of the BLAKE2b hash of its `repr`."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` that is seeded by the key."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_global(device: torch.device, *key: object) -> None:
    """Seed the global generator of a device, the only one that dropout layers know, by the key.

    As torch.manual_seed does of all devices, which takes 0.6 ms where one of their kinds is not in use.
    """
    where = torch.default_generator if device.type == "cpu" else torch.get_device_module(device)
    where.manual_seed(seed_of(*key))


def gaussian(count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent standard normal values, (count, *shape)."""
    return torch.randn(count, *shape, generator=generator, device=generator.device)


def normal_block(
    key: tuple, first: int, count: int, shape: Sequence[int], device: torch.device | str = "cpu", draw: Draw = gaussian
) -> Tensor:
    """Standard normal noise, (count, *shape) float32, for the places first ... first + count - 1 of a batch.

    draw: another noise in its place.
    """
    start = first // BLOCK
    stop = -(-(first + count) // BLOCK)
    blocks = [draw(BLOCK, shape, generator(*key, block, device=device)) for block in range(start, stop)]
    offset = first - start * BLOCK
    return torch.cat(blocks)[offset : offset + count]


def stratified_uniform(key: tuple, first: int, count: int, total: int) -> Tensor:
    """Uniform numbers in [0, 1), (count,) float64: one offset for the whole batch of `total`, one stratum a place.

    u_i = (u + i / total) mod 1, the low-discrepancy sampler of Kingma et al. 2021 (Variational Diffusion
    Models, appendix I.1). It lowers the variance of the loss; each u_i alone is uniform.
    """
    offset = torch.rand((), generator=generator(*key), dtype=torch.float64)
    places = torch.arange(first, first + count, dtype=torch.float64)
    return (offset + places / total) % 1.0


def uniform(key: tuple, first: int, count: int) -> Tensor:
    """Independent uniform numbers in [0, 1), (count,) float64, for the places first ... first + count - 1."""
    start = first // BLOCK
    stop = -(-(first + count) // BLOCK)
    blocks = [torch.rand(BLOCK, generator=generator(*key, block), dtype=torch.float64) for block in range(start, stop)]
    offset = first - start * BLOCK
    return torch.cat(blocks)[offset : offset + count]


class SampleNoise:
    """Noise for a batch of samples, each from a generator of its own: sample i depends on its seed alone.

    The generators live on the CPU, so that every accelerator begins from the same noise.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu", draw: Draw = gaussian):
        self.generators = [generator("sample", int(seed)) for seed in seeds]
        self.device, self.draw = device, draw

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise, (len(seeds), *shape) float32 on the device; a new draw at each call."""
        return to_device(torch.cat([self.draw(1, shape, g) for g in self.generators]), self.device)


OCTAVES, PERIOD, PERSISTENCE = 6, 64.0, 0.8


def simplex(count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Simplex noise of several octaves, (count, *shape), shape (C, *S); each channel is drawn by itself.

    The sum of octaves k = 0 ... OCTAVES - 1 of period PERIOD / 2^k pixels and amplitude PERSISTENCE^k, those of AnoDDPM
    (Wyatt et al. 2022), whose structures are as large as lesions; scaled to variance 1 at every pixel, over draws. An
    octave is sum_i max(0, 1/2 - |d_i|^2)^4 (g_i . d_i) over the n + 1 corners i of the simplex around a point (Perlin
    2001), d_i the way from the corner, g_i its gradient, here standard normal; the lattice is moved by a random offset.
    """
    channels, *size = shape
    total = sum(PERSISTENCE**k * _octave(count * channels, size, 2**k / PERIOD, generator) for k in range(OCTAVES))
    return (total / sum(PERSISTENCE ** (2 * k) for k in range(OCTAVES)) ** 0.5).reshape(count, *shape)


def _octave(count: int, size: Sequence[int], frequency: float, generator: torch.Generator) -> Tensor:
    """One octave of unit variance, (count, pixels)."""
    n, device = len(size), generator.device
    skew, unskew = ((n + 1) ** 0.5 - 1) / n, (1 - (n + 1) ** -0.5) / n
    axes = [torch.arange(side, device=device) * frequency for side in size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, n)  # (P, n)
    offset = torch.rand(count, 1, n, generator=generator, device=device)
    skewed = points + skew * points.sum(-1, keepdim=True) + offset  # (count, P, n)
    cell = skewed.floor()
    inside = skewed - cell
    # The corners of the simplex: from the cell's own on, one step along each axis in falling order of the coordinates.
    order = inside.argsort(-1, descending=True)
    steps = torch.nn.functional.one_hot(order, n).cumsum(-2)  # (count, P, n, n)
    corners = torch.cat([torch.zeros_like(steps[..., :1, :]), steps], -2)  # (count, P, n + 1, n)
    away = inside[..., None, :] - corners
    away = away - unskew * away.sum(-1, keepdim=True)
    sides = [int(cell[..., axis].max()) + 2 for axis in range(n)]
    gradients = torch.randn(count, *sides, n, generator=generator, device=device).reshape(count, -1, n)
    places = cell.long()[..., None, :] + corners
    flat = places[..., 0]
    for axis in range(1, n):
        flat = flat * sides[axis] + places[..., axis]
    found = gradients.gather(1, flat.reshape(count, -1, 1).expand(-1, -1, n)).reshape(*flat.shape, n)
    weight = (0.5 - away.square().sum(-1)).clamp(min=0) ** 4
    # The variance: (density of corners) x integral of (1/2 - r^2)^8 r^2, as g . d has variance |d|^2.
    sphere = 2 * math.pi ** (n / 2) / math.gamma(n / 2)
    beta = math.gamma(n / 2 + 1) * math.gamma(9) / math.gamma(n / 2 + 10)
    variance = (n + 1) ** 0.5 * sphere * 0.5 ** (n / 2 + 9) * beta / 2
    return (weight * (found * away).sum(-1)).sum(-1) / variance**0.5


NOISES: dict[str, Draw] = {"gaussian": gaussian, "simplex": simplex}
"""What `model.noise` may be."""
