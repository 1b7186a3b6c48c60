"""Autoguidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, Prediction
from diffusion.errors import UserError
from diffusion.guidance.base import Guidance
from diffusion.guidance.interval import Interval, among


class Autoguidance(Guidance):
    """D = W(x_t) + scale (D(x_t) - W(x_t)) where low < sigma / alpha <= high, and D(x_t) elsewhere.

    W, `weak`, is a denoiser of the same data under the same condition that is worse for the same reasons, as an earlier
    state of the training is: what the two disagree on is where the model errs. scale 1 is the model itself. A step
    inside the interval costs two evaluations, one of each. A learned covariance is the model's own. Source: Karras et
    al. 2024, "Guiding a diffusion model with a bad version of itself", eq. 4.

    Where the times of a call lie on both sides of the interval, W is asked for all of its samples. Raises UserError for
    values out of range.
    """

    def __init__(
        self, denoiser: Denoiser, weak: Denoiser, scale: float = 1.5, low: float = 0.0, high: float = math.inf
    ):
        super().__init__()
        if not math.isfinite(scale):
            raise UserError(f"guidance.scale={scale}: give a number; 1 is no guidance")
        self.denoiser, self.weak = denoiser, weak
        self.scheduler = denoiser.scheduler
        self.scale, self.interval = scale, Interval(low, high)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        found = self.denoiser.predict(x_t, t, cond)
        inside = self.interval.holds(self.scheduler, t)
        if self.scale == 1 or not inside.any():
            return found
        guided = torch.lerp(self.weak(x_t, t, cond), found.mean, self.scale)
        return found._replace(mean=among(inside, guided, found.mean))
