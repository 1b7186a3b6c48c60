"""The schedule of latent diffusion: linear in the square root of beta."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers.base import IntegratedBeta


@dataclass(frozen=True)
class ScaledLinear(IntegratedBeta):
    """beta(t) = (sqrt(beta_min) + t (sqrt(beta_max) - sqrt(beta_min)))^2.

    The defaults are 1000 discrete steps of 0.00085 ... 0.012 (Rombach et al. 2022, their released configurations).
    """

    beta_min: float = 0.85
    beta_max: float = 12.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise UserError(f"scheduler.beta_min={self.beta_min} beta_max={self.beta_max}: 0 < beta_min < beta_max")

    def integral(self, t: Tensor) -> Tensor:
        root, slope = self._line()
        # ((root + slope t)^3 - root^3) / (3 slope), multiplied out: the difference of cubes cancels at small t.
        return t * (root**2 + root * slope * t + (slope * t) ** 2 / 3)

    def integral_inverse(self, value: Tensor) -> Tensor:
        root, slope = self._line()
        return ((3 * slope * value + root**3) ** (1 / 3) - root) / slope

    def _line(self) -> tuple[float, float]:
        return self.beta_min**0.5, self.beta_max**0.5 - self.beta_min**0.5
