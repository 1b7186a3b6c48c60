"""Distances of features against their definitions."""

from functools import partial
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity, lpips

from datamodules.batch import DataSpec
from datamodules.digits import Digits
from diffusion.errors import UserError
from diffusion.extractors import domain_classifier
from diffusion.metrics import LPIPS, ClassifierDistance
from diffusion.metrics.perceptual import unit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def distance(tmp_path_factory):
    cache, data = tmp_path_factory.mktemp("cache"), Digits()
    with pytest.MonkeyPatch.context() as patch:
        few = partial(domain_classifier, steps=5)
        patch.setattr("diffusion.metrics.perceptual.domain_classifier", few)
        return ClassifierDistance(data, cache)


def images(n=3, shape=(1, 8, 8), seed=0) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_classifier_distance_is_that_of_unit_features(distance):
    a, b = images(), images(seed=1)
    levels = []
    for x, y in zip(distance.classifier.features(a), distance.classifier.features(b), strict=True):
        # |u - v|^2 = 2 - 2 cos of the angle between them
        levels.append((2 - 2 * F.cosine_similarity(x, y, dim=1)).flatten(1).mean(1))
    found = distance(a, b)
    assert found.shape == (3,) and found.dtype == torch.float32
    assert torch.allclose(found, sum(levels) / 3, atol=1e-5)
    assert torch.allclose(found, distance(b, a), atol=1e-6)
    assert (distance(a, a) == 0).all() and (found > 0).all() and (found <= 4).all()


def test_the_gradient_goes_to_the_second_image_alone(distance):
    a, b = images().requires_grad_(), images(seed=1).requires_grad_()
    distance(a, b).sum().backward()
    assert a.grad is None
    assert torch.isfinite(b.grad).all() and b.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())


def test_a_step_against_the_gradient_comes_closer(distance):
    a, b = images(), images(seed=1).requires_grad_()
    before = distance(a, b)
    (slope,) = torch.autograd.grad(before.sum(), b)
    assert (distance(a, b - 1e-2 * slope) < before).all()


def test_gradients_are_finite_where_features_vanish():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit(features).sum().backward()
    assert torch.isfinite(features.grad).all() and features.grad.max() < 1e5


def test_under_autocast_the_distance_stays_float32(distance):
    a, b = images(), images(seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance(a, b)
    assert found.dtype == torch.float32
    assert torch.allclose(found, distance(a, b), rtol=0.1)


def data(*shape: int) -> SimpleNamespace:
    return SimpleNamespace(spec=DataSpec(shape, 2), source="scans.npz")


@pytest.fixture
def untrained(monkeypatch):
    """AlexNet with random weights, the same each time, in place of those that would be downloaded."""
    make = lpips._get_tv_model_features

    def features(net, pretrained=False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make(net, pretrained=False)

    monkeypatch.setattr(lpips, "_get_tv_model_features", features)


def test_lpips_is_that_of_torchmetrics(untrained, tmp_path):
    a, b = images(shape=(3, 64, 70)), images(shape=(3, 64, 70), seed=1)
    before = torch.get_rng_state()
    distance = LPIPS(data(3, 64, 70), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    expected = learned_perceptual_image_patch_similarity(a, b, "alex", reduction="none")
    assert torch.allclose(distance(a, b), expected, atol=1e-6)
    assert distance(a[:1], b[:1]).shape == (1,)
    # What a decoder under training gives may leave the range.
    assert torch.isfinite(distance(a, 3 * b)).all()
    assert not any(p.requires_grad for p in distance.parameters())


def test_lpips_of_small_grey_images(untrained, tmp_path):
    a, b = images(shape=(1, 28, 14)), images(shape=(1, 28, 14), seed=1).requires_grad_()
    distance = LPIPS(data(1, 28, 14), tmp_path)
    large = [F.interpolate(x, (128, 64), mode="bilinear", align_corners=False) for x in (a, b)]
    found = distance(a, b)
    assert torch.allclose(found, distance(*large), atol=1e-6)
    assert torch.allclose(found, distance(*(x.expand(-1, 3, -1, -1) for x in (a, b))), atol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), b)
    assert torch.isfinite(slope).all() and slope.abs().sum() > 0


@pytest.mark.parametrize("error", [URLError("no way out"), RuntimeError("invalid hash\nvalue"), OSError("disk full")])
def test_weights_that_cannot_be_had(monkeypatch, tmp_path, error):
    def refuse(*given):
        raise error

    monkeypatch.setattr(lpips, "_get_tv_model_features", refuse)
    with pytest.raises(UserError, match="perceptual=classifier or perceptual=none") as caught:
        LPIPS(data(3, 64, 64), tmp_path)
    assert "alex" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "net", "said"),
    [
        ((1, 28, 28, 28), "alex", "2-D images"),
        ((2, 28, 28), "alex", "one or three channels"),
        ((3, 28, 28), "inception", "alex, vgg, squeeze"),
    ],
)
def test_what_lpips_refuses(tmp_path, shape, net, said):
    with pytest.raises(UserError, match=said):
        LPIPS(data(*shape), tmp_path, net=net)
