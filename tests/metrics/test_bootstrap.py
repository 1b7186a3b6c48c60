"""The bootstrap against the normal approximation, and where there is nothing to resample."""

import math
import warnings

import numpy as np
import pytest
import torch

from diffusion.metrics import Interval, interval


@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.96), (0.6827, 1.0)])
def test_a_large_sample_is_as_the_normal_approximation(confidence, z):
    values = np.random.default_rng(0).exponential(size=4000)
    mean, low, high = interval(values, confidence, resamples=4000)
    error = values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert (mean - low, high - mean) == pytest.approx((z * error, z * error), rel=0.06)


def test_it_depends_on_the_seed_alone():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert interval(values, seed=3) == interval(values.numpy(), seed=3)
    assert interval(values, seed=3) != interval(values, seed=4)


def test_the_batches_that_memory_allows_change_nothing(monkeypatch):
    values = np.arange(30.0)
    whole = interval(values)
    monkeypatch.setattr("diffusion.metrics.bootstrap.MOST_VALUES", 70)
    assert interval(values) == whole


@pytest.mark.parametrize("values", [[0.1], [0.1] * 7, [math.inf], [1.0, math.inf], [math.inf] * 3])
def test_values_without_a_spread(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = interval(values)
    assert isinstance(found, Interval)
    assert found == Interval(*[max(values)] * 3)


def test_nan_stays_nan():
    assert all(math.isnan(end) for end in interval([1.0, math.nan]))
