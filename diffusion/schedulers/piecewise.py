"""Schedules that are given at points and linear in log-SNR between them: a table of betas, and one that learns."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.schedulers.base import VariancePreserving


class PiecewiseLinear(VariancePreserving):
    """Log-SNR linear in t between knots; sigma / alpha proportional to t before the first, so that t = 0 is the data.

    Beyond the last knot the last line goes on.
    """

    @abstractmethod
    def knots(self) -> tuple[Tensor, Tensor]:
        """Times (K,), rising from above 0 to 1, and log-SNRs (K,), falling; both float64."""

    def log_snr(self, t: Tensor) -> Tensor:
        times, levels = (knot.to(t.device) for knot in self.knots())
        low = (torch.searchsorted(times, t.contiguous(), right=True) - 1).clamp(0, len(times) - 2)
        share = (t - times[low]) / (times[low + 1] - times[low])
        between = levels[low] + share * (levels[low + 1] - levels[low])
        return torch.where(t < times[0], levels[0] - 2 * torch.log(t / times[0]), between)

    def time(self, log_snr: Tensor) -> Tensor:
        times, levels = (knot.to(log_snr.device) for knot in self.knots())
        low = (torch.searchsorted(-levels, -log_snr.contiguous(), right=True) - 1).clamp(0, len(times) - 2)
        share = (log_snr - levels[low]) / (levels[low + 1] - levels[low])
        between = times[low] + share * (times[low + 1] - times[low])
        return torch.where(log_snr > levels[0], times[0] * torch.exp((levels[0] - log_snr) / 2), between)


def linear_betas(start: float = 1e-4, end: float = 0.02, steps: int = 1000) -> list[float]:
    """Betas at equal distance. Source: Ho et al. 2020, section 4."""
    return torch.linspace(start, end, steps, dtype=torch.float64).tolist()


def scaled_linear_betas(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> list[float]:
    """Betas whose roots are at equal distance. Source: Rombach et al. 2022, their released configurations."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square().tolist()


def cosine_betas(offset: float = 0.008, most: float = 0.999, steps: int = 1000) -> list[float]:
    """1 - f(i + 1) / f(i), at most `most`, f(i) = cos^2((i / steps + offset) / (1 + offset) pi / 2).

    Source: Nichol and Dhariwal 2021, eq. 17.
    """
    i = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((i + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=most).tolist()


@dataclass(frozen=True)
class Table(PiecewiseLinear):
    """The discrete process of a table of betas, beta_1 ... beta_T: row i is at t = i / T, alpha^2 = prod (1 - beta_j).

    Networks that were trained on a table are asked at its rows alone, and a sampler that visits these sees the discrete
    process. Source: Ho et al. 2020, eq. 4. Raises UserError unless there are two betas or more, all in (0, 1): a last
    one of 1, zero terminal SNR, is `ZeroTerminal`.
    """

    betas: Sequence[float] = field(default_factory=linear_betas)

    def __post_init__(self) -> None:
        if not self.betas or len(self.betas) < 2:
            raise UserError("scheduler.betas: give two or more, such as [0.001,0.002,0.004]")
        for i, beta in enumerate(self.betas):
            if isinstance(beta, (str, bool)) or not 0 < beta < 1:
                raise UserError(f"scheduler.betas: number {i} is {beta}, and all must lie between 0 and 1")

    def knots(self) -> tuple[Tensor, Tensor]:
        return self._knots

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        # Made in inference mode, as in a validation, they could never be part of a derivative.
        with torch.inference_mode(False):
            log_alpha2 = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0)
            times = torch.arange(1, len(self.betas) + 1, dtype=torch.float64) / len(self.betas)
            return times, -torch.log(torch.expm1(-log_alpha2))


class Learned(nn.Module, PiecewiseLinear):
    """Log-SNR from `high` to `low`, in pieces whose shares of the time are learned: where the loss is, there goes time.

    Uniform times give log-SNRs of density p(lambda), constant on each of `pieces` equal intervals. The shares descend
    the cross-entropy from e(lambda), the error that the bound integrates over the log-SNR, to p: at its minimum p is
    proportional to e, and every time has the same expected loss, so that the bound's Monte-Carlo estimate varies with
    the images and the noise alone. Sources: Kingma et al. 2021, section 5 (a monotone log-SNR, learned for little
    variance); Kingma and Gao 2023, section 4 (a density proportional to the loss).

    A tenth of the time is spread evenly for good, so that no interval is lost from sight. The pieces follow the weights
    of the checkpoint; nothing else is trained through them. Needs an objective whose mean does not depend on the
    schedule: `weighting.any_schedule`.
    """

    learns = True
    first = 1e-3
    """The time of log-SNR `high`; what lies before it is no part of the bound."""
    even = 0.1

    def __init__(self, high: float = 13.0, low: float = -9.0, pieces: int = 40):
        super().__init__()
        if not low < high:
            raise UserError(f"scheduler.high={high} low={low}: give low < high, both log-SNRs")
        if pieces < 2:
            raise UserError(f"scheduler.pieces={pieces}: give 2 or more")
        self.high, self.low = high, low
        self.logits = nn.Parameter(torch.zeros(pieces))

    @torch.no_grad()
    def knots(self) -> tuple[Tensor, Tensor]:
        shares = self._log_shares(self.logits.cpu()).exp()
        times = self.first + (1 - self.first) * F.pad(shares.cumsum(0), (1, 0)) / shares.sum()
        times[-1] = 1.0
        return times, torch.linspace(self.high, self.low, len(times), dtype=torch.float64)

    def own_loss(self, t: Tensor, losses: Tensor) -> Tensor:
        place = (self.high - self.log_snr(t)) / (self.high - self.low) * len(self.logits)
        index = place.long().clamp(0, len(self.logits) - 1).cpu()
        return -(losses * self._log_shares(self.logits)[index].to(losses)).mean()

    def _log_shares(self, logits: Tensor) -> Tensor:
        even = math.log(self.even / len(logits))
        shares = F.log_softmax(logits.cpu().double(), 0) + math.log1p(-self.even)  # float64, which not all devices have
        return torch.logaddexp(shares, torch.tensor(even, dtype=torch.float64))
