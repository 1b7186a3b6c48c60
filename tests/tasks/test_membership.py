"""Denoisers that have memorised the training images, and one that knows only their mean."""

import math

import pytest
import torch

from datamodules.digits import Digits
from diffusion.codecs import Identity
from diffusion.denoiser import Denoiser, Prediction
from diffusion.metrics.membership import auroc
from diffusion.schedulers import Cosine, Flow
from diffusion.tasks import membership
from diffusion.tasks.membership import membership_scores


class Memory(Denoiser):
    """The optimal denoiser of a finite set of images: their mean, weighted by their likelihood under x_t."""

    def __init__(self, images: torch.Tensor, scheduler=None):
        super().__init__()
        self.images, self.scheduler = images.float() / 127.5 - 1, scheduler or Cosine()
        self.asked = []

    def predict(self, x_t, t, cond=None):
        self.asked.append((x_t, float(t), cond))
        alpha, sigma = float(self.scheduler.alpha(t)), float(self.scheduler.sigma(t))
        weights = (-(torch.cdist(x_t.flatten(1), alpha * self.images.flatten(1)) ** 2) / (2 * sigma**2)).softmax(1)
        return Prediction((weights @ self.images.flatten(1)).reshape(x_t.shape))


class Ignorant(Memory):
    """Always the mean of the images that it was shown."""

    def predict(self, x_t, t, cond=None):
        return Prediction(self.images.mean(0).expand(x_t.shape))


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    return data.split("train").images[:200], data.split("test").images[:200]


def attack(denoiser, digits, **options):
    asked = {"labels": None, "seed": 0, "batch_size": 64} | options
    scores = [membership_scores(denoiser, Identity(), images, **asked) for images in digits]
    return auroc(*(each.numpy() for each in scores))


def test_one_that_has_memorised_is_found_out(digits):
    assert attack(Memory(digits[0]), digits).value > 0.99
    assert attack(Memory(digits[1]), digits).value < 0.01


def test_one_that_knows_the_mean_tells_nothing(digits):
    found = attack(Ignorant(digits[0]), digits).interval()
    assert 0.45 < found.value < 0.58 and found.low < 0.53


def test_the_score_is_the_mean_log_error_over_the_levels(digits):
    """Always the mean: the error does not depend on the noise, and has a closed form."""
    denoiser, images = Ignorant(digits[0]), digits[1][:5]
    wanted = -(images.float() / 127.5 - 1 - denoiser.images.mean(0)).square().flatten(1).mean(1).log()
    found = membership_scores(denoiser, Identity(), images, None, 0, 2)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, wanted.double(), rtol=1e-5, atol=1e-5)


def test_the_noise_depends_on_seed_and_place_alone(digits):
    done, images = [], digits[1][:10]
    denoiser = Memory(digits[0])
    whole = membership_scores(denoiser, Identity(), images, None, 3, 10)
    parts = membership_scores(denoiser, Identity(), images, None, 3, 4, on_batch=done.append)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)
    assert done == [4, 8, 10]
    assert not torch.allclose(whole, membership_scores(denoiser, Identity(), images, None, 4, 10), rtol=1e-3)


@pytest.mark.parametrize("scheduler", [Cosine(), Flow()])
def test_what_the_denoiser_is_asked(digits, scheduler):
    """Noisy images at levels from LOG_SNR, or the scheduler's own end, with the image's own label."""
    denoiser, images = Memory(digits[0], scheduler), digits[1][:6]
    labels = torch.arange(6)
    membership_scores(denoiser, Identity(), images, labels, 0, 4)
    assert len(denoiser.asked) == 2 * membership.LEVELS
    for x_t, t, cond in denoiser.asked[-membership.LEVELS :]:
        assert cond["label"].tolist() == [4, 5] and 0 < t <= 1
        alpha, sigma = (float(f(torch.tensor(t, dtype=torch.float64))) for f in (scheduler.alpha, scheduler.sigma))
        noise = (x_t - alpha * (images[4:].float() / 127.5 - 1)) / sigma
        assert noise.std() == pytest.approx(1, abs=0.25)
    levels = [float(scheduler.log_snr(torch.tensor(t, dtype=torch.float64))) for _, t, _ in denoiser.asked]
    assert min(levels) == pytest.approx(membership.LOG_SNR[0], abs=1e-6) or min(levels) > membership.LOG_SNR[0]
    assert max(levels) == pytest.approx(membership.LOG_SNR[1], abs=1e-6)


def test_several_labels_an_image_are_given_as_in_training(digits):
    denoiser = Memory(digits[0])
    membership_scores(denoiser, Identity(), digits[1][:2], torch.tensor([[0, 1], [1, 1]]), 0, 2)
    label = denoiser.asked[0][2]["label"]
    assert label.dtype is torch.float32 and label.tolist() == [[0, 1], [1, 1]]


def test_a_perfect_answer_has_a_finite_score(digits):
    class Perfect(Memory):
        def predict(self, x_t, t, cond=None):
            return Prediction(self.images[:1].expand(x_t.shape))

    score = membership_scores(Perfect(digits[0]), Identity(), digits[0][:1], None, 0, 1)
    assert math.isfinite(float(score)) and float(score) > 20
