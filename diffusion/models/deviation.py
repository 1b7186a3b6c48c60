"""The standard deviation of what a model trains on, where that is not the images as they are."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from diffusion.errors import UserError

AT_ONCE = 64
"""Samples of a part."""


def std_of(parts: Iterable[Tensor]) -> float:
    """Standard deviation of all values of all parts. Raises UserError where there are none, or all are the same."""
    count, total, square = 0, 0.0, 0.0
    for part in parts:
        values = part.double()
        count += values.numel()
        total += values.sum().item()
        square += values.square().sum().item()
    variance = square / max(1, count) - (total / max(1, count)) ** 2
    if variance <= 0:
        raise UserError("no pixel that the model is to learn from is known, or all have one value")
    return variance**0.5
