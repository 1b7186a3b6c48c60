"""Geometry against torch's own flips and turns, which are exact, and against what its strengths are said to be."""

import math

import pytest
import torch

from diffusion.augmentations import Geometry
from diffusion.augmentations.warp import smooth_field, stretch
from diffusion.errors import UserError

ALL = {"flips": ("x", "y"), "quarter_turns": True, "scale": 0.1, "rotation": 3.0, "anisotropy": 0.1, "shift": 0.1}


def at(*places: float) -> torch.Tensor:
    """The draws (1, n) that are at these quantiles of the normal distribution."""
    return torch.special.ndtri(torch.tensor([places], dtype=torch.float64)).float()


def random_draws(augmentation, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, augmentation.draws, generator=torch.Generator().manual_seed(seed))


def images(*size: int, count: int = 1) -> torch.Tensor:
    return 2 * torch.rand(count, 2, *size, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize("size", [(6, 9), (4, 6, 9)])
def test_flips_are_exact(size):
    before = images(*size)
    flips = Geometry(flips=("x", "y"), told=True)
    for x, y in [(0, 0), (1, 0), (0, 1), (1, 1)]:
        after, told = flips(before, at(0.3 if x else 0.7, 0.3 if y else 0.7))
        wanted = before.flip([axis for axis, done in ((-1, x), (-2, y)) if done])
        assert torch.equal(after, wanted)
        assert told.tolist() == [[x, y]]


def test_a_flip_along_z_reverses_the_slices():
    before = images(4, 6, 9)
    after, _ = Geometry(flips=("z",))(before, at(0.3))
    assert torch.equal(after, before.flip(-3))


@pytest.mark.parametrize("size", [(7, 7), (3, 6, 6)])
@pytest.mark.parametrize("turns", range(4))
def test_quarter_turns_are_exact(size, turns):
    before = images(*size)
    after, told = Geometry(quarter_turns=True, told=True)(before, at((turns + 0.5) / 4))
    assert torch.equal(after, before.rot90(turns, (-2, -1)))
    assert told.any() == (turns > 0)


def test_flips_and_turns_together_are_the_eight_positions_of_a_square_equally_often():
    before = images(5, 5)[:, :1]
    augmentation = Geometry(flips=("x", "y"), quarter_turns=True)
    count = 4000
    after, _ = augmentation(before.expand(count, -1, -1, -1), random_draws(augmentation, count))
    seen, counts = after.flatten(1).unique(dim=0, return_counts=True)
    assert len(seen) == 8
    wanted = {tuple(x.rot90(k, (-2, -1)).flatten().tolist()) for x in (before, before.flip(-1)) for k in range(4)}
    assert {tuple(row) for row in seen.tolist()} == wanted
    assert (counts - count / 8).abs().max() < 4.5 * math.sqrt(count * 7 / 64)


@pytest.mark.parametrize(("place", "turns"), [(0.75, 1), (0.25, 3)])
def test_a_free_rotation_by_a_right_angle_is_a_quarter_turn(place, turns):
    before = images(8, 8)
    after, told = Geometry(rotation=math.pi, told=True)(before, at(place))
    assert torch.allclose(after, before.rot90(turns, (2, 3)), atol=1e-5)
    assert torch.allclose(told, torch.tensor([[-1.0, 2.0 - turns]]), atol=1e-6)


def test_a_shift_by_whole_pixels_moves_every_value_and_mirrors_what_comes_in():
    before = images(8, 16)
    after, told = Geometry(shift=0.125, told=True)(before, torch.tensor([[-3.0, 1.0, -2.0]]))
    assert torch.allclose(after[..., :-2, 2:], before[..., 2:, :-2], atol=1e-6)
    assert torch.allclose(after[..., :-2, :2], before[..., 2:, :2].flip(-1), atol=1e-6)
    assert told.tolist() == [[1, -2]]


def blob(size: int = 65) -> torch.Tensor:
    """A Gaussian of standard deviation 4 at the centre, on black."""
    x = torch.arange(size) - (size - 1) / 2
    return 2 * torch.exp(-(x[:, None] ** 2 + x**2) / 32)[None, None] - 1


def moments(image: torch.Tensor) -> torch.Tensor:
    """Variances along x and y, and the covariance, of the light in an image (1, 1, H, W)."""
    light = (image[0, 0] + 1) / 2
    x = torch.arange(light.shape[-1]) - (light.shape[-1] - 1) / 2
    total = light.sum()
    return torch.stack([(light * x**2).sum(), (light * x[:, None] ** 2).sum(), (light * x * x[:, None]).sum()]) / total


def test_scale_is_the_factor_by_which_lengths_grow():
    grown, _ = Geometry(scale=math.log(1.5))(blob(), torch.tensor([[-3.0, 1.0]]))
    assert torch.allclose(moments(grown), torch.tensor([36.0, 36.0, 0.0]), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(("place", "wanted"), [(1e-7, (36, 16 / 2.25, 0)), (0.5, (16 / 2.25, 36, 0))])
def test_anisotropy_stretches_one_direction_and_shrinks_the_other(place, wanted):
    draws = torch.cat([at(place), torch.ones(1, 1)], 1)
    stretched, _ = Geometry(anisotropy=math.log(1.5))(blob(), draws)
    assert torch.allclose(moments(stretched), torch.tensor(wanted).float(), rtol=0.03, atol=0.02)


def test_a_stretch_keeps_areas_and_is_undone_by_its_opposite():
    x, y = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(torch.linalg.det(stretch(x, y)), torch.ones(50), atol=1e-4)
    assert torch.allclose(stretch(x, y) @ stretch(-x, -y), torch.eye(2).expand(50, 2, 2), atol=1e-4)
    exact = torch.linalg.matrix_exp(torch.stack([torch.stack([x, y], 1), torch.stack([y, -x], 1)], 1))
    assert torch.allclose(stretch(x, y), exact, atol=1e-4)


def test_a_displacement_has_its_standard_deviation_at_every_pixel_and_is_smooth():
    controls = torch.randn(4000, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    field = smooth_field(controls, (20, 28))
    assert field.shape == (4000, 20, 28, 2)
    assert field.mean(0).abs().max() < 5 / math.sqrt(4000)
    assert (field.std(0) - 1).abs().max() < 5 / math.sqrt(2 * 4000)
    # Gaussians of width s make a field whose slope has the standard deviation 1 / (sqrt(2) s).
    slope = (field[:, :, 15] - field[:, :, 13]) / 2
    assert slope.std() == pytest.approx(1 / (math.sqrt(2) * 0.75 * 27 / 3), rel=0.1)


def test_elastic_moves_pixels_by_the_stated_share_of_the_side():
    """A ramp of unit slope tells each pixel's displacement."""
    side, share = 32, 0.03
    ramp = ((torch.arange(side) - 15.5) / 64).expand(1, 1, side, side)
    augmentation = Geometry(elastic=share)
    draws = random_draws(augmentation, 2000)
    across, _ = augmentation(ramp.expand(2000, -1, -1, -1), draws)
    down, _ = augmentation(ramp.mT.expand(2000, -1, -1, -1), draws)
    inner = (..., slice(6, -6), slice(6, -6))
    moved = 64 * torch.stack([across - ramp, down - ramp.mT])[(..., *inner[1:])]
    assert moved.std() == pytest.approx(share * side, rel=0.03)
    x, y = moved.flatten(1)
    assert torch.corrcoef(torch.stack([x, y]))[0, 1].abs() < 0.03


def test_the_strongest_displacement_that_is_taken_hardly_ever_folds():
    field = smooth_field(torch.randn(500, 2, 4, 4, generator=torch.Generator().manual_seed(0)), (64, 64)) * 0.125 * 64
    along = 1 + (field[:, :, 1:, 0] - field[:, :, :-1, 0])
    assert (along < 0).float().mean() < 0.01


def test_each_part_is_done_as_often_as_asked_for_whatever_the_others_do():
    augmentation = Geometry(told=True, probability=0.3, elastic=0.05, **ALL)
    before = images(6, 6, count=4000)
    after, told = augmentation(before, random_draws(augmentation, 4000))
    assert told.shape == (4000, augmentation.values) and augmentation.values == 12
    x, y, turn, scale, angle, stretched, shift, bent = (
        told[:, columns].any(1).float() for columns in ([0], [1], [2, 3], [4], [5, 6], [7, 8], [9, 10], [11])
    )
    shares = {0.15: (x, y), 0.225: (turn,), 0.3: (scale, angle, stretched, shift, bent)}
    for share, parts in shares.items():
        for part in parts:
            assert part.mean() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))
    together = torch.corrcoef(torch.stack([x, y, turn, scale, angle, stretched, shift, bent])) - torch.eye(8)
    assert together.abs().max() < 5 / math.sqrt(4000)
    untouched = ~told.any(1)
    assert untouched.sum() > 100 and torch.equal(after[untouched], before[untouched])


def test_what_is_told_of_chosen_images_is_spread_as_it_is_said_to_be():
    augmentation = Geometry(told=True, **{**ALL, "flips": (), "quarter_turns": False, "rotation": math.pi})
    _, told = augmentation(torch.zeros(20000, 1, 2, 2), random_draws(augmentation, 20000))
    scale, cos, sin, x, y, *shift = told.unbind(1)
    for standard in (scale, *shift):
        assert standard.mean().abs() < 0.03 and standard.std() == pytest.approx(1, abs=0.03)
    for half in (cos + 1, sin, x, y):  # of an even angle, and of a normal number times one
        assert half.mean().abs() < 0.03 and half.std() == pytest.approx(math.sqrt(0.5), abs=0.02)


@pytest.mark.parametrize("nothing", [Geometry(told=True), Geometry(told=True, probability=0.0, elastic=0.05, **ALL)])
def test_without_strength_or_chance_nothing_happens(nothing):
    before = images(6, 6, count=32)
    after, told = nothing(before, random_draws(nothing, 32))
    assert torch.equal(after, before)
    assert told.shape == (32, nothing.values) and not told.any()


@pytest.mark.parametrize("part", [{name: value} for name, value in ALL.items()] + [{"elastic": 0.05}])
def test_slices_of_a_volume_move_alike(part):
    augmentation = Geometry(**part)
    draws = random_draws(augmentation, 8)
    volumes = images(3, 6, 6, count=8)
    after, _ = augmentation(volumes, draws)
    for i in range(3):
        assert torch.equal(after[:, :, i], augmentation(volumes[:, :, i], draws)[0])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"probability": 1.5}, "probability=1.5"),
        ({"shift": -0.1}, "shift=-0.1"),
        ({"scale": math.nan}, "scale=nan"),
        ({"flips": ["w"]}, "some of x, y, z"),
        ({"flips": ["x", "x"]}, "each once"),
        ({"elastic": 0.05, "elastic_points": 1}, "elastic_points=1"),
        ({"elastic": 0.2}, "at most 0.125"),
    ],
)
def test_values_that_make_no_sense_are_refused(keys, said):
    with pytest.raises(UserError, match=said):
        Geometry(**keys)


def test_shapes_that_cannot_be_turned_or_flipped_are_refused():
    Geometry(quarter_turns=True, flips=("z",)).check((1, 5, 8, 8))
    with pytest.raises(UserError, match=r"square.*8x9"):
        Geometry(quarter_turns=True).check((1, 8, 9))
    with pytest.raises(UserError, match="no z"):
        Geometry(flips=("z",)).check((1, 8, 8))
