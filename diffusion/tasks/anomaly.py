"""What a model of normal images cannot rebuild of an image, as a map over its pixels and as one figure.

Images are uint8 (N, C, *S), maps float32 (N, *S).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion.denoiser import Cond, scale
from diffusion.generative import GenerativeModel, noised, time_of
from diffusion.random import seed_of
from diffusion.samplers import ddim
from diffusion.samplers.inversion import ddim_inversion

GREY_LEVEL = (2 / 255) ** 2
"""The square of one of 256 levels on the scale [-1, 1]: a smaller spread is not told from none."""


class Rebuild(Protocol):
    """Images (B, C, *S) in [-1, 1] as the model would have them: they share what noise of a strength leaves of these.

    Image i depends on seeds[i], its condition and itself alone.
    """

    def __call__(self, images: Tensor, strength: float, cond: Cond | None, seeds: Sequence[int]) -> Tensor: ...


def expected(generative: GenerativeModel) -> Rebuild:
    """E[x0 | x_t] of the noised image, in one evaluation: the mean of all images that the model finds possible.

    Sources: Ho et al. 2020, eq. 15; partial noising as in AnoDDPM (Wyatt et al. 2022).
    """

    @torch.no_grad()
    def rebuild(images: Tensor, strength: float, cond: Cond | None, seeds: Sequence[int]) -> Tensor:
        x0, scheduler = generative.encode(images), generative.denoiser.scheduler
        t = time_of(scheduler, strength)
        noise = generative.noise(seeds)(x0.shape[1:])
        return generative.decode(generative.denoiser(noised(scheduler, x0, noise, t), t, _on(x0.device, cond)))

    return rebuild


def redrawn(generative: GenerativeModel) -> Rebuild:
    """Partial noising, and the sampler back to an image: AnoDDPM (Wyatt et al. 2022); see `GenerativeModel.redraw`."""
    return lambda images, strength, cond, seeds: generative.redraw(images, strength, cond, seeds=seeds)


def inverted(plain: GenerativeModel, guided: GenerativeModel) -> Rebuild:
    """DDIM inversion without a condition up to the strength, and guided DDIM back under the condition; no randomness.

    plain, guided: the same model, without guidance and with it. Sources: Wolleb et al. 2022; Sanchez et al. 2022, who
    lead towards the class of healthy images by classifier-free guidance.
    """

    @torch.no_grad()
    def rebuild(images: Tensor, strength: float, cond: Cond | None, seeds: Sequence[int]) -> Tensor:
        x0, scheduler = plain.encode(images), plain.denoiser.scheduler
        grid = plain.below(time_of(scheduler, strength))
        if len(grid) < 3:
            grid = torch.cat([grid[:1], grid[:1] / 2, grid[1:]])
        x = scale(scheduler.alpha(grid[-2]), x0) * x0
        x = ddim_inversion(plain.denoiser, x, grid[:-1])
        return guided.decode(ddim(guided.denoiser, x, grid, _on(x.device, cond)))

    return rebuild


def _on(device: torch.device, cond: Cond | None) -> Cond | None:
    return {key: value.to(device) for key, value in cond.items()} if cond else None


class Rebuilt(NamedTuple):
    """Of N images at each of L strengths, over the draws.

    error: squared difference of the image and the mean draw, mean over channels, (N, L, *S)
    spread: variance of the draws, mean over channels, (N, L, *S); 0 of a single one
    images: the mean draw, uint8 (N, L, C, *S)
    """

    error: Tensor
    spread: Tensor
    images: Tensor

    def at(self, levels: Sequence[int]) -> Rebuilt:
        """Those of some of the strengths, by their places."""
        return Rebuilt(*(each[:, list(levels)] for each in self))


def rebuilt(
    rebuild: Rebuild,
    images: Tensor,
    places: Sequence[int],
    strengths: Sequence[float],
    draws: int,
    seed: int,
    batch_size: int,
    label: int | None = None,
    device: torch.device | str = "cpu",
    on_draw: Callable[[int], None] | None = None,
) -> Rebuilt:
    """Rebuild images uint8 (N, C, *S) `draws` times at each strength; all on the CPU.

    Image i depends on (seed, places[i]) and `label`, the class that the model is told, alone. `on_draw` is told after
    each batch how many images were rebuilt.
    """
    found: list[list[Tensor]] = [[], [], []]
    for first in range(0, len(images), batch_size):
        x = images[first : first + batch_size].to(device).float() / 127.5 - 1
        which = places[first : first + batch_size]
        cond = None if label is None else {"label": torch.full((len(x),), label)}
        parts: list[list[Tensor]] = [[], [], []]
        for strength in strengths:
            mean, square = torch.zeros_like(x), torch.zeros_like(x)
            for draw in range(draws):
                seeds = [seed_of(seed, "anomaly", strength, draw, place) for place in which]
                change = rebuild(x, strength, cond, seeds).float() - mean
                mean = mean + change / (draw + 1)
                square = square + change * change * draw / (draw + 1)  # Welford 1962: no difference of large sums
                if on_draw is not None:
                    on_draw(len(x))
            parts[0].append((x - mean).square().mean(1).cpu())
            parts[1].append((square / max(1, draws - 1)).mean(1).cpu())
            parts[2].append(((mean.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        for kept, part in zip(found, parts, strict=True):
            kept.append(torch.stack(part, 1))
    return Rebuilt(*map(torch.cat, found))


def surprise(found: Rebuilt, width: float) -> Tensor:
    """How far each pixel's neighbourhood is from what the model expects, (N, L, *S): error over spread, smoothed.

    (G * error) / (G * spread + GREY_LEVEL), G a Gaussian of this standard deviation in pixels: where the draws
    disagree, as in rich texture, a large error says little. Without a spread it is the smoothed error.
    """
    return smoothed(found.error, width) / (smoothed(found.spread, width) + GREY_LEVEL)


def smoothed(maps: Tensor, width: float) -> Tensor:
    """Maps (N, L, *S), each blurred by a Gaussian of this standard deviation in pixels; at borders the last pixel."""
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(maps.numpy(), (0, 0) + (width,) * (maps.ndim - 2), mode="nearest"))


def combined(maps: Tensor, normal: Tensor) -> Tensor:
    """One map (N, *S) of those of the strengths, (N, L, *S): their mean, each divided by what normal images have.

    normal: maps (M, L, *S) of normal images, whose mean over images and pixels is 1 after it.
    """
    level = normal.transpose(0, 1).flatten(1).mean(1).clamp(min=torch.finfo(torch.float32).tiny)
    return (maps / level.reshape(1, -1, *[1] * (maps.ndim - 2))).mean(1)


def score_of(maps: Tensor, normal: Tensor, share: float, both: bool = False) -> Tensor:
    """One figure an image, float64 (N,): the quantile `share` of its map (N, *S).

    both: how far its logarithm is from the mean of those of the maps of normal images, in their standard deviations,
    in either direction, for what is not normal may be easier to rebuild too: it is smoother, or darker. That is a test
    of typicality (Nalisnick et al. 2019) by this figure.
    """
    score, usual = (torch.quantile(each.flatten(1).double(), share, dim=1) for each in (maps, normal))
    if not both:
        return score
    least = torch.finfo(torch.float32).tiny
    score, usual = score.clamp(min=least).log(), usual.clamp(min=least).log()
    return (score - usual.mean()).abs() / usual.std(correction=0).clamp(min=least)
