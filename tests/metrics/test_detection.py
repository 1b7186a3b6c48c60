import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from diffusion.metrics.detection import average_precision_values, best_threshold, detection


def cases(n: int, seed: int = 0, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    positive = torch.rand(n, generator=g) < 0.3
    scores = torch.randn(n, generator=g, dtype=torch.float64) + positive
    return (scores.mul(2).round() if ties else scores), positive


@pytest.mark.parametrize("ties", [False, True])
def test_the_mean_of_the_values_is_scikit_learns_average_precision(ties):
    scores, positive = cases(200, ties=ties)
    values = average_precision_values(scores, positive)
    assert values.mean().item() == pytest.approx(average_precision_score(positive, scores), rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_a_value_is_what_the_weight_of_an_item_does(ties):
    scores, positive = cases(40, ties=ties)
    values, area = average_precision_values(scores, positive), average_precision_score(positive, scores)
    for i in range(40):
        around = []
        for change in (-1e-5, 1e-5):
            weights = np.ones(40)
            weights[i] += change
            around.append(average_precision_score(positive, scores, sample_weight=weights))
        assert values[i].item() == pytest.approx(area + 40 * (around[1] - around[0]) / 2e-5, abs=1e-6)


def test_the_figures_of_pixels_are_those_of_all_pixels_and_images_are_resampled():
    scores, positive = (x.reshape(40, 2, 5) for x in cases(400))
    found = detection(scores, positive)
    assert found["auroc"].value == pytest.approx(roc_auc_score(positive.flatten(), scores.flatten()), rel=1e-12)
    assert found["auprc"].value == pytest.approx(average_precision_score(positive.flatten(), scores.flatten()))
    # Forty images whose pixels are all alike know no more than forty pixels.
    scores, positive = cases(40)
    alone = detection(scores, positive)
    spread = detection(scores[:, None, None].expand(40, 3, 3), positive[:, None, None].expand(40, 3, 3))
    for name in ("auroc", "auprc"):
        assert spread[name] == pytest.approx(alone[name], rel=1e-9)
        assert alone[name].low < alone[name].value < alone[name].high


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """AUROC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.7602; AUPRC at a share of 0.3 by two million draws."""
    scores, positive = cases(2_000_000, seed=99)
    truth = {"auroc": 0.76025, "auprc": average_precision_score(positive, scores)}
    within = dict.fromkeys(truth, 0)
    for seed in range(200):
        found = detection(*cases(150, seed))
        for name, value in truth.items():
            within[name] += found[name].low <= value <= found[name].high
    assert all(180 <= count <= 199 for count in within.values()), within


def test_perfect_scores():
    positive = torch.arange(50) % 3 == 0
    found = detection(positive.double(), positive)
    assert found["auroc"].value == found["auprc"].value == 1


def test_the_best_threshold_is_the_best_of_all():
    scores, truth = (x.reshape(20, 10) for x in cases(200, ties=True))
    dices = {}
    for threshold in scores.unique().tolist():
        marked = scores >= threshold
        dices[threshold] = (2 * (marked & truth).sum() / (marked.sum() + truth.sum())).item()
    assert dices[best_threshold(scores, truth)] == max(dices.values())
