"""Reader of files in MedMNIST's layout: an npz of {train,val,test}_images and {train,val,test}_labels."""

from __future__ import annotations

import logging
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import DataError
from datamodules.examine import check_count
from datamodules.order import epoch_order
from datamodules.split import SPLITS, Split

log = logging.getLogger(__name__)


def read(path: Path) -> dict[str, Split]:
    """Read the splits of a file, channels moved first.

    Images: (N, H, W) is grey; of four axes, a last one of at most 4 is channels, (N, H, W, C), and a longer
    one is space, (N, D, H, W) in grey; (N, D, H, W, C) is 3-D with channels.
    Labels: (N,) or (N, 1) are classes, (N, K) are rows of zeros and ones; they may be left out.
    Without val, a tenth of train is set apart for it, class by class.
    DataError: the file is missing, no npz, cut short or damaged, lacks images, or holds objects (which are
    never unpickled). Types, shapes and ranges are for `examine.examine` to judge.
    """
    arrays = _arrays(path)
    splits = {}
    for name in SPLITS:
        if f"{name}_images" in arrays:
            labels = arrays.get(f"{name}_labels")
            images = _channels_first(f"{path}, {name}", arrays[f"{name}_images"])
            splits[name] = Split(images, None if labels is None else _labels(f"{path}, {name}", labels))
    if "val" not in splits:
        check_count(f"{path}, train", splits["train"])
        splits["train"], splits["val"] = _set_apart(splits["train"])
        log.info("%s has no val_images: %d of train are set apart for it", path, len(splits["val"]))
    return splits


def _arrays(path: Path) -> dict[str, np.ndarray]:
    wanted = [f"{name}_{kind}" for name in SPLITS for kind in ("images", "labels")]
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path} is no npz file, or cut short: save it with numpy.savez, or copy it again")
        with np.load(path, allow_pickle=False) as file:
            needed = [f"{name}_images" for name in SPLITS if name != "val" or "val_labels" in file.files]
            missing = [key for key in needed if key not in file.files]
            if missing:
                found = ", ".join(map(ascii, file.files[:8])) or "nothing"
                raise DataError(
                    f"{path} lacks {' and '.join(missing)} (it holds {found}): save it in MedMNIST's layout"
                )
            return {key: _array(f"{path}, {key}", file[key]) for key in wanted if key in file.files}
    except DataError:
        raise
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise DataError(f"{path} is damaged: copy or download it again") from error
        raise DataError(f"{path} holds pickled objects, which are refused: save plain arrays of one shape") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
        raise DataError(f"{path} is damaged: copy or download it again") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path (relative ones start at {Path.cwd()})") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder: name the npz file in it") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): check the disk and the permissions"
        ) from error


def _array(where: str, array: object) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise DataError(f"{where} is not an array: save it with numpy.savez")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} has the type {array.dtype}: save images as uint8 and labels as integers")
    # Torch knows the byte order of the machine only.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _channels_first(where: str, array: np.ndarray) -> Tensor:
    images = torch.from_numpy(array)
    if images.ndim == 4 and images.shape[1] <= 4 < images.shape[-1]:
        raise DataError(
            f"{where}: images of shape {images.shape} seem to have their channels first: move them last, (N, H, W, C)"
        )
    if images.ndim == 3 or (images.ndim == 4 and images.shape[-1] > 4):
        return images.unsqueeze(1)
    if images.ndim in (4, 5):
        return images.movedim(-1, 1).contiguous()
    raise DataError(f"{where}: images of shape {array.shape} are neither (N, H, W[, C]) nor (N, D, H, W[, C])")


def _labels(where: str, array: np.ndarray) -> Tensor:
    labels = torch.from_numpy(array)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    return labels if labels.is_floating_point() else labels.long()


def _set_apart(train: Split) -> tuple[Split, Split]:
    order = epoch_order(len(train), seed=0, epoch=0)
    # By class, so that a rare one never leaves train altogether.
    kinds = torch.zeros(len(train)) if train.labels is None or train.labels.ndim > 1 else train.labels[order]
    members = [order[kinds == kind] for kind in kinds.unique()]
    chosen = torch.cat([rows[: len(rows) // 10] for rows in members] or [order])
    if len(chosen) == 0:
        chosen = order[:1]
    kept = torch.ones(len(train), dtype=torch.bool)
    kept[chosen] = False
    rows = torch.arange(len(train))
    return train.take(rows[kept]), train.take(rows[~kept])
