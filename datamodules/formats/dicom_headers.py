"""What is read of the headers of DICOM files: the fields that are named here, and no others.

Of these, the numbers of the patient, the study, the series and the image serve to put files together, in memory; they
are part of no message, name or sample. pydicom's warnings and errors quote what headers hold: they are not passed on.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.batch import DataError
from datamodules.formats.dicom_space import Place

if TYPE_CHECKING:
    from pydicom import Dataset

GEOMETRY = [
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "InstanceNumber",
]
IDENTITY = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
KIND = [
    "SOPClassUID",
    "Modality",
    "ImageType",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BurnedInAnnotation",
]

HINTS = {
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "python-gdcm",
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg-openjpeg",
}
"""Packages that pydicom decodes a transfer syntax with; none of them under the GPL."""


@dataclass(frozen=True)
class Header:
    """One file, as far as it matters.

    patient, series, instance: numbers that say what belongs together; None where the file has none
    kind:   the name of the SOP class, a word of the standard
    frames: pictures in the file
    color:  the picture is red, green and blue
    """

    path: Path
    place: Place
    patient: str | None
    series: str | None
    instance: str | None
    kind: str
    modality: str
    frames: int
    color: bool
    localizer: bool
    burned_in: bool
    syntax: str | None


class Quiet:
    """Context without the warnings of pydicom, from the first thread that enters to the last that leaves."""

    # warnings.catch_warnings alone is not for threads: one that leaves would give the words back to the others.
    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            self._logger = logging.getLogger("pydicom")
            self._before = self._logger.handlers, self._logger.propagate
            self._logger.handlers, self._logger.propagate = [logging.NullHandler()], False
            self._filters = warnings.catch_warnings()
            self._filters.__enter__()
            warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                self._logger.handlers, self._logger.propagate = self._before


quiet = Quiet()


def require_pydicom() -> None:
    """DataError where pydicom is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise DataError('dataset=dicom needs pydicom: python -m pip install -e ".[dicom]"') from None


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM. DataError: it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def read_header(path: Path) -> Header | None:
    """None for a file that says itself to be no image. DataError: it is cut short or damaged."""
    from pydicom import dcmread
    from pydicom.uid import UID

    with quiet:
        try:
            found = dcmread(path, stop_before_pixels=True, specific_tags=[*GEOMETRY, *IDENTITY, *KIND])
            meta = found.file_meta
            kind = UID(found.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "").name
            if "Rows" not in found or "Columns" not in found:
                if "Image Storage" in kind:
                    raise DataError(
                        f"{path} is a DICOM image without pixels, or cut short: restore it, or move it away"
                    )
                return None
            return Header(
                path=path,
                place=place_of(found),
                patient=text(found, "PatientID") or text(found, "StudyInstanceUID"),
                series=text(found, "SeriesInstanceUID"),
                instance=text(found, "SOPInstanceUID"),
                kind=kind,
                modality=text(found, "Modality") or "",
                frames=int(found.get("NumberOfFrames") or 1),
                color=is_color(found),
                localizer="LOCALIZER" in _list(found, "ImageType"),
                burned_in=text(found, "BurnedInAnnotation") == "YES",
                syntax=text(meta, "TransferSyntaxUID"),
            )
        except DataError:
            raise
        except Exception as error:
            raise damaged(path, "header", error) from None


def damaged(name: str, part: str, error: Exception) -> DataError:
    """What to say of an error of pydicom: its kind, and none of its words."""
    return DataError(
        f"{name} is cut short or damaged in its {part} ({type(error).__name__}): restore it, or move it away"
    )


def check_syntax(syntax: str | None, path: Path, others: int = 0) -> None:
    """DataError unless the pixels of a transfer syntax can be read with what is installed.

    others: how many more files are stored so
    """
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    name = f"{path} (as {others} other files)" if others else str(path)
    if syntax is None:
        raise DataError(f"{name} does not say its transfer syntax: it is damaged; restore it, or move it away")
    with quiet:
        try:
            ready = get_decoder(syntax).is_available
        except NotImplementedError:
            shown = syntax if re.fullmatch(r"[0-9.]{1,64}", syntax) else "without a valid number"
            raise DataError(
                f"{name} has a transfer syntax that pydicom does not know ({shown}): convert it to an uncompressed one"
            ) from None
    if not ready:
        cure = f"python -m pip install {HINTS[syntax]}" if syntax in HINTS else "convert it to an uncompressed one"
        raise DataError(f"{name} is compressed as {UID(syntax).name}, for which no decoder is installed: {cure}")


def compression(syntax: str) -> str:
    """Words on how pixels are compressed and what else may decode them; none for uncompressed ones."""
    from pydicom.uid import UID

    if not UID(syntax).is_compressed:
        return ""
    return f", {UID(syntax).name}" + (f", or needs python -m pip install {HINTS[syntax]}" if syntax in HINTS else "")


def place_of(found: Dataset, number: int | None = None) -> Place:
    """Where a plane lies, by the fields of a header, or of one frame."""
    spacing = None
    for key in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = spacing or numbers(found, key, 2)
    orientation = numbers(found, "ImageOrientationPatient", 6)
    if orientation is not None and not _orthonormal(orientation):
        orientation = None
    distance = numbers(found, "SpacingBetweenSlices", 1) or numbers(found, "SliceThickness", 1)
    return Place(
        size=(int(found.Rows), int(found.Columns)),
        position=numbers(found, "ImagePositionPatient", 3) if orientation is not None else None,
        orientation=orientation,
        spacing=spacing,
        # Some makers write the distance with a sign.
        distance=abs(distance[0]) or None if distance else None,
        number=int(found.get("InstanceNumber") or 0) if number is None else number,
    )


def _orthonormal(orientation: tuple[float, ...]) -> bool:
    axes = np.reshape(orientation, (2, 3))
    return bool(np.abs(axes @ axes.T - np.eye(2)).max() < 0.05)


def is_color(found: Dataset) -> bool:
    """Whether the pixels become red, green and blue."""
    return int(found.get("SamplesPerPixel") or 1) == 3 or text(found, "PhotometricInterpretation") == "PALETTE COLOR"


def numbers(found: Dataset, key: str, count: int) -> tuple[float, ...] | None:
    """A field of `count` finite numbers; None where it is absent, empty or otherwise."""
    values = tuple(float(value) for value in _list(found, key) if value is not None)
    return values if len(values) == count and np.isfinite(values).all() else None


def text(found: Dataset, key: str) -> str | None:
    """A field of one text; None where it is absent or empty."""
    return str(found.get(key) or "").strip() or None


def _list(found: Dataset, key: str) -> list[Any]:
    value = found.get(key)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)
