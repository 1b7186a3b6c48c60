"""Intervals over trainings and images: Student's where one effect is alone; what they cover where both are there."""

import numpy as np
import pytest
from scipy import stats

from diffusion.metrics.paired import crossed_interval, paired_difference


def crossed(rng: np.random.Generator, trainings: float, images: float, rest: float, shape=(5, 200)) -> np.ndarray:
    """Values of mean 0: standard normal effects of the trainings, the images, and both together, by these factors."""
    s, n = shape
    return trainings * rng.normal(size=(s, 1)) + images * rng.normal(size=(1, n)) + rest * rng.normal(size=shape)


@pytest.mark.parametrize("seeds", [1, 4])
def test_where_images_alone_differ_it_is_students_test_of_images(seeds):
    values = np.random.default_rng(0).normal(0.2, 1, 50)
    reference = stats.ttest_1samp(values, 0)
    found, p = paired_difference(np.tile(values, (seeds, 1)), np.zeros((seeds, 50)))
    ends = reference.confidence_interval()
    assert found == pytest.approx((values.mean(), ends.low, ends.high), abs=1e-9)
    assert p == pytest.approx(reference.pvalue, abs=1e-9)


@pytest.mark.parametrize("images", [1, 30])
def test_where_trainings_alone_differ_it_is_students_test_of_trainings(images):
    values = np.array([0.1, 0.4, 0.2])
    reference = stats.ttest_1samp(values, 0)
    found, p = paired_difference(np.tile(values[:, None], (1, images)), np.zeros((3, images)))
    ends = reference.confidence_interval()
    assert found == pytest.approx((values.mean(), ends.low, ends.high), abs=1e-9)
    assert p == pytest.approx(reference.pvalue, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("effects", [(1, 0.01, 0.1), (0.3, 1, 0.5), (0.1, 1, 1), (0, 1, 1)])
def test_it_covers_the_truth_as_often_as_it_says_and_finds_as_little_in_nothing(effects, seeds):
    rng = np.random.default_rng(1)
    found = [paired_difference(crossed(rng, *effects, (seeds, 200)), np.zeros((seeds, 200))) for _ in range(400)]
    p = np.array([p for _, p in found])
    assert 0.9 <= np.mean([each.low <= 0 <= each.high for each, _ in found]) <= 0.99
    assert 0.01 <= (p < 0.05).mean() <= 0.1
    assert 0.35 <= (p < 0.5).mean() <= 0.6


def test_noise_of_both_together_only_makes_it_careful():
    rng = np.random.default_rng(2)
    p = [paired_difference(crossed(rng, 0, 0, 1), np.zeros((5, 200)))[1] for _ in range(200)]
    assert np.mean(np.array(p) < 0.05) <= 0.05


def test_a_difference_that_is_there_is_found_by_pairing():
    """The images' own effects are a hundred times the difference, and cancel."""
    rng = np.random.default_rng(3)
    base = crossed(rng, 0, 10, 0)
    noise = 0.5 * rng.normal(size=base.shape)
    found, p = paired_difference(base + 0.1 + noise, base)
    assert p < 0.01 and 0 < found.low < 0.1 < found.high
    assert crossed_interval(base).high - crossed_interval(base).low > 10 * (found.high - found.low)


def test_p_is_below_one_minus_confidence_where_the_interval_leaves_0_out():
    rng = np.random.default_rng(4)
    for _ in range(50):
        values = crossed(rng, 0.3, 1, 0.5) + 0.3
        found, p = paired_difference(values, np.zeros_like(values), confidence=0.9)
        assert (p < 0.1) == (found.low > 0 or found.high < 0)


def test_exchanging_the_two_changes_the_sign_alone():
    a, b = np.random.default_rng(5).random((2, 3, 20))
    (forth, p), (back, q) = paired_difference(a, b), paired_difference(b, a)
    assert p == pytest.approx(q)
    assert forth == pytest.approx((-back.value, -back.high, -back.low))


def test_ends_stay_within_the_bounds_of_the_figure():
    values = np.ones((3, 10))
    values[0, :4] = 0
    assert crossed_interval(values).high > 1
    assert crossed_interval(values, bounds=(0, 1)).high == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 4), (3, 4)])
def test_values_without_a_spread(shape):
    values = np.full(shape, 0.1)
    assert crossed_interval(values) == (pytest.approx(0.1),) * 3
    assert crossed_interval(values).low == crossed_interval(values).high
    assert paired_difference(values, values)[1] == 1
    assert paired_difference(values, values - 0.05)[1] == 0


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0)])
def test_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match="is needed"):
        crossed_interval(np.zeros(shape))
