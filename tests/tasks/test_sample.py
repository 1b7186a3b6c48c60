"""Labels, rounding, and the independence of samples."""

import pytest
import torch

from diffusion.codecs import Identity
from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.grids import LogSNR
from diffusion.guidance import ClassifierFree
from diffusion.parameterizations import X0
from diffusion.samplers import ddim, heun
from diffusion.schedulers import Cosine
from diffusion.tasks.sample import (
    Trajectory,
    check_positive,
    counted_evaluations,
    labels_of,
    of_label,
    sample,
    to_uint8,
)


@pytest.mark.parametrize(
    ("label", "n", "classes", "expected"),
    [
        ("all", 5, 3, [0, 1, 2, 0, 1]),
        (None, 4, 2, [0, 1, 0, 1]),
        (2, 3, 3, [2, 2, 2]),
        (0, 1, 3, [0]),
        ([2, 0], 5, 3, [2, 0, 2, 0, 2]),
        ((1,), 2, 3, [1, 1]),
    ],
)
def test_labels(label, n, classes, expected):
    labels = labels_of(label, n, classes)
    assert labels.dtype == torch.int64
    assert labels.tolist() == expected


@pytest.mark.parametrize("label", [None, "all"])
def test_no_labels_without_classes(label):
    assert labels_of(label, 4, None) is None


@pytest.mark.parametrize("label", [3, -1, [0, 3], "cat", [], True, 1.5, ["0"], [True]])
def test_labels_that_do_not_exist(label):
    with pytest.raises(UserError, match="label="):
        labels_of(label, 4, 3)


@pytest.mark.parametrize("label", [0, [0, 1]])
def test_label_from_an_unconditional_model(label):
    with pytest.raises(UserError, match="trained without labels"):
        labels_of(label, 4, None)


def test_rounding_is_to_the_nearest_and_clips():
    values = torch.tensor([-9.0, -1.0, -0.9999, 0.0, 0.5 / 127.5, 1.0, 9.0])
    # 0 -> 127.5 is a tie, and goes to the even 128
    assert to_uint8(values).tolist() == [0, 0, 0, 128, 128, 255, 255]
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    assert torch.equal(to_uint8((levels[1:-1] + 0.49) / 127.5 - 1), levels[1:-1].to(torch.uint8))
    assert torch.equal(to_uint8((levels[1:-1] - 0.49) / 127.5 - 1), levels[1:-1].to(torch.uint8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(bad):
    with pytest.raises(UserError, match="not finite"):
        to_uint8(torch.tensor([0.0, bad]))


def test_numbers_below_one():
    check_positive(n=1, batch_size=2)
    with pytest.raises(UserError, match="batch_size=0"):
        check_positive(n=1, batch_size=0)


class Mix(torch.nn.Module):
    """Answers something that depends on x, the label and whether it was dropped."""

    def forward(self, x, c_noise, cond=None):
        label = cond["label"].to(x) / 10
        if "drop" in cond:
            label = label.masked_fill(cond["drop"], -0.5)
        return 0.5 * torch.tanh(x) + label.reshape(-1, *[1] * (x.ndim - 1))


def model(sampler=ddim, steps=4, guidance=None):
    denoiser = NetworkDenoiser(Cosine(), X0(sd=0.5), Mix())
    if guidance:
        denoiser = ClassifierFree(denoiser, guidance)
    return GenerativeModel(denoiser, Identity(), sampler, LogSNR(steps=steps, low=-8.0))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 4), (1, 3, 4, 5)])
def test_sample_depends_on_its_seed_and_label_alone(shape):
    labels = labels_of("all", 10, 3)
    images = sample(model(), shape, 10, of_label(labels), seed=7, batch_size=10)
    assert images.dtype == torch.uint8 and images.shape == (10, *shape)
    assert torch.equal(sample(model(), shape, 10, of_label(labels), seed=7, batch_size=3), images)
    assert torch.equal(sample(model(), shape, 4, of_label(labels[:4]), seed=7, batch_size=1), images[:4])
    assert not torch.equal(sample(model(), shape, 10, of_label(labels), seed=8, batch_size=10), images)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 10


def test_on_batch_counts_to_n():
    done = []
    sample(model(), (1, 4, 4), 7, of_label(labels_of(0, 7, 3)), seed=0, batch_size=3, on_batch=done.append)
    assert done == [3, 6, 7]


@pytest.mark.parametrize(
    ("sampler", "steps", "guidance", "expected"),
    [(ddim, 10, None, 10), (heun, 10, None, 19), (ddim, 10, 2.0, 20), (heun, 10, 2.0, 38), (ddim, 10, 1.0, 10)],
)
def test_evaluations_are_counted(sampler, steps, guidance, expected):
    generative = model(sampler, steps, guidance)
    with counted_evaluations(generative.denoiser) as evaluations:
        sample(generative, (1, 4, 4), 5, of_label(labels_of(0, 5, 3)), seed=0, batch_size=2)
    assert evaluations() == 5 * expected
    sample(generative, (1, 4, 4), 5, of_label(labels_of(0, 5, 3)), seed=0, batch_size=2)
    assert evaluations() == 5 * expected  # outside the block nothing is counted


def test_trajectory_goes_from_noise_to_the_sample():
    trajectory = Trajectory(3, Identity())
    images = sample(
        model(steps=12), (1, 8, 8), 6, of_label(labels_of(0, 6, 3)), seed=0, batch_size=4, on_step=trajectory
    )
    frames = trajectory.frames()
    assert len(frames) == 12
    assert frames[0].shape == (3, 1, 8, 8)
    assert torch.equal(frames[-1], images[:3])
    noisy, means = trajectory.strip(columns=5)
    assert noisy.shape == means.shape == (3, 5, 1, 8, 8)
    assert torch.equal(noisy[:, 0], frames[0]) and torch.equal(noisy[:, -1], frames[-1])
    assert trajectory.strip(columns=50)[0].shape[1] == 12
