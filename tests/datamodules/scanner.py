"""Writes what scanners write: small valid DICOM and NIfTI files of a known body."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, CR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.1"
SPACING = (3.0, 1.5, 2.0)
WAYS = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP", "feet first": "IPL", "face down": "SAR"}
"""Where slices, rows and columns go, of some ways to acquire: towards Left, Posterior, Superior and their opposites."""
DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def body(size: tuple[int, int, int] = (6, 10, 8), seed: int = 0) -> np.ndarray:
    """(D, H, W) of Hounsfield units, whole numbers, no two octants alike: head, back and left are the ends."""
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    inside = d**2 / 1.2 + h**2 + w**2 < 1.1
    values = np.where(inside, 40 + 50 * d + 100 * h + 200 * w * (h > 0), -1000)
    return np.round(values + np.random.default_rng(seed).normal(0, 5, size)).astype(np.int16)


def turned(
    values: np.ndarray, spacing: tuple[float, float, float], way: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(D, H, W) as a scanner stores it: the array, a vector in mm (LPS) per axis, the first voxel's place."""
    ours = ["SI", "PA", "LR"]
    order = [next(axis for axis, names in enumerate(ours) if letter in names) for letter in way]
    flips = [axis for axis, letter in enumerate(way) if letter in "IAR"]
    steps = np.array([np.multiply(DIRECTIONS[letter], spacing[axis]) for letter, axis in zip(way, order, strict=True)])
    stored = np.flip(values.transpose(order), flips)
    ends = [(np.array(stored.shape) - 1)[axis] * -steps[axis] if axis in flips else np.zeros(3) for axis in range(3)]
    return stored, steps, np.sum(ends, axis=0) + np.array([-50.0, -60.0, 700.0])


def header(sop_class: str = CT, syntax: str = ExplicitVRLittleEndian, **fields: Any) -> Dataset:
    """An image without pixels."""
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    found.SOPClassUID, found.SOPInstanceUID = sop_class, generate_uid()
    found.StudyInstanceUID = found.SeriesInstanceUID = "1.2.3"
    found.Modality = {CT: "CT", MR: "MR", CR: "CR"}[sop_class]
    found.PatientID = "patient"
    found.PhotometricInterpretation, found.SamplesPerPixel = "MONOCHROME2", 1
    for key, value in fields.items():
        setattr(found, key, value)
    return found


def with_pixels(found: Dataset, stored: np.ndarray) -> Dataset:
    """The header and uncompressed pixels: (rows, columns), (frames, rows, columns), or (rows, columns, 3)."""
    color = found.SamplesPerPixel == 3
    found.Rows, found.Columns = stored.shape[-3:-1] if color else stored.shape[-2:]
    if stored.ndim == 3 + color:
        found.NumberOfFrames = len(stored)
    found.BitsAllocated = found.BitsStored = 8 * stored.dtype.itemsize
    found.HighBit, found.PixelRepresentation = found.BitsStored - 1, int(stored.dtype.kind == "i")
    if color:
        found.PlanarConfiguration = 0
    found.PixelData = stored.tobytes()
    found["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    return found


def save(found: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    values: np.ndarray,
    way: str = "SPL",
    spacing: tuple[float, float, float] = SPACING,
    series: str = "1.2.3.4",
    intercept: float = -1024,
    **fields: Any,
) -> list[Path]:
    """A CT series, one file a slice, with names and instance numbers in another order than that of the slices."""
    stored, steps, first = turned(values, spacing, way)
    rng, paths = np.random.default_rng(0), []
    places = rng.permutation(len(stored))
    for slice_, place in zip(stored, places, strict=True):
        found = header(SeriesInstanceUID=series, InstanceNumber=int(place) + 1, **fields)
        along = int(np.flatnonzero([np.array_equal(slice_, other) for other in stored])[0])
        found.ImagePositionPatient = [float(x) for x in first + along * steps[0]]
        found.ImageOrientationPatient = [float(x) for axis in (2, 1) for x in steps[axis] / np.linalg.norm(steps[axis])]
        found.PixelSpacing = [float(np.linalg.norm(steps[axis])) for axis in (1, 2)]
        found.SliceThickness = 99.0  # overlapping slices are common: the distance is that of the positions
        found.RescaleSlope, found.RescaleIntercept = 1, intercept
        paths.append(save(with_pixels(found, (slice_ - intercept).astype(np.uint16)), folder / f"IM{place:04d}"))
    return paths


def enhanced(values: np.ndarray, way: str = "SPL", spacing: tuple[float, float, float] = SPACING) -> Dataset:
    """One file with a frame a slice, in shuffled order, each with an intercept of its own."""
    stored, steps, first = turned(values, spacing, way)
    found = header(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")
    order = np.random.default_rng(1).permutation(len(stored))
    frames = []
    for place in order:
        position, transformed = Dataset(), Dataset()
        position.ImagePositionPatient = [float(x) for x in first + place * steps[0]]
        transformed.RescaleSlope, transformed.RescaleIntercept = 0.5, float(-2000 - place)
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([position])
        frame.PixelValueTransformationSequence = Sequence([transformed])
        frames.append(frame)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [float(np.linalg.norm(steps[axis])) for axis in (1, 2)]
    orientation.ImageOrientationPatient = [
        float(x) for axis in (2, 1) for x in steps[axis] / np.linalg.norm(steps[axis])
    ]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    found.SharedFunctionalGroupsSequence = Sequence([shared])
    found.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return with_pixels(found, np.stack([(stored[place] + 2000 + place) * 2 for place in order]).astype(np.uint16))


def write_nifti(
    path: Path, values: np.ndarray, way: str = "SPL", spacing: tuple[float, float, float] = SPACING, **slopes: float
) -> Path:
    """The same body as NIfTI, its axes in the order of `way`; NIfTI's world is RAS."""
    import nibabel

    stored, steps, first = turned(values, spacing, way)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps.T, first
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(stored, np.diag([-1, -1, 1, 1]) @ affine)
    if slopes:
        image.header.set_slope_inter(**slopes)
    nibabel.save(image, path)
    return path
