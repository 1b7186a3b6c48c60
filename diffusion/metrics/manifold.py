"""Do the images look real, and do they show all that is real? By neighbourhoods in feature space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion.errors import UserError
from diffusion.metrics.bootstrap import Estimate, mean_of, share_of
from diffusion.metrics.neighbours import nearest

PRECISION_K, DENSITY_K = 3, 5
"""Neighbours that make a neighbourhood, as in the papers."""
MEMORY = 64
"""MiB of distances that are in memory at once."""


def manifold_estimates(generated: NDArray, real: NDArray) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of features generated (N, E) and real (M, E).

    The neighbourhood of an image is the ball about it that reaches its k-th nearest neighbour in its own set.
    precision: share of generated images in the neighbourhood of a real one (Kynkäänniemi et al. 2019, k = 3)
    recall: share of real images in the neighbourhood of a generated one (the same, k = 3)
    density: real neighbourhoods that hold a generated image, on average, over k (Naeem et al. 2020, k = 5); may pass 1
    coverage: share of real images whose neighbourhood holds a generated image (the same, k = 5)

    Each is a mean over images, of which it has its interval: precision and density over the generated images with the
    real ones as they are, recall and coverage over the real ones. All pairs are compared, in blocks.
    Raises UserError for fewer than k + 1 images on either side.
    """
    from sklearn.metrics import pairwise_distances_chunked

    fewest = DENSITY_K + 1
    for name, features in {"generated": generated, "real": real}.items():
        if len(features) < fewest:
            raise UserError(f"precision and recall of {len(features)} {name} images: they need at least {fewest}")
    reach = nearest(real, real, DENSITY_K, themselves=True)[0]
    precise, dense = reach[:, PRECISION_K - 1], reach[:, DENSITY_K - 1]
    generated_reach = nearest(generated, generated, PRECISION_K, themselves=True)[0][:, -1]

    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)

    def block(distances: NDArray, start: int) -> NDArray:
        nonlocal recalled, covered
        own = generated_reach[start : start + len(distances), None]
        recalled |= (distances <= own).any(0)
        inside = distances <= dense
        covered |= inside.any(0)
        return np.stack([(distances <= precise).any(1), inside.sum(1) / DENSITY_K], 1)

    found = np.concatenate(list(pairwise_distances_chunked(generated, real, reduce_func=block, working_memory=MEMORY)))
    return {
        "precision": share_of(found[:, 0]),
        "recall": share_of(recalled),
        "density": mean_of(found[:, 1]),
        "coverage": share_of(covered),
    }
