"""The LightningModule of every diffusion model, in pixels and in latents: only the codec differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from diffusion.augmentations import Augmentation
from diffusion.codecs import Codec
from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.modules.places import places
from diffusion.objectives import Objective
from diffusion.random import normal_block, seed_of, stratified_uniform, uniform

LOG_SNR_BINS = (-6.0, -2.0, 2.0, 6.0)


class DiffusionModule(pl.LightningModule):
    """Trains a denoiser on what the codec draws from batch[target], its moments of the images.

    Times, noise and dropped labels of a training step depend on (seed, optimizer step, place in the global batch);
    augmentation on the seed and the sample's place in the endless stream of training samples, which is its epoch and
    its place in it; those of validation on the place in the validation set alone, so that the curves of all runs
    compare.

    Args:
        denoiser, codec, objective: see their packages.
        optimizer: parameters -> optimizer.
        augmentation: changes the training images and may say how, or None; see its package.
        target: the batch's key that is diffused.
        condition: the batch's keys that the network is told; a key that the data lack is left out.
        label_dropout: probability with which a sample is trained without its condition.
        seed: of all the randomness above.

    Raises UserError for a label_dropout outside [0, 1], or a schedule that learns under an objective that it
    would bend.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        codec: Codec,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        augmentation: Augmentation | None = None,
        target: str = "image",
        condition: Sequence[str] = ("label",),
        label_dropout: float = 0.1,
        seed: int = 0,
    ):
        super().__init__()
        if not 0 <= label_dropout <= 1:
            raise UserError(f"model.label_dropout={label_dropout}: give a share from 0 to 1")
        if denoiser.scheduler.learns and not objective.weighting.any_schedule:
            raise UserError("scheduler=learned would change what this objective asks for: use objective=elbo")
        self.denoiser, self.codec, self.objective = denoiser, codec, objective
        self.optimizer, self.augmentation = optimizer, augmentation
        # Metrics, because a process may have no sample in a bin; a bin that is empty in all is NaN.
        self.loss_by_noise = nn.ModuleDict({name: MeanMetric(nan_strategy="ignore") for name in noise_bin_names()})
        self.target, self.condition, self.label_dropout, self.seed = target, tuple(condition), label_dropout, seed

    @property
    def network(self) -> nn.Module:
        return self.denoiser.network

    @property
    def trained(self) -> nn.Module:
        """All that learns, and is averaged: the denoiser, for a scheduler may learn too."""
        return self.denoiser

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.trained.parameters())

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, **_: object
    ) -> None:
        """Clip the norm here: under mixed precision Lightning refuses to do it beside a fused optimizer."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), gradient_clip_val)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        count = len(batch[self.target])
        key = (self.seed, "train", self.global_step)
        first, total = places(self, batch_idx, count)
        # Dropout layers know only the global generator.
        torch.manual_seed(seed_of(*key, "dropout", first))
        images = batch[self.target]
        cond = self._condition(batch)
        if self.augmentation:
            # The loader deals out its stream in whole batches: see datamodules/order.py.
            place = self.global_step * total + first
            draws = normal_block((self.seed, "augmentation"), place, count, (self.augmentation.draws,))
            images, told = self.augmentation(images, draws.to(images.device))
            if self.augmentation.values:
                cond["augmentation"] = told
        if self.label_dropout > 0:
            cond["drop"] = (uniform((*key, "drop"), first, count) < self.label_dropout).to(images.device)
        losses, t = self._losses(images, cond, key, first, total=total)
        return losses.mean() + self.denoiser.scheduler.own_loss(t, losses.detach())

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        place = batch_idx * self.trainer.world_size + self.global_rank
        images, cond = batch[self.target], self._condition(batch)
        count = len(images)
        losses, t = self._losses(images, cond, ("validation", place), first=0, total=count)
        logging = {"on_step": False, "on_epoch": True, "logger": False, "batch_size": count}
        self.log("val/loss", losses.mean(), sync_dist=True, **logging)
        bins = torch.bucketize(self.denoiser.scheduler.log_snr(t), torch.tensor(LOG_SNR_BINS, dtype=torch.float64))
        for index, (name, metric) in enumerate(self.loss_by_noise.items()):
            metric.update(losses, (bins == index).to(losses))
            self.log(f"loss_by_noise/{name}", metric, **logging)

    def _condition(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: batch[name] for name in self.condition if name in batch}

    def _losses(
        self, images: Tensor, cond: Mapping[str, Tensor], key: tuple, first: int, total: int
    ) -> tuple[Tensor, Tensor]:
        """The losses (B,) of moments that are the places first ... of a batch of `total`, and their times (B,)."""
        x0 = self.codec.draw(
            images, lambda shape: normal_block((*key, "posterior"), first, len(images), shape, images.device)
        )
        t = self.objective.time(stratified_uniform((*key, "time"), first, len(x0), total), self.denoiser.scheduler)
        noise = normal_block((*key, "noise"), first, len(x0), x0.shape[1:], x0.device)
        return self.objective.loss(self.denoiser, x0, noise, t, cond), t


def noise_bin_names() -> list[str]:
    """Names of the noise-level bins, by their borders in log-SNR, from the most noise to the least."""
    borders = [f"{border:g}" for border in LOG_SNR_BINS]
    middle = [f"log_snr_{low}_to_{high}" for low, high in pairwise(borders)]
    return [f"log_snr_below_{borders[0]}", *middle, f"log_snr_above_{borders[-1]}"]
