"""How far apart two sets of images are, by Gaussians fitted to their features."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.metrics.bootstrap import Estimate


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """The value of `frechet_estimate`."""
    return frechet_estimate(features_a, features_b).value


def frechet_estimate(features_a: Tensor, features_b: Tensor) -> Estimate:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features (N, E) and (M, E), in float64; 0 or more.

    m are means and S unbiased covariances of Gaussians fitted to the features (Fréchet 1957; Heusel et al. 2017,
    eq. 6). The estimate is too high by about E^2 / N for few samples: compare only distances of the same N and M.

    The influence of x in a is 2 (m_a - m_b)' d + d' (1 - T) d minus its mean, where d = x - m_a and
    T = S_a^(-1/2) (S_a^(1/2) S_b S_a^(1/2))^(1/2) S_a^(-1/2) is the optimal map from a to b, because -T is the gradient
    of -2 tr (S_a S_b)^(1/2) in S_a (Olkin and Pukelsheim 1982); in b likewise, with the inverse of T. Directions
    without variance in a or b count in neither.
    Raises UserError for fewer than two samples.
    """
    for features in (features_a, features_b):
        if len(features) < 2:
            raise UserError(f"a Fréchet distance of {len(features)} images: it needs at least 2 on either side")
    a, b = features_a.double(), features_b.double()
    shift = a.mean(0) - b.mean(0)
    a, b = a - a.mean(0), b - b.mean(0)
    cov_a, cov_b = a.T @ a / (len(a) - 1), b.T @ b / (len(b) - 1)
    root_a, inverse_root_a = _root(cov_a)
    root, inverse_root = _root(root_a @ cov_b @ root_a)
    value = float(shift.square().sum() + cov_a.trace() + cov_b.trace() - 2 * root.trace())
    to_b, to_a = inverse_root_a @ root @ inverse_root_a, root_a @ inverse_root @ root_a
    influences = tuple(
        (2 * sign * (d @ shift) + d.square().sum(1) - ((d @ to_other) * d).sum(1))
        for d, sign, to_other in ((a, 1, to_b), (b, -1, to_a))
    )
    return Estimate(max(0.0, value), tuple((each - each.mean()).cpu().numpy() for each in influences), least=0.0)


def _root(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a symmetric positive semidefinite matrix, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=0.0)
    there = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(there, values, 1.0).rsqrt() * there
    return (vectors * values.sqrt()) @ vectors.T, (vectors * inverse) @ vectors.T
