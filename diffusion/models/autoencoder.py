"""model=autoencoder_kl and model=autoencoder_vq: images to latents and back, the first stage of latent diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import nn

from datamodules.batch import DataSpec
from diffusion import codecs
from diffusion.callbacks import EMA, Budget, LatentStatistics
from diffusion.errors import UserError
from diffusion.models.base import Model, factory, loaded
from diffusion.modules import AutoencoderModule
from diffusion.objectives import ReconstructionLoss
from diffusion.random import seed_of


class Autoencoder(Model):
    """An autoencoder with its losses.

    Args:
        network: (in_channels, size) -> the autoencoder network.
        loss: the weights of the losses; the networks of the perceptual and the adversarial one are groups of their own.
    """

    parts = frozenset({"perceptual", "discriminator"})
    compresses = True
    next_task = "reconstruct"

    def __init__(self, config: DictConfig, network: Callable[..., nn.Module], loss: ReconstructionLoss):
        super().__init__(config)
        self.make_network, self.loss = network, loss
        self._distance: nn.Module | None = None

    def network(self, spec: DataSpec) -> nn.Module:
        """The network with its initial weights. Raises UserError where it does not fit the data."""
        torch.manual_seed(seed_of(self.config.seed, "weights"))
        return self.make_network(in_channels=spec.shape[0], size=list(spec.shape[1:]))

    def perceptual(self, datamodule: pl.LightningDataModule) -> nn.Module | None:
        """The network of the perceptual loss, made once."""
        if not self.config.perceptual:
            return None
        if self._distance is None:
            self._distance = factory(self.config.perceptual)(
                datamodule=datamodule, cache=self.cache, device=self.device
            )
        return self._distance

    def facts(self, datamodule: pl.LightningDataModule) -> dict[str, Any]:
        """The fingerprint of the perceptual loss's network: a run that goes on must go on with the same loss."""
        distance = self.perceptual(datamodule)
        fingerprint = None if distance is None else codecs.fingerprint_of(distance.state_dict())
        return {"data.perceptual_fingerprint": fingerprint}

    def module(self, datamodule: pl.LightningDataModule) -> AutoencoderModule:
        spec, config = datamodule.spec, self.config
        network, discriminator = self.network(spec), None
        if config.discriminator:
            strategy = config.accelerator.strategy
            told = strategy.get("find_unused_parameters") if isinstance(strategy, DictConfig) else strategy
            if config.accelerator.devices != 1 and told in (False, "auto", "ddp"):
                raise UserError(
                    "the discriminator has no gradient before model.loss.adversarial_start: on several devices use "
                    "accelerator=gpu_ddp accelerator.strategy.find_unused_parameters=true"
                )
            discriminator = factory(config.discriminator)(in_channels=spec.shape[0], size=list(spec.shape[1:]))
        return AutoencoderModule(
            network=network,
            loss=self.loss,
            optimizer=factory(config.optimizer),
            perceptual=self.perceptual(datamodule),
            discriminator=discriminator,
            seed=config.seed,
        )

    def callbacks(
        self, module: AutoencoderModule, datamodule: pl.LightningDataModule, directory: Path, ema: EMA, budget: Budget
    ) -> list[pl.Callback]:
        pictures = factory(self.config.callbacks.reconstructions)(folder=directory / "samples")
        return [pictures, LatentStatistics(ema)]

    def trained_codec(self, spec: DataSpec, checkpoint: Callable[[], Mapping[str, Any]]) -> codecs.Codec:
        content = checkpoint()
        if "latents" not in content:
            raise UserError(
                "the autoencoder's checkpoint holds no mean and standard deviation of its latents: "
                "go on with it, with a larger trainer.max_steps or trainer.max_time"
            )
        network = loaded(self.network(spec), content["ema"])
        mean, std = content["latents"]["mean"], content["latents"]["std"]
        fingerprint = codecs.fingerprint_of({**content["ema"], "latents.mean": mean, "latents.std": std})
        return codecs.Autoencoder(network, mean, std, fingerprint, spec.shape, self.config.data.fingerprint)
