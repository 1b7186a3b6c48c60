"""How far the class probabilities of an image's pixels are from its mask."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SMOOTHING = 1.0
"""Pixels that are added to an overlap and to the mean of the two areas: a class that neither has then costs nothing."""


def segmentation_loss(logits: Tensor, masks: Tensor, dice: float) -> Tensor:
    """Cross-entropy plus `dice` times the soft Dice loss, of each image: (B,), in float32.

    logits (B, K, *S) and masks (B, 1, *S) of class indices. The first term is the mean over pixels of -log p(class);
    the second 1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1), sums over the pixels, y one-hot, mean over the K classes.
    Source of the second: Milletari et al. 2016 (V-Net), equation 3, without its squares.
    """
    logits, classes = logits.float(), logits.shape[1]
    truth = masks[:, 0].long()
    entropy = F.cross_entropy(logits, truth, reduction="none").flatten(1).mean(1)
    p = logits.softmax(1).flatten(2)
    y = F.one_hot(truth, classes).movedim(-1, 1).flatten(2).to(p)
    overlap = (2 * (p * y).sum(2) + SMOOTHING) / (p.sum(2) + y.sum(2) + SMOOTHING)
    return entropy + dice * (1 - overlap.mean(1))
