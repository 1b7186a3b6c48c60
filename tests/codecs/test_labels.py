"""Codecs of masks: every class comes back, also through noise that is no larger than half the distance between them."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffusion.codecs import AnalogBits, OneHot


@pytest.mark.parametrize("size", [(5, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("make", [OneHot, AnalogBits])
def test_round_trip(make, classes, size):
    codec = make().for_images((classes, *size))
    masks = torch.randint(0, classes, (6, 1, *size), generator=torch.Generator().manual_seed(0))
    images = F.one_hot(masks[:, 0], classes).movedim(-1, 1).float()
    moments = codec.moments(images)
    assert torch.equal(moments, masks.float())
    latents = codec.draw(moments, None)
    assert latents.shape == (6, *codec.latent_shape((classes, *size)))
    assert latents.abs().eq(1).all()
    assert torch.equal(codec.decode(latents), images)
    noise = torch.rand(latents.shape, generator=torch.Generator().manual_seed(1)) * 1.9 - 0.95
    assert torch.equal(codec.decode(latents + noise), images)
    assert torch.equal(codec.encode(images), latents)


def test_channels():
    assert OneHot().latent_shape((5, 4, 4)) == (5, 4, 4)
    assert [AnalogBits().latent_shape((k, 2, 2))[0] for k in range(2, 10)] == [
        math.ceil(math.log2(k)) for k in range(2, 10)
    ]


def test_a_number_beyond_the_last_class_is_the_last():
    codec = AnalogBits().for_images((3, 1, 1))
    assert codec.decode(torch.ones(1, 2, 1, 1)).flatten().tolist() == [0, 0, 1]


def test_shown_from_black_to_white():
    codec = OneHot().for_images((3, 1, 3))
    images = F.one_hot(torch.tensor([[[0, 1, 2]]]), 3).movedim(-1, 1).float()
    assert codec.shown(images).flatten().tolist() == [-1, 0, 1]
