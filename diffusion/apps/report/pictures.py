"""Pictures for a page: PNG inside its addresses, small enough for the page as a whole to be sent."""

from __future__ import annotations

import base64
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from diffusion.tasks.pictures import flat

log = logging.getLogger("diffusion")

GALLERY, ANIMATION = 600_000, 1_800_000
"""Values, pixels times channels, that the samples and the frames may hold: noise does not compress."""
FEWEST_FRAMES, MOST_FRAMES = 12, 48
WIDTH = 400
MOST_BYTES = 700_000


@dataclass(frozen=True)
class Picture:
    """An image as a data address, with what it shows in words, and its size on the page in CSS pixels."""

    source: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Animation:
    """Frames for the script of the page: data addresses of x_t and of E[x0 | x_t], and what to call each moment."""

    noisy: list[str]
    means: list[str]
    names: list[str]
    width: int
    height: int
    caption: str


def grid(images: Tensor, columns: int, alt: str, width: int = WIDTH) -> Picture:
    """Images uint8 (N, C, *S) row by row, with gaps that let the page show through."""
    picture = canvas(images, columns)
    times = max(1, width // picture.width)
    return Picture(address(picture), alt, picture.width * times, picture.height * times)


def canvas(images: Tensor, columns: int) -> Image.Image:
    """Images one beside the other at their own size; what is between them is transparent."""
    images = flat(images)
    n, channels, height, width = images.shape
    gap = 1 if width < 16 else 2
    rows = math.ceil(n / columns)
    values = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        values[top : top + height, left : left + width, :channels] = image.permute(1, 2, 0).numpy()
        values[top : top + height, left : left + width, channels] = 255
    return Image.fromarray(values)


def reduction(values: int, most: int) -> int:
    """The whole factor by which images are made smaller, so that of their values no more than `most` are left."""
    return max(1, math.ceil(math.sqrt(values / most)))


def reduced(images: Tensor, factor: int) -> Tensor:
    """Means over squares of factor x factor pixels; uint8 (N, 1 or 3, H, W)."""
    images = flat(images)
    if factor == 1:
        return images
    small = functional.avg_pool2d(images.float(), factor, ceil_mode=True, count_include_pad=False)
    return small.round().to(torch.uint8)


def frames_of(steps: int, values: int) -> list[int]:
    """Which of so many steps, counted from 0, an animation shows whose frames have so many values; always the last."""
    count = min(steps, MOST_FRAMES, max(FEWEST_FRAMES, ANIMATION // (2 * values)))
    return sorted({round((steps - 1) * k / max(1, count - 1)) for k in range(count)} | {steps - 1})


def animation(strip: tuple[Tensor, Tensor], names: list[str], caption: str) -> Animation:
    """strip: x_t and E[x0 | x_t], each uint8 (count, moments, *shape), as Trajectory.strip gives them."""
    rows = [[flat(frame) for frame in part.unbind(1)] for part in strip]
    columns = math.ceil(math.sqrt(len(strip[0])))
    factor = reduction(2 * len(names) * rows[0][0].numel(), ANIMATION)
    pictures = [[canvas(reduced(frame, factor), columns) for frame in row] for row in rows]
    width, height = pictures[0][0].size
    times = max(1, 320 // width)
    noisy, means = ([address(frame) for frame in row] for row in pictures)
    return Animation(noisy, means, names, width * times, height * times, caption)


def from_file(path: Path, alt: str) -> Picture | None:
    """A picture of another task; a large one is drawn with fewer colours, then smaller. None where it is not there,
    and, with a warning, where it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        log.warning("%s is left out: %s", path, error)
        return None
    width, height = picture.size
    source = address(picture)
    while len(source) > MOST_BYTES:
        factor = min(1.0, math.sqrt(MOST_BYTES / len(source)))
        smaller = [max(1, int(factor * side)) for side in picture.size]
        picture = picture.resize(smaller, Image.Resampling.BOX).quantize(128).convert("RGB")
        source = address(picture)
    return Picture(source, alt, width, height)


def address(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
