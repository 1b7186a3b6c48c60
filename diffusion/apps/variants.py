"""The variants of training images that `augment` has written, for a task that trains on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor

from diffusion.errors import UserError
from diffusion.tasks.utility import Variants


def checked(config: DictConfig) -> Path | None:
    """The folder that variants=DIR names, or None. Raises UserError for none of `augment`, or a bad probability."""
    if not 0 < config.probability <= 1:
        raise UserError(f"probability={config.probability}: give a number above 0, up to 1 (real images never)")
    if config.variants is None:
        return None
    folder = Path(config.variants)
    for name in ("manifest.csv", "metrics.json"):
        if not (folder / name).is_file():
            raise UserError(f"variants={folder} has no {name}: give the folder that `augment` has written")
    return folder


def variants_of(folder: Path, datamodule: pl.LightningDataModule, probability: float) -> Variants:
    """The variants of the images of datamodule.reference("train").

    Raises UserError where they are of other data or of another split, or cannot be read.
    """
    try:
        about = json.loads((folder / "metrics.json").read_text())
        made_of, split = about["data"]["fingerprint"], about["split"]
        with (folder / "manifest.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["variant"] != "0"]
        files, source = [row["file"] for row in rows], torch.tensor([int(row["index"]) for row in rows])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"variants={folder} is damaged ({' '.join(str(error).split())}): make it again") from error
    if split != "train":
        raise UserError(f"variants={folder} are of the {split} split: nothing is trained on that; use split=train")
    if made_of != datamodule.fingerprint():
        raise UserError(
            f"variants={folder} are of {about['data']['source']} as it was, and the data are {datamodule.source}: "
            "make variants of these data"
        )
    train = datamodule.reference("train")
    if len(train) < len(datamodule.split("train")):
        raise UserError(f"variants={folder}: {datamodule.source} does not fit into memory; make it smaller")
    shape = tuple(train.images.shape[1:])
    images = torch.stack([_picture(folder / "images" / name, shape) for name in files])
    return Variants.of(images, source, len(train), probability)


def described(folder: Path, variants: Variants) -> dict[str, Any]:
    """What metrics.json says of them."""
    about = json.loads((folder / "metrics.json").read_text())
    kept = {key: about[key] for key in ("step", "weights", "pipeline", "seed") if key in about}
    strengths = [float(strength) for strength in about["strengths"]]
    images = {"images": len(variants.images), "strengths": strengths, "probability": variants.probability}
    return {"folder": str(folder), **images, **kept}


def _picture(path: Path, shape: tuple[int, ...]) -> Tensor:
    """uint8 (C, H, W), of 8 or 16 bits."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            array = np.asarray(image)
    except Exception as error:  # a damaged file can make its readers raise anything
        raise UserError(f"{path} cannot be read as a picture ({' '.join(str(error).split())})") from error
    if array.dtype != np.uint8:
        array = ((array.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    image = torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).movedim(-1, 0).contiguous()
    if tuple(image.shape) != shape:
        raise UserError(f"{path} is {tuple(image.shape)}, and the data are {shape}: make the variants again")
    return image
