"""NIfTI files as volumes: of their headers only shape, type, scale, spacing and orientation are used."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from datamodules.batch import DataError
from datamodules.formats.volumes import Volume

if TYPE_CHECKING:
    from nibabel import Nifti1Image

log = logging.getLogger(__name__)

SUFFIXES = (".nii", ".nii.gz")
MM = {"meter": 1000.0, "micron": 0.001}
MOST_CLASSES = 32


def require_nibabel() -> None:
    """DataError where nibabel is not installed."""
    try:
        import nibabel  # noqa: F401
    except ImportError:
        raise DataError('dataset=nifti needs nibabel: python -m pip install -e ".[nifti]"') from None


def read(path: Path, mask: Path | None = None, values: Sequence[int] | None = None) -> Volume:
    """A scan of up to four axes, the last of which are channels, in the orientation of `volumes`.

    mask:   a file of the same shape and place, of whole numbers
    values: what the mask holds for the classes 0, 1, ...; None for these numbers themselves
    DataError: a file is damaged, empty, of too many axes, without a spacing, or holds NaN; the mask does not fit.
    """
    scan = _load(path)
    volume = Volume(torch.from_numpy(scan.values), scan.spacing, span=(0.0, 255.0) if scan.color else None)
    if mask is None:
        return volume
    other = _load(mask)
    if other.values.shape[1:] != scan.values.shape[1:] or not np.allclose(other.affine, scan.affine, rtol=0, atol=0.01):
        raise DataError(f"{mask} does not lie where {path} does: resample it to the scan's grid, or leave it out")
    return replace(volume, mask=torch.from_numpy(_classes(other.values, mask, values)))


@dataclass(frozen=True)
class Loaded:
    """values float32 (C, D, H, W), spacing in mm, affine from voxels (x, y, z) to RAS+; are channels colours?"""

    values: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    color: bool


def _load(path: Path) -> Loaded:
    import nibabel

    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise DataError(f"{path} is no NIfTI file: convert it, or move it away")
        shape = _checked_shape(image.shape, path)
        _check_spacing(image, path)
        array = _values(image, path)
        if path.suffix == ".gz":
            _check_sum(path)
        color = array.ndim > len(image.shape)
        if color and len(shape) == 4:
            raise DataError(f"{path} has colours and a fourth axis: only one of them can be channels")
        array = array.reshape(*shape[:3], -1)
        return _turned(nibabel.Nifti1Image(array, image.affine, dtype=np.float32), image, color)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except DataError:
        raise
    except Exception as error:  # a damaged file can make its reader raise anything
        # Its kind only, for the words of an error may quote the header.
        what = f"is no NIfTI file, or damaged ({type(error).__name__})"
        raise DataError(f"{path} {what}: restore it, or move it away") from None


def _checked_shape(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """At least three axes, at most four."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape += (1,) * (3 - len(shape))
    if len(shape) > 4:
        raise DataError(f"{path} has {len(shape)} axes, {shape}: three are needed, or four with the channels last")
    if 0 in shape:
        raise DataError(f"{path} is empty, of shape {shape}: move it away")
    return shape


def _check_spacing(image: Nifti1Image, path: Path) -> None:
    from nibabel.openers import ImageOpener

    if image.header["sform_code"] == 0:
        # As they are in the file: nibabel turns a spacing of 0 into 1.
        with ImageOpener(path) as file:
            lengths = type(image.header).from_fileobj(file, check=False)["pixdim"][1 : 1 + min(len(image.shape), 3)]
        if not (abs(lengths) > 0).all():
            shown = " x ".join(f"{length:g}" for length in lengths)
            raise DataError(f"{path} has the spacing {shown}: correct its header")
        if image.header["qform_code"] == 0:
            log.warning("%s does not say how it lies: the first axis is taken as leftward, the next as forward", path)
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        raise DataError(f"{path} has axes that fall together, or none: correct its header")


def _check_sum(path: Path) -> None:
    """Read to the end, where gzip compares what nibabel, which stops after the last voxel, does not."""
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def _values(image: Nifti1Image, path: Path) -> np.ndarray:
    """All values, scaled as the header says, float32; colours as a last axis."""
    array = np.asanyarray(image.dataobj)
    if array.dtype.fields:
        array = np.stack([array[name] for name in array.dtype.names[:3]], axis=-1)
    if np.iscomplexobj(array):
        raise DataError(f"{path} holds complex numbers: save their magnitude")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise DataError(f"{path} holds {count} values that are NaN or infinite: replace them by that of the background")
    return array


def _turned(plain: Nifti1Image, image: Nifti1Image, color: bool) -> Loaded:
    import nibabel
    from nibabel.affines import voxel_sizes

    upright = nibabel.as_closest_canonical(plain)  # RAS+: (x, y, z, C)
    mm = MM.get(image.header.get_xyzt_units()[0], 1.0)
    x, y, z = (float(length) * mm for length in voxel_sizes(upright.affine))
    values = np.asanyarray(upright.dataobj).transpose(3, 2, 1, 0)[:, :, ::-1, ::-1]
    return Loaded(np.ascontiguousarray(values, dtype=np.float32), (z, y, x), upright.affine, color)


def _classes(array: np.ndarray, path: Path, values: Sequence[int] | None) -> np.ndarray:
    """(1, D, H, W) numbers -> uint8 class indices."""
    known = list(range(MOST_CLASSES)) if values is None else list(values)
    found = np.unique(array)
    strange = found[~np.isin(found, known)]
    if len(array) > 1 or len(strange):
        what = f"{len(array)} channels" if len(array) > 1 else f"the value {strange[0]:g}"
        hint = "one mask with one class per voxel is needed" if len(array) > 1 else "name all of them in dataset.values"
        raise DataError(f"{path} has {what}, which is no class of a mask: {hint}")
    order = np.argsort(known)
    return order[np.searchsorted(np.asarray(known)[order], array)].astype(np.uint8)
