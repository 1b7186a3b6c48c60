"""Which images of a data set are there twice, or nearly so: mirrored, turned, brighter, moved by a pixel.

Shapes below: N images, uint8 (N, C, *S), S = (H, W) or (D, H, W).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = {2: 32, 3: 16}
"""Sides at which images are compared, by the number of axes: larger ones are averaged down to it."""
FREQUENCIES = {2: 8, 3: 5}
"""Of the cosine transform along each axis that make the hash: 63 numbers, or 124 of a volume."""
ALIKE = {2: 0.9, 3: 0.95}
"""Correlation of two hashes from which on the images themselves are compared."""
NEAR = 0.98
"""Correlation of near duplicates."""
TINY, NEAR_IF_TINY = 16, 0.995
"""Up to this side images of different things resemble each other as near duplicates of larger ones do."""
PEAK = 0.8
"""Standard deviations by which near duplicates differ, at most, anywhere. Two simple shapes, such as two digits 1,
correlate as well as copies do, but differ by more along their edges."""
FLAT = 2.0
"""Standard deviation, in grey levels, below which an image is as good as constant, and resembles none."""
CANDIDATES = 8
BLOCK = 512
ORIENTED = 0.9
"""Correlation, without a shift, from which on shifts are tried."""
VALUES = 1 << 20
"""Of images that are compared at once."""

_POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class View(NamedTuple):
    """A way to lay an image: axes that are mirrored, then the order of the axes."""

    flips: tuple[int, ...]
    order: tuple[int, ...]


class Pairs(NamedTuple):
    """Places of two images, int64 (P,), first < second, and how alike they are, float32 (P,): 1 for exact ones."""

    first: Tensor
    second: Tensor
    alike: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def take(self, places: Tensor) -> Pairs:
        return Pairs(*(part[places] for part in self))


def views(size: Iterable[int]) -> list[View]:
    """The eight flips and quarter turns of a square; flips alone where sides differ, and of volumes."""
    size = tuple(size)
    axes = range(len(size))
    orders = [(0, 1), (1, 0)] if len(size) == 2 and size[0] == size[1] else [tuple(axes)]
    flips = [flip for k in range(len(size) + 1) for flip in itertools.combinations(axes, k)]
    return [View(flip, order) for order in orders for flip in flips]


def digests(images: Tensor) -> list[bytes]:
    """Of each image a hash of its values; of images of any type."""
    return [hashlib.blake2b(image.contiguous().numpy(), digest_size=16).digest() for image in images]


def thumbnails(images: Tensor) -> Tensor:
    """The images as they are compared: no side longer than `LARGEST`; float32."""
    axes, images = images.ndim - 2, images.float()
    if max(images.shape[2:]) <= LARGEST[axes]:
        return images
    return _POOL[axes](images, [min(side, LARGEST[axes]) for side in images.shape[2:]])


def hashes(images: Tensor) -> Tensor:
    """Perceptual hashes: the lowest frequencies of the brightness but the mean, float32 (N, *F), norm 1, or 0 if flat.

    Mirroring an axis changes the sign of its odd frequencies, and exchanging axes exchanges those of the hash; so the
    hashes of all views of an image come from that of the image. Brightness and contrast change nothing.
    """
    grey = images.float().mean(1)
    size = grey.shape[1:]
    for axis, side in enumerate(size, start=1):
        waves = cosines(side, min(side, FREQUENCIES[len(size)]))
        grey = torch.tensordot(grey, waves, dims=([axis], [1])).movedim(-1, axis)
    grey[(slice(None), *[0] * len(size))] = 0
    norm = grey.flatten(1).norm(dim=1)
    norm = torch.where(norm < FLAT * math.sqrt(math.prod(size)), torch.inf, norm)
    return grey / norm.reshape(-1, *[1] * len(size))


def cosines(side: int, count: int) -> Tensor:
    """The first `count` rows of the orthonormal cosine transform (DCT-II), (count, side)."""
    place, frequency = torch.arange(side) + 0.5, torch.arange(count)[:, None]
    waves = torch.cos(math.pi * frequency * place / side) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    return waves


def seen(hashed: Tensor, view: View) -> Tensor:
    """The hashes of the images in another view, (N, *F)."""
    for axis in view.flips:
        shape = [1] * hashed.ndim
        shape[axis + 1] = -1
        hashed = hashed * ((-1.0) ** torch.arange(hashed.shape[axis + 1])).reshape(shape)
    return hashed.permute(0, *(axis + 1 for axis in view.order))


def laid(images: Tensor, view: View) -> Tensor:
    """The images in another view."""
    if view.flips:
        images = images.flip([axis + 2 for axis in view.flips])
    return images.permute(0, 1, *(axis + 2 for axis in view.order))


def exact_pairs(digested: list[bytes]) -> Pairs:
    """Each image that is there already, with the first one that has its digest."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, digest in enumerate(digested):
        places[digest].append(place)
    found = [(same[0], other) for same in places.values() for other in same[1:]]
    first, second = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).T
    return Pairs(first, second, torch.ones(len(found)))


