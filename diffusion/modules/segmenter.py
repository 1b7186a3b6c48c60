"""The LightningModule that learns masks directly: the baseline that a diffusion model of masks is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from diffusion.augmentations import Augmentation
from diffusion.errors import UserError
from diffusion.metrics.segmentation import confusion, dice_of
from diffusion.modules.noisy import NoisyModule
from diffusion.objectives import segmentation_loss
from diffusion.tasks.segment import NetworkSegmenter


class SegmenterModule(NoisyModule):
    """Trains a network on batch["mask"], given batch["image"], by cross-entropy and soft Dice.

    Augmentation moves images and masks alike; it depends on the seed and the sample's place in the endless stream of
    training samples alone.

    Args:
        segmenter: with a network that is trained.
        optimizer: parameters -> optimizer.
        augmentation: changes the training images, or None; the network is not told how.
        dice: weight of the soft Dice loss beside the cross-entropy.
        seed: of all the randomness above.

    Raises UserError for a weight below 0.
    """

    def __init__(
        self,
        segmenter: NetworkSegmenter,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        augmentation: Augmentation | None = None,
        dice: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(optimizer, augmentation, seed)
        if not 0 <= dice < float("inf"):
            raise UserError(f"model.dice={dice}: give a weight of 0 or more")
        self.segmenter, self.network, self.dice = segmenter, segmenter.network, dice

    @property
    def trained(self) -> nn.Module:
        """All that learns, and is averaged."""
        return self.network

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        _, first, total = self.begin_step(batch_idx, len(batch["image"]))
        if self.augmentation:
            batch, _ = self.augmented(batch, first, total)
        return segmentation_loss(self.segmenter.logits(batch["image"]), batch["mask"], self.dice).mean()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        logits, truth = self.segmenter.logits(batch["image"]), batch["mask"][:, 0].long()
        self.log_validation("loss", segmentation_loss(logits, batch["mask"], self.dice), batch)
        dice = dice_of(confusion(logits.argmax(1), truth, logits.shape[1]))
        self.log_validation("dice", dice[:, 1:].mean(1), batch)
