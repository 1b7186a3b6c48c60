"""model=pixel_ddpm and model=latent_ddpm: one diffusion model, whose codec says in which space it lives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.callbacks import EMA, Budget, PostHocEMA, Previews
from diffusion.codecs import Codec
from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.guidance import Guidance
from diffusion.models.base import PARTS, Model, Weights, factory, loaded
from diffusion.modules import DiffusionModule
from diffusion.objectives import Objective
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
    makes_images = True
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

    @cached_property
    def objective(self) -> Objective:
        return instantiate(self.config.objective)

    def told(self, spec: DataSpec) -> int | None:
        """The classes that the network is told, or None: where the data have none, or condition leaves them out."""
        return spec.classes if "label" in self.condition else None

    def classes(self, spec: DataSpec) -> int | None:
        """Those that it is told; or those that the guidance leads towards by itself."""
        return spec.classes if self._guidance and self._guidance.asks else self.told(spec)

    @property
    def _guidance(self) -> type[Guidance] | None:
        node = self.config.get("guidance")
        return get_class(node._target_) if node else None

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
        """The codec's fingerprint, a pretrained network's architecture, and no guidance by labels that are not told."""
        found = {"data.codec_fingerprint": self.codec.fingerprint}
        network = self.config.network
        if network.get("pretrained"):
            architecture = get_class(network._target_).architecture_of(network.pretrained, network.subfolder)
            found["network.architecture"] = architecture
        unlabelled = self.told(datamodule.spec) is None
        return found | ({"guidance": None} if unlabelled and self.lacks(datamodule.spec) else {})

    def lacks(self, spec: DataSpec) -> str | None:
        return self._guidance.lacks(self.told(spec), self.label_dropout) if self._guidance else None

    def denoiser(self, spec: DataSpec, pretrained: bool = True) -> NetworkDenoiser:
        """The denoiser with its initial weights; without `pretrained` they are drawn, whatever the run began from."""
        config = self.config
        given = {} if pretrained or not config.network.get("pretrained") else {"pretrained": None}
        shape = self.codec.for_images(spec.shape).latent_shape(spec.shape)
        augmentation = self.augmentation(spec)
        torch.manual_seed(seed_of(config.seed, "weights"))
        covariance = self.objective.bound is not None
        network = factory(config.network)(
            in_channels=shape[0],
            out_channels=shape[0] * (1 + covariance),
            size=list(shape[1:]),
            classes=self.told(spec),
            augmentation=augmentation.values if augmentation else 0,
            **given,
        )
        return NetworkDenoiser(
            scheduler=factory(config.scheduler)(),
            parameterization=factory(config.parameterization)(sd=config.data.std),
            network=network,
            covariance=covariance,
        )

    def module(self, datamodule: pl.LightningDataModule) -> DiffusionModule:
        return DiffusionModule(
            denoiser=self.denoiser(datamodule.spec),
            codec=self.codec,
            objective=self.objective,
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
            generative=self.sampled(module.denoiser, spec),
            shape=spec.shape,
            classes=self.classes(spec),
            folder=directory / "samples",
            ema=ema,
        )
        evaluation = self._evaluation(module, datamodule, directory, ema, budget)
        return [*self._post_hoc_ema(directory), previews, *evaluation]

    def _post_hoc_ema(self, directory: Path) -> list[PostHocEMA]:
        config = self.config.callbacks.post_hoc_ema
        return [factory(config)(folder=directory / "checkpoints" / "ema")] if config.snapshots else []

    def _evaluation(
        self, module: DiffusionModule, datamodule: pl.LightningDataModule, directory: Path, ema: EMA, budget: Budget
    ) -> list[pl.Callback]:
        config = self.config.callbacks.evaluation
        if config.every_n_steps is None:
            return []
        return [
            factory(config)(
                generative=self.sampled(module.denoiser, datamodule.spec),
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

    def generative(self, spec: DataSpec, weights: Weights) -> GenerativeModel:
        return self.sampled(self.trained_denoiser(spec, weights()), spec, weights)

    def trained_denoiser(self, spec: DataSpec, weights: Mapping[str, Tensor]) -> NetworkDenoiser:
        """The denoiser with these weights, in evaluation mode."""
        denoiser = self.denoiser(spec, pretrained=False)
        return loaded(denoiser, weights).eval()

    def sampled(self, denoiser: NetworkDenoiser, spec: DataSpec, weights: Weights | None = None) -> GenerativeModel:
        """The denoiser, under the guidance that the config asks for, with its sampler and grid.

        weights: the run's, of which guides may be made. While a run trains, it has none to give: guidance by a guide
        that needs them is then left out. Raises UserError for what the guidance lacks.
        """
        config, guided = self.config, denoiser
        if lacking := self.lacks(spec):
            raise UserError(lacking)
        node = config.get("guidance") or {}
        guides = {name: value for name, value in node.items() if isinstance(value, DictConfig)}
        made = {name: factory(value)(model=self, spec=spec, weights=weights) for name, value in guides.items()}
        if node and None not in made.values():
            plain = OmegaConf.create({name: value for name, value in node.items() if name not in guides})
            guided = factory(plain)(denoiser, **made)
        generative = GenerativeModel(guided, self.codec, instantiate(config.sampler), factory(config.grid)())
        generative.rehearse()
        return generative

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
