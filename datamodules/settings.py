"""What the settings of several sources are held to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def is_numbers(values: object, count: int | None = None) -> bool:
    """Whether something from a config is a list of finite numbers, `count` of them."""
    listed = isinstance(values, Sequence) and not isinstance(values, str) and count in (None, len(values))
    return listed and all(type(value) in (int, float) and np.isfinite(value) for value in values)  # type: ignore[union-attr]
