"""What the values of images are, from how often each is there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RARE = 0.001
"""Share of the values beyond each end of the span that is used."""


class Values(NamedTuple):
    """Smallest and largest value, mean and standard deviation; the shares at the two ends of the type's range.

    span: between these two values all but a share RARE at each side lie. used: number of values that are there.
    """

    low: int
    high: int
    mean: float
    std: float
    at_black: float
    at_white: float
    span: tuple[int, int]
    used: int


def values_of(counts: Tensor) -> Values:
    """Of counts (levels,), how often each of the values 0 to levels - 1 is there; at least one is."""
    share = counts.double() / counts.sum()
    value = torch.arange(len(counts)).double()
    mean = float(share @ value)
    there = counts.nonzero().flatten()
    below = share.cumsum(0)
    span = [int((below > limit).nonzero()[0]) for limit in (RARE, 1 - RARE - 1e-12)]
    return Values(
        int(there[0]),
        int(there[-1]),
        mean,
        float((share @ (value - mean).square()).sqrt()),
        float(share[0]),
        float(share[-1]),
        (span[0], span[1]),
        len(there),
    )


def histogram(counts: Tensor, bins: int = 64) -> tuple[list[float], list[float]]:
    """The middles of `bins` equal intervals of the values, and the share of each."""
    width = len(counts) // bins
    share = counts.reshape(bins, width).sum(1).double() / counts.sum()
    return [(k + 0.5) * width - 0.5 for k in range(bins)], share.tolist()
