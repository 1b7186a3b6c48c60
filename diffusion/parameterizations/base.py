"""What the network predicts, as four coefficients of the denoiser.

D(x_t) = skip x_t + out F(input x_t, noise)  estimates  E[x0 | x_t].

Everything else follows from skip and out: the target of the network is
F* = ((1 - skip alpha) / out) x0 - (skip sigma / out) eps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LOG_SNR_LIMIT = 20.0


class Coefficients(NamedTuple):
    """The four scales, each float64 with the shape of alpha and sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Parameterization(ABC):
    """(alpha, sigma) -> Coefficients, float64 tensors of one shape.

    All share unit variance at the network's input, input = (alpha^2 sd^2 + sigma^2)^(-1/2), and its noise level,
    noise = -log_snr / 8 with the log-SNR held within +-20. For alpha = 1 these are c_in and c_noise = log(sigma) / 4 of
    Karras et al. 2022, table 1.

    Args:
        sd: standard deviation of the data.
        scale_input: False gives the network x_t as it is, input = 1, as Ho et al. 2020 do and the diffusers library.
    """

    sd: float = 0.5
    scale_input: bool = True

    @abstractmethod
    def skip_and_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The two coefficients that say what the network predicts."""

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        log_snr = 2 * (torch.log(alpha) - torch.log(sigma))
        return Coefficients(
            *self.skip_and_out(alpha, sigma),
            input=(alpha**2 * self.sd**2 + sigma**2).rsqrt() if self.scale_input else torch.ones_like(alpha),
            noise=-log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT) / 8,
        )
