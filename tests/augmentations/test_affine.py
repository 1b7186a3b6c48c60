"""The affine augmentation against moves of whole pixels and right angles, which are exact."""

import math

import pytest
import torch

from diffusion.augmentations import Affine

CHOSEN, SPARED = -9.0, 9.0


def draws(*, x=0.0, y=0.0, angle=0.0, scale=0.0, choice=CHOSEN) -> torch.Tensor:
    return torch.tensor([[x, y, angle, scale, choice]])


def images(*size: int) -> torch.Tensor:
    return torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))


def test_a_shift_of_one_pixel_moves_every_value_and_repeats_the_border():
    before = images(6, 9)
    right, told = Affine(shift=0.4)(before, draws(x=2.5))
    assert torch.allclose(right[..., 1:], before[..., :-1], atol=1e-6)
    assert torch.allclose(right[..., 0], before[..., 0], atol=1e-6)
    assert told.tolist() == [[2.5, 0, 0, 0]]
    down, _ = Affine(shift=0.4)(before, draws(y=2.5))
    assert torch.allclose(down[..., 1:, :], before[..., :-1, :], atol=1e-6)


def test_a_right_angle_turns_the_image():
    before = images(8, 8)
    turned, _ = Affine(rotation=1.0)(before, draws(angle=math.pi / 2))
    assert torch.allclose(turned, before.rot90(1, (2, 3)), atol=1e-5)


def test_a_turn_keeps_shapes_where_the_image_is_not_square():
    """A small disc far from the centre lands where the same turn in pixels takes its centre."""
    rows, columns = torch.meshgrid(torch.arange(21.0), torch.arange(41.0), indexing="ij")
    disc = torch.exp(-((rows - 10) ** 2 + (columns - 26) ** 2) / 4)[None, None]
    turned, _ = Affine(rotation=1.0)(disc, draws(angle=math.pi / 2))
    place = turned[0, 0].argmax().item()
    assert divmod(place, 41) == (4, 20)
    assert turned.max() > 0.95


def test_scale_is_the_factor_by_which_lengths_grow():
    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    blob = torch.exp(-((rows - 16) ** 2 + (columns - 16) ** 2) / 18)[None, None]
    grown, _ = Affine(scale=math.log(1.5))(blob, draws(scale=1.0))
    assert grown.sum() / blob.sum() == pytest.approx(1.5**2, rel=0.01)


def test_unchosen_images_are_unchanged_and_the_network_is_told_nothing():
    before = images(5, 7)
    after, told = Affine()(before, draws(x=3, y=3, angle=3, scale=3, choice=SPARED))
    assert torch.allclose(after, before, atol=1e-6)
    assert told.abs().max() == 0


def test_as_many_are_chosen_as_asked_for():
    many = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    _, told = Affine(probability=0.3)(torch.zeros(4000, 1, 2, 2), many)
    share = (told.abs().sum(1) > 0).float().mean().item()
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))


def test_slices_of_a_volume_move_alike():
    before = images(3, 6, 6)
    after, _ = Affine(shift=1.0)(before, draws(x=1.0))
    assert torch.allclose(after[..., 1:], before[..., :-1], atol=1e-6)
