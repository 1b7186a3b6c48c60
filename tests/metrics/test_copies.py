"""Planted copies are found, other real images are not, and near-duplicates in the held-out data do not hide copies."""

import numpy as np
import pytest
import torch

from datamodules.digits import Digits
from datamodules.npz import Npz
from diffusion.metrics import copies
from diffusion.metrics.copies import (
    CHANGES,
    Cases,
    CopyDetector,
    Ratios,
    feature_neighbours,
    lightly_changed,
    relative,
    share,
    shares_sources,
    threshold,
)
from diffusion.metrics.pixel_neighbours import Neighbours

pytestmark = pytest.mark.slow


def features(images: torch.Tensor) -> torch.Tensor:
    """A stand-in for an extractor: means of quarters of the image and their neighbours."""
    values = images.float().flatten(0, 1)
    pooled = torch.nn.functional.adaptive_avg_pool2d(values, 4)
    return pooled.reshape(len(images), -1)


def detector(train: torch.Tensor, held_out: torch.Tensor, **options) -> CopyDetector:
    return CopyDetector(train, held_out, features(train), features(held_out), **options)


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    held_out = torch.cat([data.split("val").images, data.split("test").images])
    return data.split("train").images, held_out[::2], held_out[1::2]


@pytest.fixture(scope="module")
def found(digits):
    train, calibrating, _ = digits
    return detector(train, calibrating)


def test_planted_copies_are_found_and_other_real_images_are_not(digits, found):
    """10% copies, exact or lightly changed, among images of the other half of the held-out data."""
    train, _, fresh = digits
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))[:55]
    planted = torch.cat([train[chosen[:11]], lightly_changed(train[chosen[11:]], seed=5)])
    samples = torch.cat([fresh, planted])
    cases = found(samples, features(samples))
    assert cases.flagged[len(fresh) :].mean() >= 0.95
    assert (cases.train[len(fresh) :] == chosen.numpy()).mean() >= 0.95
    assert cases.flagged[: len(fresh)].mean() <= 0.01
    assert (cases.flagged == (cases.ratio < 1)).all()
    assert (cases.ratio[len(fresh) :][:11] == 0).all()


def test_each_change_alone_is_found(digits, found):
    train = digits[0][:160]
    cases = found(*(each(train) for each in (lightly_changed, lambda x: features(lightly_changed(x)))))
    for i, change in enumerate(CHANGES):
        assert cases.flagged[i :: len(CHANGES)].mean() >= 0.95, change


@pytest.mark.slow
def test_photographs_of_blood_cells(shared_data):
    """The validation split is of the photographs of the training split, and is told apart; the test split is not."""
    data = Npz(path=shared_data("bccd_wbc28/bccd_wbc28.npz"))
    train, val, test = (data.split(name).images for name in ("train", "val", "test"))
    train, val, test = train[::3], val[::3], test[::3]
    assert shares_sources(val, test, train) and not shares_sources(test, val, train)
    found = detector(train, test[::2])
    planted, fresh = lightly_changed(train[::15]), test[1::2]
    assert found(planted, features(planted)).flagged.mean() >= 0.95
    assert found(fresh, features(fresh)).flagged.mean() <= 0.01


def test_near_duplicates_in_the_held_out_data_are_left_out_and_hide_nothing(digits):
    train, held_out, fresh = digits
    leaked = lightly_changed(train[:60], seed=9)
    found = detector(train, torch.cat([held_out, leaked]))
    places = set(range(len(held_out), len(held_out) + 60))
    assert len(places & set(found.near_duplicates.tolist())) >= 57
    assert len(set(found.near_duplicates.tolist()) - places) <= 0.02 * len(held_out)
    assert len(found.near_duplicate_ratios.ratio) == len(found.near_duplicates)
    assert found.held_out.flagged.mean() <= 0.01 and not set(found.calibrating) & set(found.near_duplicates)
    planted = lightly_changed(train[:60], seed=2)
    assert found(planted, features(planted)).flagged.mean() >= 0.95
    assert found(fresh, features(fresh)).flagged.mean() <= 0.01


def test_neighbours_are_places_among_all_held_out_images(digits):
    train, held_out, _ = digits
    found = detector(train, torch.cat([train[:20], held_out]))  # the first twenty are left out
    cases = found(held_out[:50], features(held_out[:50]))
    assert cases.held_out.tolist() == list(range(20, 70))
    assert np.isinf(cases.ratio).all()
    assert (found.held_out.held_out != found.calibrating).all()  # none is its own neighbour


def test_no_more_than_so_many_held_out_images_set_the_thresholds(digits, monkeypatch):
    monkeypatch.setattr(copies, "CALIBRATING", 50)
    train, held_out, _ = digits
    told = []
    found = detector(train, held_out, on_batch=lambda *each: told.append(each))
    assert len(found.calibrating) == len(found.held_out.ratio) == 50
    assert ("held-out images among themselves", 50, 50) in told
    assert ("held-out images", len(held_out), len(held_out)) in told


def test_held_out_images_that_are_all_copies_are_refused(digits):
    train = digits[0]
    with pytest.raises(ValueError, match="near-duplicates"):
        detector(train, train[::40])


def test_two_constant_sets_are_no_copies_of_each_other():
    """Where nothing can be told the ratio is 1."""
    images = torch.full((6, 1, 9, 9), 7, dtype=torch.uint8)
    found = detector(images[:3], images[3:])
    cases = found(images, features(images))
    assert isinstance(cases, Cases) and (cases.pixel.ratio == 1).all() and not cases.flagged.any()


