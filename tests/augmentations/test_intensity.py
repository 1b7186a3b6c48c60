"""Intensity against its formulas at chosen numbers, and at its bounds."""

import math

import pytest
import torch

from diffusion.augmentations import Intensity
from diffusion.errors import UserError

ONLY = {"gamma": 0.0, "contrast": 0.0, "brightness": 0.0}


def images(count: int = 1, channels: int = 2) -> torch.Tensor:
    return 2 * torch.rand(count, channels, 5, 6, generator=torch.Generator().manual_seed(0)) - 1


def test_gamma_is_an_exponent_that_keeps_black_and_white():
    before = images()
    before[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    after, told = Intensity(**{**ONLY, "gamma": math.log(2)})(before, torch.tensor([[-9.0, 1.0]]))
    assert torch.allclose((after + 1) / 2, ((before + 1) / 2) ** 2, atol=1e-6)
    assert after[0, 0, 0, :2].tolist() == [-1, 1]
    assert told.tolist() == [[1]]


def test_contrast_keeps_the_mean_and_scales_the_spread():
    before = images() / 4
    after, _ = Intensity(**{**ONLY, "contrast": math.log(2)})(before, torch.tensor([[-9.0, 1.0]]))
    assert after.mean() == pytest.approx(before.mean().item(), abs=1e-6)
    assert after.std() == pytest.approx(2 * before.std().item(), rel=1e-5)


def test_brightness_is_added():
    before = images() / 2
    after, _ = Intensity(**{**ONLY, "brightness": 0.1})(before, torch.tensor([[-9.0, 2.0]]))
    assert torch.allclose(after, before + 0.2, atol=1e-6)


def test_colours_keep_their_order_and_values_their_range():
    before = images(200, 3)
    strong = Intensity(probability=1.0, gamma=1.0, contrast=1.0, brightness=1.0)
    after, told = strong(before, torch.randn(200, strong.draws, generator=torch.Generator().manual_seed(0)))
    assert after.abs().max() == 1 and torch.isfinite(after).all()
    assert ((after[:, :1] >= after[:, 1:]) | (before[:, :1] < before[:, 1:])).all()
    assert told.shape == (200, 3)


def test_as_many_are_changed_as_asked_for_and_the_others_not_at_all():
    before = images(4000, 1)
    augmentation = Intensity(probability=0.3)
    after, told = augmentation(before, torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)))
    spared = ~told.any(1)
    assert 1 - spared.float().mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))
    assert torch.equal(after[spared], before[spared])
    assert (after != before).flatten(1).any(1).equal(~spared)


def test_without_strength_nothing_happens():
    before = images(16)
    after, told = Intensity(probability=1.0, **ONLY)(before, torch.randn(16, 1))
    assert torch.equal(after, before) and told.shape == (16, 0)


@pytest.mark.parametrize(("keys", "said"), [({"gamma": -1.0}, "gamma=-1"), ({"probability": -0.1}, "share from 0")])
def test_values_that_make_no_sense_are_refused(keys, said):
    with pytest.raises(UserError, match=said):
        Intensity(**keys)
