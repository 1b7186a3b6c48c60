"""What tasks, callbacks and apps receive: a trained model together with the way to sample it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.codecs import Codec
from diffusion.denoiser import Cond, Denoiser, Prediction, scale
from diffusion.errors import UserError
from diffusion.grids import TimeGrid
from diffusion.random import Draw, SampleNoise, gaussian
from diffusion.samplers import OnStep, Rng, Sampler
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class GenerativeModel:
    """A denoiser, the codec of its space, a sampler with its grid, and how the noise is drawn that it has learnt."""

    denoiser: Denoiser
    codec: Codec
    sampler: Sampler
    grid: TimeGrid
    draw: Draw = gaussian

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int],
        cond: Cond | None = None,
        *,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Images (len(seeds), *shape) float32 in about [-1, 1] on the denoiser's device; shape is (C, *S).

        Sample i depends on seeds[i] and its own condition alone. Dropout is off while sampling.
        """
        rng = self.noise(seeds)
        grid = self.grid(self.denoiser.scheduler)
        x = rng(self.codec.latent_shape(shape)) * self.denoiser.scheduler.sigma(grid[0]).item()
        return self.decode(self.solve(x, grid, cond, rng=rng, on_step=on_step))

    @torch.no_grad()
    def redraw(
        self,
        images: Tensor,
        strength: float,
        cond: Cond | None = None,
        *,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Other images (B, C, *S) that share with these what noise of this strength leaves; see `time_of`.

        x_t = alpha x0 + sigma eps of the encoded images, from where the sampler goes on along the rest of its grid.
        Image i depends on seeds[i], its own condition and itself alone. Source: Meng et al. 2022 (SDEdit).
        """
        rng = self.noise(seeds)
        grid = self.below(time_of(self.denoiser.scheduler, strength))
        x0 = self.encode(images)
        x = noised(self.denoiser.scheduler, x0, rng(x0.shape[1:]), grid[0])
        return self.decode(self.solve(x, grid, cond, rng=rng, on_step=on_step))

    def noise(self, seeds: Sequence[int]) -> SampleNoise:
        """The source of a batch's noise, on the denoiser's device."""
        return SampleNoise(seeds, self.to_device(), self.draw)

    def below(self, t: Tensor) -> Tensor:
        """The grid from the time t in (0, 1] on: t, then all its times below."""
        grid = self.grid(self.denoiser.scheduler)
        return torch.cat([t.reshape(1), grid[grid < t]])

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, *S) -> the means of their latents, on the denoiser's device."""
        with evaluating(self.codec):
            return self.codec.encode(images.to(self.to_device()))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, L, *s) -> images (B, C, *S) in about [-1, 1]."""
        with evaluating(self.codec):
            return self.codec.decode(latents)

    def solve(
        self,
        x: Tensor,
        grid: Tensor,
        cond: Cond | None = None,
        *,
        rng: Rng | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The sampler, along any grid, from latents x at time grid[0] to grid[-1]; dropout is off."""
        device = self.to_device()
        cond = {key: value.to(device) for key, value in cond.items()} if cond else None
        with evaluating(self.denoiser):
            return self.sampler(self.denoiser, x.to(device), grid, cond, rng=rng, on_step=on_step)

    def to_device(self) -> torch.device:
        """Bring all networks to the denoiser's device, and say which it is."""
        device = next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))
        # A network that guides is no part of the module that trains, which alone the Trainer moves.
        # Moved in inference mode, as at the end of a validation, it could never be differentiated again.
        with torch.inference_mode(False):
            self.denoiser.to(device)
            self.codec.to(device)
        return device

    @torch.no_grad()
    def rehearse(self, rng: Rng | None = lambda shape: torch.zeros(1, *shape)) -> None:
        """Take the first steps on a single value, with no network.

        Raises UserError for what the grid or the sampler refuse, and without `rng` ValueError for a stochastic sampler.
        """
        grid = self.grid(self.denoiser.scheduler)
        self.sampler(_Silent(self.denoiser.scheduler), torch.zeros(1, 1), grid[:4], rng=rng)


def time_of(scheduler: NoiseScheduler, strength: float) -> Tensor:
    """The time, float64 (), at which noise is the share `strength` of an image: sigma / sqrt(alpha^2 + sigma^2).

    It means the same under every scheduler; 1 is where the scheduler ends. Raises UserError outside (0, 1].
    """
    if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
        raise UserError(f"strength={strength}: give a number above 0 (the image itself), up to 1 (noise alone)")
    share = torch.tensor(strength, dtype=torch.float64) ** 2
    return scheduler.time(torch.log1p(-share) - share.log()).clamp(max=1.0)


def noised(scheduler: NoiseScheduler, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) noise."""
    return scale(scheduler.alpha(t), x0) * x0 + scale(scheduler.sigma(t), x0) * noise


class _Silent(Denoiser):
    """Answers 0."""

    def __init__(self, scheduler: NoiseScheduler):
        super().__init__()
        self.scheduler = scheduler

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(torch.zeros_like(x_t))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; each of its parts gets its own mode back, for some may be frozen."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