def near_pairs(
    hashed: Tensor, thumbs: Tensor, part: Tensor, parts: int, on_done: Callable[[float], None] | None = None
) -> Pairs:
    """Near duplicates: pairs of images of which one, in some view, is nearly the other; the most alike first.

    They correlate by at least `NEAR`, at the best of shifts by up to a pixel, and nowhere differ by more than `PEAK`
    standard deviations. Between each two parts an image of the later one is compared with the `CANDIDATES` of the
    other whose hashes are most like its own; within a part, with as many of those that follow it.

    hashed, thumbs: of the same N images, from `hashes` and `thumbnails`. part: int64 (N,), the part of each image, 0
    to parts - 1. `on_done` is told the share of the hashes that are compared.
    """
    ways = views(thumbs.shape[2:])
    flat = hashed.flatten(1)
    turned = [seen(hashed, view).flatten(1) for view in ways]
    members = [(part == k).nonzero().flatten() for k in range(parts)]
    total = sum(len(members[a]) * len(members[b]) for a in range(parts) for b in range(a + 1))
    found, done = [], 0
    for a in range(parts):
        for b in range(a + 1):
            columns = [each[members[b]] for each in turned]
            for start in range(0, len(members[a]), BLOCK):
                rows, after = members[a][start : start + BLOCK], start if a == b else 0
                later = [each[after:] for each in columns]
                found.append(_candidates(flat, rows, members[b][after:], later, hashed.ndim - 1))
                done += len(rows) * len(members[b])
                if on_done is not None:
                    on_done(done / max(total, 1))
    pairs = torch.cat([torch.empty(0, 2, dtype=torch.int64), *found]).sort(1).values.unique(dim=0)
    way = torch.stack([(flat[pairs[:, 0]] * each[pairs[:, 1]]).sum(1) for each in turned]).argmax(0)
    alike = torch.zeros(len(pairs))
    for k, view in enumerate(ways):
        chosen = (way == k).nonzero().flatten()
        for some in chosen.split(max(1, VALUES // thumbs[0].numel())):
            alike[some] = likeness(thumbs[pairs[some, 0]], laid(thumbs[pairs[some, 1]], view))
    least = NEAR_IF_TINY if min(thumbs.shape[2:]) < TINY else NEAR
    kept = (alike >= least).nonzero().flatten()
    kept = kept[alike[kept].argsort(descending=True, stable=True)]
    return Pairs(pairs[kept, 0], pairs[kept, 1], alike[kept])


def _candidates(flat: Tensor, rows: Tensor, columns: Tensor, turned: list[Tensor], axes: int) -> Tensor:
    """Pairs (P, 2) of a row and a column whose hashes are alike in some view; no image with itself."""
    best = flat[rows] @ turned[0].T
    other = torch.empty_like(best)
    for each in turned[1:]:
        torch.mm(flat[rows], each.T, out=other)
        torch.maximum(best, other, out=best)
    best.masked_fill_(rows[:, None] == columns, -1)
    top = best.topk(min(CANDIDATES, len(columns)), 1)
    row, place = (top.values >= ALIKE[axes]).nonzero(as_tuple=True)
    return torch.stack([rows[row], columns[top.indices[row, place]]], 1)


def likeness(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of each image of a with its own of b, (N,), at the best shift; 0 where they differ too much."""
    a, b = _smooth(a.float()), _smooth(b.float())
    axes, sides = a.ndim - 2, [side - 2 for side in a.shape[2:]]
    middle = _standard(_window(b, [1] * axes, sides))
    best, peak = _compared(a, middle, [1] * axes, sides)
    tried = (best >= ORIENTED).nonzero().flatten()
    for offsets in itertools.product(range(3), repeat=axes) if len(tried) else ():
        alike, differs = _compared(a[tried], middle[tried], offsets, sides)
        better = alike > best[tried]
        best[tried] = torch.where(better, alike, best[tried])
        peak[tried] = torch.where(better, differs, peak[tried])
    return torch.where(peak <= PEAK, best, 0)


def _compared(a: Tensor, middle: Tensor, offsets: Iterable[int], sides: list[int]) -> tuple[Tensor, Tensor]:
    """Correlation, and the largest difference in standard deviations."""
    moved = _standard(_window(a, offsets, sides))
    return (moved * middle).sum(1), (moved - middle).abs().amax(1) * math.sqrt(middle.shape[1])


def _window(images: Tensor, offsets: Iterable[int], sides: list[int]) -> Tensor:
    for axis, (offset, side) in enumerate(zip(offsets, sides, strict=True), start=2):
        images = images.narrow(axis, offset, side)
    return images


def _standard(images: Tensor) -> Tensor:
    """(N, ...) -> (N, values) without mean, of norm 1; flat images have less."""
    values = images.flatten(1)
    values = values - values.mean(1, keepdim=True)
    return values / values.norm(dim=1, keepdim=True).clamp(min=FLAT * math.sqrt(values.shape[1]))


def _smooth(images: Tensor) -> Tensor:
    """Averaged over neighbours by (1, 2, 1) / 4, without which light noise would outweigh contrast; tiny ones as is."""
    if min(images.shape[2:]) < TINY:
        return images
    for axis in range(2, images.ndim):
        inner = images.shape[axis] - 2
        before, at, after = (images.narrow(axis, start, inner) for start in range(3))
        images = (before + 2 * at + after) / 4
    return images
