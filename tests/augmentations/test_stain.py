"""Stain against scikit-image's separation of haematoxylin, eosin and DAB."""

import math

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed
from skimage.data import immunohistochemistry

from diffusion.augmentations import Stain
from diffusion.augmentations.stain import STAINS
from diffusion.errors import UserError

UNIT = -math.log(1e-6)
"""Of scikit-image's amounts, in natural logarithms."""
CHOSEN = -9.0


def as_images(rgb: np.ndarray) -> torch.Tensor:
    """(H, W, 3) in [0, 1] -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(2 * rgb - 1).movedim(-1, 0)[None].float()


def as_rgb(images: torch.Tensor) -> np.ndarray:
    return ((images[0].movedim(0, -1) + 1) / 2).double().numpy()


def photo() -> torch.Tensor:
    return as_images(immunohistochemistry()[100:164, 200:264] / 255)


def mixture() -> np.ndarray:
    """Random amounts (16, 16, 3) of the three stains, in scikit-image's unit; none of them negative."""
    return np.random.default_rng(0).uniform(0.01, 0.06, (16, 16, 3))


def test_the_stains_are_those_of_scikit_image():
    from skimage.color import rgb_from_hed

    assert np.allclose(STAINS, rgb_from_hed)


def test_zero_jitter_gives_the_image_back():
    nothing = torch.tensor([[CHOSEN, 0, 0, 0, 0, 0, 0]])
    before = photo()
    after, _ = Stain(probability=1.0)(before, nothing)
    # In the photograph there is no eosin, so that scikit-image's way there and back cuts off negative amounts; ...
    assert (after - before).abs().max() < 2e-6
    # ... where there are none, it is the identity too.
    rgb = hed2rgb(mixture())
    after, _ = Stain(probability=1.0)(as_images(rgb), nothing)
    assert np.abs(as_rgb(after) - hed2rgb(rgb2hed(rgb))).max() < 1e-5


@pytest.mark.parametrize("stain", range(3))
def test_one_stain_alone_is_multiplied(stain):
    amounts = mixture()
    draws = torch.zeros(1, 7)
    draws[0, 0], draws[0, 1 + stain] = CHOSEN, 1.0
    after, told = Stain(strength=math.log(1.4))(as_images(hed2rgb(amounts)), draws)
    wanted = amounts.copy()
    wanted[..., stain] *= 1.4
    assert np.abs(rgb2hed(as_rgb(after)) - wanted).max() < 1e-4
    assert np.abs(as_rgb(after) - hed2rgb(wanted)).max() < 1e-5
    assert told.tolist() == [draws[0, 1:].tolist()]


@pytest.mark.parametrize("stain", range(3))
def test_one_stain_alone_is_added(stain):
    amounts = mixture()
    draws = torch.zeros(1, 7)
    draws[0, 0], draws[0, 4 + stain] = CHOSEN, 2.0
    after, _ = Stain(offset=0.05)(as_images(hed2rgb(amounts)), draws)
    wanted = amounts.copy()
    wanted[..., stain] += 0.1 / UNIT
    assert np.abs(rgb2hed(as_rgb(after)) - wanted).max() < 1e-4


def test_values_stay_in_range_and_black_stays_black():
    extremes = torch.cat([torch.full((50, 3, 1, 4), value) for value in (-1.0, 0.3, 1.0)], 2)
    strong = Stain(probability=1.0, strength=1.0, offset=0.5)
    after, _ = strong(extremes, torch.randn(50, 7, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(after).all() and after.abs().max() <= 1
    assert (after[:, :, 0] == -1).all()


def test_as_many_are_changed_as_asked_for_and_the_others_not_at_all():
    before = photo()[..., ::8, ::8].expand(2000, -1, -1, -1)
    after, told = Stain(probability=0.3)(before, torch.randn(2000, 7, generator=torch.Generator().manual_seed(0)))
    spared = ~told.any(1)
    assert 1 - spared.float().mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 2000))
    assert torch.equal(after[spared], before[spared])


def test_slices_of_a_volume_change_alike():
    volume = photo()[..., ::8, ::8].unsqueeze(2).repeat(1, 1, 3, 1, 1)
    after, _ = Stain()(volume, torch.tensor([[CHOSEN, 1.0, -1, 0.5, 1, 0, -1]]))
    assert torch.equal(after[:, :, 0], after[:, :, 2]) and not torch.equal(after, volume)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_images_than_rgb_are_refused(channels):
    Stain().check((3, 8, 8))
    with pytest.raises(UserError, match=f"{channels} channel"):
        Stain().check((channels, 8, 8))
