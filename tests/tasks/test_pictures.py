"""Pictures have the size and the pixels that their images ask for."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.tasks.pictures import (
    columns_of,
    comparison,
    enlargement,
    flat,
    save_animation,
    save_comparison,
    save_grid,
    save_strip,
    tile,
)

RNG = torch.Generator().manual_seed(0)


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 255, shape, generator=RNG, dtype=torch.uint8)


def test_tiles_row_by_row_with_gaps():
    three = images(5, 3, 4, 6)
    canvas = tile(three, columns=2, enlarge=1)
    assert canvas.shape == (3 * 4 + 4 * 2, 2 * 6 + 3 * 2, 3)
    for i, (top, left) in enumerate([(2, 2), (2, 10), (8, 2), (8, 10), (14, 2)]):
        assert np.array_equal(canvas[top : top + 4, left : left + 6], three[i].permute(1, 2, 0).numpy())
        canvas[top : top + 4, left : left + 6] = 255
    assert (canvas == 255).all()


def test_grey_becomes_three_equal_channels():
    canvas = tile(images(1, 1, 4, 4), 1, 1)
    assert (canvas[..., 0] == canvas[..., 1]).all() and (canvas[..., 0] == canvas[..., 2]).all()


def test_enlarged_pixels_stay_sharp():
    one = images(1, 1, 3, 5)
    canvas = tile(one, 1, enlarge=4)[2:-2, 2:-2, 0]
    assert np.array_equal(canvas, np.kron(one[0, 0].numpy(), np.ones((4, 4), np.uint8)))


def test_volumes_are_shown_by_their_middle_slice():
    volumes = images(2, 1, 5, 4, 6)
    assert torch.equal(flat(volumes), volumes[:, :, 2])


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_other_channels_are_shown_by_the_first(channels):
    many = images(2, channels, 4, 4)
    assert torch.equal(flat(many), many[:, :1])


@pytest.mark.parametrize(
    ("n", "classes", "columns"),
    [(64, None, 8), (10, None, 4), (1, None, 1), (100, 10, 10), (64, 3, 9), (64, 10, 10), (5, 10, 3), (64, 50, 8)],
)
def test_columns(n, classes, columns):
    assert columns_of(n, classes) == columns


def test_a_column_holds_one_class():
    for n, classes in [(64, 3), (100, 10), (256, 2), (7, 4)]:
        assert columns_of(n, classes) % classes == 0


@pytest.mark.parametrize(("size", "columns", "factor"), [(8, 10, 8), (28, 8, 4), (28, 16, 2), (512, 8, 1), (1, 1, 8)])
def test_enlargement(size, columns, factor):
    assert enlargement(torch.zeros(1, 1, size, size), columns) == factor


@pytest.mark.parametrize("shape", [(6, 1, 8, 8), (6, 3, 8, 8), (6, 2, 8, 8), (6, 1, 4, 8, 8), (1, 1, 8, 8)])
def test_grid_file(tmp_path, shape):
    batch = images(*shape)
    save_grid(batch, tmp_path / "grid.png")
    columns = {6: 3, 1: 1}[shape[0]]
    factor = 8
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    rows = shape[0] // columns
    assert picture.shape == (rows * (8 * factor + 2) + 2, columns * (8 * factor + 2) + 2, 3)
    assert picture[2, 2, 0] == flat(batch)[0, 0, 0, 0]


def test_strip_pairs_the_sample_with_what_is_expected_of_it(tmp_path):
    noisy, means = images(2, 3, 1, 20, 20), images(2, 3, 1, 20, 20)
    save_strip((noisy, means), tmp_path / "strip.png")
    picture = np.asarray(Image.open(tmp_path / "strip.png"))[..., 0]
    assert picture.shape == (4 * 162 + 2, 3 * 162 + 2)
    for row, source in enumerate([noisy[0], means[0], noisy[1], means[1]]):
        for column in range(3):
            corner = picture[2 + 162 * row, 2 + 162 * column]
            assert corner == source[column, 0, 0, 0]


def test_animation(tmp_path):
    frames = [images(4, 3, 8, 8) for _ in range(5)]
    save_animation(frames, tmp_path / "a.gif", columns=2)
    gif = Image.open(tmp_path / "a.gif")
    assert (gif.n_frames, gif.info["loop"]) == (5, 0)
    durations = []
    for i in range(5):
        gif.seek(i)
        durations.append(gif.info["duration"])
    assert durations == [80, 80, 80, 80, 2000]
    last = np.asarray(gif.convert("RGB")).astype(int)
    assert last.shape == (2 * 66 + 2, 2 * 66 + 2, 3)
    assert np.abs(last - tile(frames[-1], 2, 8)).mean() < 12  # of 255, the palette has 256 colours


def test_a_comparison_has_originals_reconstructions_and_differences_in_turn():
    originals = torch.full((3, 1, 2, 2), 100, dtype=torch.uint8)
    rows = comparison(originals, originals + 10, columns=2, gain=4.0)
    assert rows.shape == (12, 1, 2, 2)
    blocks = rows[:, 0, 0, 0].reshape(2, 3, 2)
    assert blocks[0].tolist() == [[100, 100], [110, 110], [168, 168]]  # 127.5 + 4 * 10, to the nearest even
    assert blocks[1, :, 0].tolist() == [100, 110, 168] and (blocks[1, :2, 1] == 255).all()


def test_a_comparison_figure_holds_every_title(tmp_path):
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    save_comparison({"one": (images, images), "two": (images[:2], images[:2])}, tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").height > 200
