"""Which decreasing times a sampler visits."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers import NoiseScheduler


class TimeGrid(Protocol):
    """scheduler -> (steps + 1,) float64 times on the CPU, strictly decreasing, the last one 0."""

    steps: int

    def __call__(self, scheduler: NoiseScheduler) -> Tensor: ...


def check_steps(steps: int) -> None:
    """Raises UserError unless `steps` is at least 1."""
    if steps < 1:
        raise UserError(f"grid.steps={steps}: a sampler takes at least 1 step")
