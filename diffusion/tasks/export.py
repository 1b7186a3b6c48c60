"""What other software needs of a denoiser: a table of betas, the name of its prediction, one function of arrays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion.denoiser import NetworkDenoiser, estimate
from diffusion.errors import UserError


def rows_of(rows: int) -> Tensor:
    """The times of a table's rows, (i + 1) / rows, float64."""
    return torch.arange(1, rows + 1, dtype=torch.float64) / rows


@torch.no_grad()
def betas(denoiser: NetworkDenoiser, rows: int) -> Tensor:
    """beta_i = 1 - alpha_i^2 / alpha_(i-1)^2 at the rows of a table, alpha_(-1) = 1; float64 (rows,).

    Raises UserError unless alpha^2 + sigma^2 = 1 there, as a table of betas has it (Ho et al. 2020, eq. 4).
    """
    alpha, sigma, _ = denoiser.coefficients(rows_of(rows))
    if not torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-9):
        raise UserError(
            f"scheduler {type(denoiser.scheduler).__name__} has no table of betas, for it does not preserve variance: "
            "train with scheduler=table_linear, linear, cosine or another that does"
        )
    # 1 - alpha_i^2 / alpha_(i-1)^2 through sigma: the ratio is next to 1.
    before_alpha, before_sigma = torch.cat([alpha.new_ones(1), alpha[:-1]]), torch.cat([sigma.new_zeros(1), sigma[:-1]])
    return (sigma**2 - before_sigma**2) / before_alpha**2


@torch.no_grad()
def prediction_type(denoiser: NetworkDenoiser, rows: int) -> str:
    """What the network predicts, as the diffusers library calls it: epsilon, v_prediction or sample.

    Told by the coefficients of D = skip x_t + out F alone. Raises UserError where the library has no such convention,
    as for a network whose input is scaled.
    """
    alpha, sigma, c = denoiser.coefficients(rows_of(rows))
    conventions = {
        "epsilon": (1 / alpha, -sigma / alpha),
        "v_prediction": (alpha, -sigma),
        "sample": (torch.zeros_like(alpha), torch.ones_like(alpha)),
    }
    found = [name for name, (skip, out) in conventions.items() if _equal(c.skip, skip) and _equal(c.out, out)]
    if not found:
        raise UserError(
            f"parameterization {type(denoiser.parameterization).__name__} has no name in the diffusers library: train "
            "with parameterization=eps, x0 or v"
        )
    if not _equal(c.input, torch.ones_like(alpha)):
        raise UserError(
            "the input of this network is scaled to unit variance, and the diffusers library scales none: train with "
            "parameterization.scale_input=false"
        )
    return found[0]


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12)


class Estimate(nn.Module):
    """D(x_t) = E[x0 | x_t] of arrays: x_t float32 (B, C, *S), alpha and sigma float64 (B,), and where the network is
    told classes label, int64 (B,) or float (B, classes), and drop, bool (B,): those are answered without theirs.
    """

    def __init__(self, denoiser: NetworkDenoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor | None = None, drop: Tensor | None = None
    ) -> Tensor:
        c = self.denoiser.parameterization(alpha, sigma)
        answer, _ = self.denoiser.raw(x_t, c, None if label is None else {"label": label, "drop": drop})
        return estimate(x_t, c, answer)
