"""The images that `denoise` is to take the noise off: of a run's data with noise added, or of a file or folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.errors import UserError


@dataclass(frozen=True)
class Noisy:
    """Rows of noisy images.

    images: float32 (N, C, *S), of which [-1, 1] is the range without noise. level: float64 (N,). place: int64 (N,), in
    the split, or in the file. clean: uint8 (N, C, *S), labels: (N, ...); None where they are not known. names: of the
    files, or None.
    """

    images: Tensor
    level: Tensor
    place: Tensor
    clean: Tensor | None = None
    labels: Tensor | None = None
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor) -> Noisy:
        """Those rows, int64 (M,)."""
        tensors = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, names=self.names and tuple(self.names[row] for row in rows), **tensors)


def given_images(path: Path, spec: DataSpec) -> Noisy:
    """Noisy images of a user's, their level yet unknown (NaN). Raises UserError if they are not like the run's."""
    if path.is_dir():
        names = tuple(sorted(file.name for file in path.iterdir() if file.suffix.lower() == ".png"))
        if not names:
            raise UserError(f"images={path} holds no PNG: give a folder of them, or an npz file")
        pictures = [_picture(path / name, spec) for name in names]
        odd = next((k for k, each in enumerate(pictures) if each.shape != pictures[0].shape), None)
        if odd is not None:
            sizes = " and ".join(" x ".join(map(str, pictures[k].shape[:2])) for k in (0, odd))
            raise UserError(f"images={path}: {names[0]} and {names[odd]} are of {sizes} pixels: give all one size")
        arrays = {"images": np.stack(pictures)}
    elif path.is_file():
        names, arrays = None, _npz(path)
    else:
        raise UserError(f"images={path} does not exist: give an npz file, or a folder of PNGs")
    images = _scaled(path, "images", arrays["images"], spec)
    n = len(images)
    clean = labels = None
    if "originals" in arrays:
        clean = (
            ((_scaled(path, "originals", arrays["originals"], spec).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        )
        if len(clean) != n:
            raise UserError(f"images={path} holds {n} images and {len(clean)} originals: give one of each")
    if "labels" in arrays and spec.classes is not None and not spec.multi_label:
        labels = arrays["labels"].reshape(-1)
        right = len(labels) == n and np.issubdtype(labels.dtype, np.integer)
        if not right or labels.min() < 0 or labels.max() >= spec.classes:
            raise UserError(f"images={path}: labels are {n} whole numbers from 0 to {spec.classes - 1}, or left out")
        labels = torch.from_numpy(labels.astype(np.int64))
    level = torch.full((n,), torch.nan, dtype=torch.float64)
    return Noisy(images, level, torch.arange(n), clean, labels, names)


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("images", "originals", "labels") if name in file.files}
            arrays["images"]
    except Exception as error:  # a file of another kind, or a damaged one, can make its readers raise anything
        raise UserError(
            f"images={path} cannot be read as an npz file with `images`, channels last ({' '.join(str(error).split())})"
        ) from error
    return arrays


def _picture(path: Path, spec: DataSpec) -> np.ndarray:
    from PIL import Image

    if len(spec.shape) != 3 or spec.shape[0] not in (1, 3):
        raise UserError(f"images of shape {spec.shape} are no pictures: give an npz file in place of PNGs")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L" if spec.shape[0] == 1 else "RGB")).reshape(*image.size[::-1], -1)
    except Exception as error:
        raise UserError(f"{path} cannot be read as a picture ({' '.join(str(error).split())})") from error


def _scaled(path: Path, key: str, images: np.ndarray, spec: DataSpec) -> Tensor:
    """uint8 and uint16 on the scale [-1, 1]; floats are on it already. Channels last, to (N, C, *S) float32."""
    wanted = (*spec.shape[1:], spec.shape[0])
    if images.ndim == len(spec.shape) and spec.shape[0] == 1:
        images = images[..., None]
    if images.shape[1:] != wanted or not len(images):
        sides = ", ".join(map(str, wanted))
        raise UserError(f"images={path}: {key} of shape {images.shape}, but this run is of (N, {sides})")
    if images.dtype in (np.uint8, np.uint16):
        images = images / (np.iinfo(images.dtype).max / 2) - 1
    elif not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images={path}: {key} are {images.dtype}: give uint8, uint16, or floats around [-1, 1]")
    if not np.isfinite(images).all() or np.abs(images).max() > 20:
        raise UserError(f"images={path}: {key} hold values far from [-1, 1], or none at all: scale them to it")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images.astype(np.float32), -1, 1)))
