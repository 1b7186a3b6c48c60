"""Take Gaussian noise off images: y = x0 + s eps is x_t / alpha at the time where sigma / alpha = s.

The noise level s is a standard deviation on the scale [-1, 1] of the images; half of it is that on [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Cond, scale
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel, evaluating
from diffusion.random import SampleNoise, seed_of
from diffusion.schedulers import NoiseScheduler

CANDIDATES = 24
"""Noise levels between which `estimated_levels` interpolates."""


class Denoised(NamedTuple):
    """What noisy images (B, C, *S) may have been, float32 on the scale [-1, 1].

    mean: E[x0 | y], in one evaluation. sample: one draw from p(x0 | y). average, spread: the mean and the standard
    deviation of all draws. sample to spread are None without draws, spread with one draw too.
    """

    mean: Tensor
    sample: Tensor | None = None
    average: Tensor | None = None
    spread: Tensor | None = None


def level_time(scheduler: NoiseScheduler, level: float) -> Tensor:
    """The time, float64 (), at which sigma / alpha = level. Raises UserError where the schedule does not reach it."""
    t = scheduler.time(torch.tensor(-2 * math.log(level), dtype=torch.float64))
    if not 0 < t <= 1:
        most = torch.exp(-scheduler.log_snr(torch.ones((), dtype=torch.float64)) / 2).item()
        raise UserError(
            f"noise={level:g}: the schedule of this run ends at {most:.3g} (standard deviation, on [-1, 1])"
        )
    return t


@torch.no_grad()
def posterior_mean(generative: GenerativeModel, noisy: Tensor, level: float, cond: Cond | None = None) -> Tensor:
    """E[x0 | y] = D(alpha y) for y (B, C, *S), (B, C, *S): of all estimates that with the least squared error."""
    x, t, cond = _place(generative, noisy, level, cond)
    with evaluating(generative.denoiser):
        return generative.denoiser(x, t, cond)


@torch.no_grad()
def posterior_draws(
    generative: GenerativeModel,
    noisy: Tensor,
    level: float,
    cond: Cond | None = None,
    *,
    seeds: Sequence[int],
    draws: int,
    on_draw: Callable[[], None] | None = None,
) -> Tensor:
    """Draws from p(x0 | y) for y (B, C, *S), (draws, B, C, *S): the reverse process from x_t = alpha y on.

    The sampler has to be stochastic: a deterministic one gives the same image each time. Draw k of image i depends on
    (seeds[i], k), its condition and itself alone.
    """
    x, t, cond = _place(generative, noisy, level, cond)
    grid, found = generative.below(t), []
    for draw in range(draws):
        rng = SampleNoise([seed_of(seed, "draw", draw) for seed in seeds], x.device)
        found.append(generative.decode(generative.solve(x, grid, cond, rng=rng)))
        if on_draw is not None:
            on_draw()
    return torch.stack(found)


def denoised(
    generative: GenerativeModel,
    noisy: Tensor,
    level: float,
    cond: Cond | None = None,
    *,
    seeds: Sequence[int],
    draws: int,
    on_draw: Callable[[], None] | None = None,
) -> Denoised:
    """All of it for y (B, C, *S); the spread is that of an unbiased variance, n - 1."""
    mean = posterior_mean(generative, noisy, level, cond)
    if draws == 0:
        return Denoised(mean)
    found = posterior_draws(generative, noisy, level, cond, seeds=seeds, draws=draws, on_draw=on_draw)
    return Denoised(mean, found[0], found.mean(0), found.std(0) if draws > 1 else None)


def noise_of(shape: Sequence[int], seed: int, places: Sequence[int]) -> Tensor:
    """Standard normal noise (len(places), *shape); that of a place depends on (seed, place) alone."""
    return SampleNoise([seed_of(seed, "denoise", place) for place in places])(shape)


def residuals(
    generative: GenerativeModel, noisy: Tensor, levels: Sequence[float], cond: Cond | None, batch_size: int
) -> Tensor:
    """The root mean square of y - E[x0 | y] for noise of each of these levels, (N, len(levels)) float64 on the CPU."""
    rows = []
    for first in range(0, len(noisy), batch_size):
        part = noisy[first : first + batch_size]
        told = {name: value[first : first + batch_size] for name, value in cond.items()} if cond else None
        found = [posterior_mean(generative, part, level, told).cpu() - part.cpu() for level in levels]
        rows.append(torch.stack([each.double().square().flatten(1).mean(1).sqrt() for each in found], 1))
    return torch.cat(rows)


def candidate_levels(scheduler: NoiseScheduler, low: float = 0.01, high: float = 2.0) -> list[float]:
    """Levels at equal ratios between `low` and `high`, or the end of the schedule where that is lower."""
    end = torch.exp(-scheduler.log_snr(torch.ones((), dtype=torch.float64)) / 2).item()
    return torch.logspace(math.log10(low), math.log10(min(high, 0.999 * end)), CANDIDATES).tolist()


def expected_residuals(
    generative: GenerativeModel,
    clean: Tensor,
    levels: Sequence[float],
    cond: Cond | None,
    *,
    seed: int,
    batch_size: int,
) -> Tensor:
    """The mean of `residuals` where the level is the right one, (len(levels),), from clean images (N, C, *S)."""
    noise = noise_of(clean.shape[1:], seed, range(len(clean)))
    found = [
        residuals(generative, clean + level * noise, [level], cond, batch_size).square().mean().sqrt()
        for level in levels
    ]
    return torch.stack(found)


def estimated_levels(found: Tensor, expected: Tensor, levels: Sequence[float]) -> Tensor:
    """The level at which what is taken off an image is as much as it should be, (N,) float64.

    found: `residuals` (N, L) of noisy images; expected: (L,) of `expected_residuals`; levels: (L,), rising. Where the
    assumed level is too low, less is taken off than the images hold, but more than that level should leave: the ratio
    found / expected falls through 1 at the level sought. It is interpolated in the logarithms; beyond the ends it is
    the end.
    """
    ratios = (found / expected).log()
    logs = torch.tensor(levels, dtype=torch.float64).log()
    below = (ratios > 0).long().cumprod(1).sum(1)  # levels before the first crossing
    right = below.clamp(1, len(logs) - 1)
    rows = torch.arange(len(ratios))
    a, b = ratios[rows, right - 1], ratios[rows, right]
    share = (a / (a - b)).nan_to_num(0.0).clamp(0, 1)
    return torch.lerp(logs[right - 1], logs[right], share).exp()


def _place(
    generative: GenerativeModel, noisy: Tensor, level: float, cond: Cond | None
) -> tuple[Tensor, Tensor, Mapping[str, Tensor] | None]:
    """x_t = alpha y, its time, and the condition, on the denoiser's device."""
    device, scheduler = generative.to_device(), generative.denoiser.scheduler
    t = level_time(scheduler, level)
    x = noisy.to(device, torch.float32)
    told = {key: value.to(device) for key, value in cond.items()} if cond else None
    return scale(scheduler.alpha(t), x) * x, t, told
