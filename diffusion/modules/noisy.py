"""What the LightningModules share that learn from noisy images: their optimizer, their randomness, their curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from diffusion.augmentations import Augmentation
from diffusion.devices import to_device
from diffusion.modules.places import log_validation, places
from diffusion.processes import dealt_like
from diffusion.random import normal_block, seed_global

LOG_SNR_BINS = (-6.0, -2.0, 2.0, 6.0)


class NoisyModule(pl.LightningModule):
    """One optimizer for all of `trained`, whose step depends on (seed, optimizer step, place in the global batch).

    Augmentation depends on the seed and the sample's place in the endless stream of training samples alone.
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        augmentation: Augmentation | None,
        seed: int,
    ):
        super().__init__()
        self.optimizer, self.augmentation, self.seed = optimizer, augmentation, seed

    @property
    def trained(self) -> nn.Module:
        """All that learns, and is averaged."""
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.optimizer(p for p in self.trained.parameters() if p.requires_grad)
        optimizer.register_load_state_dict_post_hook(_lay_out)
        return optimizer

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, **_: object
    ) -> None:
        """Clip the norm here: under mixed precision Lightning refuses to do it beside a fused optimizer."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), gradient_clip_val)

    def begin_step(self, batch_idx: int, count: int) -> tuple[tuple, int, int]:
        """The key of the step's random numbers, the place of the batch's first sample, and how many the step has."""
        key = (self.seed, "train", self.global_step)
        first, total = places(self, batch_idx, count)
        seed_global(self.device, *key, "dropout", first)
        return key, first, total

    def augmented(self, batch: Mapping[str, Tensor], first: int, total: int) -> tuple[dict[str, Tensor], Tensor]:
        """The batch with its images changed by the augmentation and its masks moved alike, and what it says of that."""
        images = batch["image"]
        # The loader deals out its stream in whole batches: see datamodules/order.py.
        place = self.global_step * total + first
        draws = normal_block((self.seed, "augmentation"), place, len(images), (self.augmentation.draws,))
        draws = to_device(draws, images.device)
        changed, told = self.augmentation(images, draws)
        moved = {"mask": self.augmentation.move(batch["mask"], draws)} if "mask" in batch else {}
        return {**batch, "image": changed, **moved}, told

    def validation_key(self, batch_idx: int) -> tuple:
        """The key of a validation batch's random numbers: the same for all runs."""
        return ("validation", batch_idx * self.trainer.world_size + self.global_rank)

    def log_validation(self, name: str, values: Tensor, batch: Mapping[str, Tensor]) -> None:
        """The mean of the batch's values (B,) over the validation split, as val/NAME."""
        log_validation(self, name, values.mean(), batch)

    def log_by_noise(
        self, prefix: str, metrics: nn.ModuleDict, values: Tensor, log_snr: Tensor, batch: Mapping[str, Tensor]
    ) -> None:
        """The mean of the batch's values (B,) in each bin of the log-SNR (B,), as PREFIX/BIN."""
        bins = torch.bucketize(log_snr, torch.tensor(LOG_SNR_BINS, dtype=torch.float64)).to(values.device)
        for index, (name, metric) in enumerate(metrics.items()):
            metric.update(values, ((bins == index) & (batch["id"] >= 0)).to(values))
            self.log(f"{prefix}/{name}", metric, on_step=False, on_epoch=True, logger=False, batch_size=len(values))


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Lay what it has loaded out in memory as its parameters are.

    Older checkpoints, and those of weights that were dealt out, have another layout, and fused optimizers read memory
    in its order: their steps would be wrong, without a word (torch 2.15, AdamW on the CPU).
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if getattr(value, "shape", None) == parameter.shape:
                state[name] = dealt_like(value, parameter)


def metrics_by_noise() -> nn.ModuleDict:
    """A mean for each noise-level bin.

    Metrics, because a process may have no sample in a bin; a bin that is empty in all is NaN.
    """
    return nn.ModuleDict({name: MeanMetric(nan_strategy="ignore") for name in noise_bin_names()})


def noise_bin_names() -> list[str]:
    """Names of the noise-level bins, by their borders in log-SNR, from the most noise to the least."""
    borders = [f"{border:g}" for border in LOG_SNR_BINS]
    middle = [f"log_snr_{low}_to_{high}" for low, high in pairwise(borders)]
    return [f"log_snr_below_{borders[0]}", *middle, f"log_snr_above_{borders[-1]}"]
