"""Random numbers that depend on named keys alone, never on global state, rank or batch layout.

A key is any tuple of plain values, for example (seed, "train", step). Noise for a batch is drawn in fixed
blocks of `BLOCK` places of the global batch, one generator a block, so that any slice of the batch can be drawn
alone: 1, 2 or 4 processes, and any accumulation, see the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BLOCK = 8

Noise = Callable[[Sequence[int]], Tensor]
"""Standard normal noise for a batch: the shape of one sample (C, *S) -> (B, C, *S)."""


def seed_of(*key: object) -> int:
    """A 63-bit seed from a key: the first bytes of the BLAKE2b hash of its `repr`."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` that is seeded by the key."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def normal_block(
    key: tuple, first: int, count: int, shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise, (count, *shape) float32, for the places first ... first + count - 1 of a batch."""
    start = first // BLOCK
    stop = -(-(first + count) // BLOCK)
    blocks = [
        torch.randn(BLOCK, *shape, generator=generator(*key, block, device=device), device=device)
        for block in range(start, stop)
    ]
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

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [generator("sample", int(seed)) for seed in seeds]
        self.device = device

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise, (len(seeds), *shape) float32 on the device; a new draw at each call."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self.generators]).to(self.device)
