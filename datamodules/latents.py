"""The data of another data module as moments of a codec, encoded once and kept on disk."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.arrays.split import SPLITS, Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError, DataSpec
from datamodules.progress import with_progress

log = logging.getLogger(__name__)

VERSION = 1
"""To be raised with every change of what moments mean: files of another version are not used."""
MOST_IMAGES, MOST_VALUES = 256, 1 << 22
"""The codec sees no more images and no more pixel values at once: volumes come one by one, small images many."""


class Codec(Protocol):
    """What a codec must have here: a module that turns images into moments, and moments into latents."""

    fingerprint: str | None

    def moments(self, images: Tensor) -> Tensor:
        """Images (B, C, *S) in [-1, 1] -> float32 (B, M, *s), the same ones every time."""

    def draw(self, moments: Tensor, rng: Callable[[Sequence[int]], Tensor] | None) -> Tensor:
        """Moments -> latents (B, L, *s); rng gives noise (B, *shape) for the shape of a sample."""

    def to(self, device: torch.device | str) -> Codec:
        """The codec itself, moved."""


class Latents(ImageDataModule):
    """Batches of the base in the base's order, with moments float32 (B, M, *s) as "image"; the rest is as it was.

    spec and fingerprint are those of the base: they are about the pixels. A split is encoded when it is first needed,
    and kept in `cache`; several processes that miss it encode it each, and the last one's file stays.

    base: where the pixels, the labels and all options come from
    codec: moved to `device`, where it encodes
    DataError: the codec answers with NaN or infinity, or with one and the same value for all latents.
    """

    def __init__(self, base: ImageDataModule, codec: Codec, cache: Path, device: torch.device | str) -> None:
        super().__init__(seed=base.seed, batch_size=base.batch_size, validation_limit=base.validation_limit)
        self.order = base.order
        self.base, self.codec, self.cache, self.device = base, codec, Path(cache), device
        self.source, self.class_names = base.source, base.class_names

    def load(self) -> dict[str, Split]:
        return {name: self.split(name) for name in SPLITS}

    def setup(self, stage: str | None = None) -> None:
        """Load the pixels, and encode what training needs; the test split is encoded when it is asked for."""
        self.base.setup(stage)
        for name in ("train", "val"):
            self.split(name)

    @property
    def pixels(self) -> ImageDataModule:
        return self.base

    @property
    def spec(self) -> DataSpec:
        return self.base.spec

    def split(self, name: str) -> Split:
        """The split train, val or test with moments as images, in main memory."""
        if name not in self._splits:
            pixels = self.base.split(name)
            self._splits[name] = replace(pixels, images=self._moments(name, pixels))
        return self._splits[name]

    def std(self) -> float:
        """Standard deviation over all values of the training latents, each drawn once with noise that never changes.

        Of two significant digits, so that a machine that computes other last bits finds the same value.
        """
        generator = torch.Generator().manual_seed(0)
        count, mean, square = 0, 0.0, 0.0
        for moments in self.split("train").images.split(MOST_IMAGES):
            values = self._draw(moments, generator).cpu().double().flatten()
            # Merged by their means: a sum of squares would lose a deviation far below the mean.
            apart, total = float(values.mean()) - mean, count + len(values)
            square += float(values.var(correction=0)) * len(values) + apart**2 * count * len(values) / total
            mean, count = mean + apart * len(values) / total, total
        std = float(f"{(square / count) ** 0.5:.2g}")
        if std == 0:
            raise DataError(f"{self.source}, train: all latents have the same value: the autoencoder has collapsed")
        return std

    def _draw(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        def noise(shape: Sequence[int]) -> Tensor:
            # Made on the CPU, because an accelerator has other numbers for the same seed.
            return torch.randn(len(moments), *shape, generator=generator).to(self.device)

        self.codec.to(self.device)
        with torch.no_grad():
            return self.codec.draw(moments.to(self.device), noise)

    def fingerprint(self) -> str:
        return self.base.fingerprint()

    def _moments(self, name: str, pixels: Split) -> Tensor:
        path = self.cache / f"latents{VERSION}_{self.codec.fingerprint}_{self.fingerprint()}_{name}.safetensors"
        moments = _read(path, pixels)
        if moments is None:
            moments = self._encode(name, pixels)
            bad = int((~moments.isfinite()).flatten(1).any(1).sum())
            if bad:
                raise DataError(
                    f"{self.source}, {name}: the autoencoder encodes {bad} of {len(pixels)} images as NaN or infinity: "
                    "it has diverged, train it again with a lower learning rate"
                )
            _write(path, moments)
        return moments

    def _encode(self, name: str, pixels: Split) -> Tensor:
        log.info("%s, %s: encoding %d images on %s", self.source, name, len(pixels), self.device)
        self.codec.to(self.device)
        size = max(1, min(MOST_IMAGES, MOST_VALUES // pixels.images[0].numel()))
        moments, order = torch.empty(0), torch.arange(len(pixels))
        if pixels.stored and name == "train":
            # As training visits them: shards that are downloaded, and deleted again, are each needed once.
            order = self.base.order(len(pixels), 0, 0)
        for indices in with_progress(f"encoding {name}", order.split(size)):
            with torch.no_grad():
                part = self.codec.moments(pixels[indices]["image"].to(self.device)).float().cpu()
            if not len(moments):
                moments = part.new_empty(len(pixels), *part.shape[1:])
            moments[indices] = part
        return moments


def _read(path: Path, pixels: Split) -> Tensor | None:
    """The moments in a file, or None where there is none, or none of use."""
    if not path.exists():
        return None
    try:
        moments = load_file(path)["moments"]
    except (OSError, SafetensorError, KeyError) as error:
        log.warning("%s is damaged (%s): it is made anew", path, " ".join(str(error).split()))
        return None
    if moments.dtype is torch.float32 and moments.ndim == pixels.images.ndim and len(moments) == len(pixels):
        return moments
    log.warning(
        "%s holds %s of shape %s, not moments of %s: it is made anew",
        path,
        moments.dtype,
        tuple(moments.shape),
        tuple(pixels.images.shape),
    )
    return None


def _write(path: Path, moments: Tensor) -> None:
    """Keep moments under path, whole or not at all; without room or leave for it, say so and go on."""
    # A name of its own for each process, see `fetch`.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({"moments": moments}, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        log.warning("%s could not be written (%s): the next run encodes again", path, " ".join(str(error).split()))
