"""The domain classifier: what it learns, and what is kept of it."""

import logging
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from datamodules.arrays.split import SPLITS, Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataSpec
from datamodules.digits import Digits
from datamodules.npz import Npz
from diffusion.errors import UserError
from diffusion.extractors import domain_classifier, embeddings, predictions
from diffusion.extractors.contrastive import shifted

pytestmark = pytest.mark.slow

NAME = "classifier_*.safetensors"


class Bright(ImageDataModule):
    """Images in whose channel k there is light where class k holds; one class an image, or any number."""

    source = "bright"

    def __init__(self, several: bool, size=(8, 8)):
        super().__init__()
        self.several, self.size = several, size

    def load(self):
        rng = torch.Generator().manual_seed(0)
        splits = {}
        for name in SPLITS:
            held = torch.randint(2, (90, 3), generator=rng)
            labels = held if self.several else torch.arange(90) % 3
            held = held if self.several else torch.eye(3).long()[labels]
            noise = torch.randint(60, (90, 3, *self.size), generator=rng)
            light = 150 * held.reshape(90, 3, *[1] * len(self.size))
            splits[name] = Split((noise + light).byte(), labels)
        return splits


@pytest.fixture(scope="module")
def digits():
    return Digits()


def test_it_learns_digits_and_is_kept(tmp_path, digits, caplog):
    before = torch.get_rng_state()
    with torch.no_grad():
        first = domain_classifier(digits, tmp_path / "cache", steps=60)
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training and not any(p.requires_grad for p in first.parameters())
    images, labels = digits.split("test").images, digits.split("test").labels
    answer = predictions(first, images)
    assert answer.dtype == torch.int64
    accuracy = (answer == labels).double().mean().item()
    assert accuracy > 0.8 and first.accuracy["test"] == accuracy
    assert torch.equal(predictions(first, images[:7], batch_size=2), answer[:7])

    (path,) = (tmp_path / "cache").iterdir()
    assert path.match(NAME) and digits.fingerprint() in path.name
    written = path.read_bytes()
    caplog.set_level(logging.INFO)
    again = domain_classifier(digits, tmp_path / "cache", steps=60)
    assert not caplog.records
    assert again.accuracy == first.accuracy
    same = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert path.read_bytes() == written


def test_training_depends_on_the_data_alone(tmp_path, digits):
    torch.manual_seed(1)
    first = domain_classifier(digits, tmp_path / "1", steps=3)
    torch.manual_seed(2)
    second = domain_classifier(Digits(seed=5, batch_size=7), tmp_path / "2", steps=3)
    same = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    save_file({"x": torch.zeros(2)}, path)


def other_weights(path):
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file({"x": torch.zeros(2)}, path, about)


def no_accuracy(path):
    with safe_open(path, "pt") as file:
        about = {**file.metadata(), "accuracy": "{"}
    save_file({"x": torch.zeros(2)}, path, about)


@pytest.mark.parametrize("harm", [cut, empty, foreign, other_weights, no_accuracy])
def test_a_file_of_no_use_is_trained_anew(tmp_path, digits, caplog, harm):
    whole = domain_classifier(digits, tmp_path, steps=3)
    (path,) = tmp_path.iterdir()
    harm(path)
    again = domain_classifier(digits, tmp_path, steps=3)
    (said,) = caplog.messages
    assert path.name in said and "trained anew" in said and "\n" not in said
    assert list(tmp_path.iterdir()) == [path]
    for classifier in (again, domain_classifier(digits, tmp_path, steps=3)):
        same = zip(classifier.state_dict().values(), whole.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in same) and classifier.accuracy == whole.accuracy
    assert len(caplog.records) == 1


def test_a_file_of_another_training_is_not_taken(tmp_path, digits, caplog):
    domain_classifier(digits, tmp_path, steps=3)
    domain_classifier(digits, tmp_path, steps=4)
    assert "3 steps" in caplog.text and "4 steps" in caplog.text


def test_a_cache_that_cannot_be_written(tmp_path, digits, caplog):
    (tmp_path / "cache").write_text("no folder")
    assert domain_classifier(digits, tmp_path / "cache", steps=2).accuracy
    assert "could not be written" in caplog.text


@pytest.mark.parametrize("size", [(8, 8), (6, 7, 8)])
def test_several_labels_at_once(tmp_path, size):
    data = Bright(several=True, size=size)
    classifier = domain_classifier(data, tmp_path, steps=60)
    test = data.split("test")
    answer = predictions(classifier, test.images, multi_label=True)
    assert answer.dtype == torch.bool and answer.shape == (90, 3)
    assert (answer == test.labels).double().mean().item() == classifier.accuracy["test"] > 0.9


def test_embeddings_are_features_of_each_image(tmp_path):
    data = Bright(several=False)
    classifier = domain_classifier(data, tmp_path, steps=2)
    images = data.split("val").images
    found = embeddings(classifier, images)
    assert found.ndim == 2 and found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(found[3:5], embeddings(classifier, images[3:5], batch_size=1), atol=1e-5)
    assert torch.allclose(found[:9], classifier.embed(images[:9].float() / 127.5 - 1), atol=1e-5)


def test_data_without_labels(tmp_path):
    data = SimpleNamespace(spec=DataSpec((1, 8, 8), None), source="scans.npz")
    with pytest.raises(UserError, match=r"scans\.npz has no labels: the domain classifier cannot be trained"):
        domain_classifier(data, tmp_path)


def test_shifts_move_every_value_and_repeat_the_border():
    images = torch.rand(2, 3, 4, 5, 6)
    moved = shifted(images, torch.tensor([[0, 0, 0], [1, -2, 0]]))
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1, :, 1:, :3], images[1, :, :-1, 2:])
    assert torch.equal(moved[1, :, 0, :3], images[1, :, 0, 2:])
    assert torch.equal(moved[1, :, 1:, 3], images[1, :, :-1, 4])


@pytest.mark.slow
def test_blood_cells_are_told_apart_in_about_a_minute(tmp_path, shared_data):
    data = Npz(path=str(shared_data("bccd_wbc28/bccd_wbc28.npz")))
    start = time.monotonic()
    classifier = domain_classifier(data, tmp_path)
    assert time.monotonic() - start < 300  # about 60 s; the rest is for a busy machine
    assert classifier.accuracy["val"] > 0.85 and classifier.accuracy["test"] > 0.8
