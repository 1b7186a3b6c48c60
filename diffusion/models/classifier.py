"""model=noisy_classifier: what reads the class of an image at every noise level, to guide a diffusion model by it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from datamodules.batch import DataSpec
from diffusion.callbacks import EMA, Budget
from diffusion.codecs import Codec
from diffusion.errors import UserError
from diffusion.guidance import NetworkClassifier
from diffusion.models.base import Model, factory, loaded
from diffusion.modules import ClassifierModule
from diffusion.objectives import TimeDensity
from diffusion.random import seed_of
from diffusion.schedulers import NoiseScheduler


class Classifier(Model):
    """A classifier of x_t, in pixels.

    Args:
        network: (in_channels, size, classes) -> the network.
        times: how often training sees each noise level of the scheduler.
    """

    parts = frozenset({"scheduler", "augmentation"})
    next_task = "sample"

    def __init__(self, config: DictConfig, network: Callable[..., nn.Module], times: TimeDensity):
        super().__init__(config)
        self.make_network, self.times = network, times

    def next_command(self, directory: Path) -> str:
        guided = f"guidance=classifier guidance.classifier.run={shlex.quote(str(directory))}"
        return f"python -m diffusion {self.next_task} run=RUN_DIR {guided}  (RUN_DIR: of the model that it is to guide)"

    def _makes_no_images(self) -> str:
        return (
            f"a run of {self.config.experiment} is a classifier and makes no images: it guides another run, with "
            "guidance=classifier guidance.classifier.run=RUN_DIR"
        )

    def scheduler(self) -> NoiseScheduler:
        """The noise scheduler. Raises UserError for one that learns: a classifier has nothing to teach it."""
        scheduler = factory(self.config.scheduler)()
        if scheduler.learns:
            raise UserError(
                "this scheduler learns with a diffusion model: a classifier needs one that is fixed, and can guide "
                "under any other"
            )
        return scheduler

    def classifier(self, spec: DataSpec) -> NetworkClassifier:
        """The classifier with its initial weights. Raises UserError for data without labels."""
        if spec.classes is None:
            raise UserError("the data have no labels: there is nothing to classify")
        torch.manual_seed(seed_of(self.config.seed, "weights"))
        network = self.make_network(in_channels=spec.shape[0], size=list(spec.shape[1:]), classes=spec.classes)
        scheduler, end = self.scheduler(), torch.ones((), dtype=torch.float64)
        return NetworkClassifier(
            network,
            sd=self.config.data.std,
            multi_label=spec.multi_label,
            noisiest=float(scheduler.sigma(end) / scheduler.alpha(end)),
        )

    def trained_classifier(self, spec: DataSpec, weights: Mapping[str, Tensor]) -> NetworkClassifier:
        """The classifier with these weights, in evaluation mode and frozen."""
        classifier = self.classifier(spec)
        loaded(classifier.network, weights)
        return classifier.eval().requires_grad_(False)

    def module(self, datamodule: pl.LightningDataModule) -> ClassifierModule:
        return ClassifierModule(
            classifier=self.classifier(datamodule.spec),
            scheduler=self.scheduler(),
            times=self.times,
            optimizer=factory(self.config.optimizer),
            augmentation=self.augmentation(datamodule.spec),
            seed=self.config.seed,
        )

    def callbacks(
        self, module: ClassifierModule, datamodule: pl.LightningDataModule, directory: Path, ema: EMA, budget: Budget
    ) -> list[pl.Callback]:
        return []

    def trained_codec(self, spec: DataSpec, checkpoint: Callable[[], Mapping[str, Any]]) -> Codec:
        raise UserError("this run is a classifier: nothing is compressed, and nothing to reconstruct")
