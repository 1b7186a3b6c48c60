"""Where the planes of a DICOM series lie in the patient, and which of them make a volume."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.batch import DataError

log = logging.getLogger(__name__)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""The orientation of a slice that does not say its own: as it is looked at, the patient's right at the left."""
SAME_DIRECTION = 0.01
"""Cosines that differ by less are those of one orientation."""
SAME_PLACE = 0.01
"""mm: slices that are closer lie at one place."""
UNEQUAL = 0.02
"""Distances between slices that differ by more than this share are worth a word."""


@dataclass(frozen=True)
class Place:
    """One plane. All lengths are in mm, all directions towards the left, the back and the head (LPS).

    size:        rows and columns
    position:    of the centre of the first pixel
    orientation: where a row goes, then where a column goes; unit vectors
    spacing:     between rows, and between columns
    distance:    to the next slice, as the header says: SpacingBetweenSlices, or else the thickness
    number:      in the series (InstanceNumber, or the frame's)
    """

    size: tuple[int, int]
    position: tuple[float, float, float] | None = None
    orientation: tuple[float, float, float, float, float, float] | None = None
    spacing: tuple[float, float] | None = None
    distance: float | None = None
    number: int = 0

    @property
    def normal(self) -> np.ndarray:
        row, column = np.reshape(self.orientation or AXIAL, (2, 3))
        return np.cross(row, column)


def arrange(places: Sequence[Place], name: str) -> list[list[int]]:
    """The volumes that the planes of a series make: indices of planes, in the order of the normal of each.

    Planes of one orientation are a stack. Where every place of a stack holds the same number of planes (times of a
    dynamic scan, echoes, diffusion weights), there are as many volumes: the first planes by number make the first one.
    Without positions the order is that of the numbers.
    DataError: planes of several sizes, or places with unequal numbers of planes.
    """
    sizes = sorted({place.size for place in places})
    if len(sizes) > 1:
        found = " and ".join(f"{rows} x {columns}" for rows, columns in sizes)
        raise DataError(
            f"the series of {name} mixes slices of {found} pixels: move those of one size to another folder"
        )
    stacks: list[list[int]] = []
    for index, place in enumerate(places):
        for stack in stacks:
            if _same_direction(places[stack[0]], place):
                stack.append(index)
                break
        else:
            stacks.append([index])
    return [volume for stack in stacks for volume in _volumes(places, stack, name)]


def _same_direction(one: Place, other: Place) -> bool:
    if one.orientation is None or other.orientation is None:
        return one.orientation is other.orientation
    return bool(np.abs(np.subtract(one.orientation, other.orientation)).max() < SAME_DIRECTION)


def _volumes(places: Sequence[Place], stack: list[int], name: str) -> list[list[int]]:
    if any(places[index].position is None for index in stack):
        return [sorted(stack, key=lambda index: places[index].number)]
    heights = {index: height(places[index], places[stack[0]]) for index in stack}
    levels: list[list[int]] = []
    last = -np.inf
    for index in sorted(stack, key=heights.__getitem__):
        if heights[index] - last > SAME_PLACE:
            levels.append([])
            last = heights[index]
        levels[-1].append(index)
    counts = sorted({len(level) for level in levels})
    if len(counts) > 1:
        raise DataError(
            f"the series of {name} has {counts[0]} slices at some places and {counts[-1]} at others: move the surplus "
            "ones to another folder"
        )
    rows = [sorted(level, key=lambda index: places[index].number) for level in levels]
    return [[row[turn] for row in rows] for turn in range(counts[0])]


def height(place: Place, first: Place) -> float:
    """mm along the normal of `first`."""
    return float(np.dot(place.position, first.normal))


def steps(places: Sequence[Place], name: str, warn: bool = True) -> np.ndarray | None:
    """(3, 3): what one index along slices, rows and columns of an arranged volume is in mm, as `canonical` takes it.

    None where a pixel's size is not known. Warns of slices at unequal distances, sheared stacks and guesses.
    DataError: a spacing that is not above 0.
    """
    first, last, say = places[0], places[-1], log.warning if warn else log.debug
    if first.spacing is None:
        say("%s: the headers do not say how large a pixel is: it is taken as square, and slices as far apart", name)
        return None
    known = all(place.position is not None for place in places)
    gaps = np.diff([height(place, first) for place in places]) if known else np.empty(0)
    distance = float(np.median(gaps)) if len(gaps) else first.distance
    if distance is None:
        distance = first.spacing[0]
        if len(places) > 1:
            say(
                "%s: the headers do not say how far apart slices are: %g mm are assumed, as between rows",
                name,
                distance,
            )
    if min(*first.spacing, distance) <= 0:
        raise DataError(
            f"{name} has the spacing {distance:g} x {first.spacing[0]:g} x {first.spacing[1]:g} mm: correct it"
        )
    if len(gaps) and np.abs(gaps - distance).max() > UNEQUAL * distance:
        say("%s: slices are %.4g to %.4g mm apart: %.4g mm are assumed for all", name, gaps.min(), gaps.max(), distance)
    if len(gaps):
        way = np.subtract(last.position, first.position)
        shift = np.linalg.norm(way - first.normal * np.dot(way, first.normal)) / len(gaps)
        if shift > UNEQUAL * distance:
            say(
                "%s: each slice is shifted by %.3g mm against the one before (a tilted gantry): not undone", name, shift
            )
    row, column = np.reshape(first.orientation or AXIAL, (2, 3))
    return np.stack([first.normal * distance, column * first.spacing[0], row * first.spacing[1]], axis=1)
