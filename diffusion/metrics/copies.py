"""Which images are copies of training images: nearer to one of them than images of other patients come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.metrics.bootstrap import Interval
from diffusion.metrics.neighbours import nearest
from diffusion.metrics.pixel_neighbours import Neighbours, PixelNeighbours
from diffusion.random import generator

BUDGET = 0.001
"""Share of other patients' images that a threshold lets be flagged, in each of the two spaces."""
TAIL = 0.1
"""Share of the held-out images whose ratios tell where that threshold is."""
MOST = 0.5
"""No threshold is higher: a copy is at least twice as near to a training image as to any other."""
NEAR = 2.5
"""A near-duplicate is up to this many times as far as lightly changed copies are."""
CALIBRATING = 4000
"""Held-out images, at most, that set the thresholds."""
PLANTED = 200
CHANGES = ("noise", "flip", "shift", "brightness")
NOISE = 8.0
BRIGHTNESS = 0.15
SHARED = 0.7
"""A median ratio below it means that two splits have sources in common; of splits that have none it is near to 1."""
ASKED = 200
"""Images of a split that are asked for it."""

OnBatch = Callable[[str, int, int], None]
"""Told what is going on, and how many of how many images are done."""


class Ratios(NamedTuple):
    """Of N images: d(x, nearest training image) / d(x, nearest held-out image), and what it is made of, all (N,).

    ratio is 1 where both distances are 0, and infinite where only the second one is. distance is to the nearest
    training image; train and held_out are the places of the two neighbours.
    """

    ratio: np.ndarray
    distance: np.ndarray
    train: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, train: Neighbours, held_out: Neighbours) -> Ratios:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = train.distances / held_out.distances
        return cls(np.where(np.isnan(ratio), 1.0, ratio), train.distances, train.places, held_out.places)


class Cases(NamedTuple):
    """The judgement of N images.

    flagged: bool (N,), where a ratio is below the threshold of its space.
    ratio: (N,), the smaller of pixel ratio / its threshold and feature ratio / its threshold: below 1 if flagged.
    train, held_out: (N,), the neighbours in the space that decides.
    """

    flagged: np.ndarray
    ratio: np.ndarray
    train: np.ndarray
    held_out: np.ndarray
    pixel: Ratios
    feature: Ratios


