"""Which images of a data set are normal, by their classes or their masks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from diffusion.apps.sample import numbered
from diffusion.errors import UserError
from diffusion.runs import Run, datamodule_of
from diffusion.tasks.reconstruct import evenly_spaced

log = logging.getLogger("diffusion")


@dataclass(frozen=True)
class Case:
    """Images uint8 (N, C, *S) at these places of a split, and what is known of them.

    anomalous: bool (N,), or None where that is not known; lesions: bool (N, *S), or None
    """

    places: list[int]
    images: Tensor
    labels: Tensor | None
    anomalous: Tensor | None
    lesions: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def mixed(self) -> bool:
        """Whether some are normal and some are not."""
        return self.anomalous is not None and 0 < int(self.anomalous.sum()) < len(self)

    @property
    def normal(self) -> Tensor:
        """The places among these, int64, of the images that are not known to be anything else than normal."""
        return torch.arange(len(self)) if self.anomalous is None else (~self.anomalous).nonzero().flatten()


@dataclass(frozen=True)
class Judged:
    """A data set of which some classes are normal; or whose masks mark what is not; or of which neither is known.

    normal: the data of the normal classes alone, or all. classes: the numbers of the normal ones, or None
    marked: whether masks mark lesions: there are some, and those of all normal training images are empty
    """

    data: pl.LightningDataModule
    normal: pl.LightningDataModule
    classes: list[int] | None
    marked: bool

    @property
    def said(self) -> str:
        """How normal images are told, for people."""
        if self.classes is not None:
            return "of the classes " + ", ".join(self.data.spec.names[k] for k in self.classes)
        return "where the mask is empty" if self.marked else "all, as far as is known"

    def case(self, name: str, n: int) -> Case:
        """Up to n images of a split, evenly spaced."""
        split = self.data.split(name)
        places = evenly_spaced(len(split), n)
        split, spec = split.take(places).eight_bit(), self.data.spec
        lesions = split.masks[:, 0] > 0 if self.marked else None
        anomalous = None
        if self.classes is not None and spec.multi_label:
            others = [k for k in range(spec.classes) if k not in self.classes]
            anomalous = split.labels[:, others].bool().any(1)
        elif self.classes is not None:
            anomalous = ~torch.isin(split.labels, torch.tensor(self.classes))
        elif lesions is not None:
            anomalous = lesions.flatten(1).any(1)
        return Case(places.tolist(), split.images, split.labels, anomalous, lesions)

    def training(self, most: int) -> Tensor:
        """Up to `most` normal training images, uint8 (M, C, *S), evenly spaced."""
        split = self.normal.reference("train")
        return split.images[evenly_spaced(len(split), most)]


def opened(run: Run, config: DictConfig) -> Judged:
    """The config's data, or the run's with all its classes, and what of them is normal.

    Raises UserError for images of another shape than the run's, or classes that are not there.
    """
    kept = OmegaConf.create({**config.dataset, "only": None})
    asked, own = config.normal, config.dataset.get("only", run.config.dataset.get("only"))
    data = opened_of(run, kept)
    spec = data.spec
    if spec.shape != run.spec.shape:
        raise UserError(f"{data.source} has images of shape {spec.shape}, but the run makes {run.spec.shape}")
    if asked is not None and spec.classes is None:
        raise UserError(f"normal={asked}: {data.source} has no labels; leave it out")
    named = own if asked is None else asked
    classes = None if named is None or spec.classes is None else numbers_of(named, data)
    normal = data if classes is None else opened_of(run, OmegaConf.create({**kept, "only": classes}))
    same_source = config.dataset._target_ == run.config.dataset._target_
    if same_source and normal.fingerprint() != run.config.data.fingerprint:
        said = "the run was not trained on these normal images of %s: it may have learnt what is not normal too"
        log.warning(said, data.source)
    masks = normal.reference("train").masks
    marked = masks is not None and not masks.any()
    return Judged(data, normal, classes, marked)


def opened_of(run: Run, dataset: DictConfig) -> pl.LightningDataModule:
    return datamodule_of(OmegaConf.create({"dataset": dataset, "seed": run.config.seed, "batch_size": 64}))


def numbers_of(named: Any, data: pl.LightningDataModule) -> list[int]:
    """The numbers of classes given by number or name. Raises UserError for one that is not there, or all of them."""
    names = data.spec.names
    given = list(named) if isinstance(named, ListConfig | list) else [named]
    numbers = [numbered(one, data.spec) for one in given]
    for one in numbers:
        if type(one) is not int or not 0 <= one < len(names):
            raise UserError(
                f"normal={named}: {data.source} has the classes {', '.join(f'{k} ({n})' for k, n in enumerate(names))}"
            )
    if len(set(numbers)) == len(names):
        raise UserError(f"normal={named} are all classes of {data.source}: leave some out, which are not normal")
    return sorted(set(numbers))
