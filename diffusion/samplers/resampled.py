"""Resampling: every part of the way is walked several times, so that what is fixed and what is drawn come to agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from diffusion.denoiser import Cond, Denoiser
from diffusion.errors import UserError
from diffusion.samplers.base import OnStep, Rng, Sampler, diffused


@dataclass(frozen=True)
class Resampled:
    """A sampler that walks each `stride` steps of the grid `times` times, with another sampler's steps.

    Between two walks from t to s, x_s is diffused back: x_t ~ q(x_t | x_s). A denoiser that holds a part of the image
    fixed (see `guidance.Known`) pulls the rest towards it a little at each step; the way back forgets what did not fit,
    and keeps what did. times=1 is the sampler itself; above, a sampler with memory begins anew with every walk, so that
    a stride of one step leaves it of order 1. The step to sigma = 0 is walked once: from there nothing comes back.
    on_step is told of every step of every walk. Source: Lugmayr et al. 2022 (RePaint), algorithm 1 and section 4.2
    (their r and j), for any sampler.

    Raises UserError for times or stride below 1, ValueError without `rng` where times is above 1.
    """

    sampler: Sampler
    times: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        for name, value in {"resample": self.times, "stride": self.stride}.items():
            if value < 1:
                raise UserError(f"{name}={value}: give 1 or more; resample=1 walks once")

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        grid: Tensor,
        cond: Cond | None = None,
        *,
        rng: Rng | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        if self.times > 1 and rng is None:
            raise ValueError("resampling draws noise and needs rng")
        done = 0

        def tell(_: int, x: Tensor, mean: Tensor) -> None:
            nonlocal done
            if on_step is not None:
                on_step(done, x, mean)
            done += 1

        for part, times in self.parts(grid):
            for walk in range(times):
                if walk > 0:
                    x = diffused(denoiser.scheduler, x, part[-1], part[0], rng)
                x = self.sampler(denoiser, x, part, cond, rng=rng, on_step=tell)
        return x

    def parts(self, grid: Tensor) -> Iterator[tuple[Tensor, int]]:
        """The parts of the grid, each from where the one before ends, and how often each is walked."""
        if self.times == 1:
            yield grid, 1
            return
        last = len(grid) - 1
        inner = last - 1 if grid[-1] == 0 else last
        for first in range(0, inner, self.stride):
            yield grid[first : min(first + self.stride, inner) + 1], self.times
        if inner < last:
            yield grid[inner:], 1

    def steps(self, grid: Tensor) -> int:
        """Steps that are walked along the grid, in all."""
        return sum((len(part) - 1) * times for part, times in self.parts(grid))
