"""What trains a denoiser of images that are nearly black and white: the cross-entropy of their pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Cond, NetworkDenoiser, estimate, scale
from diffusion.errors import UserError
from diffusion.objectives.objective import Objective, mean_over, only

SHRINK = 1 - 1e-6
"""float32 rounds tanh of 9 or more to 1, of which the logarithm would be infinite."""


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """-w (p log q + (1 - p) log(1 - q)) with p = (1 + x0) / 2 and q = (1 + D(x_t)) / 2, in nats.

    Its least expected value, like that of the squared error, is at D = E[x0 | x_t], for it differs from the squared
    error by which Bregman divergence it is (Banerjee et al. 2005, theorem 1): samplers and tasks find the same D. It
    needs pixels, and a network that answers within (-1, 1): with network=cnn network.bounded=true and
    parameterization=x0, D = tanh(l / 2), whose q is the sigmoid of the logits l. Raises UserError for a bound, of which
    it has none.
    """

    def __post_init__(self) -> None:
        if self.bound is not None:
            raise UserError("objective=cross_entropy learns no covariance: leave objective.bound out")

    def check(self, denoiser: NetworkDenoiser, pixels: bool) -> None:
        super().check(denoiser, pixels)
        _, _, c = denoiser.coefficients(torch.tensor([0.25, 0.5], dtype=torch.float64))
        bounded = getattr(denoiser.network, "bounded", False) and not c.skip.any() and (c.out == 1).all()
        if not (bounded and pixels):
            raise UserError(
                "objective=cross_entropy needs pixels between black and white: use network=cnn network.bounded=true "
                "parameterization=x0, in pixel space"
            )

    def loss(self, denoiser: NetworkDenoiser, x0: Tensor, noise: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        known = (cond or {}).get("known")
        x0 = only(x0, known)
        alpha, sigma, c = denoiser.coefficients(t)
        x_t = only(scale(alpha, x0) * x0 + scale(sigma, x0) * noise, known)
        mean = SHRINK * estimate(x_t, c, denoiser.raw(x_t, c, cond)[0])
        # log q is log((1 + D) / 2), which log1p keeps exact where D is near -1.
        entropy = math.log(2) - ((1 + x0) * torch.log1p(mean) + (1 - x0) * torch.log1p(-mean)) / 2
        error = mean_over(entropy, known)
        return scale(self.weighting(t, denoiser.scheduler, c.out, denoiser.parameterization.sd), error) * error
