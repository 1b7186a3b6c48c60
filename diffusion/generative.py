"""What tasks, callbacks and apps receive: a trained model together with the way to sample it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.codecs import Codec
from diffusion.denoiser import Cond, Denoiser, Prediction
from diffusion.grids import TimeGrid
from diffusion.random import SampleNoise
from diffusion.samplers import OnStep, Rng, Sampler
from diffusion.schedulers import NoiseScheduler


@dataclass(frozen=True)
class GenerativeModel:
    """A denoiser, the codec of its space, and a sampler with its grid."""

    denoiser: Denoiser
    codec: Codec
    sampler: Sampler
    grid: TimeGrid

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
        device = next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))
        # A network that guides is no part of the module that trains, which alone the Trainer moves.
        # Moved in inference mode, as at the end of a validation, it could never be differentiated again.
        with torch.inference_mode(False):
            self.denoiser.to(device)
        cond = {key: value.to(device) for key, value in cond.items()} if cond else None
        rng = SampleNoise(seeds, device)
        grid = self.grid(self.denoiser.scheduler)
        x = rng(self.codec.latent_shape(shape)) * self.denoiser.scheduler.sigma(grid[0]).item()
        with evaluating(self.denoiser), evaluating(self.codec):
            return self.codec.decode(self.sampler(self.denoiser, x, grid, cond, rng=rng, on_step=on_step))

    @torch.no_grad()
    def rehearse(self, rng: Rng | None = lambda shape: torch.zeros(1, *shape)) -> None:
        """Take the first steps on a single value, with no network.

        Raises UserError for what the grid or the sampler refuse, and without `rng` ValueError for a stochastic sampler.
        """
        grid = self.grid(self.denoiser.scheduler)
        self.sampler(_Silent(self.denoiser.scheduler), torch.zeros(1, 1), grid[:4], rng=rng)


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
