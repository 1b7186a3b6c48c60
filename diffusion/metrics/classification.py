"""The area under the ROC curve as a mean over images, so that it can be resampled and tested as one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def auroc_values(probabilities: Tensor, labels: Tensor) -> Tensor | None:
    """For each image a value whose mean over all is the macro one-vs-rest AUROC; float64 (N,).

    probabilities (N, K) of the classes, labels int64 (N,). For one class, with P images of it and Q others, a
    placement value V is the share of the other side that the image is ordered rightly against, ties being half
    (DeLong et al. 1988). An image's value is A + (N/P)(V - A) if it is of the class and A + (N/Q)(V - A) otherwise,
    with A the AUROC: the variance of their mean is DeLong's. Averaged over the classes that some images have and
    others have not; None where there is no such class.
    """
    found = [
        _of_class(probabilities[:, k].double().numpy(), (labels == k).numpy())
        for k in range(probabilities.shape[1])
        if 0 < int((labels == k).sum()) < len(labels)
    ]
    if not found:
        return None
    return torch.from_numpy(np.mean(found, axis=0))


def _of_class(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    wins = np.empty(len(scores))
    for side in (positive, ~positive):
        others = np.sort(scores[~side])
        lower = np.searchsorted(others, scores[side], "left")
        wins[side] = (lower + np.searchsorted(others, scores[side], "right")) / (2 * len(others))
    placements = np.where(positive, wins, 1 - wins)
    area = placements[positive].mean()
    sizes = np.where(positive, positive.sum(), (~positive).sum())
    return area + len(scores) / sizes * (placements - area)
