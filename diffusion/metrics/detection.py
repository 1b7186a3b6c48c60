"""How well scores tell images, or pixels, that are not normal from those that are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffusion.metrics.bootstrap import Estimate, Interval
from diffusion.metrics.classification import auroc_values


def average_precision_values(scores: Tensor, positive: Tensor) -> Tensor:
    """For each item a value whose mean over all is the average precision; float64 (N,). Both kinds must be there.

    scores (N,), high for what is positive, bool (N,). AP is the mean over the positive items i of the precision among
    all items of score s_i or more, as in scikit-learn. A value is AP + N dAP/dw, w the weight of the item (1 for all):
    its mean is AP, because scaling all weights changes nothing, and its spread is what resampling items would show to
    first order (see `Estimate`).
    """
    scores, positive = scores.double().numpy(), positive.numpy().astype(bool)
    levels, place = np.unique(-scores, return_inverse=True)
    hits = np.bincount(place, positive, len(levels))
    found, true = np.bincount(place, minlength=len(levels)).cumsum(), hits.cumsum()
    precision, total = true / found, hits.sum()
    area = float((hits * precision).sum() / total)
    # What one more item at a level does to the precisions of all positive items at it and below.
    gain, loss = ((hits * change / found)[::-1].cumsum()[::-1] for change in (1 - precision, -precision))
    derivative = np.where(positive, (precision - area)[place] + gain[place], loss[place]) / total
    return torch.from_numpy(area + len(scores) * derivative)


def detection(scores: Tensor, positive: Tensor, seed: int = 0) -> dict[str, Interval]:
    """AUROC and AUPRC (average precision) with their 95% intervals, images being what is resampled.

    scores and positive (N,) of images, or (N, ...) of their pixels, every image having as many: the pixels of an image
    hang together, so its values are averaged first. There must be positive and other items.
    """
    flat, hot = scores.reshape(-1), positive.reshape(-1).bool()
    values = {
        "auroc": auroc_values(torch.stack([-flat, flat], 1), hot.long()),
        "auprc": average_precision_values(flat, hot),
    }
    return {name: _of_images(value.reshape(len(scores), -1).mean(1), seed) for name, value in values.items()}


def _of_images(values: Tensor, seed: int) -> Interval:
    mean = float(values.mean())
    spread = values.numpy() - mean
    # Where all are ordered rightly the spread is of rounding alone.
    spread = spread if np.abs(spread).max() > 1e-12 else np.zeros(len(spread))
    return Estimate(mean, (spread,), 0.0, 1.0).interval(seed=seed)


def best_threshold(scores: Tensor, truth: Tensor) -> float:
    """The threshold that gives the largest Dice of all pixels together, marked where score >= threshold.

    scores, truth (N, ...) with some pixel true. Dice = 2 |A and B| / (|A| + |B|).
    """
    order = scores.reshape(-1).sort(descending=True)
    true = truth.reshape(-1)[order.indices].double().cumsum(0)
    dice = 2 * true / (torch.arange(1, len(true) + 1) + true[-1])
    # Among equal values there is no threshold: the last of them stands for all.
    dice[:-1][order.values[1:] == order.values[:-1]] = 0
    return float(order.values[dice.argmax()])
