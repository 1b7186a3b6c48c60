"""Pictures: grids, strips and animations, as PNG and GIF.

Images are uint8 (N, C, *S). Three-dimensional ones are shown by their middle slice; other channel counts than 1 and 3
by their first channel. Small images are enlarged by a whole factor, so that their pixels stay sharp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GAP = 2
BACKGROUND = 255


def flat(images: Tensor) -> Tensor:
    """Any images (N, C, *S) as ones that can be shown, uint8 (N, 1 or 3, H, W)."""
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    return images if images.shape[1] in (1, 3) else images[:, :1]


def tile(images: Tensor, columns: int, enlarge: int) -> np.ndarray:
    """Images (N, C, H, W) row by row on one canvas, uint8 (height, width, 3)."""
    images = flat(images).repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    n, _, height, width = images.shape
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), BACKGROUND, np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return canvas


def columns_of(n: int, classes: int | None) -> int:
    """As many columns as classes, so that each column shows one class; a square where there are none."""
    if classes is not None and 2 <= classes <= 16 and n >= classes:
        return classes * max(1, round(math.sqrt(n) / classes))
    return math.ceil(math.sqrt(n))


def before_each(first: Tensor, second: Tensor) -> Tensor:
    """first[0], second[0], first[1], ...: two tensors uint8 (N, 1 or C, *S) -> (2 N, C, *S)."""
    first, second = flat(first), flat(second)
    channels = max(first.shape[1], second.shape[1])
    pairs = [images.expand(-1, channels, -1, -1) for images in (first, second)]
    return torch.stack(pairs, 1).flatten(0, 1)


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """All images as one PNG."""
    columns = columns or columns_of(len(images), None)
    Image.fromarray(tile(images, columns, enlargement(images, columns))).save(path)


def comparison(originals: Tensor, reconstructions: Tensor, columns: int, gain: float = 4.0) -> Tensor:
    """Rows of `columns` images in turn: originals, reconstructions, and `gain` times their difference around grey.

    Two tensors uint8 (N, C, *S) -> uint8 (3 rows for each row of originals, times `columns`); a last row is filled up
    with white.
    """
    difference = (127.5 + gain * (reconstructions.float() - originals.float())).round().clamp(0, 255).to(torch.uint8)
    missing = -len(originals) % columns
    rows = []
    for images in (originals, reconstructions, difference):
        filler = torch.full((missing, *images.shape[1:]), BACKGROUND, dtype=torch.uint8)
        rows.append(torch.cat([images, filler]).unflatten(0, (-1, columns)))
    return torch.stack(rows, 1).flatten(0, 2)


def save_comparison(blocks: Mapping[str, tuple[Tensor, Tensor]], path: Path, gain: float = 4.0) -> None:
    """For each title originals, what became of them, and the difference, in three named rows; one PNG.

    blocks: title -> two tensors uint8 (n, C, *S), n the same in all.
    """
    from matplotlib.figure import Figure

    columns = max(len(originals) for originals, _ in blocks.values())
    tiles = {
        title: tile(comparison(*pair, columns, gain), columns, enlargement(pair[0], columns))
        for title, pair in blocks.items()
    }
    height, width = next(iter(tiles.values())).shape[:2]
    canvas = Figure(figsize=(10, len(blocks) * (0.35 + 8.5 * height / width)), layout="constrained")
    for axes, (title, picture) in zip(canvas.subplots(len(blocks), 1, squeeze=False)[:, 0], tiles.items(), strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xticks([])
        axes.set_yticks(
            [height * (row + 0.5) / 3 for row in range(3)],
            ["original", "decoded", f"difference x {gain:g}\n(grey: none)"],
        )
        axes.tick_params(left=False)
        axes.spines[:].set_visible(False)
    canvas.savefig(path, dpi=120, bbox_inches="tight")


def save_beside(generated: Mapping[str, Tensor], real: Mapping[str, Tensor], path: Path) -> None:
    """A row for each title: generated images, and real ones beside them; one PNG. Both uint8 (n, C, *S)."""
    from matplotlib.figure import Figure

    columns = {"generated": generated, "real (training split)": real}
    tiles = [
        [
            tile(images[title], len(images[title]), enlargement(images[title], len(images[title]), 480))
            for title in generated
        ]
        for images in columns.values()
    ]
    height, width = tiles[0][0].shape[:2]
    canvas = Figure(figsize=(12, 0.4 + len(generated) * (0.12 + 5.4 * height / width)), layout="constrained")
    axes = canvas.subplots(len(generated), 2, squeeze=False)
    for column, (heading, pictures) in enumerate(zip(columns, tiles, strict=True)):
        axes[0, column].set_title(heading, fontsize=10, loc="left")
        for row, (title, picture) in enumerate(zip(generated, pictures, strict=True)):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
            axes[row, column].spines[:].set_visible(False)
            if column == 0:
                axes[row, 0].set_ylabel(title, fontsize=9, rotation=0, ha="right", va="center")
    canvas.savefig(path, dpi=120, bbox_inches="tight")


def save_rows(rows: Mapping[str, Tensor], path: Path) -> None:
    """A row of images for each title, uint8 (n, C, *S); one PNG."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows.values()))
    tiles = {title: tile(images, columns, enlargement(images, columns)) for title, images in rows.items()}
    height, width = next(iter(tiles.values())).shape[:2]
    canvas = Figure(figsize=(9, 0.2 + len(rows) * (0.1 + 7.5 * height / width)), layout="constrained")
    for axes, (title, picture) in zip(canvas.subplots(len(rows), 1, squeeze=False)[:, 0], tiles.items(), strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_ylabel(title, fontsize=9, rotation=0, ha="right", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    canvas.savefig(path, dpi=120, bbox_inches="tight")


def save_strip(strip: tuple[Tensor, Tensor], path: Path) -> None:
    """Pairs of rows: a sample on its way from noise, and what the model expects of it at each moment.

    strip: two tensors (count, moments, *shape), as Trajectory.strip gives them.
    """
    noisy, means = strip
    rows = torch.stack([noisy, means], 1).flatten(0, 2)
    Image.fromarray(tile(rows, noisy.shape[1], enlargement(rows, noisy.shape[1]))).save(path)


def save_animation(frames: list[Tensor], path: Path, columns: int, milliseconds: int = 80) -> None:
    """One GIF; each frame is a batch of images (N, C, *S), and the last one stays for two seconds."""
    pictures = [Image.fromarray(tile(frame, columns, enlargement(frame, columns))) for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [2000]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def enlargement(images: Tensor, columns: int, target: int = 800) -> int:
    """The whole factor that brings `columns` images to about `target` pixels in all; at least 1, at most 8."""
    return max(1, min(8, round(target / (columns * images.shape[-1]))))
