"""Simple ways to tell what is not normal, to hold a model against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

MOST = 4096
"""Training images that a baseline is fitted to, evenly spaced: more change its figures little."""
VARIANCE = 0.9
"""Of normal images, the share that the principal components explain."""


def principal_components(normal: Tensor) -> PCA:
    """As many principal components of normal images uint8 (N, C, *S) as explain VARIANCE of their variance."""
    from sklearn.decomposition import PCA

    return PCA(VARIANCE, svd_solver="full").fit(_flat(normal))


def principal_rebuilt(components: PCA, images: Tensor) -> Tensor:
    """Images uint8 (N, C, *S) as these components have them, float32 in about [-1, 1]."""
    found = components.inverse_transform(components.transform(_flat(images)))
    return torch.from_numpy(found).float().reshape(images.shape)


def _flat(images: Tensor) -> np.ndarray:
    return (images.flatten(1).float() / 127.5 - 1).numpy()


def mahalanobis(normal: Tensor, features: Tensor) -> Tensor:
    """The distance of each of features (N, E) from normal ones (M, E): sqrt((f - m)^T S^-1 (f - m)), float64 (N,).

    m is the mean of the normal ones and S their covariance, shrunk towards a multiple of the identity as Ledoit and
    Wolf 2004 do, so that it can be inverted however few they are. Source of its use: Lee et al. 2018.
    """
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(normal.double().numpy())
    return torch.from_numpy(fitted.mahalanobis(features.double().numpy())).sqrt()
