"""What inpaint, translate and restore begin with: real images, and the run's model that is to change them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion.apps.drawn import choice
from diffusion.apps.output import best_device, write_cases
from diffusion.apps.sample import numbered
from diffusion.apps.subject import data_of
from diffusion.denoiser import Cond
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.random import seed_of
from diffusion.runs import Run
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_count, check_positive, labels_of

log = logging.getLogger("diffusion")


@dataclass(frozen=True)
class Originals:
    """Images uint8 (N, C, *S) of a split on the CPU, their labels or None, and their places in it, int64 (N,)."""

    run: Run
    generative: GenerativeModel
    datamodule: pl.LightningDataModule
    images: Tensor
    labels: Tensor | None
    places: Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.images)

    def told(self, label: Any) -> Tensor | None:
        """What the model is told of each image: its own label, or the class that `label` names; None where nothing."""
        classes = self.run.model.classes(self.run.spec)
        if label is None:
            return None if classes is None else self.labels
        return labels_of(numbered(label, self.run.spec), len(self), classes)

    def batches(self, size: int) -> Iterator[slice]:
        """The parts that are worked on at once."""
        return (slice(first, min(first + size, len(self))) for first in range(0, len(self), size))

    def pixels(self, part: slice) -> Tensor:
        """The images of a part in [-1, 1], on the device."""
        return self.images[part].to(self.device).float() / 127.5 - 1

    def seeds(self, part: slice, *key: object) -> list[int]:
        """One for each image of a part, which depends on its place in the split and `key` alone."""
        return [seed_of(*key, place) for place in self.places[part].tolist()]

    def receipt(self, config: DictConfig) -> dict[str, Any]:
        """What has to be known of a figure to get it again."""
        return {
            "split": config.split,
            "sampler": choice(config.sampler),
            "grid": choice(config.grid),
            "guidance": choice(config.guidance),
            "step": self.run.position(),
            "ema": self.run.average,
            "weights": self.run.fingerprint(),
            "codec": self.run.config.data.codec_fingerprint,
            "data": {"source": self.datamodule.source, "fingerprint": self.datamodule.fingerprint()},
            "seed": config.seed,
        }


def originals_of(config: DictConfig) -> Originals:
    """What the keys run, checkpoint, ema, n, split, batch_size, device and those of the groups describe.

    Raises UserError for a value that means nothing, and a run that draws no images.
    """
    check_count(config.n)
    check_positive(batch_size=config.batch_size)
    if config.split not in ("train", "val", "test"):
        raise UserError(f"split={config.split}: give train, val or test")
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema).under(config)
    run.check()
    device = best_device(config.device)
    generative = run.generative(device)
    generative.denoiser.requires_grad_(False)
    datamodule = data_of(run, run.config, "the figures are of other images")
    split = datamodule.split(config.split)
    places = evenly_spaced(len(split), config.n or len(split))
    split = split.take(places).eight_bit()
    return Originals(run, generative, datamodule, split.images, split.labels, places, device)


def conditioned(labels: Tensor | None, part: slice) -> Cond | None:
    return None if labels is None else {"label": labels[part]}


def plain(values: Any) -> Any:
    """A list of a config as a list of Python's."""
    return OmegaConf.to_container(values) if OmegaConf.is_config(values) else values


def advancing(bar: Any, task: Any) -> Callable[..., None]:
    """An `on_step` that moves the bar on."""
    return lambda *_: bar.advance(task)


def batches_in_all(originals: Sequence[Any], size: int) -> int:
    return math.ceil(len(originals) / size)


def save_and_tell(out: Path, originals: Originals, cases: Mapping[str, Mapping[str, Tensor]]) -> None:
    """cases.csv, and a line for each method with its mean figures; cases: method -> figure -> values (N,)."""
    columns = {f"{name}_{key}": values for name, each in cases.items() for key, values in each.items()}
    write_cases(out / "cases.csv", originals.places, originals.labels, columns)
    for name, each in cases.items():
        log.info("%12s  %s", name, "  ".join(f"{key} {values.mean():.4g}" for key, values in each.items()))
