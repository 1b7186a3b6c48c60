import numpy as np
import pytest
import torch

from diffusion.metrics.values import histogram, values_of


def test_values_are_numpys():
    values = np.random.default_rng(0).integers(3, 200, 10_000)
    values[:500] = 0
    found = values_of(torch.from_numpy(np.bincount(values, minlength=256)))
    assert (found.low, found.high, found.used) == (0, values.max(), len(np.unique(values)))
    assert found.mean == pytest.approx(values.mean()) and found.std == pytest.approx(values.std())
    assert found.at_black == 0.05 and found.at_white == 0


def test_the_span_leaves_rare_values_out():
    counts = torch.zeros(65536, dtype=torch.int64)
    counts[0], counts[1000:2000], counts[65535] = 1, 100, 1
    found = values_of(counts)
    assert found.span == (1000, 1999) and (found.low, found.high) == (0, 65535)
    one = values_of(torch.eye(256, dtype=torch.int64)[7])
    assert one.span == (7, 7) and one.std == 0


def test_the_histogram_sums_to_one():
    middles, shares = histogram(torch.ones(256, dtype=torch.int64), 64)
    assert middles[0] == 1.5 and shares == pytest.approx([1 / 64] * 64)