def test_ratios():
    near = Neighbours(np.array([0.0, 0.0, 1.0, 2.0]), np.arange(4))
    other = Neighbours(np.array([0.0, 2.0, 0.0, 1.0]), np.arange(4)[::-1])
    found = Ratios.of(near, other)
    assert found.ratio.tolist() == [1.0, 0.0, np.inf, 2.0]
    assert found.train.tolist() == [0, 1, 2, 3] and found.held_out.tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("n", [300, 3000])
def test_the_threshold_is_the_wanted_quantile_of_a_power_law(n):
    """P(ratio < r) = r^9 below 1: the quantile is BUDGET^(1/9) = 0.46."""
    truth = copies.BUDGET ** (1 / 9)
    found = [threshold(np.random.default_rng(seed).random(n) ** (1 / 9)) for seed in range(20)]
    assert np.mean(found) == pytest.approx(truth, rel=0.05)
    # The lowest ratio of 300 is far above the quantile, and would let three times as many pass.
    assert np.std(found) < 0.2 * truth and max(found) <= copies.MOST


def test_the_threshold_is_bounded():
    assert threshold(np.full(100, 2.0)) == copies.MOST
    assert threshold(np.full(100, np.inf)) == copies.MOST
    assert threshold(np.array([0.9, 0.8])) <= copies.MOST
    many_zeros = np.concatenate([np.zeros(50), np.ones(50)])
    assert 0 <= threshold(many_zeros) < 1e-3
    assert relative(np.array([0.0, 1.0]), 0.0).tolist() == [np.inf, np.inf]


def test_splits_that_share_their_sources():
    """Held-out windows that overlap training windows, and others that do not."""
    rng = np.random.default_rng(0)
    scenes = torch.from_numpy(rng.integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)).float()
    scenes = torch.nn.functional.interpolate(scenes, size=40, mode="bilinear")
    cut = [(scenes[:, :, i : i + 36, j : j + 36]).to(torch.uint8) for i, j in ((0, 0), (2, 1))]
    train, leaking, fresh = cut[0][:80], cut[1][:40], cut[1][80:]
    assert shares_sources(leaking, fresh, train)
    assert not shares_sources(fresh, leaking, train)
    assert not shares_sources(fresh[:20], fresh[20:], train)


def test_neighbours_in_features():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 4)).astype(np.float32)
    points[4] = points[9]
    every = np.linalg.norm(points[:, None] - points, axis=-1)
    found = feature_neighbours(points, points)
    assert found.distances == pytest.approx(np.zeros(30), abs=1e-3)
    np.fill_diagonal(every, np.inf)
    places = np.arange(5, 20)
    found = feature_neighbours(points[5:20], points, places)
    assert found.distances == pytest.approx(every[5:20].min(1), abs=1e-3)
    assert found.places.tolist() == every[5:20].argmin(1).tolist() and found.places[4] == 4


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (1, 6, 6, 7)])
def test_lightly_changed_copies(shape):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(40, 200, (40, *shape), dtype=torch.uint8, generator=rng)
    found = lightly_changed(images, seed=1)
    assert found.dtype is torch.uint8 and found.shape == images.shape
    assert torch.equal(found, lightly_changed(images, seed=1)) and not torch.equal(found, lightly_changed(images))
    difference = found.float() - images.float()
    assert difference[0::4].std() == pytest.approx(copies.NOISE, rel=0.15)
    for i in range(1, 40, 4):
        assert any(torch.equal(found[i], images[i].flip(axis)) for axis in range(1, len(shape)))
        assert torch.equal(found[i].flatten().sort().values, images[i].flatten().sort().values)
    for i in range(2, 40, 4):
        moved = [images[i].roll(s, axis) for s in (-1, 1) for axis in range(1, len(shape))]
        inner = (slice(None), *[slice(1, -1)] * (len(shape) - 1))
        assert any(torch.equal(found[i][inner], each[inner]) for each in moved)
    factors = (found.float() / images.float())[3::4].flatten(1).mean(1)
    assert ((factors - 1).abs() - copies.BRIGHTNESS).abs().max() < 0.02


def test_a_share_has_an_interval_even_where_none_is_flagged():
    value, low, high = share(np.zeros(1000, bool))
    assert (value, low) == (0, 0) and high == pytest.approx(1.96**2 / (1000 + 1.96**2), rel=1e-3)
    value, low, high = share(np.arange(200) < 20)
    assert value == 0.1 and low == pytest.approx(0.0657, abs=1e-4) and high == pytest.approx(0.1494, abs=1e-4)


def test_features_flag_only_what_would_not_be_flagged_of_another_split(digits):
    """Two held-out splits, each of its own source: features far from the other's, and near to training images."""
    train, held_out, fresh = digits
    rng = np.random.default_rng(0)

    def placed(images: torch.Tensor, centre: float) -> torch.Tensor:
        return torch.from_numpy(rng.normal(centre, 1, (len(images), 4)).astype(np.float32))

    train_features = torch.cat([placed(train[0::2], -8), placed(train[1::2], 8)])
    sources = torch.cat([placed(held_out[:200], -8), placed(held_out[200:], 8)])
    arguments = (train, held_out, train_features, sources)
    alone, apart = CopyDetector(*arguments), CopyDetector(*arguments, parts=[200, len(held_out) - 200])
    assert alone.thresholds["feature"] == 0 and 0 < apart.thresholds["feature"] < 0.1
    assert alone.thresholds["pixel"] == apart.thresholds["pixel"]
    assert (apart(fresh, placed(fresh, 8)).feature.ratio < apart.thresholds["feature"]).mean() <= 0.01
    exact = apart(train[:50], train_features[:50])
    assert (exact.feature.ratio == 0).all() and exact.flagged.all()
