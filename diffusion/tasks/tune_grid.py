"""Find the few times at which a sampler comes nearest to what it makes in many steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.codecs import Identity
from diffusion.denoiser import Cond
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.grids import Karras, Optimised, TimeGrid
from diffusion.samplers import dpmpp_2m
from diffusion.schedulers import NoiseScheduler

FINE = 64
"""Steps of the reference."""
SWEEPS = 5
FIRST_MOVE, SHRINK = 0.5, 0.6
"""Of the search: the first moves as a share of the gap to the neighbour, and how they shrink from sweep to sweep."""
RANGES = [(low, high, rho) for low in (0.02, 0.05, 0.1) for high in (10.0, 40.0) for rho in (3.0, 7.0)]
"""Grids to begin from, in noise levels sigma / alpha."""


@dataclass(frozen=True)
class Tuned:
    """levels: log-SNRs, rising. errors: of each image, (n,), on this grid, "optimised", and on the model's, "own"."""

    levels: list[float]
    errors: dict[str, Tensor]


def runs_of(steps: int) -> int:
    """How often a tuning of so many steps samples all its images, at most, the reference aside."""
    return len(RANGES) + 2 + SWEEPS * 2 * steps


def tune(
    generative: GenerativeModel,
    shape: Sequence[int],
    steps: int,
    cond: Cond | None,
    seeds: Sequence[int],
    batch_size: int = 256,
    on_run: Callable[[], None] | None = None,
) -> Tuned:
    """The grid of `steps` steps whose samples are nearest to a fine reference from the same noise.

    The error of an image is the root mean square difference, in the space where the model lives, between what the
    sampler makes of its seed and what 64 steps of DPM-Solver++ 2M do; of a grid, their mean, and not their mean square:
    an image that becomes another one in few steps is not a worse image, and must not outweigh all others. The best of a
    dozen known grids is improved one level at a time, by moves towards a neighbour that shrink. Any deterministic
    sampler, scheduler and guidance will do, for nothing but samples is looked at. Raises UserError for a sampler that
    draws noise.
    """
    scheduler = generative.denoiser.scheduler
    latent = replace(generative, codec=Identity())
    space = generative.codec.latent_shape(shape)

    def made(grid: TimeGrid, **parts: object) -> Tensor:
        chosen, images = replace(latent, grid=grid, **parts), []
        for first in range(0, len(seeds), batch_size):
            some = slice(first, first + batch_size)
            told = {key: value[some] for key, value in cond.items()} if cond else None
            images.append(chosen.sample(space, told, seeds=seeds[some]))
        return torch.cat(images)

    check_deterministic(generative)
    reference = made(Karras(FINE, 0.005, 80.0), sampler=dpmpp_2m)

    def errors(grid: TimeGrid) -> Tensor:
        found = (made(grid) - reference).square().flatten(1).mean(1).sqrt()
        if on_run is not None:
            on_run()
        return found

    def error(levels: Sequence[float]) -> float:
        found = errors(Optimised(steps, tuple(levels))).mean().item()
        return found if math.isfinite(found) else math.inf

    own = errors(replace(generative.grid, steps=steps))
    starts = [levels_of(grid, scheduler) for grid in (Karras(steps, *one) for one in RANGES)]
    best, levels = min((error(start), start) for start in starts)
    move = FIRST_MOVE
    for _ in range(SWEEPS):
        for i in range(steps):
            for trial in moved(levels, i, move):
                if (found := error(trial)) < best:
                    best, levels = found, trial
                    break
        move *= SHRINK
    return Tuned(levels, {"optimised": errors(Optimised(steps, tuple(levels))), "own": own})


def check_deterministic(generative: GenerativeModel) -> None:
    """Raises UserError for a sampler that draws noise: no two grids could be compared image by image."""
    try:
        generative.rehearse(rng=None)
    except ValueError as error:
        raise UserError("the sampler draws noise at every step, and only a deterministic one can be tuned") from error


def levels_of(grid: TimeGrid, scheduler: NoiseScheduler) -> list[float]:
    """The log-SNRs that a grid visits before the data; where the first is -inf, as far down as the noise drowns all."""
    found = scheduler.log_snr(grid(scheduler)[:-1]).clamp(min=-20.0)
    return found.tolist()


def moved(levels: Sequence[float], i: int, share: float) -> Iterable[list[float]]:
    """The levels with number i moved to either side, by a share of the gap to its neighbour."""
    gaps = [b - a for a, b in pairwise(levels)] or [1.0]
    for direction, gap in ((1, gaps[min(i, len(gaps) - 1)]), (-1, gaps[max(i - 1, 0)])):
        yield [level + direction * share * gap * (j == i) for j, level in enumerate(levels)]
