"""The figures of masks, against brute force and what can be counted by hand."""

import math

import numpy as np
import pytest
import torch

from diffusion.metrics.segmentation import calibration_of, confusion, dice_of, entropy_of, hausdorff95, iou_of


def masks(shape, classes=3, seed=0):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(7, 9), (4, 5, 6)])
def test_overlaps_are_those_of_the_sets(size):
    found, truth = masks((4, *size), seed=1), masks((4, *size), seed=2)
    found[0], truth[0] = 0, 0  # classes 1 and 2 are in neither
    found[1][found[1] == 2] = 0  # and class 2 not in one of them
    counts = confusion(found, truth, 3)
    assert counts.sum((1, 2)).tolist() == [math.prod(size)] * 4
    for n in range(4):
        for k in range(3):
            a = {tuple(place) for place in (found[n] == k).nonzero().tolist()}
            b = {tuple(place) for place in (truth[n] == k).nonzero().tolist()}
            dice = 2 * len(a & b) / (len(a) + len(b)) if a | b else 1
            iou = len(a & b) / len(a | b) if a | b else 1
            assert dice_of(counts)[n, k].item() == pytest.approx(dice)
            assert iou_of(counts)[n, k].item() == pytest.approx(iou)
    assert dice_of(counts)[0].tolist() == [1, 1, 1] and dice_of(counts)[1, 2] == 0


def brute_hausdorff95(a, b):
    def surface(pixels):
        places = {tuple(place) for place in np.argwhere(pixels)}
        steps = [step * sign for step in np.eye(pixels.ndim, dtype=int) for sign in (1, -1)]
        return np.array([place for place in places if any(tuple(np.add(place, step)) not in places for step in steps)])

    a, b = surface(a), surface(b)
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return max(np.percentile(distance.min(1), 95), np.percentile(distance.min(0), 95))


@pytest.mark.parametrize("size", [(18, 23), (9, 10, 11)])
@pytest.mark.parametrize("seed", range(4))
def test_the_hausdorff_distance_is_that_of_all_pairs_of_surface_pixels(size, seed):
    rng = np.random.default_rng(seed)
    pair = []
    for _ in range(2):  # blobs of which some touch the border, and a stray pixel
        places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
        pixels = ((places - rng.uniform(0, np.array(size))) ** 2).sum(-1) < rng.uniform(4, 30)
        pixels[tuple(rng.integers(0, side) for side in size)] = True
        pair.append(pixels)
    assert hausdorff95(*pair) == pytest.approx(brute_hausdorff95(*pair))


def test_the_hausdorff_distance_of_known_sets():
    square, shifted, none = (np.zeros((20, 20), bool) for _ in range(3))
    square[4:9, 4:9], shifted[4:9, 10:15] = True, True
    assert hausdorff95(square, square) == 0
    assert hausdorff95(square, shifted) == pytest.approx(6)
    assert hausdorff95(none, none) == 0 and math.isnan(hausdorff95(none, square))


def test_entropy_is_one_where_all_classes_are_alike_and_zero_where_one_is_sure():
    assert entropy_of(torch.tensor([0.0, 1.0, 0.0])[None, :, None]).item() == 0
    assert entropy_of(torch.full((1, 4, 2), 0.25)).tolist() == [[pytest.approx(1)] * 2]
    half = torch.tensor([0.5, 0.5, 0.0])[None, :, None]
    assert entropy_of(half).item() == pytest.approx(math.log(2) / math.log(3))


def test_calibration_of_what_happens_as_often_as_said_and_of_what_does_not():
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(200_000, generator=rng)
    honest = torch.rand(200_000, generator=rng) < p
    found = calibration_of(p, honest)
    assert found.error < 0.006 and found.count.sum() == 200_000
    # |p - 1(p > 1/2)| is 1/4 on average.
    assert calibration_of(p, p > 0.5, bins=10).error == pytest.approx(0.25, abs=0.003)
    few = calibration_of(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([False, True, False]), bins=4)
    assert few.count.tolist() == [1, 0, 0, 2] and few.share[3] == 0.5 and few.error == pytest.approx(1 / 3)
