"""The LightningModule of a classifier that reads noisy images: what a diffusion model is guided by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from diffusion.augmentations import Augmentation
from diffusion.denoiser import scale
from diffusion.guidance import NoisyClassifier
from diffusion.modules.diffusion import LOG_SNR_BINS, noise_bin_names
from diffusion.modules.places import places
from diffusion.objectives import TimeDensity, held
from diffusion.random import normal_block, seed_of, stratified_uniform
from diffusion.schedulers import NoiseScheduler


class ClassifierModule(pl.LightningModule):
    """Trains a classifier on batch["label"] of images at all noise levels; the loss is -log p(label | x_t).

    Times and noise of a training step depend on (seed, optimizer step, place in the global batch), augmentation on the
    sample's place in the endless stream, and those of validation on the place in the validation set alone.

    Args:
        classifier: with a network that is trained.
        scheduler: x_t = alpha x0 + sigma eps.
        times: how often each noise level is seen.
        optimizer: parameters -> optimizer.
        augmentation: changes the training images, or None; the classifier is not told how.
        seed: of all the randomness above.
    """

    def __init__(
        self,
        classifier: NoisyClassifier,
        scheduler: NoiseScheduler,
        times: TimeDensity,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.classifier, self.scheduler, self.times = classifier, scheduler, times
        self.optimizer, self.augmentation, self.seed = optimizer, augmentation, seed
        # Metrics, because a process may have no sample in a bin; a bin that is empty in all is NaN.
        self.accuracy_by_noise = nn.ModuleDict({name: MeanMetric(nan_strategy="ignore") for name in noise_bin_names()})

    @property
    def network(self) -> nn.Module:
        return self.classifier.network

    @property
    def trained(self) -> nn.Module:
        """All that learns, and is averaged."""
        return self.network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.trained.parameters())

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, **_: object
    ) -> None:
        """Clip the norm here: under mixed precision Lightning refuses to do it beside a fused optimizer."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), gradient_clip_val)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        images, count = batch["image"], len(batch["image"])
        key = (self.seed, "train", self.global_step)
        first, total = places(self, batch_idx, count)
        # Dropout layers know only the global generator.
        torch.manual_seed(seed_of(*key, "dropout", first))
        if self.augmentation:
            # The loader deals out its stream in whole batches: see datamodules/order.py.
            place = self.global_step * total + first
            draws = normal_block((self.seed, "augmentation"), place, count, (self.augmentation.draws,))
            images, _ = self.augmentation(images, draws.to(images.device))
        logits, _ = self._logits(images, key, first, total)
        return -self.classifier.log_likelihood(logits, batch["label"]).mean()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        place, count = batch_idx * self.trainer.world_size + self.global_rank, len(batch["image"])
        logits, t = self._logits(batch["image"], ("validation", place), first=0, total=count)
        loss = -self.classifier.log_likelihood(logits, batch["label"]).mean()
        right = self.classifier.right(logits, batch["label"])
        logging = {"on_step": False, "on_epoch": True, "logger": False, "batch_size": count}
        self.log("val/loss", loss, sync_dist=True, **logging)
        self.log("val/accuracy", right.mean(), sync_dist=True, **logging)
        bins = torch.bucketize(self.scheduler.log_snr(t), torch.tensor(LOG_SNR_BINS, dtype=torch.float64))
        for index, (name, metric) in enumerate(self.accuracy_by_noise.items()):
            metric.update(right, (bins == index).to(right))
            self.log(f"accuracy_by_noise/{name}", metric, **logging)

    def _logits(self, images: Tensor, key: tuple, first: int, total: int) -> tuple[Tensor, Tensor]:
        """The logits (B, classes) of images at the places first ... of a batch of `total`, and their times (B,)."""
        u = stratified_uniform((*key, "time"), first, len(images), total)
        t = held(self.times(u, self.scheduler), self.scheduler)
        noise = normal_block((*key, "noise"), first, len(images), images.shape[1:], images.device)
        alpha, sigma = self.scheduler.alpha(t), self.scheduler.sigma(t)
        return self.classifier(scale(alpha, images) * images + scale(sigma, images) * noise, alpha, sigma), t