class CopyDetector:
    """Flags copies of training images among others, by distances in pixels and in features.

    In each space the ratio of an image is its distance to the nearest training image over that to the nearest held-out
    image (see `Ratios`); in pixels the distance is that of `PixelNeighbours`, in features the Euclidean one. The
    `threshold` comes from the ratios of the held-out images, each compared with the other ones. An image is flagged
    where one of its ratios is below the threshold.

    Images of one patient among the held-out ones are near to each other, and their ratios larger than those of another
    patient would be. In pixels `MOST` makes up for it. In features, where distances may be of any size, the threshold
    also has to hold for ratios to the images of other held-out splits alone. With one split it is 0: features then flag
    nothing.

    Held-out images that are near-duplicates of training images, as frames of one examination are, would hide copies of
    these, and pass for what a copy's ratio may be by chance. They are left out: those whose pixel ratio is below `MOST`
    and whose distance to a training image is at most `NEAR` times that of lightly changed copies (the 95% quantile of
    `PLANTED`).

    Args:
        train, held_out: images uint8 (M, C, *S) and (H, C, *S).
        train_features, held_out_features: (M, E) and (H, E).
        parts: the numbers of held-out images that come from one split after the other, H in all; None for one split.
        seed: of the lightly changed copies.

    thresholds: "pixel" and "feature".
    near_duplicates: places of those left out, int64; near_duplicate_ratios: their pixel ratios.
    kept, calibrating: places of the other held-out images, and of those that set the thresholds.
    held_out: the Cases of `calibrating`.

    Raises ValueError if there are less than two held-out images beside near-duplicates.
    """

    def __init__(
        self,
        train: Tensor,
        held_out: Tensor,
        train_features: Tensor,
        held_out_features: Tensor,
        parts: Sequence[int] | None = None,
        seed: int = 0,
        on_batch: OnBatch | None = None,
    ):
        self.on_batch = on_batch
        self.train, self.train_features = PixelNeighbours(train), train_features.numpy()
        to_train = self._search("held-out images", self.train, held_out)
        self.near_duplicates, self.near_duplicate_ratios = self._near_duplicates(train, held_out, to_train, seed)
        self.kept = np.setdiff1d(np.arange(len(held_out)), self.near_duplicates)
        if len(self.kept) < 2:
            raise ValueError("nearly all held-out images are near-duplicates of training images")
        self.others, self.other_features = PixelNeighbours(held_out[self.kept]), held_out_features[self.kept].numpy()

        own = np.unique(np.linspace(0, len(self.kept) - 1, min(CALIBRATING, len(self.kept))).round().astype(np.int64))
        self.calibrating = self.kept[own]
        images, features = held_out[self.calibrating], self.other_features[own]
        pixel = Ratios.of(
            Neighbours(*(part[self.calibrating] for part in to_train)),
            self._search("held-out images among themselves", self.others, images, own),
        )
        feature = Ratios.of(
            feature_neighbours(features, self.train_features), feature_neighbours(features, self.other_features, own)
        )
        apart = self._features_of_other_parts(own, parts or [len(held_out)])
        self.thresholds = {
            "pixel": threshold(pixel.ratio),
            "feature": min(threshold(feature.ratio), threshold(apart)) if len(apart) else 0.0,
        }
        self.held_out = self._judged(pixel, feature)

    def __call__(self, images: Tensor, features: Tensor, name: str = "images") -> Cases:
        """The Cases of images uint8 (N, C, *S) with features (N, E); their neighbours are places in train and held_out.

        name: what `on_batch` is told that they are.
        """
        values = features.numpy()
        pixel = Ratios.of(
            self._search(f"{name} among training images", self.train, images),
            self._search(f"{name} among held-out images", self.others, images),
        )
        feature = Ratios.of(
            feature_neighbours(values, self.train_features), feature_neighbours(values, self.other_features)
        )
        return self._judged(pixel, feature)

    def _judged(self, pixel: Ratios, feature: Ratios) -> Cases:
        pixel, feature = (each._replace(held_out=self.kept[each.held_out]) for each in (pixel, feature))
        severity = np.stack(
            [relative(pixel.ratio, self.thresholds["pixel"]), relative(feature.ratio, self.thresholds["feature"])]
        )
        by_feature = severity[1] < severity[0]
        ratio = severity.min(0)
        train, held_out = (
            np.where(by_feature, getattr(feature, name), getattr(pixel, name)) for name in ("train", "held_out")
        )
        return Cases(ratio < 1, ratio, train, held_out, pixel, feature)

    def _features_of_other_parts(self, own: np.ndarray, parts: Sequence[int]) -> np.ndarray:
        """The feature ratios of the calibrating images, each compared with the held-out images of other parts alone.

        Of the training images there are less in proportion, for among fewer images the nearest is farther.
        """
        part_of = np.repeat(np.arange(len(parts)), parts)[self.kept]
        found = []
        for part in range(len(parts)):
            queries, others = self.other_features[own[part_of[own] == part]], self.other_features[part_of != part]
            if len(queries) and len(others):
                count = max(1, round(len(self.train_features) * len(others) / len(self.kept)))
                train = self.train_features[evenly(len(self.train_features), count)]
                found.append(Ratios.of(feature_neighbours(queries, train), feature_neighbours(queries, others)).ratio)
        return np.concatenate(found) if found else np.empty(0)

    def _near_duplicates(
        self, train: Tensor, held_out: Tensor, to_train: Neighbours, seed: int
    ) -> tuple[np.ndarray, Ratios]:
        planted = lightly_changed(train[evenly(len(train), PLANTED)], seed)
        light = np.quantile(self._search("lightly changed copies", self.train, planted).distances, 0.95)
        suspects = np.flatnonzero(to_train.distances <= NEAR * light) if len(held_out) > 1 else np.arange(0)
        near = Neighbours(*(part[suspects] for part in to_train))
        if len(suspects) == 0:
            return suspects, Ratios.of(near, near)
        among = self._search("suspects", PixelNeighbours(held_out), held_out[suspects], suspects)
        ratios = Ratios.of(near, among)
        which = ratios.ratio < MOST
        return suspects[which], Ratios(*(part[which] for part in ratios))

    def _search(self, what: str, points: PixelNeighbours, images: Tensor, own: np.ndarray | None = None) -> Neighbours:
        tell = self.on_batch and (lambda done: self.on_batch(what, done, len(images)))
        return points(images, own, tell)


