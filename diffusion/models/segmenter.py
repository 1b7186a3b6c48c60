"""model=segmenter: the network of a diffusion model, trained to find masks of images directly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from datamodules.batch import DataSpec
from diffusion.callbacks import EMA, Budget
from diffusion.codecs import Codec
from diffusion.errors import UserError
from diffusion.models.base import Model, Weights, factory, loaded
from diffusion.modules import SegmenterModule
from diffusion.random import seed_of
from diffusion.tasks.segment import NetworkSegmenter


class Segmenter(Model):
    """The group `network` as a map from images to the classes of their pixels.

    Args:
        dice: weight of the soft Dice loss beside the cross-entropy.
    """

    parts = frozenset({"network", "augmentation"})
    next_task = "segment"

    def __init__(self, config: DictConfig, dice: float = 1.0):
        super().__init__(config)
        self.dice = dice

    def _makes_no_images(self) -> str:
        return f"a run of {self.config.experiment} finds masks and makes no images: use `python -m diffusion segment`"

    def made(self, spec: DataSpec) -> NetworkSegmenter:
        """The segmenter with its initial weights. Raises UserError for data without masks."""
        if spec.mask_classes is None:
            raise UserError(
                "the data have no masks: there is nothing to segment; use dataset=masks dataset.path=DIR, or others "
                "that have"
            )
        torch.manual_seed(seed_of(self.config.seed, "weights"))
        network = factory(self.config.network)(
            in_channels=spec.shape[0], out_channels=spec.mask_classes, size=list(spec.shape[1:])
        )
        return NetworkSegmenter(network)

    def segmenter(self, spec: DataSpec, weights: Weights, device: torch.device | str) -> NetworkSegmenter:
        segmenter = self.made(spec)
        loaded(segmenter.network, weights()).eval().requires_grad_(False).to(device)
        return segmenter

    def module(self, datamodule: pl.LightningDataModule) -> SegmenterModule:
        return SegmenterModule(
            segmenter=self.made(datamodule.spec),
            optimizer=factory(self.config.optimizer),
            augmentation=self.augmentation(datamodule.spec),
            dice=self.dice,
            seed=self.config.seed,
        )

    def callbacks(
        self, module: SegmenterModule, datamodule: pl.LightningDataModule, directory: Path, ema: EMA, budget: Budget
    ) -> list[pl.Callback]:
        return [factory(self.config.callbacks.segmentations)(folder=directory / "samples")]

    def trained_codec(self, spec: DataSpec, checkpoint: Callable[[], Mapping[str, Any]]) -> Codec:
        raise UserError("this run finds masks: nothing is compressed, and nothing to reconstruct")
