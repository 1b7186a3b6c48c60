import itertools
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn

from diffusion.metrics.copies import lightly_changed
from diffusion.metrics.duplicates import (
    View,
    cosines,
    digests,
    exact_pairs,
    hashes,
    laid,
    likeness,
    near_pairs,
    seen,
    thumbnails,
    views,
)


def textures(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images, uint8 (n, *shape), each with the whole range of values."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(n, shape[0], *(max(3, side // (4 if side < 32 else 10)) for side in shape[1:]), generator=rng)
    mode = {2: "bicubic", 3: "trilinear"}[len(shape) - 1]
    images = F.interpolate(small, shape[1:], mode=mode, align_corners=False)
    low, high = images.flatten(1).aminmax(dim=1)
    place = (n, *[1] * len(shape))
    return ((images - low.reshape(place)) / (high - low).reshape(place) * 255).round().to(torch.uint8)


def found(images: torch.Tensor, part: torch.Tensor | None = None) -> list[tuple[int, int]]:
    part = torch.zeros(len(images), dtype=torch.int64) if part is None else part
    pairs = near_pairs(hashes(thumbnails(images)), thumbnails(images), part, int(part.max()) + 1)
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def test_the_transform_is_scipys():
    image = np.random.default_rng(0).random((12, 9))
    ours = cosines(12, 5).double().numpy() @ image @ cosines(9, 4).double().numpy().T
    np.testing.assert_allclose(ours, dctn(image, norm="ortho")[:5, :4], atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 20), (1, 10, 10, 10)])
def test_the_hash_of_a_view_is_had_from_that_of_the_image(shape):
    images = textures(4, *shape)
    ways = views(shape[1:])
    assert len(ways) == {(16, 16): 8, (16, 20): 4, (10, 10, 10): 8}[shape[1:]]
    for view in ways:
        torch.testing.assert_close(seen(hashes(images), view), hashes(laid(images, view)), atol=1e-5, rtol=0)


def test_the_hash_knows_neither_brightness_nor_contrast():
    images = textures(5, 1, 20, 20)
    torch.testing.assert_close(hashes(images), hashes(images.float() * 0.5 + 40), atol=1e-5, rtol=0)
    assert float(hashes(images).flatten(1).norm(dim=1).min()) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 64, 64), (1, 20, 20, 20)])
def test_planted_copies_are_found_and_nothing_else(shape):
    images = textures(40, *shape)
    copies = lightly_changed(images[:12])
    way = views(shape[1:])[5]
    turned = laid(images[12:16], way)
    pairs = found(torch.cat([images, copies, turned]))
    assert {*pairs} == {*((i, 40 + i) for i in range(12)), *((12 + i, 52 + i) for i in range(4))}


def test_all_turns_and_flips_of_a_square_are_found():
    image = textures(1, 3, 24, 24)
    turned = [image.rot90(k, (2, 3)) for k in range(4)]
    every = torch.cat([*turned, *(each.flip(3) for each in turned)])
    assert {*found(every)} == {*itertools.combinations(range(8), 2)}


def test_a_pair_between_parts_is_found_among_many_within():
    image = textures(1, 1, 24, 24)
    crowd = torch.cat([image + k for k in range(30)])  # brighter by a grey level each
    part = torch.tensor([0] * 30 + [1])
    pairs = found(torch.cat([crowd, image]), part)
    assert any(b == 30 for _, b in pairs)


def test_flat_images_and_simple_shapes_are_like_nothing():
    flat = torch.full((6, 1, 28, 28), 90, dtype=torch.uint8)
    flat[1:, :, 3, 3] = 95
    assert found(flat) == []
    # Two strokes: as near as copies by correlation, but not along their edges.
    strokes = torch.zeros(2, 1, 28, 28)
    strokes[0, :, 4:24, 12:16] = 255
    strokes[1, :, 4:24, 12:16] = 255
    strokes[1, :, 4:6, 12:16], strokes[1, :, 23:25, 13:16] = 0, 255
    a, b = (F.avg_pool2d(each[None], 3, 1, 1) for each in strokes)
    assert float(likeness(a, b)) == 0 and float(likeness(a, a)) == pytest.approx(1)


def test_tiny_images_must_be_more_alike():
    images = textures(30, 1, 8, 8)
    noisy = (images.float() + 8 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    assert 0 <= len(found(torch.cat([images, noisy.to(torch.uint8)]))) <= 30
    assert len(found(torch.cat([images, images]))) >= 30


def test_exact_copies():
    images = textures(4, 3, 9, 9)
    pairs = exact_pairs(digests(torch.cat([images, images[2:], images[2:3]])))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(2, 4), (2, 6), (3, 5)]
    deep = images.to(torch.int16)
    deep[1] = deep[0]
    deep[1, 0, 0, 0] += 1
    assert len(exact_pairs(digests(deep))) == 0 and len(exact_pairs([])) == 0


def test_a_view_is_a_flip_and_then_an_order():
    image = torch.arange(6).reshape(1, 1, 2, 3)
    assert laid(image, View((1,), (1, 0))).tolist() == [[[[2, 5], [1, 4], [0, 3]]]]


def test_thousands_of_images_take_seconds():
    images = textures(4000, 1, 28, 28)
    start = time.perf_counter()
    pairs = found(torch.cat([images, images[:5].flip(3)]))
    assert {(i, 4000 + i) for i in range(5)} <= {*pairs}
    assert time.perf_counter() - start < 15
