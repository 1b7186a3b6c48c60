"""DICOM series as volumes: pixels decoded, in the units of the modality, in one orientation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from datamodules.batch import DataError
from datamodules.formats.dicom_files import Series
from datamodules.formats.dicom_headers import (
    GEOMETRY,
    check_syntax,
    compression,
    damaged,
    is_color,
    numbers,
    place_of,
    quiet,
    text,
)
from datamodules.formats.dicom_space import Place, arrange, steps
from datamodules.formats.volumes import Volume, Window, canonical

if TYPE_CHECKING:
    from pydicom import Dataset

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SHOWN = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")
STORED = ("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "BitsAllocated",
          "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
          "ModalityLUTSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")  # fmt: skip
PALETTE = [f"{kind}{color}PaletteColorLookupTable{part}" for color in ("Red", "Green", "Blue")
           for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))]  # fmt: skip


@dataclass
class Plane:
    """A decoded frame: values float32 (C, rows, columns), NaN where the scanner saw nothing."""

    values: np.ndarray
    place: Place
    window: Window | None
    inverted: bool
    span: tuple[float, float] | None


def read(series: Series) -> Iterator[Volume]:
    """The volumes of a series; flat pictures of one file come as one volume.

    DataError: a file is damaged, or its pixels cannot be decoded.
    """
    planes = [plane for path in series.files for plane in _planes(path)]
    if series.flat or (len(series.files) == 1 and all(plane.place.position is None for plane in planes)):
        yield _stack(planes, series.name, flat=True)
        return
    # `find` has warned of what can be seen in headers of single frames.
    warn = len(series.files) == 1 and len(planes) > 1
    for order in arrange([plane.place for plane in planes], series.name):
        yield _stack([planes[index] for index in order], series.name, flat=False, warn=warn)


def _stack(planes: Sequence[Plane], name: str, flat: bool, warn: bool = False) -> Volume:
    values = np.stack([plane.values for plane in planes], axis=1)
    middle = planes[len(planes) // 2]
    if np.isnan(values).any():
        darkest = np.nanmax if middle.inverted else np.nanmin
        seen = not np.isnan(values).all()
        values = np.nan_to_num(values, copy=False, nan=float(darkest(values)) if seen else 0.0)
    if flat:
        between = middle.place.spacing
        spacing = (1.0, *between) if between is not None and min(between) > 0 else None
    else:
        directions = steps([plane.place for plane in planes], name, warn)
        # A unit matrix of directions would not do: the axes must be turned even where lengths are unknown.
        row, column = np.reshape(planes[0].place.orientation or (1, 0, 0, 0, 1, 0), (2, 3))
        unit = np.stack([planes[0].place.normal, column, row], axis=1)
        values, spacing = canonical(values, unit if directions is None else directions)
        spacing = None if directions is None else spacing
    return Volume(
        torch.from_numpy(np.ascontiguousarray(values)),
        spacing,
        flat=flat,
        window=middle.window,
        inverted=middle.inverted,
        span=middle.span,
    )


def _planes(path: Path) -> list[Plane]:
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    with quiet:
        try:
            found = dcmread(path, specific_tags=[*GEOMETRY, *STORED, *SHOWN, *DATA, *PALETTE, *GROUPS])
            syntax = text(found.file_meta, "TransferSyntaxUID")
        except Exception as error:
            raise damaged(path, "header", error) from None
        check_syntax(syntax, path)
        if not any(key in found for key in DATA):
            raise DataError(f"{path} is a DICOM image without pixels, or cut short: restore it, or move it away")
        try:
            stored = pixel_array(found)
            if int(found.get("NumberOfFrames") or 1) == 1 and stored.ndim == 2 + (found.get("SamplesPerPixel") == 3):
                stored = stored[None]
            return [_plane(found, stored[frame], frame) for frame in range(len(stored))]
        except Exception as error:
            raise damaged(path, "pixels" + compression(syntax), error) from None


def _plane(found: Dataset, stored: np.ndarray, frame: int) -> Plane:
    from pydicom.pixels import apply_color_lut

    about = _of_frame(found, frame)
    number = None if found.get("NumberOfFrames") in (None, "", 1) else frame
    place = place_of(about, number)
    if is_color(found):
        if text(found, "PhotometricInterpretation") == "PALETTE COLOR":
            stored = apply_color_lut(stored, found)[..., :3]
            white = np.iinfo(stored.dtype).max
        else:
            white = 2 ** int(found.BitsStored) - 1
        return Plane(np.moveaxis(stored, -1, 0).astype(np.float32), place, None, False, (0.0, float(white)))
    values = _rescaled(stored, found, about)
    values[_padding(stored, found)] = np.nan
    inverted = text(found, "PhotometricInterpretation") == "MONOCHROME1"
    return Plane(values[None], place, _window(about), inverted, None)


def _rescaled(stored: np.ndarray, found: Dataset, about: Dataset) -> np.ndarray:
    """Stored values in the units of the modality; float32."""
    from pydicom.pixels import apply_modality_lut

    if found.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, found).astype(np.float32)
    slope, intercept = numbers(about, "RescaleSlope", 1) or (1.0,), numbers(about, "RescaleIntercept", 1) or (0.0,)
    return (stored * np.float64(slope[0]) + intercept[0]).astype(np.float32)


def _padding(stored: np.ndarray, found: Dataset) -> np.ndarray:
    """Where the stored value says that nothing was seen."""
    value = found.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(stored.shape, bool)
    limit = found.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return (stored >= low) & (stored <= high)


def _window(about: Dataset) -> Window | None:
    """The first window that a header advises, None without a valid one."""
    centre, width = (_first(about.get(key)) for key in ("WindowCenter", "WindowWidth"))
    function = (text(about, "VOILUTFunction") or "LINEAR").upper()
    valid = centre is not None and width is not None and np.isfinite([centre, width]).all()
    if not valid or width < (1 if function == "LINEAR" else 1e-6):
        return None
    return Window(centre, width, function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR")


def _first(value: Any) -> float | None:
    if value is None or isinstance(value, str | int | float):
        return float(value) if value not in (None, "") else None
    return float(value[0]) if len(value) else None


def _of_frame(found: Dataset, frame: int) -> Dataset:
    """The fields that hold for one frame: those of the file, of all frames, and of this one, of which the last wins."""
    from pydicom import Dataset

    shared, per_frame = (found.get(key) or [] for key in GROUPS)
    groups = [*shared[:1], *per_frame[frame : frame + 1]]
    if not groups:
        return found
    about = Dataset()
    for source in (found, *(item for group in groups for sequence in group for item in _items(sequence))):
        for key in (*GEOMETRY, *SHOWN):
            if key in source:
                about[key] = source[key]
    return about


def _items(element: Any) -> list[Dataset]:
    return list(element.value[:1]) if element.VR == "SQ" and element.value else []
