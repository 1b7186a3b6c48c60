"""The nearest images, pixel by pixel, whatever their brightness, contrast, mirroring and a shift of a pixel.

Shapes below: N queries and M points, uint8 (., C, *S), S = (H, W) or (D, H, W).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.metrics.neighbours import nearest

CELLS = 8
"""Sides of a descriptor."""
SMALL = 16
"""Up to this side an image has hardly more pixels than a descriptor has cells."""
LARGEST = {2: 64, 3: 32}
"""Sides at which images are compared, by the number of axes: larger ones are averaged down to it."""
CANDIDATES = 8
FLAT = 2.0
"""Standard deviation, in grey levels, below which an image is not amplified: it is as good as constant."""
ZERO = 1e-5
"""Squared distances below it are 0: sums in float32 cannot tell them from it."""
VALUES = {"search": 1 << 24, "compare": 1 << 22}
"""That are in memory at once, as float32: of descriptors and of images for a search, of images for a comparison."""

_POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_AVERAGE = {2: F.avg_pool2d, 3: F.avg_pool3d}


class Neighbours(NamedTuple):
    """Of each query the distance to its nearest point, float64 (N,), and the place of that point, int64 (N,)."""

    distances: np.ndarray
    places: np.ndarray


class PixelNeighbours:
    """Finds the nearest of `points` by d(x, y) = min over flips f and shifts s of |z(s(f(x))) - z(y)|.

    f mirrors any of the axes, s moves by up to one pixel along each, and z takes the inner pixels, which are known
    after any shift, without their mean and scaled to norm 1: d is sqrt(2 - 2 r) with the correlation r, from 0 to 2.
    An image whose standard deviation is below `FLAT` is not scaled up to norm 1, and a constant one stays 0. Images
    larger than `SMALL` are first smoothed by (1, 2, 1) / 4 along each axis, without which light noise would outweigh
    the contrast of many medical images.

    All points are searched, exactly, by descriptors of up to `CELLS` cells a side; the distance is then computed for
    the `CANDIDATES` nearest. Nothing of the size N x M is ever in memory.

    Sides of S must be at least 4.
    """

    def __init__(self, points: Tensor):
        self.points = points
        self.axes = points.ndim - 2
        # On small images all shifts are searched. On others the points are averaged over neighbours, and so lie half a
        # pixel off: half a pixel to either side of them reaches every shift, and few searches are enough.
        self.small = min(points.shape[2:]) <= SMALL
        self.reach = 2 if self.small else 1
        self.sides = [side - self.reach for side in points.shape[2:]]
        self.descriptors = np.concatenate([_descriptors(self._centre(part)) for part in points.split(_at_once(points))])

    def __call__(
        self, queries: Tensor, own: np.ndarray | None = None, on_batch: Callable[[int], None] | None = None
    ) -> Neighbours:
        """The nearest point of each query.

        own: places of the queries, int64 (N,), where they are among the points: none is its own neighbour.
        `on_batch` is told now and then how many queries are done.
        """
        found, done = [], 0
        for part in queries.split(_at_once(queries)):
            found.append(self._search(part, None if own is None else own[done : done + len(part)]))
            done += len(part)
            if on_batch is not None:
                on_batch(done)
        return Neighbours(*map(np.concatenate, zip(*found, strict=True)))

    def _centre(self, points: Tensor) -> Tensor:
        if self.small:
            return window(points, [1] * self.axes, self.sides)
        return _AVERAGE[self.axes](points.float(), 2, 1)

    def _flips(self) -> list[tuple[int, ...]]:
        """The axes that each flip mirrors."""
        return [axes for k in range(self.axes + 1) for axes in itertools.combinations(range(2, self.axes + 2), k)]

    def _search(self, queries: Tensor, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        guesses, keys = self._candidates(queries, own)
        distances = np.full(guesses.shape, np.inf)
        for i, axes in enumerate(self._flips()):
            rows, columns = np.nonzero((keys // len(self.points) == i) & np.isfinite(guesses))
            if len(rows):
                places = torch.from_numpy(keys[rows, columns] % len(self.points))
                distances[rows, columns] = self._distances(queries.flip(axes), torch.from_numpy(rows), places)
        best = distances.argmin(1)
        rows = np.arange(len(queries))
        return distances[rows, best], keys[rows, best] % len(self.points)

    def _candidates(self, queries: Tensor, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Distances of descriptors (n, CANDIDATES), and flip * M + place of each, int64, none of them twice."""
        count = min(CANDIDATES + (own is not None), len(self.points))
        flips, shifts = self._flips(), list(itertools.product(range(self.reach + 1), repeat=self.axes))
        views = [_descriptors(window(queries.flip(axes), offsets, self.sides)) for axes in flips for offsets in shifts]
        # All at once, for each search has a cost of its own.
        near, places = (
            each.reshape(len(views), len(queries), count)
            for each in nearest(np.concatenate(views), self.descriptors, count)
        )
        if own is not None:
            near[places == own[:, None]] = np.inf
        keys = places + len(self.points) * (np.arange(len(views)) // len(shifts))[:, None, None]
        near, keys = (np.moveaxis(each, 0, 1).reshape(len(queries), -1) for each in (near, keys))
        order = np.lexsort((near, keys), axis=1)
        near, keys = np.take_along_axis(near, order, 1), np.take_along_axis(keys, order, 1)
        near[:, 1:][keys[:, 1:] == keys[:, :-1]] = np.inf
        order = near.argsort(1, kind="stable")[:, :CANDIDATES]
        return np.take_along_axis(near, order, 1), np.take_along_axis(keys, order, 1)

    def _distances(self, queries: Tensor, rows: Tensor, places: Tensor) -> np.ndarray:
        """The distance of each pair of a query and a point, over all shifts, (len(rows),) float64."""
        step = max(1, VALUES["compare"] // queries[0].numel())
        pairs = zip(rows.split(step), places.split(step), strict=True)
        found = [_over_shifts(_prepared(queries[i]), _prepared(self.points[j])) for i, j in pairs]
        return torch.cat(found).double().numpy()


def _at_once(images: Tensor) -> int:
    """How many images a block has, with all their descriptors."""
    axes = images.ndim - 2
    descriptors = images.shape[1] * math.prod(min(side, CELLS) for side in images.shape[2:]) * 6**axes
    return max(1, VALUES["search"] // (images[0].numel() + descriptors))


def window(images: Tensor, offsets: Sequence[int], sides: Sequence[int]) -> Tensor:
    """The part of images (B, C, *S) that begins at `offsets` and has these sides."""
    for axis, (offset, side) in enumerate(zip(offsets, sides, strict=True), start=2):
        images = images.narrow(axis, offset, side)
    return images


def _standard(images: Tensor) -> Tensor:
    """(B, ...) -> (B, values) float32 without mean, of norm 1 or, where there is no contrast, less."""
    values = images.flatten(1).float()
    values = values - values.mean(1, keepdim=True)
    return values / values.norm(dim=1, keepdim=True).clamp(min=FLAT * math.sqrt(values.shape[1]))


def _descriptors(images: Tensor) -> np.ndarray:
    cells = [min(side, CELLS) for side in images.shape[2:]]
    return _standard(_POOL[images.ndim - 2](images.float(), cells)).numpy()


def _prepared(images: Tensor) -> Tensor:
    """Images as they are compared, float32: no larger than need be, and smooth."""
    axes = images.ndim - 2
    images = images.float()
    if max(images.shape[2:]) > LARGEST[axes]:
        images = _POOL[axes](images, [min(side, LARGEST[axes]) for side in images.shape[2:]])
    if min(images.shape[2:]) > SMALL:
        for axis in range(2, images.ndim):
            inner = images.shape[axis] - 2
            before, at, after = (images.narrow(axis, start, inner) for start in range(3))
            images = (before + 2 * at + after) / 4
    return images


def _over_shifts(queries: Tensor, points: Tensor) -> Tensor:
    """The smallest distance of each query (B, C, *S) to its own point, over shifts of the query, (B,)."""
    axes, sides = queries.ndim - 2, [side - 2 for side in queries.shape[2:]]
    y = _standard(window(points, [1] * axes, sides))
    own = y.square().sum(1)
    queries = queries - queries.flatten(1).mean(1).reshape(-1, *[1] * (axes + 1))
    best = torch.full((len(queries),), torch.inf)
    for offsets in itertools.product(range(3), repeat=axes):
        x = window(queries, offsets, sides).flatten(1)
        # |x / scale - y|^2 for x without its mean, by sums: y has none, so that of x need not be taken off.
        variance = x.square().sum(1) - x.sum(1).square() / x.shape[1]
        scale = variance.clamp(min=FLAT**2 * x.shape[1])
        best = torch.minimum(best, own - 2 * (x * y).sum(1) / scale.sqrt() + variance / scale)
    return torch.where(best < ZERO, 0, best).sqrt()
