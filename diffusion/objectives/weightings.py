"""Weightings: each stated once, as the weight w(log-SNR) of the squared error of x0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from diffusion.errors import UserError


class Weighting(Protocol):
    """(log_snr, out, sd) -> w, the shape of log_snr; out is the parameterization's coefficient, sd the data's."""

    def __call__(self, log_snr: Tensor, out: Tensor, sd: float) -> Tensor: ...


@dataclass(frozen=True)
class Simple:
    """w = 1 / out^2: flat on what the network predicts; for eps, the simple loss of Ho et al. 2020, eq. 14."""

    def __call__(self, log_snr: Tensor, out: Tensor, sd: float) -> Tensor:
        return 1 / out**2


@dataclass(frozen=True)
class MinSNR:
    """w = min(SNR, gamma). Source: Hang et al. 2023, section 3.4."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise UserError(f"objective.weighting.gamma={self.gamma}: give a number above 0")

    def __call__(self, log_snr: Tensor, out: Tensor, sd: float) -> Tensor:
        return log_snr.exp().clamp(max=self.gamma)


@dataclass(frozen=True)
class EDM:
    """w = SNR + 1 / sd^2: flat on F, with the edm parameterization and alpha = 1.

    Source: Karras et al. 2022, table 1.
    """

    def __call__(self, log_snr: Tensor, out: Tensor, sd: float) -> Tensor:
        return log_snr.exp() + 1 / sd**2
