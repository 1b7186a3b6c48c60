"""Where the samples of a batch stand among those of all processes."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
from torch import Tensor


def places(module: pl.LightningModule, batch_idx: int, count: int) -> tuple[int, int]:
    """The place of this process's first sample among those of the whole optimizer step, and how many those are.

    The step's samples are dealt to the processes and accumulated batches in slices of `count`, as
    datamodules/order.py deals them.
    """
    trainer = module.trainer
    micro = batch_idx % trainer.accumulate_grad_batches
    slices = trainer.accumulate_grad_batches * trainer.world_size
    return (micro * trainer.world_size + module.global_rank) * count, count * slices


def log_validation(module: pl.LightningModule, name: str, mean: Tensor, batch: Mapping[str, Tensor]) -> None:
    """The mean over the validation split, as val/NAME, of what has this mean over the batch.

    Batches are weighed by their sizes, those of all processes alike; what the data module has filled in has none.
    """
    # Lightning divides the sum of the sizes by the number of processes, and rounds it down to a whole number.
    size = int((batch["id"] >= 0).sum()) * module.trainer.world_size
    module.log(f"val/{name}", mean, on_step=False, on_epoch=True, logger=False, batch_size=size, sync_dist=True)
