"""Real images and variants of them as PNG in class folders, which dataset=folder reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.errors import UserError
from diffusion.tasks.augment import Variant
from diffusion.tasks.sample import to_uint8, to_uint16

SPLITS = ("train", "val", "test")


def check_pictures(spec: DataSpec, source: str) -> None:
    """Raises UserError unless images of this kind fit into PNGs in class folders."""
    otherwise = "`python -m diffusion translate split=train label=own n=null` redraws such images, into an npz file"
    if len(spec.shape) != 3 or spec.shape[0] not in (1, 3):
        raise UserError(
            f"{source} has images of shape {spec.shape}, and augment writes PNG, 2-D with 1 or 3 channels: {otherwise}"
        )
    if spec.multi_label:
        raise UserError(f"{source} has images of several classes at once, which no class folder holds: {otherwise}")


class ClassFolders:
    """folder/SPLIT/CLASS/PLACE-NAME.png, and PLACE-NAME_vK.png for its variant K; without labels there is no CLASS.

    The splits are those of the data, each in a folder of its own: so no variant of a training image validates or tests.
    PLACE is the image's in its split, NAME its file's, if it came from one. Files have the bits of the data.

    rows: of the manifest, one for each file that is written
    """

    def __init__(self, folder: Path, datamodule: pl.LightningDataModule, spec: DataSpec):
        self.folder, self.datamodule, self.spec = folder, datamodule, spec
        self.names = datamodule.names
        plain = [_plain(name) for name in spec.names]
        # Names that would make one folder of two classes get their numbers.
        self.folders = [name if plain.count(name) == 1 else f"{name}-{k}" for k, name in enumerate(plain)]
        self.sixteen = datamodule.split("train").images.dtype is torch.int16
        self.rows: list[dict[str, Any]] = []

    def copy(self, on_image: Callable[[], None]) -> None:
        """Write the real images of all splits."""
        for name in SPLITS:
            split = self.datamodule.split(name)
            for places in torch.arange(len(split)).split(64):
                for place, image in zip(places.tolist(), split[places]["image"], strict=True):
                    self.write(name, place, image)
                    on_image()

    def write(self, split: str, place: int, image: Tensor, variant: Variant | None = None) -> None:
        """Write an image (C, H, W) in about [-1, 1]: the one at this place itself, or a variant of it."""
        label = None if self.spec.classes is None else int(self.datamodule.split(split).labels[place])
        source = self.names[split][place] if self.names else f"{split} {place}"
        stem = f"{place:05d}" + (f"-{_plain(PurePath(source).stem)}" if self.names else "")
        name = f"{stem}.png" if variant is None else f"{stem}_v{variant.number}.png"
        folder = PurePath(split) if label is None else PurePath(split) / self.folders[label]
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        save_png((to_uint16 if self.sixteen else to_uint8)(image).cpu(), self.folder / folder / name)
        self.rows.append({
            "file": (folder / name).as_posix(),
            "split": split,
            "index": place,
            "source": source,
            "class": "" if label is None else self.spec.names[label],
            "variant": 0 if variant is None else variant.number,
            "strength": 0 if variant is None else variant.strength,
            "seed": "" if variant is None else variant.seed,
        })  # fmt: skip

    @property
    def words(self) -> str:
        """The command line that trains on what is there."""
        return f"python train.py dataset=folder dataset.path={self.folder} dataset.size={min(self.spec.shape[1:])}"


def save_png(image: Tensor, path: Path) -> None:
    """Write uint8 or uint16 (1 or 3, H, W)."""
    pixels = image.movedim(0, -1).numpy()
    if pixels.dtype == np.uint8:
        from PIL import Image

        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path)
        return
    import png  # Pillow cuts colours of 16 bits to 8

    height, width, channels = pixels.shape
    with path.open("wb") as file:
        writer = png.Writer(width, height, greyscale=channels == 1, bitdepth=16)
        writer.write(file, pixels.reshape(height, -1))


def _plain(name: str) -> str:
    """A name that is one folder or file, and that dataset=folder takes."""
    return re.sub(r'[/\\|:*?"<>\x00-\x1f]', "-", name).strip(". ") or "-"
