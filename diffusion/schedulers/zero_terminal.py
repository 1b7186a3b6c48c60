"""A schedule stretched until its last step is pure noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.schedulers.base import NoiseScheduler, check_base
from diffusion.schedulers.scaled_linear import ScaledLinear


@dataclass(frozen=True)
class ZeroTerminal(NoiseScheduler):
    """alpha' = (alpha - alpha(1)) / (1 - alpha(1)), sigma' = sqrt(1 - alpha'^2), of a variance-preserving `base`.

    A schedule that ends above zero SNR never shows the network an image without its mean, but sampling begins without
    one. Source: Lin et al. 2024, algorithm 1, in continuous time: what keeps its alpha is t = 0, not the first
    row of a table. Raises UserError for a base that does not preserve variance, or learns.
    """

    base: NoiseScheduler = field(default_factory=ScaledLinear)

    def __post_init__(self) -> None:
        check_base(self.base)

    def alpha(self, t: Tensor) -> Tensor:
        last = self._last()
        return (self.base.alpha(t) - last) / (1 - last)

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - alpha = sigma^2 / (1 + alpha): the difference would cancel at small t.
        rest = self.base.sigma(t) ** 2 / (1 + self.base.alpha(t)) / (1 - self._last())
        return (rest * (1 + self.alpha(t))).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        last = self._last()
        alpha = torch.sigmoid(log_snr).sqrt()
        rest = torch.sigmoid(-log_snr) / (1 + alpha) * (1 - last)  # 1 - alpha of the base
        of_base = 1 - rest
        return self.base.time(2 * torch.log(of_base) - torch.log(rest * (1 + of_base)))

    def _last(self) -> float:
        return self.base.alpha(torch.ones((), dtype=torch.float64)).item()
