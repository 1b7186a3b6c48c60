"""The bootstrap against the normal approximation, and where there is nothing to resample."""

import math
import warnings

import numpy as np
import pytest
import torch

from diffusion.metrics import Interval, interval
from diffusion.metrics.bootstrap import Estimate, mean_of, share_of


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


def test_classes_whose_numbers_are_no_chance_are_resampled_within():
    """The mean of two far classes, half and half: of its spread only that within the classes is left."""
    rng, half = np.random.default_rng(0), 500
    classes = np.arange(2 * half) % 2
    values = 100.0 * classes + rng.normal(size=2 * half)
    whole, within = mean_of(values), mean_of(values).within(classes)
    assert within.value == whole.value
    assert whole.within(None).interval() == whole.interval()
    error = 1.96 / math.sqrt(2 * half)
    low, high = within.interval(resamples=4000)[1:]
    assert (high - low) / 2 == pytest.approx(error, rel=0.08)
    assert whole.interval().high - whole.interval().low > 20 * (high - low)


def test_a_figure_that_cannot_be_negative_has_no_negative_end():
    estimate = Estimate(0.1, (np.array([-3.0, 3.0, -1.0, 1.0]),), least=0.0)
    assert estimate.interval().low == 0.0 and estimate._replace(least=-math.inf).interval().low < 0


@pytest.mark.parametrize(("held", "low", "high"), [([True] * 20, 0.8316, 1.0), ([False] * 20, 0.0, 0.1684)])
def test_a_share_of_all_or_none_has_the_exact_interval(held, low, high):
    """Clopper and Pearson for 20 of 20, as in tables."""
    found = share_of(held).interval()
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
