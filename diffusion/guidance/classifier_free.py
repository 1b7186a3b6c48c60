"""Classifier-free guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, Prediction
from diffusion.errors import UserError


class ClassifierFree(Denoiser):
    """D = D(x_t) + scale (D(x_t, cond) - D(x_t)) where low < sigma / alpha <= high, and D(x_t, cond) elsewhere.

    scale 1 is the conditional model. Both answers come from one pass over a doubled batch; a step outside the
    interval, or with scale 1, costs one evaluation. Sources: Ho and Salimans 2022, eq. 6 (their w is scale - 1);
    the interval from Kynkaanniemi et al. 2024.

    All times of a call must be inside the interval or outside it together, as they are in a sampler's step.
    """

    def __init__(self, denoiser: Denoiser, scale: float = 1.5, low: float = 0.0, high: float = math.inf):
        super().__init__()
        self.denoiser = denoiser
        self.scheduler = denoiser.scheduler
        self.scale, self.low, self.high = scale, low, high

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if not cond:
            raise UserError(
                "guidance needs a conditional model: this one was trained without labels; use guidance=none"
            )
        level = torch.exp(-self.scheduler.log_snr(t) / 2)
        inside = (self.low < level) & (level <= self.high)
        if self.scale == 1 or not inside.any():
            return self.denoiser.predict(x_t, t, cond)
        if not inside.all():
            raise ValueError("the times of one call lie on both sides of the guidance interval")
        both = {key: torch.cat([value, value]) for key, value in cond.items()}
        dropped = torch.ones(len(x_t), dtype=torch.bool, device=x_t.device)
        both["drop"] = torch.cat([cond.get("drop", ~dropped), dropped])
        times = t if t.ndim == 0 else torch.cat([t, t])
        conditional, unconditional = self.denoiser.predict(torch.cat([x_t, x_t]), times, both).mean.chunk(2)
        return Prediction(torch.lerp(unconditional, conditional, self.scale))
