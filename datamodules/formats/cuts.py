"""What is trained on, out of a scan: normalised 2-D slices or 3-D patches of one size, as int16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datamodules.batch import DataError
from datamodules.formats.volumes import Volume, Window, resample
from datamodules.settings import is_numbers

AXES = {"axial": 1, "coronal": 2, "sagittal": 3}
"""The axis of (C, D, H, W) along which slices of this name follow each other."""
FLOOR = 0.05
"""Above this share of the range a value counts as something: it lies above the noise of air."""
SAME = 1e-5
"""Percentiles that differ by a smaller share are of a scan with a single value, up to rounding: it is black."""
WHITE = 65535


@dataclass(frozen=True)
class Cut:
    """How a scan becomes samples; the names are those of the configuration.

    output:  slices (C, size, size), or patches (C, size, size, size)
    axis:    axial, coronal or sagittal: how the slices lie. A coronal and a sagittal slice have the head at the top; a
             sagittal one has the front of the body at the left, the other two the patient's right
    spacing: mm along (D, H, W), or one number for all, to which scans are resampled; None in place of a number leaves
             its axis alone. Slices are then cropped or padded about their centre. None for all: each slice is scaled,
             in the proportions that it has in mm, until its longer side has `size` pixels, and padded; patches are
             made of the voxels as they are
    window:  [centre, width] in the units of the values, `header` for the advice of the file, or None for percentiles
    percentiles: of all values of a scan, per channel, which become black and white
    least:   slices and patches are left out in which a smaller share of pixels is above FLOOR; flat pictures all stay
    DataError: a value that makes no sense.
    """

    output: str = "slices"
    size: int = 64
    axis: str = "axial"
    spacing: float | Sequence[float | None] | None = None
    window: Sequence[float] | str | None = None
    percentiles: Sequence[float] = (0.5, 99.5)
    least: float = 0.02

    def __post_init__(self) -> None:
        _one_of("output", self.output, ("slices", "patches"))
        _one_of("axis", self.axis, tuple(AXES))
        if type(self.size) is not int or self.size < 1:
            raise DataError(f"dataset.size={self.size}: give the pixels of a side, 1 or more")
        spacing = self._spacings() if self.spacing is not None else ()
        if len(spacing) not in (0, 3) or any(value is not None and not _positive(value) for value in spacing):
            raise DataError(
                f"dataset.spacing={self.spacing}: give mm above 0, one number or three for depth,height,width"
            )
        if self.window not in (None, "header") and not (
            is_numbers(self.window, 2) and _positive(self.window[1])  # type: ignore[index]
        ):
            raise DataError(f"dataset.window={self.window}: give [centre,width] with a width above 0, header, or null")
        if not is_numbers(self.percentiles, 2) or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise DataError(f"dataset.percentiles={self.percentiles}: give [low,high], rising, from 0 to 100")
        if not is_numbers([self.least], 1) or not 0 <= self.least <= 1:
            raise DataError(f"dataset.least={self.least}: give a share from 0 to 1")

    def samples(self, volume: Volume, name: str) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """Names, images int16 (C, *S), and masks uint8 (1, *S): slices in the order of their axis, patches row by row.

        name: of the file. DataError: the scan cannot be cut so.
        """
        if volume.flat and self.output == "patches":
            raise DataError(
                f"{name} holds flat pictures, of which no 3-D patches can be cut: add dataset.output=slices"
            )
        axis = 1 if volume.flat else AXES[self.axis]
        volume = resample(volume, self._target(volume, axis, name))
        volume = replace(volume, values=self._normalised(volume, name))
        pieces = self._patches(volume) if self.output == "patches" else self._slices(volume, axis)
        for place, image, mask in pieces:
            if volume.flat or (image.amax(0) > FLOOR).float().mean() >= self.least:
                yield f"{name}{place}", (image * WHITE).round_().sub_(WHITE // 2 + 1).to(torch.int16), mask

    def _spacings(self) -> tuple[float | None, ...]:
        given = self.spacing
        return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,) * 3

    def _target(self, volume: Volume, axis: int, name: str) -> tuple[float, float, float]:
        """The spacing to resample to."""
        here = volume.spacing or (1.0, 1.0, 1.0)
        if self.spacing is not None:
            if volume.spacing is None:
                raise DataError(f"{name} does not say how large a pixel is: leave dataset.spacing=null")
            wanted = tuple(old if new is None else float(new) for old, new in zip(here, self._spacings(), strict=True))
            return (here[0], *wanted[1:]) if volume.flat else wanted
        if self.output == "patches":
            return here
        plane = [other for other in (1, 2, 3) if other != axis]
        fit = max(volume.values.shape[other] * here[other - 1] for other in plane) / self.size
        return tuple(fit if other in plane else here[other - 1] for other in (1, 2, 3))

    def _normalised(self, volume: Volume, name: str) -> Tensor:
        """The values in [0, 1]; 0 is black."""
        if volume.span is not None:
            low, high = volume.span
            shown = ((volume.values - low) / (high - low)).clamp_(0, 1)
        elif self.window == "header":
            if volume.window is None:
                raise DataError(
                    f"{name} advises no window: give dataset.window=[centre,width], or null for percentiles"
                )
            shown = volume.window(volume.values)
        elif self.window is not None:
            shown = Window(*map(float, self.window))(volume.values)
        else:
            shown = torch.stack([self._between_percentiles(channel) for channel in volume.values])
        return 1 - shown if volume.inverted else shown

    def _between_percentiles(self, values: Tensor) -> Tensor:
        low, high = np.percentile(values.numpy(), list(self.percentiles)).tolist()
        if high - low <= SAME * max(abs(low), abs(high)):
            return torch.zeros_like(values)
        return ((values - low) / (high - low)).clamp_(0, 1)

    def _slices(self, volume: Volume, axis: int) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        count = volume.values.shape[axis]
        title = "picture" if volume.flat else self.axis
        for place in range(count):
            image, mask = (
                None if whole is None else _fitted(_upright(whole.select(axis, place), axis), (self.size, self.size))
                for whole in (volume.values, volume.mask)
            )
            yield "" if volume.flat and count == 1 else f" {title} {place}", image, mask

    def _patches(self, volume: Volume) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        counts = [-(-length // self.size) for length in volume.values.shape[1:]]
        values, mask = (
            None if whole is None else _fitted(whole, tuple(count * self.size for count in counts))
            for whole in (volume.values, volume.mask)
        )
        for place in product(*map(range, counts)):
            block = (slice(None), *(slice(at * self.size, (at + 1) * self.size) for at in place))
            yield f" patch {','.join(map(str, place))}", values[block], None if mask is None else mask[block]


def _upright(plane: Tensor, axis: int) -> Tensor:
    """(C, h, w) as it is looked at: the head at the top of a coronal and of a sagittal slice."""
    return plane if axis == AXES["axial"] else plane.flip(1)


def _fitted(image: Tensor, size: Sequence[int]) -> Tensor:
    """(C, *S) cropped, or padded with 0, about its centre to (C, *size)."""
    for axis, wanted in enumerate(size, start=1):
        if image.shape[axis] > wanted:
            image = image.narrow(axis, (image.shape[axis] - wanted) // 2, wanted)
    missing = [wanted - found for wanted, found in zip(size, image.shape[1:], strict=True)]
    # functional.pad counts the last axis first.
    return functional.pad(image, [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)])


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise DataError(f"dataset.{key}={value}: choose {' or '.join(known)}")


def _positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")  # type: ignore[operator]
