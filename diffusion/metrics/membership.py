"""How well a score tells members of the training split from other images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffusion.metrics.bootstrap import Estimate


def auroc(members: ArrayLike, others: ArrayLike) -> Estimate:
    """P(s(member) > s(other)) + P(s(member) = s(other)) / 2, from scores (N,) and (M,), N and M >= 1.

    This is the area under the ROC curve, from 0 to 1, and 0.5 where the scores tell nothing. The influence of an image
    is its structural component, the share of the other set on whose right side it is, less the mean (DeLong et al.
    1988, eq. 5 and 6); its ranks cost N log N.
    """
    from scipy.stats import rankdata

    members, others = (np.asarray(scores, dtype=np.float64) for scores in (members, others))
    ranks = rankdata(np.concatenate([members, others]))
    above = (ranks[: len(members)] - rankdata(members)) / len(others)
    below = 1 - (ranks[len(members) :] - rankdata(others)) / len(members)
    value = float(above.mean())
    return Estimate(value, (above - value, below - value))
