"""How much the images of a set differ among themselves, and how plainly each is of one class."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.metrics.bootstrap import Estimate, mean_of
from diffusion.metrics.similarity import ms_ssim, scales
from diffusion.random import generator

MOST_PAIRS = 500


def inception_score(probabilities: Tensor) -> Estimate:
    """exp of the mean of KL(p_i || mean p) over the images' class probabilities (N, K); from 1 to K.

    Salimans et al. 2016, eq. 1, over the whole set at once. The influence of an image is the score times
    -sum_k p_ik log mean p_k - H(p_i), less its mean.
    """
    p = probabilities.double()
    mean = p.mean(0)
    # xlogy: a class of probability 0 counts nothing.
    each = torch.xlogy(p, p).sum(1) - torch.xlogy(p, mean).sum(1)
    score = float(each.mean().exp())
    return Estimate(score, ((score * (each - each.mean())).numpy(),))


def within_classes(images: Tensor, labels: Tensor | None, seed: int = 0) -> Estimate | None:
    """The mean MS-SSIM of pairs of images of one class: the lower, the more diverse (Odena et al. 2017, section 4.2).

    images uint8 (N, C, *S), labels int64 (N,) or None for one class. Up to `MOST_PAIRS` random pairs, no image in two;
    as many of the five scales as fit. None where no window fits (sides below 11 pixels) or no class has two images.
    """
    if scales(images.shape[1:]) < 1:
        return None
    labels = torch.zeros(len(images)).long() if labels is None else labels
    rng = generator("ms-ssim pairs", seed)
    order = torch.randperm(len(images), generator=rng)
    pairs = []
    for k in labels.unique():
        members = order[labels[order] == k]
        pairs.append(members[: len(members) // 2 * 2].view(-1, 2))
    pairs = torch.cat(pairs)
    if len(pairs) == 0:
        return None
    pairs = pairs[torch.randperm(len(pairs), generator=rng)[:MOST_PAIRS]]
    x, y = (images[pairs[:, side]].double() / 255 for side in (0, 1))
    return mean_of(ms_ssim(x, y))
