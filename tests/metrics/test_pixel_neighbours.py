"""The nearest images whatever their brightness, contrast, mirroring and a shift, against the definition."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from datamodules.digits import Digits
from diffusion.metrics import pixel_neighbours
from diffusion.metrics.pixel_neighbours import PixelNeighbours

SHAPES = [(1, 8, 8), (3, 20, 18), (1, 18, 20, 19), (2, 6, 7, 8)]


def images(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images, as real ones are."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, *shape))
    for axis in range(2, 1 + len(shape)):
        values = correlate1d(values, np.ones(3), axis, mode="wrap")
    return torch.from_numpy((128 + 40 * values / values.std()).round().clip(0, 255).astype(np.uint8))


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """By the definition, with numpy alone, for images with contrast."""
    axes = range(1, x.ndim)
    x, y = x.numpy().astype(float), y.numpy().astype(float)
    if min(x.shape[1:]) > pixel_neighbours.SMALL:
        for axis in axes:
            x, y = (correlate1d(each, [0.25, 0.5, 0.25], axis) for each in (x, y))
        x, y = (each[(slice(None), *[slice(1, -1)] * len(axes))] for each in (x, y))
    inner = y[(slice(None), *[slice(1, -1)] * len(axes))]
    found = []
    for mirrored in itertools.chain.from_iterable(itertools.combinations(axes, k) for k in range(len(axes) + 1)):
        turned = np.flip(x, mirrored)
        for offsets in itertools.product(range(3), repeat=len(axes)):
            sides = zip(offsets, inner.shape[1:], strict=True)
            part = turned[(slice(None), *(slice(start, start + side) for start, side in sides))]
            found.append(np.sqrt(max(0.0, 2 - 2 * np.corrcoef(part.ravel(), inner.ravel())[0, 1])))
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_distance_is_the_one_defined(shape):
    queries, points = images(5, *shape), images(6, *shape, seed=1)
    wanted = np.array([[distance(x, y) for y in points] for x in queries])
    found = PixelNeighbours(points)(queries)
    assert found.distances == pytest.approx(wanted.min(1), abs=1e-3)
    assert found.places.tolist() == wanted.argmin(1).tolist() and found.places.dtype == np.int64


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_what_changes_nothing(shape):
    """Mirrored, shifted within the frame, darker, brighter and of less contrast: all at distance 0, or nearly."""
    points = images(12, *shape)
    axes = range(2, points.ndim)
    changed = {
        "exact": points,
        "flip": points.flip(2),
        "both": points.flip(tuple(axes)),
        "shift": points.roll(1, 2),
        "diagonal": points.roll([-1] * len(axes), list(axes)),
        "darker": points.clamp(20) - 20,
        "contrast": (points.float() * 0.5).round().to(torch.uint8),
    }
    search = PixelNeighbours(points)
    for name, queries in changed.items():
        found = search(queries)
        assert found.places.tolist() == list(range(12)), name
        # Rounding of halved grey levels, and the few that are clipped, are all that is left.
        assert found.distances.max() <= (0.1 if name in ("darker", "contrast") else 0.0), name


def test_every_shift_of_small_images_is_found():
    train = Digits().split("train").images[:300]
    search = PixelNeighbours(train)
    for offsets in ((0, 1), (-1, 1)):
        found = search(train.roll(offsets, (2, 3)))
        assert found.places.tolist() == list(range(300)) and found.distances.max() == 0


def test_an_image_is_not_its_own_neighbour_even_mirrored():
    points = images(12, 1, 20, 20)
    points[3] = points[7]
    points[5] = torch.maximum(points[5], points[5].flip(-1))  # symmetric
    found = PixelNeighbours(points)(points, own=np.arange(12))
    assert not (found.places == np.arange(12)).any()
    assert found.places[3] == 7 and found.places[7] == 3 and found.distances[3] == 0
    assert found.distances[5] > 0.1
    part = PixelNeighbours(points)(points[4:9], own=np.arange(4, 9))
    assert part.distances == pytest.approx(found.distances[4:9], abs=1e-6)


def test_images_without_contrast_are_not_amplified():
    """Faint noise is not blown up to a pattern: two nearly constant images are near to each other."""
    rng = torch.Generator().manual_seed(0)
    faint = 100 + torch.randint(0, 2, (4, 1, 24, 24), generator=rng).to(torch.uint8)
    points = torch.cat([images(5, 1, 24, 24), faint[:2]])
    queries = torch.cat([faint[2:], torch.full((1, 1, 24, 24), 30, dtype=torch.uint8)])
    found = PixelNeighbours(points)(queries)
    assert np.isfinite(found.distances).all() and found.distances.max() < 0.3
    assert (found.places >= 5).all()


def test_blocks_change_nothing(monkeypatch):
    queries, points, done = images(9, 2, 20, 17), images(25, 2, 20, 17, seed=1), []
    whole = PixelNeighbours(points)(queries)
    one = 2 * 20 * 17 + 2 * 8 * 8 * 36
    monkeypatch.setattr(pixel_neighbours, "VALUES", {"search": 4 * one, "compare": 2000})
    parts = PixelNeighbours(points)(queries, on_batch=done.append)
    assert done == [4, 8, 9]
    assert parts.places.tolist() == whole.places.tolist()
    assert parts.distances == pytest.approx(whole.distances, abs=1e-5)


def test_large_images_are_compared_at_a_lower_resolution():
    points = images(4, 1, 200, 160).float()
    points = torch.nn.functional.interpolate(points[..., :50, :40], scale_factor=4).to(torch.uint8)
    noisy = (points + 8 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255).byte()
    found = PixelNeighbours(points)(noisy)
    assert found.places.tolist() == [0, 1, 2, 3] and found.distances.max() < 0.05
