import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from datamodules.batch import DataSpec
from datamodules.digits import Digits


def rows(images: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


def test_the_halves_are_those_of_the_stratified_split():
    images, labels = load_digits(return_X_y=True)
    train, test, _, test_labels = train_test_split(images, labels, test_size=0.5, random_state=0, stratify=labels)
    scaled = [np.round(half * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8) for half in (train, test)]
    data = Digits(seed=3)
    assert torch.equal(data.split("test").images, torch.from_numpy(scaled[1]))
    assert data.split("test").labels.tolist() == test_labels.tolist()
    both = torch.cat([data.split("train").images, data.split("val").images])
    assert rows(both) == rows(torch.from_numpy(scaled[0]))


def test_counts_classes_and_range():
    data = Digits()
    assert data.spec == DataSpec((1, 8, 8), 10, tuple("0123456789"))
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [808, 90, 899]
    assert data.split("val").labels.bincount().tolist() == [9] * 10
    assert data.split("train").images.min() == 0 and data.split("train").images.max() == 255


def test_the_seed_does_not_touch_the_splits():
    assert Digits(seed=0).fingerprint() == Digits(seed=1).fingerprint()
