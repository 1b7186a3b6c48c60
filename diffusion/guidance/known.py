"""A part of the image is known: the denoiser answers with it there."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, Prediction


class Known(Denoiser):
    """D = y where `known`, and D(x_t) elsewhere.

    Begun at alpha y + sigma z (`generative.noised`), every sampler then keeps x_t a draw of q(x_t | y) on the known
    part: the replacement of Song et al. 2021 (score SDEs, appendix I.2) and of RePaint (Lugmayr et al. 2022, eq. 8a),
    with the noise that the sampler itself makes, for any scheduler; at sigma = 0 it is y. The known part tells of the
    rest through x_t alone, which makes it an approximation that `samplers.Resampled` brings nearer. A learned variance
    is the small one where x0 is known.

    Args:
        y: (B, C, *S), in the denoiser's space.
        known: bool, of a shape that broadcasts with y.
    """

    def __init__(self, denoiser: Denoiser, y: Tensor, known: Tensor):
        super().__init__()
        self.denoiser, self.scheduler = denoiser, denoiser.scheduler
        self.y, self.known = y, known

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        found = self.denoiser.predict(x_t, t, cond)
        fraction = None if found.fraction is None else torch.where(self.known, 0.0, found.fraction)
        return Prediction(torch.where(self.known, self.y, found.mean), fraction)
