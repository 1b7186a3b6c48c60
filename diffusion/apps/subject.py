"""What evaluate, audit and utility judge: images of a run, or of a file, and the real data beside them."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.apps.drawn import draw
from diffusion.apps.output import best_device, output_folder
from diffusion.errors import UserError
from diffusion.provenance import code, machine
from diffusion.runs import Run, datamodule_of
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_count, check_positive

log = logging.getLogger("diffusion")


@dataclass(frozen=True)
class Subject:
    """A run, or samples given as a file; the data set that they are held against; where to write and to compute."""

    run: Run | None
    given: Samples | None
    datamodule: pl.LightningDataModule
    out: Path
    cache: Path
    device: torch.device

    @property
    def spec(self) -> DataSpec:
        return self.datamodule.spec

    @property
    def name(self) -> str:
        return self.given.receipt["samples"] if self.given else str(self.run.directory)

    def receipt(self, samples: Samples, **more: Any) -> dict[str, Any]:
        """What has to be known of a figure to get it again."""
        splits = {name: len(self.datamodule.split(name)) for name in ("train", "val", "test")}
        data = {"source": self.datamodule.source, "fingerprint": self.datamodule.fingerprint(), "images": splits}
        where = {**machine(), "device": str(self.device)}
        return {"generated": samples.receipt, "data": data, **more, "code": code(), "machine": where}


@dataclass(frozen=True)
class Samples:
    """Synthetic images uint8 (N, C, *S) on the CPU, their classes or None, and how they were made.

    ids: int64 (N,), their places in the file, or in the order in which the run draws.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor
    receipt: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, places: Tensor) -> Samples:
        """Those at `places`."""
        labels = None if self.labels is None else self.labels[places]
        return replace(self, images=self.images[places], labels=labels, ids=self.ids[places])


def subject_of(config: DictConfig, task: str) -> Subject:
    """What the keys run, samples, dataset, out, overwrite, cache, device and seed describe; makes the folder `out`.

    Raises UserError where they do not fit together.
    """
    check_positive(batch_size=config.batch_size)
    check_count(config.n)
    if (config.run is None) == (config.samples is None):
        raise UserError(f"{task} needs run=RUN_DIR, or samples=FILE.npz dataset=NAME: one of the two")
    for key in ("checkpoint", "ema"):
        if config.samples and config[key] is not None:
            raise UserError(f"{key}={config[key]}: samples=FILE.npz has none; leave it out")
    if config.samples and not config.dataset:
        raise UserError("samples=FILE.npz needs dataset=NAME, the real images that it is held against")
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema).under(config) if config.run else None
    file = Path(config.samples) if config.samples else None
    if file and not file.is_file():
        raise UserError(f"samples={file} does not exist: give the samples.npz that `sample` writes")
    if run:
        # What is wrong with the run is said before anything is computed.
        run.check()
    datamodule = data_of(run, config, "the samples are held against other images") if run else datamodule_of(config)
    given = _read(file, datamodule) if file else None
    device = best_device(config.device)
    beside = run.directory if run else file.parent
    out = output_folder(str(config.out or beside / task), config.overwrite)
    runs = run.directory.resolve().parent.parent if run else Path("runs")
    return Subject(run, given, datamodule, out, Path(config.cache or runs / ".cache"), device)


def data_of(run: Run, config: DictConfig, otherwise: str) -> pl.LightningDataModule:
    """The config's data, which are of the run's shape and classes; warns, `otherwise`, if it learnt from others.

    Raises UserError for data of another kind.
    """
    datamodule = datamodule_of(config)
    if (datamodule.spec.shape, datamodule.spec.classes) != (run.spec.shape, run.spec.classes):
        raise UserError(
            f"{datamodule.source} has images of shape {datamodule.spec.shape} and {datamodule.spec.classes} classes, "
            f"but the run makes {run.spec.shape} and {run.spec.classes}: choose the data it is of"
        )
    if datamodule.fingerprint() != run.config.data.fingerprint:
        log.warning("%s is not what the run was trained on: %s", datamodule.source, otherwise)
    return datamodule


def samples_of(subject: Subject, config: DictConfig, n: int | None) -> Samples:
    """The first n images of the run; or n of the file, evenly spaced, and all where n is None or there are no more.

    A run's images are of the classes in the proportions of the training split, and kept in the cache: a second task
    under the same setting draws only what is missing.
    """
    if subject.given:
        count = len(subject.given)
        if n is not None and n > count:
            log.warning("samples=FILE.npz holds %d images only: n is %d", count, count)
        return subject.given if n is None else subject.given.take(evenly_spaced(count, n))
    run, counts = subject.run, None
    if run.model.classes(run.spec) is not None:
        counts = class_counts(subject.datamodule.split("train").labels)
    images, labels, receipt = draw(run, config, counts, n, subject.cache, subject.device)
    return Samples(images, labels, torch.arange(n), receipt)


def class_counts(labels: Tensor) -> list[int]:
    """How often each class is there; of rows of several classes each counts."""
    return (labels.sum(0) if labels.ndim == 2 else labels.bincount()).tolist()


def _read(path: Path, datamodule: pl.LightningDataModule) -> Samples:
    """The samples of a file. Raises UserError if they are not such images as the data set holds."""
    spec = datamodule.spec
    try:
        with np.load(path) as arrays:
            images = arrays["images"]
            labels = arrays["labels"] if "labels" in arrays.files else None
    except Exception as error:  # a file of another kind, or a damaged one, can make its readers raise anything
        raise UserError(
            f"samples={path} cannot be read as an npz file with `images`, channels last, and `labels`, such as "
            f"`sample` writes ({' '.join(str(error).split())})"
        ) from error
    if not np.issubdtype(images.dtype, np.number):
        raise UserError(f"samples={path}: images are {images.dtype}, but uint8 is needed")
    if (bad := int((~np.isfinite(images)).any(tuple(range(1, images.ndim))).sum())) > 0:
        raise UserError(f"samples={path}: {bad} of {len(images)} images hold NaN or infinity: leave them out, or mend")
    if images.dtype != np.uint8:
        raise UserError(f"samples={path}: images are {images.dtype}, but uint8 is needed: scale to 0..255, and round")
    if images.ndim == len(spec.shape) and spec.shape[0] == 1:
        images = images[..., None]  # MedMNIST's layout of grey images
    wanted = (*spec.shape[1:], spec.shape[0])
    if len(images) == 0:
        raise UserError(f"samples={path} holds no images")
    if images.shape[1:] != wanted:
        raise UserError(
            f"samples={path}: images of shape {images.shape}, but (N, {', '.join(map(str, wanted))}) is needed to "
            f"compare them with {datamodule.source}"
        )
    digest = hashlib.sha256(images.tobytes()).hexdigest()[:16]
    return Samples(
        torch.from_numpy(images).movedim(-1, 1).contiguous(),
        None if labels is None else _labels(path, labels, len(images), spec),
        torch.arange(len(images)),
        {"samples": str(path), "sha256": digest, "images": len(images)},
    )


def _labels(path: Path, labels: np.ndarray, n: int, spec: DataSpec) -> Tensor | None:
    if spec.classes is None or spec.multi_label:
        return None
    if labels.reshape(-1).shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"samples={path}: labels of shape {labels.shape} and type {labels.dtype}: give one whole number an image"
        )
    if labels.min() < 0 or labels.max() >= spec.classes:
        raise UserError(
            f"samples={path}: labels from {labels.min()} to {labels.max()}, but the classes are 0 to {spec.classes - 1}"
        )
    return torch.from_numpy(labels.reshape(-1).astype(np.int64))
