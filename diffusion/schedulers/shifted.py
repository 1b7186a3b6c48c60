"""A schedule with more noise, for larger images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from diffusion.errors import UserError
from diffusion.schedulers.base import NoiseScheduler, VariancePreserving, check_base
from diffusion.schedulers.cosine import Cosine


@dataclass(frozen=True)
class Shifted(VariancePreserving):
    """log_snr = that of `base` - 2 log(size / reference): an image of `size` pixels a side has the base's noise.

    Averaged down to `reference` pixels a side, that is: neighbouring pixels are alike, so noise of the same strength
    hides less of a larger image. Source: Hoogeboom et al. 2023, eq. 3. For flow this is its own `shift`, for EDM a
    larger sigma_max. Raises UserError for sizes that are not positive, or a base that does not
    preserve variance, or learns.
    """

    base: NoiseScheduler = field(default_factory=Cosine)
    size: int = 256
    reference: int = 64

    def __post_init__(self) -> None:
        check_base(self.base)
        if self.size < 1 or self.reference < 1:
            raise UserError(f"scheduler.size={self.size} reference={self.reference}: both must be above 0")

    def log_snr(self, t: Tensor) -> Tensor:
        return self.base.log_snr(t) - self._shift()

    def time(self, log_snr: Tensor) -> Tensor:
        return self.base.time(log_snr + self._shift())

    def _shift(self) -> float:
        return 2 * math.log(self.size / self.reference)
