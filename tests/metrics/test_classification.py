"""The AUROC as a mean over images: scikit-learn's value, and DeLong's variance."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from diffusion.metrics.classification import auroc_values


def problem(classes: int, n: int = 120, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + np.eye(classes)[labels]
    given = torch.from_numpy(logits).softmax(1)
    return (given * 5).round() / 5 if ties else given, torch.from_numpy(labels)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_its_mean_is_that_of_scikit_learn(classes, ties):
    given, labels = problem(classes, ties=ties)
    each = [roc_auc_score(labels == k, given[:, k]) for k in range(classes)]
    assert auroc_values(given, labels).mean().item() == pytest.approx(np.mean(each), abs=1e-12)
    if classes > 2 and not ties:
        reference = roc_auc_score(labels, given, multi_class="ovr", average="macro")
        assert auroc_values(given, labels).mean().item() == pytest.approx(reference, abs=1e-12)


def test_its_variance_is_that_of_delong():
    given, labels = problem(2, ties=True)
    values = auroc_values(torch.stack([1 - given[:, 1], given[:, 1]], 1), labels)
    positive, negative = given[labels == 1, 1], given[labels == 0, 1]
    wins = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
    delong = sum(wins.mean(axis).var(correction=0).item() / wins.shape[1 - axis] for axis in (0, 1))
    assert values.var(correction=0).item() / len(values) == pytest.approx(delong, rel=1e-9)


def test_classes_that_no_image_or_every_image_has_are_left_out():
    given, labels = problem(3)
    labels = labels.clamp(max=1)
    each = [roc_auc_score(labels == k, given[:, k]) for k in range(2)]
    assert auroc_values(given, labels).mean().item() == pytest.approx(np.mean(each))
    assert auroc_values(given, torch.ones_like(labels)) is None