def feature_neighbours(queries: np.ndarray, points: np.ndarray, own: np.ndarray | None = None) -> Neighbours:
    """The nearest point of each query, by Euclidean distance; `own` as in `PixelNeighbours`."""
    distances, places = nearest(queries, points, 1 if own is None else 2)
    if own is None:
        return Neighbours(distances[:, 0], places[:, 0])
    second = (places[:, 0] == own).astype(np.int64)
    rows = np.arange(len(queries))
    return Neighbours(distances[rows, second], places[rows, second])


def threshold(ratios: np.ndarray) -> float:
    """The ratio below which a share `BUDGET` of images of other patients is expected, and at most `MOST`.

    It is extrapolated from the lowest ratios r_1 <= ... <= r_k of the held-out images, a share `TAIL` of them, and the
    next one, r: the lower tail of distances is near to a power law, r (BUDGET / TAIL)^g with g the mean of log(r / r_i)
    (Hill 1975; Weissman 1978). Of a few hundred images the lowest ratios alone would tell less.
    """
    ordered = np.maximum(np.sort(ratios), np.finfo(np.float32).tiny)
    k = min(max(1, round(TAIL * len(ordered))), len(ordered) - 1)
    if not np.isfinite(ordered[k]):
        return MOST
    decay = float(np.log(ordered[k] / ordered[:k]).mean())
    return float(min(MOST, ordered[k] * (BUDGET * len(ordered) / k) ** decay))


def relative(ratios: np.ndarray, limit: float) -> np.ndarray:
    """Ratios over the threshold; where that is 0 nothing is below it."""
    return ratios / limit if limit > 0 else np.full(len(ratios), np.inf)


def share(flagged: np.ndarray) -> Interval:
    """The share of bool (N,), N >= 1, with its 95% interval by Wilson 1927: none of few is not known to be 0."""
    from scipy.stats import binomtest

    ends = binomtest(int(flagged.sum()), len(flagged)).proportion_ci(0.95, method="wilson")
    return Interval(float(flagged.mean()), float(ends.low), float(ends.high))


def evenly(n: int, count: int) -> Tensor:
    return torch.linspace(0, n - 1, min(count, n)).round().long()


def lightly_changed(images: Tensor, seed: int = 0) -> Tensor:
    """Copies of images uint8 (N, C, *S), each changed in one way, the `CHANGES` in turn.

    noise: normal, with a standard deviation of `NOISE` grey levels. flip: along one axis. shift: by one pixel along one
    axis, the border repeated. brightness: times 1 - `BRIGHTNESS` or 1 + `BRIGHTNESS`. Values stay in 0 ... 255.
    """
    rng = generator("lightly changed", seed)
    copies = []
    for i, image in enumerate(images.float()):
        axis = 1 + int(torch.randint(image.ndim - 1, (), generator=rng))
        sign = 2 * int(torch.randint(2, (), generator=rng)) - 1
        match CHANGES[i % len(CHANGES)]:
            case "noise":
                image = image + NOISE * torch.randn(image.shape, generator=rng)
            case "flip":
                image = image.flip(axis)
            case "shift":
                side = image.shape[axis]
                image = image.index_select(axis, (torch.arange(side) + sign).clamp(0, side - 1))
            case "brightness":
                image = image * (1 + sign * BRIGHTNESS)
        copies.append(image.round().clamp(0, 255).to(torch.uint8))
    return torch.stack(copies)


def shares_sources(split: Tensor, other: Tensor, train: Tensor) -> bool:
    """Whether a held-out split is of the same sources, as patients or photographs, as the training split.

    It is taken to be if in the median of `ASKED` of its images the ratio of the distance to the nearest training image
    and to the nearest image of the other held-out split is below `SHARED`. There are as many training images as the
    other split has, for the nearest of more is nearer. All are images uint8 (., C, *S).
    """
    queries = split[evenly(len(split), ASKED)]
    count = min(len(train), len(other))
    near, far = (PixelNeighbours(images[evenly(len(images), count)])(queries) for images in (train, other))
    return float(np.median(Ratios.of(near, far).ratio)) < SHARED
