"""Picture files as arrays, with all their bits and channels: PNG, JPEG, BMP, TIFF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.batch import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MOST_PIXELS = 1 << 27
"""A picture with more pixels is not opened: a small file can claim any size."""
MOST_CHANNELS = 32


def read_picture(path: Path) -> np.ndarray:
    """(H, W, C) uint8 or uint16, upright as its EXIF says; palettes become colours, and transparency is left out.

    DataError: no such file, damaged or cut short, of no known kind, too large, or of another type of number.
    """
    array = _tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _png16(path)
    if array is None:
        array = _pillow(path, as_mask=False)
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path} holds {array.dtype}: convert it to 8 or 16 bits")
    return array if array.ndim == 3 else array[..., None]


def picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height as the file's head says, without what EXIF turns; None where Pillow cannot tell."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # a damaged file can make its readers raise anything
        return None


def read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 or uint16: the palette's indices, else grey values. DataError as for `read_picture`."""
    array = _tiff(path) if path.suffix.lower() in (".tif", ".tiff") else None
    if array is None:
        array = _pillow(path, as_mask=True)
    if array.ndim == 3 and array.shape[-1] > 1:
        raise DataError(f"{path} has {array.shape[-1]} channels: save one mask in grey")
    return array.reshape(array.shape[:2])


def fitted(image: Tensor, size: int, fit: str) -> Tensor:
    """float32 (C, H, W) -> (C, size, size), by bicubic interpolation without aliasing.

    fit: crop keeps the middle square, pad adds black at two sides, stretch changes the proportions
    """
    height, width = image.shape[-2:]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[:, top : top + side, left : left + side]
    elif fit == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        image = F.pad(image, (left, side - width - left, top, side - height - top))
    elif fit != "stretch":
        raise DataError(f"dataset.fit={fit}: use crop, pad or stretch")
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]


def fitted_mask(mask: Tensor, size: int, fit: str, classes: int) -> Tensor:
    """Class indices (1, H, W) -> uint8 (1, size, size): the class that covers most of each pixel."""
    shares = F.one_hot(mask[0].long(), classes).movedim(-1, 0).float()
    return fitted(shares, size, fit).argmax(0, keepdim=True).to(torch.uint8)


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns; whatever goes wrong becomes a DataError that names the file."""
    from PIL import UnidentifiedImageError

    try:
        return read()
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: the permissions forbid it") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no picture, or damaged from its first byte on") from error
    except Exception as error:  # a damaged file can make its readers raise anything
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as a picture ({what})") from error


def _pillow(path: Path, as_mask: bool) -> np.ndarray:
    from PIL import Image, ImageOps

    def read() -> np.ndarray:
        with path.open("rb") as file, Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{path} claims {image.width} x {image.height} pixels, more than can be true: remove it"
                )
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise DataError(f"{path} holds {image.n_frames} pictures: save each in a file of its own")
            mode = image.mode
            if as_mask:
                image = image if mode in ("P", "1", "L", "I", "I;16", "I;16B") else image.convert("L")
            else:
                wanted = {"1": "L", "LA": "L", "PA": "RGB", "P": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
                image = image.convert(wanted[mode]) if mode in wanted else image
            array = np.asarray(ImageOps.exif_transpose(image))
        if array.dtype == np.int32 and array.min() >= 0 and array.max() < 1 << 16:
            array = array.astype(np.uint16)
        return array.astype(np.uint8) if array.dtype == bool else array.astype(array.dtype.newbyteorder("="))

    return _guarded(path, read)


def _tiff(path: Path) -> np.ndarray | None:
    """(H, W) or (H, W, C); None where tifffile lacks the decoder and Pillow, which keeps 8 bits only, may help."""
    import tifffile

    def read() -> np.ndarray | None:
        with tifffile.TiffFile(path) as file:
            pages, page = len(file.pages), file.pages[0]
            series = file.series[0]
            if np.prod(series.shape, dtype=np.float64) > MOST_PIXELS * MOST_CHANNELS:
                raise DataError(f"{path} claims an array of {series.shape}, more than can be true: remove it")
            axes = series.axes.replace("S", "C")
            try:
                array = series.asarray()
            except ValueError:
                if pages == 1 and page.bitspersample <= 8:
                    return None
                raise
        channel = [axis for axis in axes if axis not in "YX"]
        if len(channel) > 1 or (channel and array.shape[axes.index(channel[0])] > MOST_CHANNELS):
            raise DataError(f"{path} has the axes {axes}, {array.shape}: one picture with up to 32 channels is needed")
        if page.photometric == 3:
            return None  # a palette
        if channel:
            array = np.moveaxis(array, axes.index(channel[0]), -1)
            if page.extrasamples and array.shape[-1] in (2, 4) and page.extrasamples[0] in (1, 2):
                array = array[..., :-1]  # transparency
        return array.astype(np.uint8) if array.dtype == bool else array

    return _guarded(path, read)


def _png16(path: Path) -> np.ndarray | None:
    """A PNG of 16 bits with colours or transparency, which Pillow would cut to 8 bits; None for any other file."""

    def read() -> np.ndarray | None:
        with path.open("rb") as file:
            head = file.read(26)
        if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR" or head[24] != 16 or head[25] not in (2, 4, 6):
            return None
        if int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big") > MOST_PIXELS:
            raise DataError(f"{path} claims more pixels than can be true: remove it")
        import png

        width, height, rows, about = png.Reader(bytes=path.read_bytes()).read()
        array = np.vstack([np.asarray(row, np.uint16) for row in rows]).reshape(height, width, about["planes"])
        return array[..., :-1] if about["alpha"] else array

    return _guarded(path, read)
