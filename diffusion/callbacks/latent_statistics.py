"""What a latent model must know of an autoencoder's latents, measured and kept with its weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from diffusion.callbacks.ema import EMA
from diffusion.codecs import latent_statistics
from diffusion.generative import evaluating
from diffusion.tasks.reconstruct import evenly_spaced

MOST_VALUES = 1 << 20
"""Pixel values that are encoded at once."""


class LatentStatistics(pl.Callback):
    """Puts mean and standard deviation of each latent channel, float32 (C,), into every checkpoint, under "latents".

    They belong to the averaged weights of that very checkpoint, and are taken over the training images; of more than
    `limit` images, over that many, evenly spaced.
    """

    def __init__(self, ema: EMA, limit: int = 2048, batch_size: int = 256):
        self.ema, self.limit, self.batch_size = ema, limit, batch_size
        self._measured: tuple[int, dict[str, Any]] = (-1, {})

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        step, found = self._measured
        if step != trainer.global_step:  # best.ckpt and last.ckpt of one step hold the same weights
            found = self._measure(trainer, pl_module)
            self._measured = (trainer.global_step, found)
        checkpoint["latents"] = found

    @torch.no_grad()
    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        split, network = trainer.datamodule.split("train"), pl_module.network
        chosen = evenly_spaced(len(split), self.limit)
        size = max(1, min(self.batch_size, MOST_VALUES // split.images[0].numel()))  # volumes few at a time
        with self.ema.applied(pl_module.trained), evaluating(network):
            batches = (split[indices]["image"].to(pl_module.device) for indices in chosen.split(size))
            mean, std = latent_statistics(network, batches)
        return {"mean": mean.float().cpu(), "std": std.float().cpu(), "images": len(chosen)}
