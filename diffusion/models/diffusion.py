"""model=pixel_ddpm and model=latent_ddpm: one diffusion model, whose codec says in which space it lives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from datamodules.batch import DataSpec
from diffusion.augmentations import Augmentation
from diffusion.callbacks import EMA, Budget, Previews
from diffusion.codecs import Codec
from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.models.base import PARTS, Model, factory
from diffusion.modules import DiffusionModule
from diffusion.random import seed_of

log = logging.getLogger(__name__)


class Diffusion(Model):
    """A denoiser of the codec's latents.

    Args:
        target: the batch's key that is diffused.
        condition: the batch's keys that the network is told; a key that the data lack is left out.
        label_dropout: share of samples trained without their condition, for guidance.
    """

    parts = PARTS - {"perceptual", "discriminator"}
    next_task = "sample"

    def __init__(
        self,
        config: DictConfig,
        target: str = "image",
        condition: Sequence[str] = ("label",),
        label_dropout: float = 0.1,
    ):
        super().__init__(config)
        if target != "image":
            raise UserError(f"model.target={target}: only image can be diffused")
        if any(key != "label" for key in condition):
            raise UserError(f"model.condition={list(condition)}: the networks can be told label only, or []")
        self.target, self.condition, self.label_dropout = target, tuple(condition), label_dropout

    @cached_property
    def codec(self) -> Codec:
        """The codec. Raises UserError if it is not the one with which the run began."""
        codec = instantiate(self.config.codec)
        began = self.config.data.codec_fingerprint if self.config.get("data") else codec.fingerprint
        if codec.fingerprint != began:
            raise UserError(another_codec(began, codec.fingerprint))
        return codec

    def classes(self, spec: DataSpec) -> int | None:
        """The classes that the network is told, or None: where the data have none, or condition leaves them out."""
        return spec.classes if "label" in self.condition else None

    def data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        """Images in pixel space; elsewhere what the codec makes of them, made once and kept."""
        if self.codec.fingerprint is None:
            return datamodule
        if self.config.augmentation:
            raise UserError(
                "augmentation changes pixels, and the latents are encoded once, before it could: use augmentation=none"
            )
        self.codec.for_images(datamodule.spec.shape)
        if self.codec.trained_on not in (None, datamodule.fingerprint()):
            log.warning("the autoencoder learnt from other data than %s: look at what it loses", datamodule.source)
        latents = datamodule.encoded(self.codec.to(self.device), self.cache, self.device)
        # Now, because later the Trainer has the codec where it wants it.
        latents.setup()
        return latents

    def facts(self, datamodule: pl.LightningDataModule) -> dict[str, Any]:
        """The codec's fingerprint; and no guidance where the network is told no labels to guide by."""
        found = {"data.codec_fingerprint": self.codec.fingerprint}
        return found | ({"guidance": None} if self.classes(datamodule.spec) is None else {})

    def denoiser(self, spec: DataSpec) -> NetworkDenoiser:
        """The denoiser with its initial weights."""
        config = self.config
        shape = self.codec.for_images(spec.shape).latent_shape(spec.shape)
        augmentation = self.augmentation(spec)
        torch.manual_seed(seed_of(config.seed, "weights"))
        network = factory(config.network)(
            in_channels=shape[0],
            out_channels=shape[0],
            size=list(shape[1:]),
            classes=self.classes(spec),
            augmentation=augmentation.values if augmentation else 0,
        )
        return NetworkDenoiser(
            scheduler=instantiate(config.scheduler),
            parameterization=factory(config.parameterization)(sd=config.data.std),
            network=network,
        )

    def augmentation(self, spec: DataSpec) -> Augmentation | None:
        """What changes the training images, or None. Raises UserError if it cannot change images of this shape."""
        if not self.config.augmentation:
            return None
        augmentation = factory(self.config.augmentation)()
        augmentation.check(spec.shape)
        return augmentation

    def module(self, datamodule: pl.LightningDataModule) -> DiffusionModule:
        return DiffusionModule(
            denoiser=self.denoiser(datamodule.spec),
            codec=self.codec,
            objective=instantiate(self.config.objective),
            optimizer=factory(self.config.optimizer),
            augmentation=self.augmentation(datamodule.spec),
            target=self.target,
            condition=self.condition,
            label_dropout=self.label_dropout,
            seed=self.config.seed,
        )

    def callbacks(
        self, module: DiffusionModule, datamodule: pl.LightningDataModule, directory: Path, ema: EMA, budget: Budget
    ) -> list[pl.Callback]:
        spec = datamodule.spec
        previews: Previews = factory(self.config.callbacks.previews)(
            generative=self.sampled(module.denoiser),
            shape=spec.shape,
            classes=self.classes(spec),
            folder=directory / "samples",
            ema=ema,
        )
        return [previews, *self._evaluation(module, datamodule, directory, ema, budget)]

    def _evaluation(
        self, module: DiffusionModule, datamodule: pl.LightningDataModule, directory: Path, ema: EMA, budget: Budget
    ) -> list[pl.Callback]:
        config = self.config.callbacks.evaluation
        if config.every_n_steps is None:
            return []
        return [
            factory(config)(
                generative=self.sampled(module.denoiser),
                datamodule=datamodule.pixels,
                extractor=factory(self.config.extractor)(
                    datamodule=datamodule.pixels, cache=self.cache, device=self.device
                ),
                classes=self.classes(datamodule.spec),
                folder=directory / "checkpoints",
                ema=ema,
                budget=budget,
            )
        ]

    def generative(self, spec: DataSpec, checkpoint: Callable[[], Mapping[str, Any]]) -> GenerativeModel:
        denoiser = self.denoiser(spec)
        denoiser.network.load_state_dict(checkpoint()["ema"])
        return self.sampled(denoiser.eval())

    def sampled(self, denoiser: NetworkDenoiser) -> GenerativeModel:
        """The denoiser, under the guidance that the config asks for, with its sampler and grid."""
        guided, config = denoiser, self.config
        if config.get("guidance"):
            if self.label_dropout == 0:
                raise UserError("guidance needs model.label_dropout above 0 in training: use guidance=none")
            guided = factory(config.guidance)(denoiser)
        return GenerativeModel(guided, self.codec, instantiate(config.sampler), instantiate(config.grid))

    def trained_codec(self, spec: DataSpec, checkpoint: Callable[[], Mapping[str, Any]]) -> Codec:
        if self.codec.fingerprint is None:
            raise UserError("this run lives in pixel space: nothing is compressed, and nothing to reconstruct")
        return self.codec


def another_codec(began: str | None, now: str | None) -> str:
    """What to say when a run is to go on with another codec; both are fingerprints."""
    return (
        f"the codec is not the one with which this run began (fingerprint {began}, now {now}): its autoencoder has "
        "changed since, as by training it further, or is another; give the old one, or begin another run_id"
    )
