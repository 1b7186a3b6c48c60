"""The AUROC against scikit-learn's, and its interval by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from diffusion.metrics.membership import auroc


@pytest.mark.parametrize(("n", "m", "levels"), [(40, 60, 1000), (200, 30, 5), (1, 1, 2), (7, 1, 3)])
def test_it_is_the_area_under_the_curve_also_with_ties(n, m, levels):
    rng = np.random.default_rng(n)
    members, others = rng.integers(0, levels, n) + 0.3 * levels, rng.integers(0, levels, m).astype(float)
    members = members.round()
    wanted = roc_auc_score([1] * n + [0] * m, np.concatenate([members, others]))
    found = auroc(members, others)
    assert found.value == pytest.approx(wanted, abs=1e-12)
    assert [len(each) for each in found.influences] == [n, m]
    assert all(each.mean() == pytest.approx(0, abs=1e-12) for each in found.influences)


def test_the_influences_are_delongs_components():
    """DeLong et al. 1988, eq. 5 and 6, by their double loop."""
    rng = np.random.default_rng(1)
    members, others = rng.integers(0, 6, 25) + 1, rng.integers(0, 6, 18)
    psi = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    found = auroc(members, others)
    assert found.influences[0] == pytest.approx(psi.mean(1) - psi.mean(), abs=1e-12)
    assert found.influences[1] == pytest.approx(psi.mean(0) - psi.mean(), abs=1e-12)


def test_perfect_and_useless_scores():
    assert auroc([2.0, 3.0], [0.0, 1.0]).interval() == (1.0, 1.0, 1.0)
    assert auroc([0.0], [1.0]).value == 0.0
    assert auroc([5.0] * 4, [5.0] * 3).interval() == (0.5, 0.5, 0.5)


def test_the_interval_covers_the_true_area():
    """Two normal distributions one standard deviation apart: the area is Phi(1 / sqrt(2))."""
    rng, truth, covered, repeats = np.random.default_rng(0), norm.cdf(1 / math.sqrt(2)), 0, 200
    for seed in range(repeats):
        found = auroc(rng.normal(1, 1, 80), rng.normal(0, 1, 60)).interval(resamples=200, seed=seed)
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / repeats <= 0.98
