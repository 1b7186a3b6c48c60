"""The LightningModule of every diffusion model, in pixels and in latents: only the codec differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from diffusion.denoiser import NetworkDenoiser
from diffusion.objectives import Objective
from diffusion.random import normal_block, seed_of, stratified_uniform, uniform

LOG_SNR_BINS = (-6.0, -2.0, 2.0, 6.0)


class DiffusionModule(pl.LightningModule):
    """Trains a denoiser on batch[target], encoded by the codec.

    Times, noise and dropped labels of a training step depend on (seed, optimizer step, place in the global batch);
    those of validation on (seed, place in the validation set), so that curves compare.

    Args:
        denoiser, codec, objective: see their packages.
        optimizer: parameters -> optimizer.
        target: the batch's key that is diffused.
        condition: the batch's keys that the network is told; a key that the data lack is left out.
        label_dropout: probability with which a sample is trained without its condition.
        seed: of all the randomness above.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        codec: nn.Module,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        target: str = "image",
        condition: Sequence[str] = ("label",),
        label_dropout: float = 0.1,
        seed: int = 0,
    ):
        super().__init__()
        self.denoiser, self.codec, self.objective = denoiser, codec, objective
        self.optimizer = optimizer
        self.target, self.condition, self.label_dropout, self.seed = target, tuple(condition), label_dropout, seed

    @property
    def network(self) -> nn.Module:
        """What is trained, averaged and exported."""
        return self.denoiser.network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.network.parameters())

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        micro = batch_idx % self.trainer.accumulate_grad_batches
        slices = self.trainer.accumulate_grad_batches * self.trainer.world_size
        count = len(batch[self.target])
        key = (self.seed, "train", self.global_step)
        first = (micro * self.trainer.world_size + self.global_rank) * count
        # Dropout layers know only the global generator.
        torch.manual_seed(seed_of(*key, "dropout", first))
        losses, _ = self._losses(batch, key, first, total=count * slices, drop=self.label_dropout)
        return losses.mean()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        place = batch_idx * self.trainer.world_size + self.global_rank
        count = len(batch[self.target])
        losses, t = self._losses(batch, (self.seed, "validation", place), first=0, total=count, drop=0.0)
        logging = {"on_step": False, "on_epoch": True, "logger": False, "sync_dist": True}
        self.log("val/loss", losses.mean(), batch_size=count, **logging)
        bins = torch.bucketize(self.denoiser.scheduler.log_snr(t), torch.tensor(LOG_SNR_BINS, dtype=torch.float64))
        for index, name in enumerate(noise_bin_names()):
            inside = bins == index
            if inside.any():
                mean = losses[inside.to(losses.device)].mean()
                self.log(f"loss_by_noise/{name}", mean, batch_size=int(inside.sum()), **logging)

    def _losses(
        self, batch: Mapping[str, Tensor], key: tuple, first: int, total: int, drop: float
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x0 = self.codec.encode(batch[self.target])
        count = len(x0)
        t = self.objective.time(stratified_uniform((*key, "time"), first, count, total), self.denoiser.scheduler)
        noise = normal_block((*key, "noise"), first, count, x0.shape[1:], x0.device)
        cond = {name: batch[name] for name in self.condition if name in batch}
        if cond and drop > 0:
            cond["drop"] = (uniform((*key, "drop"), first, count) < drop).to(x0.device)
        return self.objective.loss(self.denoiser, x0, noise, t, cond), t


def noise_bin_names() -> list[str]:
    """Names of the noise-level bins, by their borders in log-SNR, from the most noise to the least."""
    borders = [f"{border:g}" for border in LOG_SNR_BINS]
    middle = [f"log_snr_{low}_to_{high}" for low, high in pairwise(borders)]
    return [f"log_snr_below_{borders[0]}", *middle, f"log_snr_above_{borders[-1]}"]
