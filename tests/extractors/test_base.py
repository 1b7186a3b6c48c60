"""What every extractor does: features of each image alone, and a receipt."""

import pytest
import torch

from datamodules.digits import Digits
from diffusion.apps.config import CONF, choice_of
from diffusion.codecs import fingerprint_of
from diffusion.extractors import Domain, Features, Random, extract
from diffusion.models import factory
from tests.extractors.toy import Stripes, data, images, refusal

RECEIPT = {"name", "features", "weights", "resize", "channels", "volumes"}


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def domain(digits, tmp_path_factory):
    return Domain(digits, tmp_path_factory.mktemp("cache"), steps=60)


@pytest.mark.parametrize("shape", [(1, 12, 9), (2, 6, 7, 8)])
def test_features_do_not_depend_on_the_batch(shape):
    extractor, seen = Random(data(*shape), None), []
    whole = extract(extractor, images(9, *shape))
    parts = extract(extractor, images(9, *shape), batch_size=4, on_batch=seen.append)
    assert isinstance(whole, Features) and whole.probabilities is None and parts.probabilities is None
    assert whole.values.shape == (9, extractor.features) and whole.values.dtype is torch.float32
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extract(extractor, images(9, *shape)[5:6]).values, whole.values[5:6])
    assert seen == [4, 8, 9] and whole.values.std(0).min() > 0


def test_random_weights_are_the_same_everywhere_and_leave_the_global_state():
    torch.manual_seed(1)
    first = Random(data(3, 8, 8), None)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = Random(data(3, 8, 8), None)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.receipt() == second.receipt() and set(first.receipt()) == RECEIPT
    assert first.receipt()["weights"] == fingerprint_of(first.network.state_dict())
    assert torch.equal(extract(first, images(3, 3, 8, 8)).values, extract(second, images(3, 3, 8, 8)).values)
    assert first.receipt()["weights"] != Random(data(1, 8, 8), None).receipt()["weights"]
    assert not any(p.requires_grad for p in first.parameters()) and not first.training


@pytest.mark.slow
def test_the_domain_classifier_tells_the_classes_apart(digits, domain):
    test = digits.split("test")
    found = extract(domain, test.images)
    assert found.values.shape == (len(test), domain.features) and found.probabilities.shape == (len(test), 10)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(len(test)))
    right = (found.probabilities.argmax(1) == test.labels).double().mean().item()
    assert right == domain.receipt()["accuracy"] > 0.8 and domain.reads_classes
    pixels = test.images[:5].float() / 127.5 - 1
    torch.testing.assert_close(found.values[:5], domain.network.embed(pixels))
    torch.testing.assert_close(found.probabilities[:5], domain.network(pixels).softmax(1))


def test_its_receipt(digits, domain):
    receipt = domain.receipt()
    assert set(receipt) == RECEIPT | {"trained_on", "training", "steps", "accuracy", "classes"}
    assert receipt["trained_on"] == digits.fingerprint() and receipt["training"] == "classification"
    assert (receipt["name"], receipt["steps"], receipt["classes"]) == ("domain", 60, 10)
    assert receipt["weights"] == fingerprint_of(domain.network.state_dict())


@pytest.mark.slow
def test_data_without_labels_are_learnt_from_all_the_same(tmp_path, caplog):
    stripes = Stripes()
    first = Domain(stripes, tmp_path, steps=10)
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    again = Domain(stripes, tmp_path, steps=10)
    assert first.receipt() == again.receipt() and path.read_bytes() == written and not caplog.records
    torch.manual_seed(3)
    assert Domain(stripes, tmp_path / "other", steps=10).receipt() == first.receipt()
    assert set(first.receipt()) == RECEIPT | {"trained_on", "training", "steps"}
    assert first.receipt()["training"] == "contrastive"

    found = extract(first, stripes.split("test").images)
    assert found.probabilities is None and not first.reads_classes and found.values.shape == (200, first.features)
    nearest = torch.cdist(found.values, found.values).fill_diagonal_(torch.inf).argmin(1)
    alike = (nearest % 2 == torch.arange(200) % 2).double().mean().item()
    assert alike > 0.75  # a guess is right on half, with a standard error of 0.035

    Domain(stripes, tmp_path, steps=1)
    assert "10 steps" in caplog.text and "1 steps" in caplog.text


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_steps_that_are_none(tmp_path, steps):
    assert f"extractor.steps={steps}" in refusal(Domain, Stripes(), tmp_path, steps=steps)


@pytest.mark.parametrize("choice", ["domain", "random"])
def test_a_choice_is_built_from_its_yaml(tmp_path, choice):
    node = choice_of("extractor", choice)
    if choice == "domain":
        node.steps = 1
    extractor = factory(node)(datamodule=Stripes(), cache=tmp_path, device="cpu")
    assert extractor.name == choice and extract(extractor, images(2, 1, 8, 8)).values.shape == (2, extractor.features)


def test_choices_that_build_on_others():
    small, whole = (choice_of("extractor", name) for name in ("inception64", "inception"))
    assert small == {**whole, "features": 64} and whole.features == 2048
    dino = choice_of("extractor", "dinov2")
    assert dino._target_ == choice_of("extractor", "timm")._target_ and "dinov2" in dino.name and dino.size % 14 == 0
    assert {path.stem for path in (CONF / "extractor").glob("*.yaml")} >= {"domain", "random", "timm", "torchvision"}
