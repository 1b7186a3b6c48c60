"""What evaluate, audit and utility judge: images of a run, or of a file, and the real data beside them."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.apps.output import best_device, output_folder, progress
from diffusion.errors import UserError
from diffusion.files import replace_file
from diffusion.generative import GenerativeModel
from diffusion.provenance import code, machine
from diffusion.runs import Run
from diffusion.tasks.sample import check_positive, labels_of, sample

log = logging.getLogger("diffusion")

DRAWN = "drawn_{}.npz"
"""In the cache: the images that a model makes under one setting, as many as were ever asked for."""


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

    def generative(self) -> GenerativeModel:
        """The run's model, on the device. There must be a run."""
        return self.run.generative(self.device)

    def receipt(self, samples: Samples, **more: Any) -> dict[str, Any]:
        """What has to be known of a figure to get it again."""
        splits = {name: len(self.datamodule.split(name)) for name in ("train", "val", "test")}
        data = {"source": self.datamodule.source, "fingerprint": self.datamodule.fingerprint(), "images": splits}
        return {"generated": samples.receipt, "data": data, **more, "code": code(), "machine": machine()}


@dataclass(frozen=True)
class Samples:
    """Synthetic images uint8 (N, C, *S) on the CPU, their classes or None, and how they were made."""

    images: Tensor
    labels: Tensor | None
    receipt: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, places: Tensor) -> Samples:
        """Those at `places`."""
        labels = None if self.labels is None else self.labels[places]
        return replace(self, images=self.images[places], labels=labels)


def subject_of(config: DictConfig, task: str) -> Subject:
    """What the keys run, samples, dataset, out, overwrite, cache, device and seed describe; makes the folder `out`.

    Raises UserError where they do not fit together.
    """
    check_positive(batch_size=config.batch_size)
    if config.n is not None:
        if type(config.n) is not int:
            raise UserError(f"n={config.n}: give a whole number")
        check_positive(n=config.n)
    if (config.run is None) == (config.samples is None):
        raise UserError(f"{task} needs run=RUN_DIR, or samples=FILE.npz dataset=NAME: one of the two")
    if config.samples and not config.dataset:
        raise UserError("samples=FILE.npz needs dataset=NAME, the real images that it is held against")
    run = Run.open(config.run, checkpoint=config.checkpoint).under(config) if config.run else None
    file = Path(config.samples) if config.samples else None
    if file and not file.is_file():
        raise UserError(f"samples={file} does not exist: give the samples.npz that `sample` writes")
    datamodule = instantiate(config.dataset, seed=config.seed, batch_size=config.batch_size)
    datamodule.prepare_data()
    if run and datamodule.fingerprint() != run.config.data.fingerprint:
        log.warning(
            "%s is not what the run was trained on: the samples are held against other images", datamodule.source
        )
    given = _read(file, datamodule) if file else None
    device = best_device(config.device)
    beside = run.directory if run else file.parent
    out = output_folder(str(config.out or beside / task), config.overwrite)
    runs = run.directory.resolve().parent.parent if run else Path("runs")
    return Subject(run, given, datamodule, out, Path(config.cache or runs / ".cache"), device)


def samples_of(subject: Subject, config: DictConfig, n: int) -> Samples:
    """The first n images of the run, the classes in turn, or of the file, where there may be fewer.

    Images of a run are kept in the cache: a second task under the same setting draws only what is missing.
    """
    if subject.given:
        return subject.given.take(torch.arange(min(n, len(subject.given))))
    run = subject.run
    generative = subject.generative()
    if config.guidance and run.model.classes(run.spec) is None:
        raise UserError("guidance needs a conditional model: this run was trained without labels; use guidance=none")
    receipt = {
        "run": str(run.directory),
        "experiment": run.config.experiment,
        "step": run.position(),
        "weights": run.fingerprint(),
        "ema": run.config.callbacks.ema.decay,
        "codec": run.config.data.codec_fingerprint,
        "sampler": _choice(config.sampler),
        "grid": _choice(config.grid),
        "guidance": _choice(config.guidance),
        "seed": config.seed,
    }
    labels = labels_of(None, n, run.model.classes(run.spec))
    images = _drawn(subject, generative, receipt, labels, n, config)
    return Samples(images, labels, receipt)


def _drawn(
    subject: Subject,
    generative: GenerativeModel,
    receipt: dict[str, Any],
    labels: Tensor | None,
    n: int,
    config: DictConfig,
) -> Tensor:
    setting = {key: value for key, value in receipt.items() if key not in ("run", "experiment", "step", "ema")}
    key = hashlib.sha256(repr((setting, subject.device.type)).encode()).hexdigest()[:16]
    path = subject.cache / DRAWN.format(key)
    kept = _kept(path, subject.run.spec.shape)
    if len(kept) >= n:
        return kept[:n]
    with progress() as bar:
        task = bar.add_task("sampling", total=n, completed=len(kept))
        new = sample(
            generative,
            subject.run.spec.shape,
            n,
            labels,
            config.seed,
            config.batch_size,
            on_batch=lambda done: bar.update(task, completed=done),
            first=len(kept),
        )
    images = torch.cat([kept, new])
    try:
        subject.cache.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: _save(temporary, images))
    except OSError as error:
        log.warning("%s could not be written (%s): the next task draws the images again", path, error.strerror)
    return images


def _kept(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The images in a file of the cache; none where it is not there, or damaged."""
    try:
        with np.load(path) as arrays:
            return torch.from_numpy(arrays["images"]).movedim(-1, 1).contiguous()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return torch.empty(0, *shape, dtype=torch.uint8)


def _save(path: Path, images: Tensor) -> None:
    with path.open("wb") as file:
        np.savez(file, images=images.movedim(1, -1).numpy())


def _read(path: Path, datamodule: pl.LightningDataModule) -> Samples:
    """The samples of a file. Raises UserError if they are not such images as the data set holds."""
    spec = datamodule.spec
    try:
        with np.load(path) as arrays:
            images = arrays["images"]
            labels = arrays["labels"] if "labels" in arrays.files else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
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
    if images.shape[1:] != wanted or len(images) == 0:
        raise UserError(
            f"samples={path}: images of shape {images.shape}, but (N, {', '.join(map(str, wanted))}) is needed to "
            f"compare them with {datamodule.source}"
        )
    digest = hashlib.sha256(images.tobytes()).hexdigest()[:16]
    return Samples(
        torch.from_numpy(images).movedim(-1, 1).contiguous(),
        None if labels is None else _labels(path, labels, len(images), spec),
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


def _choice(node: DictConfig | None) -> dict[str, Any] | None:
    """A group's choice, as plain values: its class, and its keys."""
    if not node:
        return None
    values = OmegaConf.to_container(node, resolve=True)
    name = values["_target_"].rsplit(".", 1)[-1]
    return {"name": name, **{key: value for key, value in values.items() if not key.startswith("_")}}
