"""Classifier-free guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, Prediction
from diffusion.errors import UserError
from diffusion.guidance.base import Guidance
from diffusion.guidance.interval import Interval, among

UNCONDITIONAL = "guidance needs a conditional model: this run was trained without labels; use guidance=none"


class ClassifierFree(Guidance):
    """D = D(x_t) + scale (D(x_t, cond) - D(x_t)) where low < sigma / alpha <= high, and D(x_t, cond) elsewhere.

    scale 1 is the conditional model. Both answers come from one pass over a doubled batch; a step outside the
    interval, or with scale 1, costs one evaluation. Sources: Ho and Salimans 2022, eq. 6 (their w is scale - 1);
    the interval from Kynkaanniemi et al. 2024.

    rescale phi in [0, 1]: D is multiplied by phi std(D(x_t, cond)) / std(D) + 1 - phi, each std over all values of one
    sample, because a large scale exaggerates contrast. Lin et al. 2024, eq. 14 to 16, do so with the network's answer,
    whatever it predicts; here it is the expected image, whose contrast is what is meant, for every parameterization.

    A learned covariance is that of D(x_t, cond). Where the times of a call lie on both sides of the interval, both
    answers are asked for all of its samples. Raises UserError for values out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 1.5,
        low: float = 0.0,
        high: float = math.inf,
        rescale: float = 0.0,
    ):
        super().__init__()
        if not math.isfinite(scale):
            raise UserError(f"guidance.scale={scale}: give a number; 1 is no guidance")
        if not 0 <= rescale <= 1:
            raise UserError(f"guidance.rescale={rescale}: give a share from 0 to 1; 0 leaves it out")
        self.denoiser = denoiser
        self.scheduler = denoiser.scheduler
        self.scale, self.interval, self.rescale = scale, Interval(low, high), rescale

    @classmethod
    def lacks(cls, classes: int | None, label_dropout: float) -> str | None:
        if classes is None:
            return UNCONDITIONAL
        if label_dropout == 0:
            return "guidance needs model.label_dropout above 0 in training: use guidance=none"
        return None

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if not cond:
            raise UserError(UNCONDITIONAL)
        inside = self.interval.holds(self.scheduler, t)
        if self.scale == 1 or not inside.any():
            return self.denoiser.predict(x_t, t, cond)
        both = {key: torch.cat([value, value]) for key, value in cond.items()}
        dropped = torch.ones(len(x_t), dtype=torch.bool, device=x_t.device)
        both["drop"] = torch.cat([cond.get("drop", ~dropped), dropped])
        times = t if t.ndim == 0 else torch.cat([t, t])
        answer = self.denoiser.predict(torch.cat([x_t, x_t]), times, both)
        conditional, unconditional = answer.mean.chunk(2)
        guided = torch.lerp(unconditional, conditional, self.scale)
        if self.rescale:
            guided = guided * (self.rescale * _ratio(conditional, guided) + 1 - self.rescale)
        guided = among(inside, guided, conditional)
        return Prediction(guided, None if answer.fraction is None else answer.fraction[: len(x_t)])


def _ratio(wanted: Tensor, found: Tensor) -> Tensor:
    """std(wanted) / std(found) of each sample, shaped to multiply it; 1 where `found` is of one value."""
    axes = tuple(range(1, found.ndim))
    stds = wanted.std(axes, correction=0, keepdim=True), found.std(axes, correction=0, keepdim=True)
    return torch.where(stds[1] > 0, stds[0] / stds[1], 1.0)
