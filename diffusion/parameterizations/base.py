"""What the network predicts, as four coefficients of the denoiser.

D(x_t) = skip x_t + out F(input x_t, noise)  estimates  E[x0 | x_t].

Everything else follows from skip and out: the target of the network is
F* = ((1 - skip alpha) / out) x0 - (skip sigma / out) eps.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LOG_SNR_LIMIT = 20.0


class Coefficients(NamedTuple):
    """The four scales, each float64 with the shape of alpha and sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


class Parameterization(Protocol):
    """(alpha, sigma) -> Coefficients; `sd` is the standard deviation of the data."""

    sd: float

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients: ...


def coefficients(skip: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor, sd: float) -> Coefficients:
    """Add what all parameterizations share: unit variance at the network's input, and its noise level.

    input = (alpha^2 sd^2 + sigma^2)^(-1/2); noise = -log_snr / 8, with the log-SNR held within +-20. For alpha = 1
    these are c_in and c_noise = log(sigma) / 4 of Karras et al. 2022, table 1.
    """
    log_snr = 2 * (torch.log(alpha) - torch.log(sigma))
    return Coefficients(
        skip=skip,
        out=out,
        input=(alpha**2 * sd**2 + sigma**2).rsqrt(),
        noise=-log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT) / 8,
    )
