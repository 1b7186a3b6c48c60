"""The linear beta schedule of Ho et al. 2020, in continuous time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers.base import IntegratedBeta


@dataclass(frozen=True)
class Linear(IntegratedBeta):
    """beta(t) = beta_min + t (beta_max - beta_min); 1000 discrete steps of 1e-4 ... 0.02 are the defaults.

    Source: Ho et al. 2020, section 4; Song et al. 2021, appendix C.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise UserError(f"scheduler.beta_min={self.beta_min} beta_max={self.beta_max}: 0 < beta_min < beta_max")

    def integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def integral_inverse(self, value: Tensor) -> Tensor:
        b, slope = self.beta_min, self.beta_max - self.beta_min
        return 2 * value / (b + (b**2 + 2 * slope * value).sqrt())
