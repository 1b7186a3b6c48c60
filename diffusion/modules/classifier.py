"""The LightningModule of a classifier that reads noisy images: what a diffusion model is guided by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from diffusion.augmentations import Augmentation
from diffusion.denoiser import scale
from diffusion.guidance import NoisyClassifier
from diffusion.modules.noisy import NoisyModule, metrics_by_noise
from diffusion.objectives import TimeDensity, held
from diffusion.random import normal_block, stratified_uniform
from diffusion.schedulers import NoiseScheduler


class ClassifierModule(NoisyModule):
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
        super().__init__(optimizer, augmentation, seed)
        self.classifier, self.scheduler, self.times = classifier, scheduler, times
        self.accuracy_by_noise = metrics_by_noise()

    @property
    def network(self) -> nn.Module:
        return self.classifier.network

    @property
    def trained(self) -> nn.Module:
        """All that learns, and is averaged."""
        return self.network

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        key, first, total = self.begin_step(batch_idx, len(batch["image"]))
        if self.augmentation:
            batch, _ = self.augmented(batch, first, total)
        logits, _ = self._logits(batch["image"], key, first, total)
        return -self.classifier.log_likelihood(logits, batch["label"]).mean()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        images = batch["image"]
        logits, t = self._logits(images, self.validation_key(batch_idx), first=0, total=len(images))
        right = self.classifier.right(logits, batch["label"])
        self.log_validation("loss", -self.classifier.log_likelihood(logits, batch["label"]), batch)
        self.log_validation("accuracy", right, batch)
        self.log_by_noise("accuracy_by_noise", self.accuracy_by_noise, right, self.scheduler.log_snr(t), batch)

    def _logits(self, images: Tensor, key: tuple, first: int, total: int) -> tuple[Tensor, Tensor]:
        """The logits (B, classes) of images at the places first ... of a batch of `total`, and their times (B,)."""
        u = stratified_uniform((*key, "time"), first, len(images), total)
        t = held(self.times(u, self.scheduler), self.scheduler)
        noise = normal_block((*key, "noise"), first, len(images), images.shape[1:], images.device)
        alpha, sigma = self.scheduler.alpha(t), self.scheduler.sigma(t)
        return self.classifier(scale(alpha, images) * images + scale(sigma, images) * noise, alpha, sigma), t
